"""The sources as TFDS builders; importing this module registers them with TFDS.

    import tensorflow_datasets as tfds
    import srgnn_jax.data.tfds

    builder = tfds.builder("yoochoose")

A record is a session: {"items": int32 item rows in time order}. The metadata holds the
vocabulary (`item_ids`, starting with row 1), the counts, and the splits whose sessions
are given (prefix, target) pairs (`last_only`). TensorFlow is neither needed nor
imported: records are in array_record files, and are read with `as_data_source`.
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
    """Writes the records of a source from the prepared store.

    `prepared_dir` is as in a config; `file_format` is as in TFDS, whose own default
    needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[PreparationConfig]] = []

    def __init__(
        self,
        *,
        file_format: str = "array_record",
        prepared_dir: str = "",
        **kwargs: Any,
    ):
        self._prepared_dir = pathlib.Path(prepared_dir or store.DEFAULT_DIR)
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        items = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"items": items}),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        config = self.builder_config
        needs_files = self.MANUAL_DOWNLOAD_INSTRUCTIONS
        data = store.load_dataset(
            self.name,
            data_dir=pathlib.Path(dl_manager.manual_dir if needs_files else ""),
            prepared_dir=self._prepared_dir.expanduser(),
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(Settings)},
        )
        splits = data.splits
        self.info.metadata["item_ids"] = data.vocabulary.ids
        self.info.metadata["counts"] = data.counts
        self.info.metadata["last_only"] = [s for s in splits if splits[s].last_only]
        return {split: self._generate_examples(s) for split, s in splits.items()}

    def _generate_examples(self, sessions: Sessions) -> Iterator[tuple[int, dict]]:
        for s in range(len(sessions)):
            yield s, {"items": sessions[s]}


for _name, _source in SOURCES.items():
    _configs = [
        PreparationConfig(name=name, **dataclasses.asdict(preset))
        for name, preset in _source.PRESETS.items()
    ]
    # TFDS names a builder after its class: srgnn_pickles is SrgnnPickles.
    _contents = {
        "__doc__": _source.__doc__,
        "__module__": __name__,
        "BUILDER_CONFIGS": _configs,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": _source.INSTRUCTIONS or None,
    }
    type(_name.title().replace("_", ""), (SessionsBuilder,), _contents)
