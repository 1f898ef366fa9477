"""Reading click logs: separators, names, times, and rows that are malformed."""

import datetime
import gzip
import json
import os
import time

import numpy as np
import polars as pl
import pytest

from srgnn_jax.data import text as text_module
from srgnn_jax.data import times
from srgnn_jax.data.columns import Columns
from srgnn_jax.data.read import Form, read_clicks
from srgnn_jax.errors import UserError

SECOND = 1_000_000
ROWS = [("s1", "i1", 5), ("s2", "i2", 3), ("s1", "i1", 4)]
EXPECTED = [(session, item, second * SECOND) for session, item, second in ROWS]


def write(folder, text, name="log.csv"):
    path = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read_rows(path, columns=Columns(), **options):  # noqa: B008 (immutable)
    clicks, counts = read_clicks(path, Form(columns, **options))
    assert clicks.schema["time"] == pl.Int64
    return clicks.rows(), counts["skipped_rows"]


def read_times(folder, *times):
    """Reads a log of these times, returns them as microseconds since 1970."""
    lines = "".join(f"{n}\ti\t{text}\n" for n, text in enumerate(times))
    clicks, _ = read_clicks(write(folder, f"session\titem\ttime\n{lines}"))
    return clicks["time"].to_list()


def microseconds(text):
    return int(np.datetime64(text, "us").astype(np.int64))


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_line_ends_and_byte_order_mark(tmp_path, separator, ending, mark):
    lines = [("session", "time", "other", "item"), *((s, t, "", i) for s, i, t in ROWS)]
    text = ending.join(separator.join(map(str, line)) for line in lines)
    for last in ("", ending, ending * 3):
        path = write(tmp_path, mark + text + last)
        assert read_rows(path) == (EXPECTED, 0)


@pytest.mark.parametrize("name", ["log.tsv.gz", "log.txt", "log.dat", "log.csv.gz"])
def test_file_names_and_gzip(tmp_path, name):
    text = "session,item,time\ns1,i1,5\ns2,i2,3\ns1,i1,4\n"
    assert read_rows(write(tmp_path, text, name)) == (EXPECTED, 0)


@pytest.mark.parametrize(
    "header",
    [
        "SessionId ItemId Time",
        "session_id item_id timestamp",
        "SESSION-ID product_id event_time",
        "user_session product_id event_time",
        "sid item date",
        "session_id:token item_id:token timestamp:float",
    ],
)
def test_usual_names_of_columns(tmp_path, header):
    text = header.replace(" ", "\t") + "\ns1\ti1\t5\ns2\ti2\t3\ns1\ti1\t4\n"
    assert read_rows(write(tmp_path, text)) == (EXPECTED, 0)


def test_named_columns_and_separator(tmp_path):
    text = "session|a,b|item|who|c\nx|i1|9|s1|5\nx|i2|9|s2|3\nx|i1|9|s1|4\n"
    columns = Columns(session="who", item="a,b", time="c")
    rows = read_rows(write(tmp_path, text), columns, separator="|")
    assert rows == (EXPECTED, 0)


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("a,item,time", Columns(), r"no session column among 'a', 'item', 'time'"),
        ("session,item,item,time", Columns(), "more than one item column among"),
        ("session,item,time", Columns(item="x"), "no item column 'x' among 'session'"),
        ("session,item,time", Columns(date="x"), "no date column 'x' among 'session'"),
        ("session;item,time", Columns(), "no session column among 'session;item'"),
        ("session item time", Columns(), "no tab, comma, semicolon"),
    ],
)
def test_columns_that_are_not_there(tmp_path, header, columns, message):
    path = write(tmp_path, f"{header}\n" + ",".join("1" * len(header.split(","))))
    with pytest.raises(UserError, match=message) as error:
        read_clicks(path, Form(columns))
    assert str(path) in str(error.value)


