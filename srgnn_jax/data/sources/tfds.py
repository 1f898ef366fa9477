"""Any TFDS data set of clicks or of sessions, prepared on disk; needs no TensorFlow.

A record is a click, with features of session, item and time, or a session, with a
sequence of items and beside it one of times, or the one time of them all. Its splits
together are a log, which is prepared like any other. Sessions that have splits train
and test, and validation where there is one, are taken as they are.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from srgnn_jax.data import tfds_records
from srgnn_jax.data.columns import USUAL_NAMES, plain_name
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary, check_rows
from srgnn_jax.data.sources import ready_made, source
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.data.times import TimeColumn
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

# In place of a session, a user will do; the record of a session has many items.
_USUAL = {
    "session": (*USUAL_NAMES["session"], "userid", "user"),
    "item": (*USUAL_NAMES["item"], "items", "itemids", "products", "productids"),
    "time": (*USUAL_NAMES["time"], "times", "timestamps"),
}
_SPLITS = ("train", "validation", "test")


def find_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Finds the files of the data set that is named, dataset_info.json first.

    Without a version, the newest is taken. Raises UserError if it is not there.
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
            f"config.tfds_name is {settings.tfds_name!r}, and {where} holds more than "
            f"one of it; choose one of {', '.join(configs)}"
        )
    chosen = max(found, key=_version)
    info = chosen / "dataset_info.json"
    others = (path for path in chosen.iterdir() if path.is_file() and path != info)
    return [info, *sorted(others)]


def _version(folder: pathlib.Path) -> list[int]:
    return [int(part) if part.isdecimal() else -1 for part in folder.name.split(".")]


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the records and prepares them, or takes the splits that there are."""
    folder = files[0].parent
    with _reading(folder):
        builder = tfds_records.open_folder(folder)
        features = tfds_records.find_features(builder)
        axes = {name: count for name, (count, _) in features.items() if count <= 1}
        found = {"item": _find("item", settings.item_column, axes)}
        is_session = axes[found["item"]] == 1
        if is_session and {"train", "test"} <= {*builder.info.splits}:
            unused = source.RULE_SETTINGS | {"session_column", "time_column"}
            ready_made.refuse(settings, unused, "one of sessions that are split")
            return _read_sessions(builder, found, settings.on_bad_row)
        if is_session:
            ready_made.refuse(settings, ["session_column"], "one of a session a record")
        else:
            axes = {name: count for name, count in axes.items() if not count}
            found["session"] = _find("session", settings.session_column, axes)
        found["time"] = _find("time", settings.time_column, axes)
        sequences = [column for column, name in found.items() if axes[name]]
        clicks, skipped = _read_clicks(
            builder, [*builder.info.splits], found, sequences, settings.on_bad_row
        )
        data = prepare(clicks, as_published=False, **settings.rules, **settings.visits)
    data.counts["skipped_rows"] = skipped
    return data


def _read_sessions(builder: Any, found: Mapping[str, str], on_bad_row: str) -> Dataset:
    """Takes sessions as they are split; of what `data.tfds` wrote, its item rows."""
    splits = [split for split in _SPLITS if split in builder.info.splits]
    clicks, skipped = _read_clicks(builder, splits, found, ["item"], on_bad_row)
    sessions = clicks.group_by("split", "session", maintain_order=True).agg("item")
    of = {split: sessions.filter(split=split)["item"] for split in splits}
    for split, lists in of.items():
        if not len(lists):
            raise UserError(f"its split {split!r} holds no session")
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


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    """Raises one UserError, with the folder, for all that goes wrong with its data."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except Exception as error:  # Damaged files raise nearly anything in TFDS.
        raise UserError(
            f"cannot read {folder} as a TFDS data set ({reason(error)[:200]}); have "
            "TFDS prepare it anew"
        ) from error


def _find(column: str, named: str, axes: Mapping[str, int]) -> str:
    """Returns the feature that holds a column: a value, or a sequence of them.

    One that is not named is found by its usual names; of a/b, that is b.
    """
    plain = {name: plain_name(name.rpartition("/")[2]) for name in axes}
    for wanted in [named] if named else _USUAL[column]:
        matches = [name for name in axes if wanted == (name if named else plain[name])]
        if len(matches) == 1:
            return matches[0]
        if matches:
            break
    what = f"{column} feature {named!r}" if named else f"{column} feature"
    raise UserError(
        f"{'more than one' if matches else 'no'} {what} among "
        f"{', '.join(map(repr, axes))[:600]}; name it with --config.{column}_column"
    )


def _read_clicks(
    builder: Any,
    splits: list[str],
    found: Mapping[str, str],
    sequences: list[str],
    on_bad_row: str,
) -> tuple[pl.DataFrame, int]:
    """Reads records as clicks: columns split, session, item and, where found, time.

    The columns among `sequences` have a value for each click of a record, the others
    one for all. A record with a value that cannot be read is skipped as a whole, or
    raises a UserError. Returns the number of those, too.
    """
    records = pl.concat(
        [tfds_records.read_split(builder, split, found) for split in splits]
    )
    key = ["split", "number"]
    scalars = [column for column in found if column not in sequences]
    clicks = records.with_columns(pl.col(column).list.first() for column in scalars)
    bad = []
    if sequences:
        # A session without a click is none.
        clicks = clicks.filter(pl.col("item").list.len() > 0)
        lengths = [pl.col(column).list.len() for column in sequences]
        is_even = lengths[0] == lengths[-1]
        fault = "its items and its times are not as many"
        bad.append(clicks.filter(~is_even).select(*key, fault=pl.lit(fault)))
        clicks = clicks.filter(is_even).explode(sequences)
    ids = [column for column in found if column != "time"]
    clicks = clicks.with_columns(pl.col(*ids).cast(pl.String))
    if "time" in found:
        time = TimeColumn()(clicks["time"], clicks["number"], "record")
        clicks = clicks.with_columns(time.alias("time"))
    for column, name in found.items():
        value = pl.col(column)
        is_good = value.is_not_null()
        if column != "time":
            is_good &= value.str.contains(r"[^\s]") & ~value.str.contains("\ufffd")
        fault = f"the {column} is empty, or cannot be read (feature {name!r})"
        bad.append(clicks.filter(~is_good).select(*key, fault=pl.lit(fault)))
    faults = pl.concat(bad).unique(key, keep="first", maintain_order=True)
    if len(faults) and on_bad_row == "error":
        split, number, fault = faults.row(0)
        raise UserError(
            f"split {split!r}, record {number}: {fault}; mend it, or drop such records "
            "with --config.on_bad_row=skip"
        )
    if len(faults):
        clicks = clicks.join(faults, on=key, how="anti", maintain_order="left")
    if not len(clicks):
        raise UserError(f"it holds no clicks, and {len(faults)} malformed records")
    if sequences:
        clicks = clicks.with_columns(session=pl.format("{} {}", *key))
    return clicks, len(faults)
