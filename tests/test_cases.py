"""Logs that users brought, and the right result for each."""

import gzip
import io
import json
import pathlib
import re
from collections import Counter

import polars as pl
import pytest

from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.sources import (
    Settings,
    click_log,
    diginetica,
    find_files,
    recbole,
)
from srgnn_jax.data.times import TimeColumn
from srgnn_jax.errors import UserError
from srgnn_jax.serve.inputs import read_sessions
from tests.forms import EPOCH, datetime
from tests.test_dirty_logs import same

START = 1_709_268_811  # 2024-03-01T04:53:31
CLICKS = [
    (session, 1001 + (session + place) % 6, START + session * 14_400 + place * 137)
    for session in range(1, 61)
    for place in range(2 + session % 3)
]
SHARED = pathlib.Path(__file__).parents[2] / "shared" / "cases"


def iso(second, form="%Y-%m-%dT%H:%M:%SZ"):
    return (EPOCH + datetime.timedelta(seconds=second)).strftime(form)


def write(
    folder, name="log.csv", header="session_id,item_id,timestamp", row=None, of=CLICKS
):
    """Writes clicks as text, one per line, formatted by `row`."""
    row = row or (lambda s, i, t: f"{s},{i},{t}")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header] * bool(header) + [row(*click) for click in of]
    path.write_bytes("\n".join([*lines, ""]).encode("cp1252"))
    return path


def read(folder, source=click_log, **settings):
    config = Settings(**settings)
    return source.read(find_files(source, folder, config), config)