def test_a_file_without_header(tmp_path):
    text = "11,2014-04-07T10:51:09.277Z,21,0\n11,2014-04-07T10:54:09.868Z,22,S\n"
    for mark in ("", "\ufeff"):
        rows, _ = read_rows(
            write(tmp_path, mark + text, "yoochoose-clicks.dat"),
            Columns("session", "item", "time"),
            header=("session", "time", "item", "category"),
            separator=",",
        )
        assert rows == [
            (11, 21, microseconds("2014-04-07T10:51:09.277")),
            (11, 22, microseconds("2014-04-07T10:54:09.868")),
        ]


def test_quoted_fields(tmp_path):
    text = 'session,item,time\n"s,1","i ""1""",5\ns2,"i2",3\n'
    rows, _ = read_rows(write(tmp_path, text))
    assert rows == [("s,1", 'i "1"', 5 * SECOND), ("s2", "i2", 3 * SECOND)]


def test_ids_are_text_as_they_stand(tmp_path):
    rows, _ = read_rows(write(tmp_path, "session,item,time\n007,1e3,5\nné,日,6\n"))
    assert [row[:2] for row in rows] == [("007", "1e3"), ("né", "日")]


def test_iso_times(tmp_path):
    written = {
        "2014-04-07T10:51:09.277Z": "2014-04-07T10:51:09.277",
        "2014-04-07 10:51:09": "2014-04-07T10:51:09",
        "2014-04-07T10:51:09.1234567": "2014-04-07T10:51:09.123456",
        "2014-04-07T10:51:09+02:00": "2014-04-07T08:51:09",
        "2014-04-07 10:51:09.5-0330": "2014-04-07T14:21:09.5",
        "2014-04-07 10:51:09+00": "2014-04-07T10:51:09",
        "2014-04-07 10:51:09 UTC": "2014-04-07T10:51:09",
        "2014-04-07T10:51": "2014-04-07T10:51:00",
        "2014-04-07": "2014-04-07T00:00:00",
    }
    expected = [microseconds(text) for text in written.values()]
    assert read_times(tmp_path, *written) == expected
    # A single form may be read in a faster way, which must give the same time.
    for text, moment in zip(written, expected, strict=True):
        assert read_times(tmp_path, text) == [moment]


@pytest.mark.parametrize("year", [1970, 1999, 2000, 2016, 2100, 2260])
def test_every_day_of_a_year(tmp_path, year):
    """Includes days that do not exist in the calendar."""
    days = [f"{year}-{month:02}-{day:02}" for month in range(14) for day in range(33)]

    def expected(day):
        try:
            return microseconds(datetime.date.fromisoformat(day))
        except ValueError:
            return None

    parsed = times.parse_iso(pl.Series(days)).to_list()
    assert parsed == [expected(day) for day in days]


LAYOUTS = [
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%MZ",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S,%f",
    "%Y-%m-%d %H:%M:%S.%f%z",
]


