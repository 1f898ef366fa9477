"""Any TFDS data set of clicks or of sessions, prepared on disk; needs no TensorFlow.

A record is a click, with features for session, item and time, or a session, with a
sequence of items and either a sequence of times or one time for all. The splits
together are one log, which is prepared like any other. Sessions in splits train, test
and, optionally, validation are used as they are.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from srgnn_jax.data import tfds_records
from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary, check_rows
from srgnn_jax.data.sources import ready_made, source
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.errors import UserError, reason

INSTRUCTIONS = (
    "Have TFDS prepare a data set there, as in its own data_dir, and name it with "
    "config.tfds_name, such as movielens/100k-ratings."
)
FILES = ()
SETTINGS = (
    source.COLUMN_SETTINGS
    | source.RULE_SETTINGS
    | source.VISIT_SETTINGS
    | {"tfds_name", "on_bad_row"}
)
PRESETS = {"default": Settings()}

log = logging.getLogger(__name__)


def find_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Finds the files of the named data set, dataset_info.json first.

    Without a version, the newest is used. Raises UserError if there is none.
    """
    where = f"config.data_dir = {str(folder)!r}"
    name, _, version = settings.tfds_name.partition(":")
    if not name:
        raise UserError(f"config.tfds_name is empty. {INSTRUCTIONS}")
    infos = sorted((folder / name).glob("**/dataset_info.json"))
    found = [path.parent for path in infos if version in ("", path.parent.name)]
    if not found:
        raise UserError(
            f"{settings.tfds_name!r} is not prepared in {where}; prepare it in Python: "
            f"tensorflow_datasets.builder({settings.tfds_name!r}, data_dir="
            f"{str(folder)!r}, file_format='array_record').download_and_prepare()"
        )
    configs = sorted({str(path.parent.relative_to(folder)) for path in found})
    if len(configs) > 1:
        raise UserError(
            f"config.tfds_name is {settings.tfds_name!r}, and {where} holds several of "
            f"that name; choose one of {', '.join(configs)}"
        )
    chosen = max(found, key=_version)
    info = chosen / "dataset_info.json"
    others = (path for path in chosen.iterdir() if path.is_file() and path != info)
    return [info, *sorted(others)]


def _version(folder: pathlib.Path) -> list[int]:
    return [int(part) if part.isdecimal() else -1 for part in folder.name.split(".")]


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the records and prepares them, or uses the splits as they are."""
    folder = files[0].parent
    try:
        builder = tfds_records.open_folder(folder)
        # Only values and lists of values; a/b is named a.b here.
        features = tfds_records.find_features(builder)
        axes = {n.replace("/", "."): k for n, (k, _) in features.items() if k <= 1}
        columns = settings.form.columns
        named = [name.replace("/", ".") for name in vars(columns).values()]
        own = dataclasses.replace(
            settings.form, columns=Columns(*named), of_visitors=True, needs_time=False
        )
        found = own.names(
            {name: bool(count) for name, count in axes.items()}, "features"
        )
        if axes[found["item"]] == 1:
            what = "stored as one session per record"
            ready_made.refuse(settings, ["session_column"], what)
            found.pop("session", None)
            if {"train", "test"} <= {*builder.info.splits}:
                unused = source.RULE_SETTINGS | source.VISIT_SETTINGS | {"time_column"}
                ready_made.refuse(settings, unused, "in ready-made splits of sessions")
                return _read_sessions(builder, found["item"], own)
        frames = _frames(builder, [*builder.info.splits], found, axes)
        usual = dataclasses.replace(settings.form, columns=Columns())
        clicks, counts = read_clicks(frames, usual)
        data = prepare(clicks, as_published=False, **settings.rules, **settings.visits)
        data.counts.update(counts)
        return data
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except Exception as error:  # Damaged files raise nearly anything in TFDS.
        raise UserError(
            f"cannot read {folder} as a TFDS data set ({reason(error)[:200]}); have "
            "TFDS prepare it again"
        ) from error


def _frames(
    builder: Any, splits: list[str], found: Mapping[str, str], axes: Mapping[str, int]
) -> dict[str, pl.DataFrame]:
    """Returns the records of each split, with features named after their columns."""
    wanted = {column: name.replace(".", "/") for column, name in found.items()}
    values = [
        pl.col(column).list.first() for column, name in found.items() if not axes[name]
    ]
    return {
        f"split {split!r}": tfds_records.read_split(
            builder, split, wanted
        ).with_columns(values)
        for split in splits
    }


def _read_sessions(builder: Any, item: str, form: Form) -> Dataset:
    """Reads sessions that are split; keeps the item rows that `data.tfds` wrote."""
    form = dataclasses.replace(form, columns=Columns())
    of, skipped = {}, 0
    order = ["train", *ready_made.VALIDATION, "test"]
    if unused := {*builder.info.splits} - {*order}:
        log.warning("the splits %s are not read", ", ".join(sorted(unused)))
    for name in sorted({*builder.info.splits} - unused, key=order.index):
        split = "validation" if name in ready_made.VALIDATION else name
        if split in of:
            raise UserError(f"{name!r} is a second validation split; keep only one")
        ((where, frame),) = _frames(builder, [name], {"item": item}, {item: 1}).items()
        frame = frame.filter(pl.col("item").list.len() > 0)
        clicks, counts = read_clicks({where: frame}, form)
        sessions = clicks.group_by("session", maintain_order=True).agg("item")
        of[split] = sessions["item"].cast(pl.List(pl.String))
        skipped += counts["skipped_rows"]
    metadata = dict(builder.info.metadata or {})
    if {"item_ids", "counts", "last_only"} <= metadata.keys():
        vocabulary, parts = Vocabulary(metadata["item_ids"]), {}
        for split, lists in of.items():
            rows = lists.explode().cast(pl.Int32).to_numpy()
            check_rows(rows, vocabulary.num_items)
            lengths = lists.list.len().cast(pl.Int64).to_numpy()
            last_only = split in metadata["last_only"]
            parts[split] = Sessions.from_lengths(rows, lengths, last_only)
        data = Dataset(parts, vocabulary, dict(metadata["counts"]))
    else:
        data = ready_made.number_items(of, [], last_only=False)
    data.counts["skipped_rows"] = skipped
    return data