def error_of(folder, **settings):
    with pytest.raises(UserError) as error:
        read(folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def sessions_of(source, **settings):
    """Returns the sessions that recommending reads from a file or a pipe."""
    entries = read_sessions(source, "x", Settings(**settings))
    return [ids for chunk in entries for ids, _ in chunk]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The data set of the clicks, read from csv."""
    folder = tmp_path_factory.mktemp("plain")
    write(folder)
    data = read(folder)
    assert data.counts["raw_clicks"] == len(CLICKS)
    return data


def test_the_header_of_the_diginetica_challenge(tmp_path):
    def row(s, i, t):
        return f"{s};NA;{i};{t % 10**6};{iso(t)[:10]}"

    headers = ("sessionId;userId;itemId", "session_id;user_id;item_id")
    of = [
        read(
            write(
                tmp_path / str(n),
                "train-item-views.csv",
                f"{h};timeframe;eventdate",
                row,
            ).parent,
            diginetica,
        )
        for n, h in enumerate(headers)
    ]
    assert same(*of)


ORDERS = {
    "as visited": lambda: CLICKS,
    "newest first": lambda: CLICKS[::-1],
    "mixed": lambda: [CLICKS[n * 37 % len(CLICKS)] for n in range(len(CLICKS))],
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_rows_is_no_information(tmp_path, plain, order):
    of = ORDERS[order]()
    assert Counter(of) == Counter(CLICKS)
    write(tmp_path, of=of)
    assert same(read(tmp_path), plain)


def test_recommending_reads_the_columns_that_training_read(tmp_path):
    header = "timestamp,visitorid,event,itemid,transactionid"
    path = write(
        tmp_path, "events.csv", header, lambda s, i, t: f"{t}000,{s},view,{i},"
    )
    assert "--config.session_column=visitorid" in error_of(tmp_path)
    found = sessions_of(path, session_column="visitorid")
    assert len(found) == 60
    assert found[0] == [str(i) for s, i, _ in CLICKS if s == 1]
    # Also from a pipe, and if the columns have other names than in training.
    assert (
        sessions_of(io.BytesIO(path.read_bytes()), session_column="visitorid") == found
    )
    other = write(tmp_path, "other.csv")
    assert sessions_of(other, session_column="visitorid") == found


def test_spaces_after_commas(tmp_path, plain):
    path = write(
        tmp_path,
        header="session_id, item_id, timestamp",
        row=lambda *click: ", ".join(map(str, click)),
    )
    assert same(read(tmp_path), plain)
    assert sessions_of(path)[0] == [str(i) for s, i, _ in CLICKS if s == 1]


@pytest.mark.parametrize("word", ["NULL", "\\N", "nan", "", "None"])
def test_words_for_no_session(tmp_path, word):
    write(tmp_path, row=lambda s, i, t: f"{s if s % 3 else word},{i},{t}")
    missing = sum(s % 3 == 0 for s, *_ in CLICKS)
    assert "counts as missing" in error_of(tmp_path) or not word
    counts = read(tmp_path, on_bad_row="skip").counts
    assert counts["skipped_rows"] == missing
    assert counts["raw_clicks"] == len(CLICKS) - missing
    kept = read(tmp_path, missing_values=("-",), on_bad_row="skip")
    # It is an id if the config says so.
    assert kept.counts["skipped_rows"] == (0 if word else missing)


@pytest.mark.parametrize("column", ["session_id", "item_id"])
def test_nan_among_ids(tmp_path, column):
    frame = pl.DataFrame(CLICKS, ["session_id", "item_id", "timestamp"], orient="row")
    chosen = pl.col(column) % 3 == 0
    missing = frame.filter(chosen).height
    frame = frame.with_columns(
        pl.when(chosen).then(float("nan")).otherwise(pl.col(column)).alias(column)
    )
    frame.write_parquet(tmp_path / "log.parquet")
    assert "'nan' counts as missing" in error_of(tmp_path)
    data = read(tmp_path, on_bad_row="skip")
    assert data.counts["skipped_rows"] == missing
    assert all(re.fullmatch(r"\d{4}", raw) for raw in data.vocabulary.ids)


@pytest.mark.parametrize("first", ["s", "ms"])
def test_a_tracker_that_changed_its_unit(tmp_path, plain, first):
    def row(s, i, t):
        return f"{s},{i},{t * (1 if (s < 40) == (first == 's') else 1000)}"

    write(tmp_path, row=row)
    line = 2 + sum(s < 40 for s, *_ in CLICKS)
    assert re.search(rf"line {line}: .*--config\.time_unit=any", error_of(tmp_path))
    assert same(read(tmp_path, time_unit="any"), plain)


def test_a_number_in_another_unit_is_compared_with_one_in_the_usual_unit(tmp_path):
    first = CLICKS[0][2]
    write(tmp_path, row=lambda s, i, t: f"{s},{i},{t * (1000 if t == first else 1)}")
    assert re.search(
        "line 2: .* milliseconds, .* line 3, is in seconds", error_of(tmp_path)
    )


def test_json_lines_whatever_the_file_is_called(tmp_path):
    path = tmp_path / "sessions.txt"
    path.write_text('{"session": ["1001", "1002"]}\n{"session": ["1003"]}\n')
    assert sessions_of(path) == [["1001", "1002"], ["1003"]]


def test_daily_dates_lose_no_day(tmp_path):
    write(
        tmp_path,
        header="session_id,item_id,date",
        row=lambda s, i, t: f"{s},{i},{iso(t)[:10]}",
    )
    counts = read(tmp_path).counts
    last = max(iso(t)[:10] for *_, t in CLICKS)
    tested = {s for s, _, t in CLICKS if iso(t)[:10] == last}
    assert counts["test_sessions"] == len(tested)
    assert counts["train_sessions"] == 60 - len(tested)
    assert counts["edge_sessions"] == 0


def test_quotes_in_a_table_of_tabs_are_text(tmp_path, plain):
    titles = ['12" Mix', '"Heroes', "Plain", '"', 'end"', '"Heroes"']
    write(
        tmp_path,
        "plays.tsv",
        "session_id\ttimestamp\tartist_id\titem_id\ttrack_name",
        lambda s, i, t: f"{s}\t{iso(t)}\t\t{i}\t{titles[t // 137 % 6]}",
    )
    assert same(read(tmp_path), plain)


def test_another_encoding_in_a_column_that_is_not_read(tmp_path, plain):
    header = "session_id,item_id,timestamp,title"
    path = write(tmp_path, header=header, row=lambda s, i, t: f"{s},{i},{t},Café")
    assert b"Caf\xe9" in path.read_bytes()
    assert same(read(tmp_path), plain)


def test_no_header(tmp_path, plain):
    write(tmp_path, "u.data", "", lambda s, i, t: f"{s}\t{i}\t3\t{t}")
    message = error_of(tmp_path)
    advice = "--config.header=none --config.session_column=1 --config.item_column=2"
    assert "line 1: " in message
    assert f"{advice} --config.time_column=4" in message
    numbers = {"session_column": "1", "item_column": "2", "time_column": "4"}
    assert same(read(tmp_path, header="none", **numbers), plain)


@pytest.mark.parametrize("separator", ["", "::"])
def test_two_colons(tmp_path, plain, separator):
    write(
        tmp_path,
        "ratings.dat",
        "session_id::item_id::rating::timestamp",
        lambda s, i, t: f"{s}::{i}::3::{t}",
    )
    assert same(read(tmp_path, separator=separator), plain)


# Times of each form, and the seconds that they are rounded to.
TIMES = {
    "20240301": (lambda t: iso(t, "%Y%m%d"), 86_400),
    "202403011230": (lambda t: iso(t, "%Y%m%d%H%M"), 60),
    "a spreadsheet's": (lambda t: f"{t / 86_400 + 25_569:.9f}", 1),
}


@pytest.mark.parametrize("form", TIMES)
def test_dates_as_numbers(tmp_path, form):
    form, step = TIMES[form]
    write(tmp_path / "numbers", row=lambda s, i, t: f"{s},{i},{form(t)}")
    write(tmp_path / "seconds", row=lambda s, i, t: f"{s},{i},{t - t % step}")
    assert same(read(tmp_path / "numbers"), read(tmp_path / "seconds"))


@pytest.mark.parametrize("column", ["", "date"])
def test_the_day_and_the_time_of_day_in_two_columns(tmp_path, plain, column):
    header = "session_id,item_id,date,time"
    write(
        tmp_path,
        header=header,
        row=lambda s, i, t: f"{s},{i},{iso(t, '%Y-%m-%d,%H:%M:%S')}",
    )
    assert same(read(tmp_path, date_column=column), plain)


def test_a_suffix_in_upper_case(tmp_path, plain):
    write(tmp_path, "EXPORT.CSV")
    assert same(read(tmp_path), plain)


def test_a_folder_that_is_none(tmp_path, plain):
    path = write(tmp_path)
    assert "does not exist" in error_of(tmp_path / "nowhere")
    message = error_of(path)
    assert f"name its folder, '{tmp_path}', and --config.log_file=log.csv" in message


PARTS = {
    "BigQuery": "clicks-{:012}.csv.gz",
    "Spark": "part-{:05}-c1a2.csv",
    "hive": "event_date=2024-03-{:02}/part-0.csv",
    "a folder with a file's name": "log.csv/part-{:05}-aa.csv",
}


@pytest.mark.parametrize("header_once", [False, True])
@pytest.mark.parametrize("tool", PARTS)
def test_parts_of_one_log(tmp_path, plain, tool, header_once):
    for n in range(3):
        header = "" if n and header_once else "session_id,item_id,timestamp"
        path = write(tmp_path, PARTS[tool].format(n), header, of=CLICKS[n::3])
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
        # Files that tools leave next to it are not logs.
        path.with_name(f".{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "_SUCCESS").touch()
    assert same(read(tmp_path), plain)


@pytest.mark.parametrize("left", [15, -20])
def test_a_damaged_part_is_not_passed_over(tmp_path, left):
    for n in range(3):
        path = write(tmp_path, f"part-{n}.csv.gz", of=CLICKS[n::3])
        path.write_bytes(gzip.compress(path.read_bytes())[: left if n == 1 else None])
    assert re.search(r"cannot read .*part-1", error_of(tmp_path))


def test_parts_of_json_lines_may_lack_what_is_not_read(tmp_path, plain):
    for n, more in enumerate(("", ', "title": null', ', "title": {"de": "Tee"}')):
        write(
            tmp_path,
            f"part-{n}.json",
            "",
            lambda s, i, t, more=more: (
                f'{{"session": {s}, "item": {i}, "ts": {t}{more}}}'
            ),
            CLICKS[n::3],
        )
    assert same(read(tmp_path), plain)


def test_ready_made_splits(tmp_path):
    def row(s, i, t):
        return f"{s}\t{i}\t{t}.277"

    header = "SessionId\tItemId\tTime"
    for name, of in (("train_full", CLICKS[:100]), ("test", CLICKS[98:])):
        write(tmp_path, f"rsc15_{name}.txt", header, row, of)
    data = read(tmp_path)
    assert data.counts["raw_clicks"] == len(CLICKS) + 2
    assert set(data.splits) == {"train", "test"}
    lengths = Counter(session for session, *_ in CLICKS[:100]).values()
    assert data.counts["train_sessions"] == sum(n > 1 for n in lengths)
    message = error_of(tmp_path, test_days=2.0)
    assert re.search(r"config\.test_days is 2\.0, .*ready-made.*log_file", message)


def by_session():
    found: dict[int, list] = {}
    for s, i, t in CLICKS:
        found.setdefault(s, []).append((i, t))
    return found


@pytest.mark.parametrize("times", ["list", "one"])
def test_a_session_a_row(tmp_path, plain, times):
    rows = [
        (
            s,
            [i for i, _ in clicks],
            [t for _, t in clicks] if times == "list" else clicks[-1][1],
        )
        for s, clicks in by_session().items()
    ]
    names = ["session_id", "item_id-list", "timestamp"]
    pl.DataFrame(rows, names, orient="row").write_parquet(tmp_path / "log.parquet")
    assert same(read(tmp_path), plain)


def test_the_log_of_otto(tmp_path, plain):
    lines = [
        pl.Series(
            [
                {
                    "session": s,
                    "events": [
                        {"aid": i, "ts": t * 1000, "type": "clicks"} for i, t in clicks
                    ],
                }
            ]
        )
        for s, clicks in by_session().items()
    ]
    pl.concat(lines).struct.unnest().write_ndjson(tmp_path / "train.jsonl")
    assert same(read(tmp_path), plain)
    assert same(read(tmp_path, log_file="train.jsonl"), plain)


def test_visitors_events_and_doubled_rows(tmp_path, plain):
    def row(s, i, t):
        event = "view" if t % 2 else "addtocart"
        return f"{t}000,{s % 6},{event},{i}"

    write(tmp_path / "visitors", header="timestamp,visitorid,event,itemid", row=row)
    of = {"session_column": "visitorid"}
    # Six visitors, whose sixty visits are hours apart.
    whole = read(tmp_path / "visitors", test_days=0.4, **of)
    assert whole.counts["train_sessions"] + whole.counts["test_sessions"] <= 6
    visits = read(tmp_path / "visitors", session_gap_minutes=30, **of)
    assert same(visits, plain)
    views = read(tmp_path / "visitors", session_gap_minutes=30, events=("view",), **of)
    assert views.counts["event_view"] == views.counts["raw_clicks"]
    assert views.counts["raw_clicks"] + views.counts["event_addtocart"] == len(CLICKS)
    write(tmp_path / "dup", of=[click for click in CLICKS for _ in range(2)])
    doubled = read(tmp_path / "dup", collapse_repeats=True)
    assert doubled.counts["repeated_clicks"] == len(CLICKS)
    assert doubled.vocabulary.ids == plain.vocabulary.ids


def numbered(form):
    return lambda s, i, t: form.format(CLICKS.index((s, i, t)) + 1, s, i, t)


HEADER = "session_id,item_id,timestamp"
# What tools write around the rows: the header, and a row.
AROUND = {
    "an index of pandas": (f",{HEADER}", "{0},{1},{2},{3}"),
    "row names of R": (HEADER, '"{0}",{1},{2},{3}'),
    "separators behind rows": (HEADER, "{1},{2},{3},"),
    "a separator behind the header": (f"{HEADER},", "{1},{2},{3}"),
    "comments": (f"# exported\n# 2024-03-01, all users\n{HEADER}", "{1},{2},{3}"),
    "a header behind #": (f"#{HEADER}", "{1},{2},{3}"),
    "a spreadsheet's separator": (f"sep=,\n{HEADER}", "{1},{2},{3}"),
    "quotes behind backslashes": (f"{HEADER},x", '{1},{2},{3},"say \\"hi\\", {0}"'),
    "a column named by a number": (f"{HEADER},0", "{1},{2},{3},1"),
}


@pytest.mark.parametrize("kind", AROUND)
def test_what_tools_write_around_the_rows(tmp_path, plain, kind):
    header, row = AROUND[kind]
    path = write(tmp_path, header=header, row=numbered(row))
    assert same(read(tmp_path), plain)
    found = sessions_of(io.BytesIO(path.read_bytes()))
    assert found == sessions_of(path)
    assert found[0] == [str(i) for s, i, _ in CLICKS if s == 1]


LATER_PARTS = {
    "one id twice": lambda s, i, t: f"{s},{s if t == CLICKS[90][2] else i},{t}",
    "no item": lambda s, i, t: f"{s},{'NULL' if t == CLICKS[90][2] else i},{t}",
    "a time of another form": lambda s, i, t: f"v{s},{i},{iso(t, '%d.%m.%Y %H:%M')}",
}


@pytest.mark.parametrize("kind", LATER_PARTS)
def test_a_part_without_a_header_is_not_passed_over(tmp_path, kind):
    row = LATER_PARTS[kind]
    write(tmp_path, "a.csv", row=row, of=CLICKS[:90])
    write(tmp_path, "b.csv", "", row, CLICKS[90:])
    form = "%d.%m.%Y %H:%M" if kind.startswith("a time") else ""
    counts = read(tmp_path, on_bad_row="skip", time_format=form).counts
    assert counts["raw_clicks"] + counts["skipped_rows"] == len(CLICKS)
    assert counts["skipped_rows"] == (kind == "no item")


def test_parts_that_all_lack_a_header(tmp_path, plain):
    for n in range(4):
        write(tmp_path, f"000{n}_part_00", "", numbered("{1}|{2}|{3}"), CLICKS[n::4])
    assert "line 1: " in error_of(tmp_path)
    numbers = {"session_column": "1", "item_column": "2", "time_column": "3"}
    assert same(read(tmp_path, header="none", **numbers), plain)


def test_a_part_that_is_linked(tmp_path, plain):
    write(tmp_path / "elsewhere", of=CLICKS[::2])
    write(tmp_path / "data", "day=1/log.csv", of=CLICKS[1::2])
    (tmp_path / "data" / "day=2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "day=1" / "loop").symlink_to(tmp_path / "data")
    assert same(read(tmp_path / "data"), plain)


def test_a_table_of_delta(tmp_path, plain):
    write(tmp_path, "part-0.csv")
    write(tmp_path, "_delta_log/0.json", "{}", of=())
    assert "--config.log_file=" in error_of(tmp_path)
    assert same(read(tmp_path, log_file="*.csv"), plain)


def test_a_file_that_is_packed_twice(tmp_path):
    path = write(tmp_path)
    path.write_bytes(gzip.compress(gzip.compress(path.read_bytes())))
    assert "compressed twice" in error_of(tmp_path)


def test_of_files_that_are_no_logs_that_of_visitors_is_told(tmp_path):
    write(tmp_path, "category_tree.csv", "categoryid,parentid", numbered("{0},{1}"))
    write(tmp_path, "events.csv", "timestamp,visitorid,itemid", of=CLICKS[:3])
    assert "--config.session_column=visitorid" in error_of(tmp_path)


# Fields of JSON lines that are not read, and one that is.
BESIDE = {
    "NaN": '"price": NaN',
    "what is no character": '"title": "a\ufffd"',
    "half of a character": '"title": "a\\ud83d"',
}


@pytest.mark.parametrize("kind", BESIDE)
def test_fields_of_json_that_are_not_read(tmp_path, plain, kind):
    lines = [
        f'{{"session_id": {s}, "item_id": {i}, "ts": {t}, {BESIDE[kind]}}}\n'
        for s, i, t in CLICKS
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    assert same(read(tmp_path), plain)
    assert sessions_of(io.BytesIO(path.read_bytes())) == sessions_of(path)
    path.write_text("".join(lines).replace('"item_id": 1001', '"item_id": "\ufffd"'))
    assert "text that is not UTF-8" in error_of(tmp_path)


def test_ids_of_json_that_have_more_than_64_bits(tmp_path):
    write(
        tmp_path,
        "log.jsonl",
        "",
        lambda s, i, t: f'{{"session": {10**20 + s}, "item": {10**20 + i}, "ts": {t}}}',
    )
    data = read(tmp_path)
    assert sorted(data.vocabulary.ids) == [str(10**20 + n) for n in range(1001, 1007)]
    assert data.counts["train_sessions"] + data.counts["test_sessions"] == 60


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_json_that_is_piped(indent):
    clicks = [{"session_id": s, "item_id": i, "ts": t} for s, i, t in CLICKS]
    found = sessions_of(io.BytesIO(json.dumps(clicks, indent=indent).encode()))
    assert found == [[str(i) for i, _ in clicks] for clicks in by_session().values()]


def test_a_click_without_a_header_is_no_session():
    with pytest.raises(UserError, match="log without a header"):
        sessions_of(io.BytesIO(b"17,1001,2024-03-01T04:53:31Z\n"))


NUMBERS = ["102,101,1704067200", "102,104,1704067260", "103,101,1704067300"]


def test_clicks_without_a_header_are_not_taken_for_sessions(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("\n".join(NUMBERS) + "\n")
    with pytest.raises(UserError, match="log without a header"):
        sessions_of(path)


@pytest.mark.parametrize(
    "lines",
    [
        # Ids as large as seconds: in other columns, in lines of other lengths, or few.
        ["102,101,1704067200", "1704067260,104,102", "103,101,1704067300"],
        [*NUMBERS[:2], "103,1704067300"],
        NUMBERS[:2],
        ["1704067200,1704067260,1704067300"] * 3,
    ],
)
def test_sessions_of_large_ids_stay_sessions(tmp_path, lines):
    path = tmp_path / "sessions.csv"
    path.write_text("\n".join(lines) + "\n")
    assert sessions_of(path) == [line.split(",") for line in lines]


def test_rows_that_are_dropped_leave_ids_whole_numbers(tmp_path):
    write(tmp_path, of=[(s, i, 10**9 + s) for s in range(1, 9) for i in (9, 10, 11)])
    ids = read(tmp_path, test_days=1e-5).vocabulary.ids
    assert ids == ["9", "10", "11"]
    with (tmp_path / "log.csv").open("a") as file:
        file.write("session_id,item_id,timestamp\n")
    assert read(tmp_path, test_days=1e-5, on_bad_row="skip").vocabulary.ids == ids


def test_the_time_stands_before_the_day(tmp_path, plain):
    header = "event_date,event_timestamp,event_name,session_id,item_id"
    write(tmp_path, header=header, row=lambda s, i, t: f"{iso(t)[:10]},{t},v,{s},{i}")
    assert same(read(tmp_path), plain)


WARNED = {
    "whole days": (
        lambda s, i, t: f"{s},{i},{iso(t)[:10]}",
        "all times are whole days",
    ),
    "rounded times": (
        lambda s, i, t: f"{s},{i},{t * 1000:.5E}",
        "have lost their order",
    ),
    "a word for none": (lambda s, i, t: f"{s if s % 3 else '#N/A'},{i},{t}", "'#N/A'"),
}


@pytest.mark.parametrize("kind", WARNED)
def test_what_looks_like_a_mistake_is_warned_of(tmp_path, caplog, kind):
    row, message = WARNED[kind]
    write(tmp_path, row=row)
    read(tmp_path)
    assert message in caplog.text


def test_bytes_that_are_no_text(tmp_path):
    frame = pl.DataFrame(CLICKS, ["session_id", "item_id", "timestamp"], orient="row")
    ids = pl.Series([bytes([200, s]) for s, *_ in CLICKS])
    frame.with_columns(session_id=ids).write_parquet(tmp_path / "log.parquet")
    assert "bytes that are not text" in error_of(tmp_path)


def test_two_columns_of_one_name(tmp_path):
    write(tmp_path, header=f"{HEADER},item_id", row=numbered("{1},{2},{3},{2}"))
    assert "give each its own name" in error_of(tmp_path)


FORMS = (
    *("%a %b %d %H:%M:%S +0000 %Y", "%d/%b/%Y:%H:%M:%S +0000", "%m/%d/%Y %I:%M %p"),
    *("%a, %d %b %Y %H:%M:%S GMT", "%d %b %Y, %H:%M", "%Y-%m-%d %H:%M:%S +0000 UTC"),
    *("%Y-%m-%dT%H:%M:%SZ[UTC]", "%m/%d/%y %H:%M"),
)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_times_that_is_named_is_read(tmp_path, form):
    header, row = "session_id\titem_id\ttimestamp", "{}\t{}\t{}".format
    write(tmp_path / "x", "x", header, lambda s, i, t: row(s, i, iso(t, form)))
    forms = re.findall("--config.time_format='(.*?)'", error_of(tmp_path / "x"))
    step = 1 if "%S" in form else 60
    write(tmp_path / "y", "y", header, lambda s, i, t: row(s, i, t - t % step))
    right = read(tmp_path / "y")
    found = [
        read(tmp_path / "x", time_format=form, on_bad_row="skip") for form in forms
    ]
    assert any(same(data, right) for data in found)


FRACTIONS = {
    "%Y-%m-%d %H:%M:%S.%f": ["2024-03-01 00:00:00.5", "2024-03-01 00:00:00.25"],
    "%Y-%m-%d %H:%M:%S,%f": ["2024-03-01 00:00:00,5", "2024-03-01 00:00:00,250000"],
    "%m/%d/%Y %H:%M:%S.%f %p": [
        "03/01/2024 00:00:00.5 AM",
        "03/01/2024 00:00:00.25 AM",
    ],
}


@pytest.mark.parametrize("form", FRACTIONS)
def test_fractions_in_a_named_form_are_those_of_strptime(form):
    read_times = TimeColumn(form=form)
    found = read_times(pl.Series([*FRACTIONS[form], "x"]), pl.Series([2, 3, 4]), "log")
    midnight = 1_709_251_200_000_000
    assert found.to_list() == [midnight + 500_000, midnight + 250_000, None]


AS_STRPTIME = {
    "%Y-%m-%d %H:%M.%f": "2024-03-01 00:00.5",
    "%d/%m/%Y %H:%M:%S%z": "01/03/2024 00:00:00Z",
    "%a %b %d %H:%M:%S %Y": "Mon Mar 01 00:00:00 2024",
    "%Y-%m-%dT%H:%M": "2024-03-01t00:00",
    "%Y/%m/%d": "2024/3/1",
    "%Y-%m-%d %H:%M %Z": "2024-03-01 00:00 GMT",
}


@pytest.mark.parametrize("form", AS_STRPTIME)
def test_a_named_form_reads_what_strptime_reads(form):
    found = TimeColumn(form=form)(pl.Series([AS_STRPTIME[form]]), pl.Series([2]), "x")
    right = datetime.datetime.strptime(AS_STRPTIME[form], form)
    right = right.replace(tzinfo=datetime.UTC)
    assert found.to_list() == [round(right.timestamp() * 1e6)]


@pytest.mark.parametrize("kind", [int, float, str])
def test_a_named_form_of_numbers_holds_for_every_type(kind):
    values = pl.Series([kind(2024030112), kind(2024030113)])
    found = TimeColumn(form="%Y%m%d%H")(values, pl.Series([2, 3]), "log")
    assert found.to_list() == [1_709_294_400_000_000, 1_709_298_000_000_000]


def test_a_number_that_orders_needs_no_form():
    form = Form(Columns(time="place", date="on"), time_format="%d/%m/%Y")
    frame = pl.DataFrame(
        {"session": [1, 1], "item": [1, 2], "place": [1, 2], "on": ["01/03/2024"] * 2}
    )
    for place in (pl.Int64, pl.Float64, pl.String):
        clicks, _ = read_clicks({"x": frame.cast({"place": place})}, form)
        assert clicks["time"].to_list() == [1.0, 2.0]
        assert clicks["date"].to_list() == [1_709_251_200_000_000] * 2


def test_a_column_called_number_or_times_is_one_like_any_other(tmp_path):
    frame = pl.DataFrame(
        {"session": ["a"], "number": ["x"], "times": ["2024-03-01 10:00:00"]}
    )
    form = Form(Columns(item="number"))
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_csv(tmp_path / "log.csv")
    for source in ({"x": frame}, tmp_path / "log.parquet", tmp_path / "log.csv"):
        clicks, _ = read_clicks(source, form)
        assert clicks.select("session", "item").rows() == [("a", "x")]
        assert clicks["time"].to_list() == [1_709_287_200_000_000]


def test_a_format_that_names_a_part_twice_reads_nothing():
    found = TimeColumn(form="%d/%d/%Y")(pl.Series(["soon"]), pl.Series([2]), "x")
    assert found.to_list() == [None]


def test_a_zone_that_has_only_a_name_is_utc_or_not_read():
    values = pl.Series(["2024-03-01 00:00 UTC", "2024-03-01 00:00 EST"])
    found = TimeColumn(form="%Y-%m-%d %H:%M %Z")(values, pl.Series([2, 3]), "log")
    assert found.to_list() == [1_709_251_200_000_000, None]


LISTS = {
    "['a b', 'c']": ["a b", "c"],
    "['a b' 'c']": ["a b", "c"],
    '["a b"]': ["a b"],
    "[1, 'x', 3]": ["1", "x", "3"],
    "17 4  9": ["17", "4", "9"],
    "17,4, 9": ["17", "4", "9"],
    "red shoe| blue": ["red shoe", "blue"],
    "shoe (small), shoe (large)": ["shoe (small)", "shoe (large)"],
    '["caf\\u00e9", "a\\"b"]': ["caf\u00e9", 'a"b'],
    r"""['O\'N "x"', 'b']""": ['O\'N "x"', "b"],
    "[5, 'a, b']": ["5", "a, b"],
    "d'or, b": ["d'or", "b"],
    "17, ,9": ["17", "9"],
    "[1 2\n 3]": ["1", "2", "3"],
    "['a' 'b'\n 'c']": ["a", "b", "c"],
}


@pytest.mark.parametrize("text", LISTS)
def test_lists_in_text_keep_the_blanks_within_an_item(text):
    frame = pl.DataFrame({"session": [1], "items": [text], "time": [1_709_251_200]})
    clicks, _ = read_clicks({"the frame": frame})
    assert clicks["item"].cast(pl.String).to_list() == LISTS[text]


def test_all_lists_of_a_log_are_split_alike():
    def items(lists):
        frame = pl.DataFrame({"session": range(len(lists)), "items": lists})
        clicks, _ = read_clicks({"x": frame}, Form(needs_time=False))
        return clicks["item"].cast(pl.String).to_list()

    # One item alone has no separator.
    assert items(["red shirt,blue hat", "red shirt"]) == [
        *("red shirt", "blue hat", "red shirt")
    ]
    # A comma among many blanks changes nothing.
    assert items(["17 4"] * 50 + ["9 8,7"])[-3:] == ["9", "8", "7"]


CHECK_INS = {
    "5 2": lambda s, i, t: f"{s}\t{iso(t)}\t30.2359\t-97.7951395833\t{i}",
    "2 4": lambda s, i, t: f"{s}\t{i}\t-74.0025\t{iso(t, FORMS[0])}",
}


@pytest.mark.parametrize("columns", CHECK_INS)
def test_places_of_check_ins_are_no_items(tmp_path, columns):
    write(tmp_path, "x.txt", "", CHECK_INS[columns])
    item, time = columns.split()
    advice = f"--config.item_column={item} --config.time_column={time}"
    assert advice in error_of(tmp_path)


# The folders of the cases, the settings to read each, and its number of clicks.
_NUMBERS = {"session_column": "1", "item_column": "2", "time_column": "4"}
_VISITORS = {"session_column": "visitorid"}
_SKIP = {"on_bad_row": "skip"}
_ANY = {"time_unit": "any"}
FOLDERS = [
    *(
        (f"02-row-order-changes-split/{o}", {"test_days": 5.0}, 309)
        for o in ("sorted", "desc", "shuffled")
    ),
    ("03-recommend-ignores-named-columns/data", _VISITORS, 200),
    ("05-space-after-comma/data", {}, 200),
    *(
        (f"06-null-words-as-session/{word}", _SKIP, 133)
        for word in ("N", "NULL", "nan")
    ),
    ("07-nan-ids-parquet/item", _SKIP, 166),
    ("07-nan-ids-parquet/session", _SKIP, 133),
    *((f"08-ms-then-seconds/{first}", _ANY, 2148) for first in ("data", "s_first")),
    ("09-json-lines-in-txt/data", {}, 200),
    ("11-candidates-unknown/data", {}, 200),
    ("13-daily-dates-lose-a-day/data", {}, 200),
    ("15-tsv-bare-quotes/data", {"session_column": "userid"}, 200),
    ("16-latin1-unused-column/data", {}, 200),
    ("17-no-header/udata", {"header": "none", **_NUMBERS}, 200),
    ("17-no-header/tsv", {"header": "none", **_NUMBERS}, 200),
    ("17-no-header/ml1m", {"session_column": "user_id"}, 200),
    ("18-no-home-directory/data", {}, 200),
    ("19-jax-platform-missing/data", {}, 200),
    *((f"21-date-numbers/{form}", {}, 200) for form in ("yyyymmdd", "excel")),
    ("23-date-and-time-columns/data", {}, 200),
    ("24-upper-case-suffix/data", {}, 200),
    ("26-data-dir-wrong/data", {}, 200),
    *(
        (f"27-part-files/{tool}", {}, 200)
        for tool in ("bigquery", "spark", "hive", "spark_csv")
    ),
    ("28-presplit/gru4rec", {}, 200),
    *((f"29-list-column/{way}", {}, 200) for way in "ab"),
    ("30-json-log-otto/data", {}, 200),
    ("32-torch-names/data", {}, 200),
    ("34-visitors-not-sessions/data", _VISITORS, 200),
    ("34-visitors-not-sessions/dup", {"collapse_repeats": True}, 400),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
@pytest.mark.parametrize(("folder", "settings", "clicks"), FOLDERS)
def test_the_files_that_people_came_with(folder, settings, clicks):
    data = read(SHARED / folder, **settings)
    assert data.counts["raw_clicks"] == clicks
    assert all(raw.isdigit() for raw in data.vocabulary.ids)
    if folder.startswith("02"):
        counts = data.counts
        assert (counts["train_sessions"], counts["test_sessions"]) == (68, 12)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
def test_no_case_is_left_out():
    tested = {folder[:2] for folder, *_ in FOLDERS} | {"01"}
    folders = {path.name[:2] for path in SHARED.iterdir() if path.is_dir()}
    assert folders <= tested


def test_the_separator_of_sessions_is_that_of_the_first_line_that_has_one():
    found = sessions_of(io.BytesIO(b"a\nb,c\nd;e,f\n"))
    assert found == [["a"], ["b", "c"], ["d;e", "f"]]


NUMBERED = {
    "header": "none",
    **{f"{n}_column": str(i) for i, n in enumerate(("session", "item", "time"), 1)},
}


@pytest.mark.parametrize("first", ["1,77,oops", "1,77,", "1,77,1704067200"])
def test_any_line_shows_that_a_log_has_no_header(first):
    log = f"{first}\n1,78,1704067260\n1,79,1704067320\n"
    found = sessions_of(io.BytesIO(log.encode()), on_bad_row="skip", **NUMBERED)
    found = [session for session in found if session]
    items = ["77"] * first.endswith("0") + ["78", "79"]
    assert found == [items]


def test_numbers_that_may_be_times_or_items_are_refused():
    with pytest.raises(UserError, match="may be a click or a session of ids"):
        sessions_of(io.BytesIO(b"1389,77,12\n"), **NUMBERED)
    assert sessions_of(io.BytesIO(b"1389,77\n"), **NUMBERED) == [["1389", "77"]]
    assert sessions_of(io.BytesIO(b"a,b,c\n"), **NUMBERED) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ("17,1389,20240301\n", {}),
        ("17,1389,45352.204\n", {}),
        ("17,1389,1,2024-03-01\n", {"date_column": "4"}),
    ],
)
def test_a_log_without_a_header_has_any_kind_of_time(rows, settings):
    found = sessions_of(io.BytesIO(rows.encode()), **NUMBERED, **settings)
    assert found == [["1389"]]


@pytest.mark.parametrize("start", ["#a", "# sessions, by visitor"])
def test_a_hash_begins_an_id_or_a_comment(start):
    lines = f"{start}\n1\t2\t3\n".encode()
    found = sessions_of(io.BytesIO(lines))
    assert found[-1] == ["1", "2", "3"]


def test_a_log_that_lacks_the_named_column_of_times_is_one(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("visit,code\n1,a\n1,b\n")
    named = {"session_column": "visit", "item_column": "code", "time_column": "at"}
    assert sessions_of(path, **named) == [["a", "b"]]
    assert sessions_of(path, **named, date_column="on") == [["a", "b"]]
    path.write_text("visit,code,at\n1,a,20\n1,b,10\n")
    assert sessions_of(path, **named, date_column="on") == [["b", "a"]]


def test_many_rows_without_a_time_hide_none_that_have_one(tmp_path):
    bad = "s,i,\n" * 1500
    good = "".join(f"{s},{i},{t}\n" for s, i, t in CLICKS)
    (tmp_path / "log.csv").write_text(f"session_id,item_id,timestamp\n{bad}{good}")
    counts = read(tmp_path, on_bad_row="skip").counts
    assert (counts["raw_clicks"], counts["skipped_rows"]) == (len(CLICKS), 1500)


def test_json_with_a_dot_in_a_name_is_read(tmp_path):
    rows = [
        json.dumps({"session_id": s, "product.code": i, "timestamp": t})
        for s, i, t in CLICKS
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(rows))
    data = read(tmp_path, item_column="product.code")
    assert data.counts["raw_clicks"] == len(CLICKS)


def test_a_log_file_may_lie_elsewhere(tmp_path):
    inner = tmp_path / "data"
    inner.mkdir()
    write(tmp_path / "other", "log-1.csv")
    write(tmp_path / "two", "a.csv", of=CLICKS[:9])
    write(tmp_path / "two", "b.csv", of=CLICKS[9:])
    for name in (
        str(tmp_path / "two" / "*.csv"),
        *("../other", "../other/*.csv", "../other/log-1.csv"),
        *(str(tmp_path / "other"), str(tmp_path / "other" / "*.csv")),
    ):
        assert read(inner, log_file=name).counts["raw_clicks"] == len(CLICKS)
    assert "no file /nope.csv" in error_of(inner, log_file="/nope.csv")


def test_times_of_numbers_and_of_dates_in_text_are_to_be_alike(tmp_path):
    write(tmp_path, "a.csv", of=CLICKS[:90])
    write(tmp_path, "b.csv", row=lambda s, i, t: f"{s},{i},{iso(t)}", of=CLICKS[90:])
    message = error_of(tmp_path)
    assert "others are numbers; write all in one form" in message
    assert "time_format" not in message


def test_the_day_of_a_full_timestamp_counts_once():
    for day in ("2024-03-01 13:00:00", 1_709_298_000):
        frame = pl.DataFrame(
            {"session": [1], "item": [1], "time": ["13:00"], "date": [day]}
        )
        clicks, _ = read_clicks({"x": frame})
        assert clicks["time"].to_list() == [1_709_298_000_000_000]


def test_a_day_that_cannot_be_read_is_named_and_not_its_time_of_day(tmp_path):
    write(
        tmp_path,
        header="session_id,item_id,time,date",
        row=lambda s, i, t: f"{s},{i},{iso(t, '%H:%M')},{iso(t, '%d/%m/%Y')}",
    )
    message = error_of(tmp_path)
    assert "'01/03/2024' is not a time (column 'date')" in message
    form = "%d/%m/%Y"
    assert f"--config.time_format='{form}'" in message
    assert read(tmp_path, time_format=form).counts["raw_clicks"] == len(CLICKS)


def test_a_list_of_times_goes_before_a_column_called_date():
    frame = pl.DataFrame(
        {
            "session": [1],
            "items": [["a", "b"]],
            "times": [["10:00", "09:00"]],
            "date": ["2024-03-01"],
        }
    )
    clicks, _ = read_clicks({"x": frame})
    assert clicks["time"].to_list() == [1_709_287_200_000_000, 1_709_283_600_000_000]


def test_times_that_lost_digits_as_float32_are_refused():
    frame = pl.DataFrame({"session": [1], "item": [1], "time": [1_709_280_000.0]})
    with pytest.raises(UserError, match="x, row 1: times are Float32"):
        read_clicks({"x": frame.cast({"time": pl.Float32})})


@pytest.mark.parametrize("first", ["s1,i1,", "s1,i1,oops", "s1,i1"])
@pytest.mark.parametrize("form", ["", "%d.%m.%Y %Hh%M"])
def test_a_part_whose_first_click_is_malformed_is_no_other_file(tmp_path, first, form):
    def row(s, i, t):
        return f"v{s},i{i},{iso(t, form) if form else t}"

    write(tmp_path, "a.csv", row=row, of=CLICKS[:90])
    path = write(tmp_path, "b.csv", "", row, CLICKS[90:])
    if first.count(",") == 2:
        path.write_text(f"{first}\n{path.read_text()}")
    (tmp_path / "items.csv").write_text("sku,price,stock\ni1,3,4\ni2,5,6\n")
    counts = read(tmp_path, on_bad_row="skip", time_format=form).counts
    assert counts["raw_clicks"] == len(CLICKS)
    assert counts["skipped_rows"] == first.count(",") - 1


def test_a_run_within_the_folder_of_its_log_is_no_part_of_it(tmp_path):
    write(tmp_path)
    run = tmp_path / "runs" / "shop"
    (run / "checkpoints" / "4").mkdir(parents=True)
    (run / "checkpoints" / "4" / "d").write_bytes(b"\x28\xb5\x2f\xfdx")
    (run / "vocabulary.parquet").write_bytes(b"PAR1")
    assert find_files(click_log, tmp_path, Settings()) == [tmp_path / "log.csv"]


def test_a_path_with_brackets_is_read_as_it_is(tmp_path):
    frame = pl.DataFrame(CLICKS, ["session_id", "item_id", "timestamp"], orient="row")
    for name in ("x[1]", "l[ab].parquet"):
        folder = tmp_path / name
        folder.mkdir()
        frame.write_parquet(folder / "l[ab].parquet")
        frame[:9].write_parquet(folder / "la.parquet")
        data = read(folder, log_file="l[[]ab].parquet")
        assert data.counts["raw_clicks"] == len(CLICKS)


def test_events_are_chosen_of_any_source(tmp_path):
    write(
        tmp_path,
        "x.inter",
        "user_id:token\titem_id:token\ttimestamp:float\tevent:token",
        lambda s, i, t: f"{s}\t{i}\t{t}\t{'buy' if s % 2 else 'view'}",
    )
    views = sum(s % 2 == 0 for s, _, _ in CLICKS)
    data = read(tmp_path, source=recbole, events=("view",))
    assert data.counts["raw_clicks"] == views


def test_a_session_with_other_fields_is_no_click():
    lines = b'{"session": ["a"], "item": "b"}\n{"session": ["c"], "item_id": 5}\n'
    assert sessions_of(io.BytesIO(lines)) == [["a"], ["c"]]


def test_what_follows_a_comment_tells_the_form():
    class Slow(io.BytesIO):
        def read1(self, size):
            return self.readline()

    log = b"# exported\nsession_id,item_id,timestamp\n1,a,1704067200\n"
    assert sessions_of(Slow(log)) == [["a"]]