@pytest.mark.parametrize("mixed", [False, True])
def test_iso_times_in_any_layout_and_mix(mixed):
    rng = np.random.default_rng(0)
    moments = [
        datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
        + datetime.timedelta(microseconds=int(n))
        for n in rng.integers(0, 9 * 10**15, 500)
    ]
    zone = datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))
    texts, expected = [], []
    for n, moment in enumerate(moments):
        layout = LAYOUTS[n % 5 if mixed else n // 100]
        texts.append(moment.astimezone(zone).strftime(layout))
        stated = datetime.datetime.strptime(texts[-1], layout)
        if stated.tzinfo is None:
            stated = stated.replace(tzinfo=datetime.UTC)
        since = stated - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        expected.append(since // datetime.timedelta(microseconds=1))
    parts = [texts] if mixed else [texts[n : n + 100] for n in range(0, 500, 100)]
    parsed = [times.parse_iso(pl.Series(part)).to_list() for part in parts]
    assert [moment for part in parsed for moment in part] == expected


def test_iso_times_of_one_length_and_several_layouts():
    texts = [
        "2014-04-07 10:51",
        "2014-04-07T10:51",
        "2014-04-07T10:5x",
        "2014-04-07+02:00",
    ]
    parsed = times.parse_iso(pl.Series(texts)).to_list()
    expected = [
        microseconds("2014-04-07T10:51"),
        None,
        microseconds("2014-04-06T22:00"),
    ]
    assert parsed == [expected[0], *expected]


def test_epoch_seconds_with_a_fraction_are_exact_microseconds(tmp_path):
    rng = np.random.default_rng(0)
    expected = rng.integers(10**15, 2 * 10**15, 2000).tolist()
    times = [f"{moment // SECOND}.{moment % SECOND:06d}" for moment in expected]
    assert read_times(tmp_path, *times) == expected
    assert read_times(tmp_path, "1396437466.94") == [1_396_437_466_940_000]


def test_milliseconds_are_told_by_magnitude_for_the_whole_column(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "CHUNK", 30)
    times = ["1396437466940", "1396437466941", "12", "13", "14", "1396437466942"]
    assert read_times(tmp_path, *times) == [int(text) * 1000 for text in times]
    assert read_times(tmp_path, "1396437466", "12") == [1396437466 * SECOND, 12_000_000]


@pytest.mark.parametrize("times", [("1396437466940", "1396437466941"), ("2014-04-07",)])
def test_malformed_first_rows_do_not_tell_the_form_of_times(
    tmp_path, monkeypatch, times
):
    good = "".join(f"s,i,{text}\n" for text in times)
    for bad in ("s,i,soon\n", "s,i,\n", "s,i\n"):
        path = write(tmp_path, "session,item,time\n" + bad + good)
        expected, skipped = read_rows(path, on_bad_row="skip")
        assert (len(expected), skipped) == (len(times), 1)
        assert expected[0][2] > 1e15
    monkeypatch.setattr(text_module, "CHUNK", 1)
    assert read_rows(path, on_bad_row="skip") == (expected, 1)


def test_the_time_zone_of_the_machine_changes_nothing(tmp_path, monkeypatch):
    texts = ["2014-04-07T10:51:09Z", "2014-04-07 10:51:09", "2014-04-07"]
    try:
        for zone in ("UTC", "America/Los_Angeles", "Asia/Tokyo"):
            monkeypatch.setitem(os.environ, "TZ", zone)
            time.tzset()
            expected = [microseconds(text.removesuffix("Z")) for text in texts]
            assert read_times(tmp_path, *texts) == expected
    finally:
        monkeypatch.undo()
        time.tzset()


def test_dates_beside_an_order_within_the_session(tmp_path):
    text = "session_id;user_id;item_id;timeframe;eventdate\n1;NA;8;526309;2016-05-09\n"
    text += "1;NA;9;1.25;2016-05-10\n1;NA;9;1.75;2016-05-10\n"
    clicks, _ = read_clicks(
        write(tmp_path, text), Form(Columns(time="timeframe", date="eventdate"))
    )
    days = ["2016-05-09", "2016-05-10", "2016-05-10"]
    assert clicks["date"].to_list() == [microseconds(day) for day in days]
    assert np.argsort(clicks["time"].to_numpy()).tolist() == [1, 2, 0]


def test_times_beside_dates_may_be_iso(tmp_path):
    text = "session,item,time,day\n1,8,2016-05-09 10:00,2016-05-09\n"
    text += "1,9,2016-05-09 09:00,2016-05-09\n"
    clicks, _ = read_clicks(write(tmp_path, text), Form(Columns(date="day")))
    assert np.argsort(clicks["time"].to_numpy()).tolist() == [1, 0]


MALFORMED = {
    "too few fields": ("s1,i1", "2 fields instead of 3"),
    "too many fields": ("s1,i1,5,6", "4 fields instead of 3"),
    "no session": (",i1,5", "session is empty"),
    "blank session": ("  ,i1,5", "session is empty"),
    "no item": ("s1,,5", "item is empty"),
    "no time": ("s1,i1,", "time is empty"),
    "time": ("s1,i1,soon", "'soon' is not a time"),
    "nan": ("s1,i1,nan", "'nan' is not a time"),
    "infinite": ("s1,i1,1e400", "'1e400' is not a time"),
    "negative": ("s1,i1,-5", "'-5' is not a time"),
    "too late": ("s1,i1,99999999999", "'99999999999' is not a time"),
    "not utf-8": (b"s1,i\xff,5", "not UTF-8"),
    "open quote": ('s1,"i1,5', "quotes"),
    "quoted fields": ('s1,"i1"', "2 fields instead of 3"),
    "quoted, not utf-8": (b's1,"i\xff",5', "not UTF-8"),
}


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("chunk_bytes", [1_000_000, 20])
def test_malformed_rows(tmp_path, monkeypatch, kind, chunk_bytes):
    monkeypatch.setattr(text_module, "CHUNK", chunk_bytes)
    bad, message = MALFORMED[kind]
    bad = bad if isinstance(bad, bytes) else bad.encode()
    good = [f"{session},{item},{second}".encode() for session, item, second in ROWS]
    lines = [b"session,item,time", good[0], b"", good[1], bad, good[2], bad]
    path = write(tmp_path, b"\n".join(lines))
    with pytest.raises(UserError) as error:
        read_clicks(path)
    text = str(error.value)
    assert f"{path}, line 5: " in text
    assert message in text
    assert "on_bad_row=skip" in text
    assert read_rows(path, on_bad_row="skip") == (EXPECTED, 2)


def test_rows_of_too_many_fields_do_not_make_up_for_rows_of_too_few(tmp_path):
    text = "session,item,time\ns1,i1\ns1,i1,5,6\ns1,i1,5\n"
    with pytest.raises(UserError, match="line 2: 2 fields instead of 3"):
        read_rows(write(tmp_path, text))
    rows = read_rows(write(tmp_path, text), on_bad_row="skip")
    assert rows == ([("s1", "i1", 5 * SECOND)], 2)


def test_a_separator_of_several_bytes(tmp_path):
    text = "session§item§time\ns1§i1§5\ns2§i2§3\ns1§i1§4\n"
    assert read_rows(write(tmp_path, text), separator="§") == (EXPECTED, 0)


def test_one_column_may_be_two_things(tmp_path):
    path = write(tmp_path, "other,user,time\n9,s1,5\n9,s2,3\n")
    rows, _ = read_rows(path, Columns(session="user", item="user"))
    assert rows == [("s1", "s1", 5 * SECOND), ("s2", "s2", 3 * SECOND)]


def test_a_byte_order_mark_further_down_is_part_of_an_id(tmp_path):
    text = "session,item,time\n\ufeffs,i,5\n"
    assert read_rows(write(tmp_path, text)) == ([("\ufeffs", "i", 5 * SECOND)], 0)
    text = "\ufeffs,i,5\n\ufeffs,i,5\n"
    path, header = write(tmp_path, text), ("session", "item", "time")
    rows, _ = read_rows(path, header=header, separator=",")
    assert [row[0] for row in rows] == ["s", "\ufeffs"]


@pytest.mark.parametrize(
    "bad", ["2014-13-07", "2014-04-31", "2014-04-07T25:00:00Z", "1969-12-31", "12:00"]
)
def test_malformed_iso_times(tmp_path, bad):
    text = f"session,item,time\ns,i,2014-04-07\ns,i,{bad}\n"
    with pytest.raises(UserError, match=f"line 3: '{bad}' is not a time"):
        read_clicks(write(tmp_path, text))


def test_the_column_of_a_malformed_row_has_its_own_name(tmp_path):
    text = "SessionId,ItemId,When\ns,i,soon\n"
    with pytest.raises(UserError, match=r"'soon' is not a time \(column 'When'"):
        read_clicks(write(tmp_path, text), Form(Columns(time="When")))


@pytest.mark.parametrize(
    "text", ["", "\n\n", "session,item,time\n", "session,item,time"]
)
def test_files_without_clicks(tmp_path, text):
    with pytest.raises(UserError, match=r"is empty|holds no clicks"):
        read_clicks(write(tmp_path, text))


def test_text_that_is_not_utf8_far_down_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "CHUNK", 10_000)
    lines = [b"time,session,item", *(b"5,s,%d" % n for n in range(20_000))]
    lines += [b"5,s,\xff", b"5,s,last", b""]
    rows, skipped = read_rows(write(tmp_path, b"\r\n".join(lines)), on_bad_row="skip")
    assert [item for _, item, _ in rows] == [*map(str, range(20_000)), "last"]
    assert skipped == 1


def test_only_malformed_rows(tmp_path):
    path = write(tmp_path, "session,item,time\ns,i\ns,i,soon\n")
    with pytest.raises(UserError, match="holds no clicks: all 2 rows are malformed"):
        read_clicks(path, Form(on_bad_row="skip"))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"log\.csv does not exist"):
        read_clicks(tmp_path / "log.csv")


