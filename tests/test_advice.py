"""Tries what a reader's errors and warnings advise: it must help."""

import logging
import re

import pytest

from srgnn_jax.data.sources import Settings, click_log, find_files
from srgnn_jax.errors import UserError
from tests.test_cases import CLICKS, iso, write

TYPES = {"session_gap_minutes": float}


def read(folder, settings):
    config = Settings(**settings)
    return click_log.read(find_files(click_log, folder, config), config).counts


def advice(message):
    """Returns the settings that a message names; "" if it leaves the value open."""
    found = re.findall(r"--config\.(\w+)(?:=('[^']*'|[^\s;)]+))?", message)
    assert found, message
    return {name: TYPES.get(name, str)(value.strip("'")) for name, value in found}


def quotes(folder):
    write(folder, row=lambda s, i, t: f'{s},{i}"{i},{t}' if s % 9 else f'{s},"{i},{t}')


def two_logs(folder):
    write(folder, "clicks.csv")
    write(
        folder,
        "carts.tsv",
        "session\titem\ttime\tn",
        lambda *c: "\t".join(map(str, (*c, 1))),
    )


# How to write the log, the settings that help (the advice may leave their values open),
# and how many clicks are then kept.
ADVICE = {
    "a row without an item": (
        lambda folder: write(
            folder, row=lambda s, i, t: f"{s},{i if s % 9 else ''},{t}"
        ),
        {"on_bad_row": "skip"},
        sum(s % 9 > 0 for s, *_ in CLICKS),
    ),
    "a row of too few fields": (
        lambda folder: write(
            folder, row=lambda s, i, t: f"{s},{i},{t}" if s % 9 else "x"
        ),
        {"on_bad_row": "skip"},
        sum(s % 9 > 0 for s, *_ in CLICKS),
    ),
    "quotes that do not close": (quotes, {"quoting": "none"}, len(CLICKS)),
    "another encoding": (
        lambda folder: write(folder, row=lambda s, i, t: f"{s},é{i},{t}"),
        {"encoding": "cp1252"},
        len(CLICKS),
    ),
    "no header": (
        lambda folder: write(folder, "u.data", "", lambda s, i, t: f"{t}\t{s}\t{i}\t3"),
        {
            "header": "none",
            "session_column": "2",
            "item_column": "3",
            "time_column": "1",
        },
        len(CLICKS),
    ),
    "no header, the time last": (
        lambda folder: write(
            folder, "u.csv", "", lambda s, i, t: f"v{s},a{i},{iso(t)}"
        ),
        {
            "header": "none",
            "session_column": "1",
            "item_column": "2",
            "time_column": "3",
        },
        len(CLICKS),
    ),
    "visitors": (
        lambda folder: write(folder, header="visitorid,itemid,timestamp"),
        {"session_column": "visitorid", "session_gap_minutes": 30.0},
        len(CLICKS),
    ),
    "two units": (
        lambda folder: write(
            folder, row=lambda s, i, t: f"{s},{i},{t * (s % 2 * 999 + 1)}"
        ),
        {"time_unit": "any"},
        len(CLICKS),
    ),
    "another form of times": (
        lambda folder: write(
            folder, row=lambda s, i, t: f"{s},{i},{iso(t, '%d.%m.%Y %H:%M')}"
        ),
        {"time_format": "%d.%m.%Y %H:%M"},
        len(CLICKS),
    ),
    "times of a day": (
        lambda folder: write(
            folder,
            header="session_id,item_id,on,time",
            row=lambda s, i, t: f"{s},{i},{iso(t, '%Y-%m-%d,%H:%M')}",
        ),
        {"date_column": "on"},
        len(CLICKS),
    ),
    "another separator": (
        lambda folder: write(
            folder, "log", "session item time", lambda *c: " ".join(map(str, c))
        ),
        {"separator": " "},
        len(CLICKS),
    ),
    "two logs": (two_logs, {"log_file": "*.tsv"}, len(CLICKS)),
    "another name of a column": (
        lambda folder: write(folder, header="session_id,track,timestamp"),
        {"item_column": "track"},
        len(CLICKS),
    ),
    "two columns of a name": (
        lambda folder: write(
            folder,
            header="session_id,item_id,Item ID,time",
            row=lambda s, i, t: f"{s},{i},,{t}",
        ),
        {"item_column": "item_id"},
        len(CLICKS),
    ),
}


@pytest.mark.parametrize("fault", ADVICE)
def test_what_an_error_advises_helps(tmp_path, fault):
    make, expected, clicks = ADVICE[fault]
    make(tmp_path)
    with pytest.raises(UserError) as error:
        read(tmp_path, {})
    advised = advice(str(error.value))
    # The advice leaves a value open if only the user can know it.
    settings = {name: advised[name] or value for name, value in expected.items()}
    assert settings == expected
    counts = read(tmp_path, settings)
    assert counts["raw_clicks"] == clicks
    assert counts["skipped_rows"] == len(CLICKS) - clicks


def test_a_data_dir_that_is_a_file(tmp_path):
    path = write(tmp_path)
    with pytest.raises(UserError) as error:
        read(path, {})
    folder = re.search(r"name its folder, '([^']*)'", str(error.value))[1]
    assert read(type(path)(folder), advice(str(error.value)))["raw_clicks"] == len(
        CLICKS
    )


WARNINGS = {
    "dates as numbers": (
        lambda s, i, t: f"{s},{i},{iso(t, '%Y%m%d')}",
        {"time_unit": "s", "min_item_count": 1, "test_days": 1e-6},
        {"time_unit": "date"},
    ),
    "visitors over months": (
        lambda s, i, t: f"{s % 6},{i},{t + s // 6 * 2_000_000}",
        {},
        {"session_gap_minutes": 30.0},
    ),
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_what_a_warning_advises_quiets_it(tmp_path, caplog, kind):
    row, settings, expected = WARNINGS[kind]
    write(tmp_path, row=row)
    with caplog.at_level(logging.WARNING):
        read(tmp_path, settings)
    advised = advice(caplog.text)
    assert advised == expected
    before = {*caplog.messages}
    caplog.clear()
    counts = read(tmp_path, {"min_item_count": 1} | advised)
    assert not before & {*caplog.messages}
    assert counts["raw_clicks"] == len(CLICKS)


def test_an_id_that_may_mean_none(tmp_path, caplog):
    write(tmp_path, row=lambda s, i, t: f"{s if s % 9 else 'undefined'},{i},{t}")
    read(tmp_path, {"test_days": 0.5})
    assert "session 'undefined'" in caplog.text
    assert "add it to config.missing_values" in caplog.text
    settings = {"missing_values": ("undefined",), "on_bad_row": "skip"}
    assert read(tmp_path, settings)["raw_clicks"] == sum(s % 9 > 0 for s, *_ in CLICKS)
