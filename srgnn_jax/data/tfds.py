"""The sources as TFDS builders; importing this registers them with TFDS.

    import tensorflow_datasets as tfds
    import srgnn_jax.data.tfds

    builder = tfds.builder("yoochoose")

A record is a session: {"items": int32 item rows in time order}. Metadata holds the
vocabulary (`item_ids`, that of row 1 first), the counts, and the splits whose sessions
are given (prefix, target) pairs (`last_only`). TensorFlow is neither needed nor
imported: records are array_record files, read through `as_data_source`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from srgnn_jax.data import store
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.data.sources import SOURCES, Settings


@dataclasses.dataclass(eq=False, kw_only=True)
class PreparationConfig(Settings, tfds.core.BuilderConfig):
    """The settings of a source, as TFDS takes them."""

    name: str = "default"


class SessionsBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Writes the records of a source from the prepared store."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[PreparationConfig]] = []

    def __init_subclass__(cls, source: str = "", **kwargs: Any):
        """Takes over what the source's module says."""
        if source:
            cls.name = source
            cls.MANUAL_DOWNLOAD_INSTRUCTIONS = SOURCES[source].INSTRUCTIONS or None
            cls.BUILDER_CONFIGS = [
                PreparationConfig(name=name, **dataclasses.asdict(preset))
                for name, preset in SOURCES[source].PRESETS.items()
            ]
        super().__init_subclass__(**kwargs)

    def __init__(
        self,
        *,
        file_format: str = "array_record",
        prepared_dir: str = "",
        **kwargs: Any,
    ):
        """Takes what TFDS builders do, and where the prepared store lies.

        Args:
          file_format: of the records; TFDS's own default needs TensorFlow.
          prepared_dir: as `config.prepared_dir`; empty: `store.DEFAULT_DIR`.
          **kwargs: see `tfds.core.GeneratorBasedBuilder`.
        """
        self._prepared_dir = pathlib.Path(prepared_dir or store.DEFAULT_DIR)
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {"items": tfds.features.Tensor(shape=(None,), dtype=np.int32)}
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        folder = pathlib.Path()
        if self.MANUAL_DOWNLOAD_INSTRUCTIONS:
            folder = pathlib.Path(dl_manager.manual_dir)
        config = self.builder_config
        settings = {
            f.name: getattr(config, f.name) for f in dataclasses.fields(Settings)
        }
        data = store.load_dataset(
            self.name,
            data_dir=folder,
            prepared_dir=self._prepared_dir.expanduser(),
            **settings,
        )
        splits = data.splits
        self.info.metadata["item_ids"] = data.vocabulary.ids
        self.info.metadata["counts"] = data.counts
        self.info.metadata["last_only"] = [s for s in splits if splits[s].last_only]
        return {
            split: self._generate_examples(sessions)
            for split, sessions in splits.items()
        }

    def _generate_examples(self, sessions: Sessions) -> Iterator[tuple[int, dict]]:
        for s in range(len(sessions)):
            yield s, {"items": sessions[s]}


for _name, _source in SOURCES.items():
    type(
        _name.title().replace("_", ""),
        (SessionsBuilder,),
        {"__doc__": _source.__doc__, "__module__": __name__},
        source=_name,
    )