def test_damaged_gzip(tmp_path):
    text = "session,item,time\n" + "".join(f"s{n},i,{n}\n" for n in range(5000))
    path = write(tmp_path, text, "log.csv.gz")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for data in (whole[:-100], bytes(damaged), whole[:10] + b"\xff" + whole[11:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"cannot read .*log\.csv\.gz"):
            read_clicks(path)


def test_chunks_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lines = [f"{rng.integers(9)},i{rng.integers(9)},{n}.25" for n in range(2000)]
    path = write(tmp_path, "session,item,time\n" + "\n".join(lines))
    whole = read_rows(path)
    monkeypatch.setattr(text_module, "CHUNK", 1000)
    assert read_rows(path) == whole
    assert len(whole[0]) == 2000


PARQUET_TIMES = {
    "seconds": [5, 3, 4],
    "float seconds": [5.0, 3.0, 4.0],
    "text": ["1970-01-01T00:00:05Z", "1970-01-01 00:00:03", "1970-01-01T00:00:04"],
    "datetime": [datetime.datetime(1970, 1, 1, 0, 0, n) for n in (5, 3, 4)],
    "zone": pl.Series([5000, 3000, 4000])
    .cast(pl.Datetime("ms", "UTC"))
    .dt.convert_time_zone("Asia/Tokyo"),
    "nanoseconds": pl.Series([5_000_000_000, 3_000_000_000, 4_000_000_000]).cast(
        pl.Datetime("ns")
    ),
}


@pytest.mark.parametrize("kind", PARQUET_TIMES)
def test_parquet(tmp_path, kind):
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame(
        {
            "more": [0.0] * 3,
            "session_id": [1, 2, 1],
            "ItemId": ["i1", "i2", "i1"],
            "time": PARQUET_TIMES[kind],
        }
    )
    frame.write_parquet(path)
    expected = [(int(session.removeprefix("s")), *rest) for session, *rest in EXPECTED]
    assert read_rows(path) == (expected, 0)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("session", [1, None], "session is empty"),
        ("item", ["a", ""], "item is empty"),
        ("time", [5, None], "time is empty"),
        ("time", [5, -5], "'-5' is not a time"),
        ("time", [5.0, float("nan")], "'nan' is not a time"),
        ("time", ["1970-01-01", "soon"], "'soon' is not a time"),
    ],
)
def test_malformed_rows_of_parquet(tmp_path, column, values, message):
    path = tmp_path / "log.parquet"
    frame = {"session": [1, 1], "item": ["a", "b"], "time": [5, 6]} | {column: values}
    pl.DataFrame(frame, strict=False).write_parquet(path)
    with pytest.raises(UserError, match=f"row 2: .*{message}"):
        read_clicks(path)
    assert read_rows(path, on_bad_row="skip")[1] == 1


