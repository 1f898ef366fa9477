"""RecBole's ready-made splits: NAME.train.inter, NAME.valid.inter, NAME.test.inter.

Each row is an example: item_id_list is the prefix, its ids separated by spaces, and
item_id the target. RecBole reads such files with `benchmark_filename: [train, valid,
test]` and `alias_of_item_id: [item_id_list]`. It keeps all clicks of a prefix, so
comparable results need config.max_session_length = 0. `recbole` is the source.
"""

import pathlib

import polars as pl

from srgnn_jax.data.files import open_text, reading
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import ready_made, source
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.data.text import Layout, as_meant, text_chunks
from srgnn_jax.errors import UserError

# The settings for reading a log that splits use.
_USED = {"encoding", "item_column", "log_file", "on_bad_row", "separator"}
# The split of a file by its name, as in shop.train.inter.
SPLITS = {
    ".train": "train",
    ".valid": "validation",
    ".validation": "validation",
    ".test": "test",
}


def split_of(path: pathlib.Path) -> str:
    """Returns the split that a file's name gives, or nothing."""
    is_inter = path.suffix == ".inter"
    return SPLITS.get(path.with_suffix("").suffix, "") if is_inter else ""


def find_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Finds the splits in the folder, or those that `settings.log_file` is part of.

    Returns the files for training, for validation if there is one, and for test;
    nothing if there are no splits. Raises UserError if one is missing, or there are
    several data sets.
    """
    where = f"config.data_dir = {str(folder)!r}"
    paths = sorted(folder.glob("*.inter"))
    if settings.log_file:
        paths = [folder / settings.log_file]
    if not any(map(split_of, paths)):
        return []
    names = {p.with_suffix("").stem if split_of(p) else p.name: p for p in paths}
    if len(names) > 1:
        raise UserError(
            f"more than one data set in {where} ({', '.join(names)}); name a file of "
            "one with config.log_file"
        )
    ((name, beside),) = names.items()
    found: dict[str, pathlib.Path] = {}
    for ending, split in SPLITS.items():
        path = beside.with_name(f"{name}{ending}.inter")
        if path.is_file():
            found.setdefault(split, path)
    for split in ("train", "test"):
        if split not in found:
            raise UserError(
                f"no file {name}.{split}.inter in {where}: RecBole's ready-made splits "
                f"are {name}.train.inter, {name}.test.inter and, optionally, "
                f"{name}.valid.inter"
            )
    return [*found.values()]


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the examples, and numbers the items as RecBole does.

    It numbers them by first appearance: first in the targets of all splits, then in
    their prefixes. So items that are in no training example have a row, too.
    """
    unused = source.LOG_SETTINGS - _USED
    ready_made.refuse(settings, unused, "RecBole's ready-made splits")
    rows, skipped = {}, 0
    for path in files:
        rows[split_of(path)], bad = _read_rows(path, settings)
        skipped += bad
    data = ready_made.number_items(
        {split: part["clicks"] for split, part in rows.items()},
        [part["target"] for part in rows.values()],
        last_only=True,
    )
    data.counts["skipped_rows"] = skipped
    return data


def _read_rows(path: pathlib.Path, settings: Settings) -> tuple[pl.DataFrame, int]:
    """Returns columns target and clicks (prefix, target), and how many rows are bad."""
    separator = as_meant(settings.separator) or "\t"
    with reading(path), open_text(path, settings.encoding) as file:
        names = file.readline().rstrip("\r\n").split(separator)
    columns = [name.split(":")[0].strip() for name in names]
    target = settings.item_column.split(":")[0] or "item_id"
    for column in (target, f"{target}_list"):
        if columns.count(column) != 1:
            raise UserError(
                f"{path}, line 1: {'more than one' if column in columns else 'no'} "
                f"column {column!r} among {', '.join(map(repr, names))[:600]}; "
                "RecBole's ready-made splits have a column of targets, which "
                "config.item_column may name, and one of prefixes, with the same name "
                "and _list after it"
            )
    layout = Layout(names, separator, quoting="none", encoding=settings.encoding)
    position = {
        "target": columns.index(target),
        "prefix": columns.index(f"{target}_list"),
    }
    rows = pl.concat(text_chunks(path, layout, position)).with_columns(
        pl.col("prefix").str.strip_chars(" ").str.replace_all(" +", " "),
        fault=pl.when(pl.col("fault").is_not_null())
        .then("fault")
        .when(pl.col("prefix").str.strip_chars() == "")
        .then(pl.lit("there is no item before the target"))
        .when(pl.col("target").str.strip_chars() == "")
        .then(pl.lit("the target is empty")),
    )
    bad = rows.filter(pl.col("fault").is_not_null())
    if len(bad) and settings.on_bad_row == "error":
        raise UserError(
            f"{path}, line {bad['number'][0]}: {bad['fault'][0]}; fix it, or drop "
            "such rows with --config.on_bad_row=skip"
        )
    if len(bad) == len(rows):
        raise UserError(f"{path} holds no examples, only {len(bad)} malformed rows")
    clicks = pl.concat_list(pl.col("prefix").str.split(" "), "target")
    good = rows.filter(pl.col("fault").is_null())
    return good.select("target", clicks=clicks), len(bad)
