"""The page on own data: each form in its table is read as it says; its code runs."""

import ast
import bz2
import gzip
import lzma
import pathlib
import re
import shlex

import polars as pl
import pyarrow as pa
import pytest

from srgnn_jax.configs import click_log as click_log_config
from srgnn_jax.data.sources import Settings, click_log, find_files
from tests.test_cases import CLICKS, by_session, iso, write
from tests.test_dirty_logs import same
from tests.tiny import tiny_config

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
(FORMS,) = re.findall(r"^\| form .*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
ROWS = re.findall(r"^\| (.*?) \| (.*) \|(.*)\|$", FORMS, re.MULTILINE)
FRAME = pl.DataFrame(CLICKS, ["session_id", "item_id", "timestamp"], orient="row")


def settings_of(cell):
    """Returns the settings that a cell names, as the shell hands them on."""
    flags = [flag.removeprefix("--config.") for flag in shlex.split(cell.strip(" `"))]
    told = (flag.split("=", 1) for flag in flags)
    return {name: value_of(name, value) for name, value in told}


def value_of(name, value):
    if isinstance(getattr(Settings(), name), str):
        return value
    return ast.literal_eval(value)


def read(folder, settings=None):
    config = Settings(**settings or {})
    return click_log.read(find_files(click_log, folder, config), config)


def rows(header, row, name="log.csv", of=CLICKS):
    return lambda folder: write(folder, name, header, row, of)


def packed(folder):
    for n, pack in enumerate((gzip.compress, bz2.compress, lzma.compress, zstd)):
        path = write(folder, f"part-{n}.csv", of=CLICKS[n::4])
        path.write_bytes(pack(path.read_bytes()))


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


def parquet(folder):
    folder.mkdir(exist_ok=True)
    ids = pl.col("item_id").cast(pl.String).cast(pl.Categorical)
    FRAME.with_columns(ids, pl.col("session_id").cast(pl.Float64)).write_parquet(
        folder / "log.parquet"
    )


def lists(folder):
    values = [(s, *map(list, zip(*c, strict=True))) for s, c in by_session().items()]
    text = [f"{s};{' '.join(map(str, i))};{t[0]}" for s, i, t in values[1::2]]
    names = ["session_id", "item_id_list", "timestamp"]
    frame = pl.DataFrame(values[::2], names, orient="row")
    frame.write_parquet(folder / "a.parquet")
    (folder / "b.csv").write_text("\n".join([";".join(names), *text]))


def parts(folder):
    for n in range(3):
        header = "" if n else "session_id,item_id,timestamp"
        write(folder, f"day={n}/part.csv", header, of=CLICKS[n::3])


def several(folder):
    write(folder, "clicks-1.csv", of=CLICKS[::2])
    write(folder, "clicks-2.csv", of=CLICKS[1::2])
    write(folder, "carts.csv", "session,item,time,price", lambda *c: f"{c},1")


def dates(folder):
    write(folder / "iso", row=lambda s, i, t: f"{s},{i},{iso(t)[:10]}")
    write(folder / "number", row=lambda s, i, t: f"{s},{i},{iso(t, '%Y%m%d')}")
    assert same(read(folder / "iso"), read(folder / "number"))
    write(folder / "seconds", row=lambda s, i, t: f"{s},{i},{t - t % 86_400}")
    assert same(read(folder / "iso"), read(folder / "seconds"))


def splits(folder):
    write(folder, "train.csv", of=CLICKS[:90])
    write(folder, "test.csv", of=CLICKS[90:])


def by_visitor(s, i, t):
    return f"{s % 6},{i},{t}"


HEADER = "session_id,item_id,timestamp"
MORE = "session_id,item_id,timestamp,event"
# Makes a log of the form; the clicks are those of the plain csv, but where `OTHERS` has
# what the counts are.
MAKE = {
    "csv and similar formats": rows(
        "SessionId::ItemId::Time", lambda *c: "::".join(map(str, c))
    ),
    "another separator": rows("session item time", lambda *c: " ".join(map(str, c))),
    "no header": rows("", lambda s, i, t: f"{s},{i},{t}"),
    "your own column names": rows("visit,code,at", None),
    "quotes that are text": rows(HEADER, lambda s, i, t: f'{s},"{i},{t}'),
    "another encoding": rows(HEADER, lambda s, i, t: f"{s},é{i},{t}"),
    "compressed files": packed,
    "parquet": parquet,
    "JSON lines": rows(
        "", lambda s, i, t: f'{{"ts": {t}, "item": {i}, "session": {s}}}'
    ),
    "nested fields": rows(
        "", lambda s, i, t: f'{{"product": {{"code": {i}}}, "ts": {t}, "session": {s}}}'
    ),
    "one session per row": lists,
    "parts of one log": parts,
    "one log among several": several,
    "ready-made splits": splits,
    "numbers as times": rows(HEADER, lambda s, i, t: f"{s},{i},{t}000000000"),
    "numbers in mixed units": rows(
        HEADER, lambda s, i, t: f"{s},{i},{t * (1000 if s % 2 else 1)}"
    ),
    "spreadsheet days": rows(
        HEADER, lambda s, i, t: f"{s},{i},{t / 86_400 + 25_569:.9f}"
    ),
    "dates": dates,
    "ISO times": rows(
        HEADER,
        lambda s, i, t: f"{s},{i},{iso(t + 7200, '%Y-%m-%d %H:%M:%S')}.000+02:00",
    ),
    "times in another format": rows(
        HEADER, lambda s, i, t: f"{s},{i},{iso(t, '%d/%m/%Y %H:%M')}"
    ),
    "day and time in two columns": rows(
        "session_id,item_id,on,time",
        lambda s, i, t: f"{s},{i},{iso(t, '%Y-%m-%d,%H:%M:%S')}",
    ),
    "an order instead of times": rows(
        "session_id,item_id,on,place",
        lambda s, i, t: f"{s},{i},{iso(t)[:10]},{t % 10**6}",
    ),
    "visitors, not visits": rows("visitorid,itemid,timestamp", by_visitor),
    "one visit per day": rows("visitorid,itemid,timestamp", by_visitor),
    "views among other events": rows(
        MORE, lambda s, i, t: f"{s},{i},{t},{'view' if s % 5 else 'buy'}"
    ),
    "repeated clicks": rows(HEADER, None, of=[c for c in CLICKS for _ in range(2)]),
    "robots": rows(
        HEADER, None, of=[*CLICKS, *((99, 1001, CLICKS[0][2] + n) for n in range(99))]
    ),
    "rows without an id": rows(
        HEADER, lambda s, i, t: f"{s},{i if s % 5 else 'NULL'},{t}"
    ),
    "another missing value": rows(
        HEADER, lambda s, i, t: f"{s},{i if s % 5 else '-'},{t}"
    ),
}
_FIFTH = sum(session % 5 == 0 for session, *_ in CLICKS)
_DAYS = len({(s % 6, iso(t)[:10]) for s, _, t in CLICKS})
OTHERS = {
    "quotes that are text": {"raw_clicks": len(CLICKS), "skipped_rows": 0},
    "another encoding": {"raw_clicks": len(CLICKS), "items": 6},
    "dates": None,
    "ready-made splits": {"raw_clicks": len(CLICKS), "train_sessions": 30},
    "times in another format": {"raw_clicks": len(CLICKS), "skipped_rows": 0},
    "an order instead of times": {"raw_clicks": len(CLICKS), "skipped_rows": 0},
    "one visit per day": {"raw_clicks": len(CLICKS)},
    "views among other events": {
        "event_buy": _FIFTH,
        "event_view": len(CLICKS) - _FIFTH,
    },
    "repeated clicks": {"repeated_clicks": len(CLICKS)},
    "robots": {"long_sessions": 1, "raw_clicks": len(CLICKS) + 99},
    "rows without an id": {"skipped_rows": _FIFTH},
    "another missing value": {"skipped_rows": _FIFTH},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write(folder)
    return read(folder)


def test_every_form_of_the_page_is_tried():
    assert {form for form, *_ in ROWS} == set(MAKE)


@pytest.mark.parametrize(("form", "cell"), [(form, cell) for form, _, cell in ROWS])
def test_a_form_of_the_page(tmp_path, plain, form, cell):
    MAKE[form](tmp_path)
    expected = OTHERS.get(form, {})
    if expected is None:
        return
    data = read(tmp_path, settings_of(cell))
    if not expected:
        assert same(data, plain)
    assert {name: data.counts[name] for name in expected} == expected
    if cell.strip():
        # Without the setting it is something else, or refused.
        assert not is_read_alike(tmp_path, data)


def is_read_alike(folder, data):
    try:
        return same(read(folder), data)
    except Exception:
        return False


@pytest.mark.slow
def test_the_notebook_of_the_page(tmp_path, monkeypatch):
    (code,) = (
        c for c in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "Clicks" in c
    )
    config = tiny_config(tmp_path)
    config.epochs = 1
    monkeypatch.setattr(click_log_config, "get_config", lambda: config)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    found = names["found"]
    assert found["session"].n_unique() == 270
    assert found.filter(session="0")["rank"].to_list() == [1, 2, 3, 4, 5]