def test_parquet_columns_that_cannot_be_ids(tmp_path):
    path = tmp_path / "log.parquet"
    frame = {"session": [[1], [2]], "item": ["a", "b"], "time": [5, 6]}
    pl.DataFrame(frame).write_parquet(path)
    with pytest.raises(UserError, match="column 'session' holds"):
        read_clicks(path)


def test_a_parquet_file_that_is_none(tmp_path):
    path = tmp_path / "log.parquet"
    path.write_text("PAR1session,item,time\n")
    with pytest.raises(UserError, match=r"cannot read .* as parquet"):
        read_clicks(path)
    # The file name does not matter.
    path.write_text("session,item,time\ns,i,5\n")
    assert read_rows(path) == ([("s", "i", 5 * SECOND)], 0)


def test_json_lines_and_one_array_are_the_same(tmp_path):
    objects = [{"session": s, "item": i, "time": t} for s, i, t in ROWS]
    lines = "\n".join(map(json.dumps, objects))
    assert read_rows(write(tmp_path, lines, "log.txt")) == (EXPECTED, 0)
    for indent in (None, 2):
        array = json.dumps(objects, indent=indent)
        assert read_rows(write(tmp_path, f"\n{array}\n", "log.json")) == (EXPECTED, 0)
    with pytest.raises(UserError, match=r"cannot read .*log\.json"):
        read_clicks(write(tmp_path, array[:-9], "log.json"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"item": [["i"], "j"]}, r"lists within a list \(item\)"),
        ({"session": ["s", "t"]}, r"a list without a list of items \(session"),
        ({"item": "i", "time": [5, 6]}, r"a list without a list of items \(time\)"),
        ({"item": ["i", "j"], "time": [5]}, r"different lengths \(item, time\)"),
        ({"item": None, "time": [5, 6]}, r"a list without a list of items \(time\)"),
    ],
)
def test_lists_that_are_no_clicks(tmp_path, wrong, message):
    right = {"session": "s", "item": "i", "time": 5}
    for other in (right, {**right, "item": ["i"]}, {**right, "time": [5]}):
        lines = f"{json.dumps(other)}\n{json.dumps(right | wrong)}\n"
        path = write(tmp_path, lines, "log.json")
        with pytest.raises(UserError, match=rf"line 2: ({message}|lists of dif)"):
            read_clicks(path)
        assert read_rows(path, on_bad_row="skip") == ([("s", "i", 5 * SECOND)], 1)


@pytest.mark.parametrize("text", ["1969-12-31", "01/01/1900 10:00", "9999-12-31"])
def test_a_time_that_no_click_has_is_told_as_such(tmp_path, text):
    path = write(tmp_path, f"session\titem\ttime\ns\ti\t{text}\n")
    with pytest.raises(UserError, match="is not a time from 1970 to 2260") as error:
        read_clicks(path)
    assert "time_format" not in str(error.value)


def test_a_form_of_days_leaves_the_time_of_day_alone(tmp_path):
    path = write(tmp_path, "session\titem\tday\ttime\ns\ti\t02/01/2024\t10:00\n")
    clicks, _ = read_clicks(path, Form(time_format="%d/%m/%Y"))
    assert clicks["time"].to_list() == [1_704_189_600_000_000]


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("2024/03/01 04:53:31", ["%Y/%m/%d %H:%M:%S"]),
        ("13/12/2024", ["%d/%m/%Y"]),
        ("01/12/2024 04:53", ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"]),
        ("20240301T045331Z", ["%Y%m%dT%H%M%SZ"]),
        ("Mar 1, 2024 4:53:31 PM", ["%b %d, %Y %I:%M:%S %p"]),
        ("soon", []),
    ],
)
def test_a_form_of_times_is_told(tmp_path, text, forms):
    assert times.forms_of(text) == forms
    path = write(tmp_path, f"session\titem\ttime\ns\ti\t{text}\n")
    with pytest.raises(UserError, match="is not a time") as error:
        read_clicks(path)
    for form in forms:
        assert f"--config.time_format='{form}'" in str(error.value)
        read_clicks(path, Form(time_format=form))
