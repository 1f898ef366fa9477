"""Comparing two runs on one test, promoting the better one; a nightly job."""

import json
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import metrics
from srgnn_jax.evaluate.workdir import evaluate_workdir, open_run, own_config
from srgnn_jax.serve import promote as module
from srgnn_jax.serve.promote import compare, promote, train_both
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.train.loop import train_and_evaluate
from tests.command import ROOT, srgnn
from tests.served import Process
from tests.test_warm_start import log_of
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of two runs; the first does not know some items of the second."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny_config(folder)
    train_and_evaluate(config, str(folder / "monday"))
    log_of(folder / "data", first=3, seed=1)
    train_and_evaluate(config, str(folder / "tuesday"))
    return folder


def test_the_other_run_answers_as_if_it_were_asked(runs, capsys):
    workdirs = [str(runs / day) for day in ("tuesday", "monday")]
    by, both = compare(*workdirs)
    said = capsys.readouterr().out
    assert by == "mrr@20"
    run, recommender = open_run(runs / "tuesday"), Recommender.load(workdirs[1])
    ids = ["", *run.data.vocabulary.ids]
    sessions, targets = [], []
    for start, length in zip(run.test.starts, run.test.lengths, strict=True):
        *prefix, target = (ids[i] for i in run.test.items[start : start + length + 1])
        sessions.append(prefix)
        targets.append(target)
    # Including some sessions and targets that it does not know.
    lists = recommender.recommend(sessions, k=recommender.model.num_items - 1)
    assert any(one.fallback for one in lists)
    rank = np.array(
        [
            1 + one.items.index(target) if target in one.items else 1000
            for one, target in zip(lists, targets, strict=True)
        ]
    )
    is_new = np.array([target not in recommender.vocabulary.ids for target in targets])
    assert 0 < is_new.sum() < len(is_new)
    assert both[1]["all"] == pytest.approx(metrics.means(rank, run.config.ks))
    old = metrics.means(rank[~is_new], run.config.ks)
    assert both[1]["old targets"] == pytest.approx(old)
    assert both[1]["new targets"]["recall@20"] == 0 < both[0]["new targets"]["mrr@20"]
    own = run.evaluator()(run.params)
    assert both[0]["all"] == {k: own[k] for k in both[0]["all"]}
    row = f"{100 * own['mrr@20']:.2f} *{100 * both[1]['all']['mrr@20']:.2f}"
    assert re.search(f"mrr@20, all +{len(rank)} +{row}", said)


def test_runs_are_compared_as_they_would_be_served(runs):
    """Joined with neighbours, if the workdir answers so; on either side."""
    folders = [str(runs / day) for day in ("tuesday", "monday")]
    _, alone = compare(*folders)
    config = own_config(folders[0], {"joined": True, "neighbours_weight": 0.5})
    try:
        answered = evaluate_workdir(folders[0], config)
        _, (new, _) = compare(*folders)
        assert new["all"]["mrr@20"] == pytest.approx(answered["mrr@20"])
        assert new["all"] != alone[0]["all"]
        # Asked by its own ids, the other run answers the same.
        _, (_, old) = compare(folders[0], folders[0])
        assert old["all"] == pytest.approx(new["all"])
        _, (_, monday) = compare(*folders)
        assert monday["all"] == alone[1]["all"]
    finally:
        evaluate_workdir(folders[0], own_config(folders[0], {"joined": False}))


@pytest.mark.slow  # trains one more run
def test_the_live_run_keeps_its_own_length_of_sessions(runs):
    _, (_, expected) = compare(str(runs / "tuesday"), str(runs / "monday"))
    config = open_run(runs / "tuesday").own
    config.max_session_length, config.epochs = 1, 1
    train_and_evaluate(config, str(runs / "short"))
    _, (_, found) = compare(str(runs / "short"), str(runs / "monday"))
    assert found["all"] == expected["all"]


def test_what_is_not_worse_is_promoted_and_what_is_worse_not(runs, monkeypatch, capsys):
    live = runs / "live"
    assert promote(str(runs / "monday"), str(live))
    assert live.readlink() == Path("monday")
    assert promote(str(runs / "tuesday"), str(live))
    assert live.resolve() == runs / "tuesday"
    # A run that is live already is neither refused nor compared.
    monkeypatch.setattr(module, "compare", None)
    assert promote(str(runs / "tuesday"), str(live))
    found = []
    monkeypatch.setattr(module, "compare", lambda *_: ("mrr@20", found.pop()))
    for value in (0.2, np.nan):
        found.append([{"all": {"mrr@20": value}}, {"all": {"mrr@20": 0.21}}])
        assert not promote(str(runs / "monday"), str(live))
        assert live.resolve() == runs / "tuesday"
    assert "mrr@20 is 20.00, but 21.00 in tuesday" in capsys.readouterr().out
    found.append([{"all": {"mrr@20": 0.21}}] * 2)
    assert promote(str(runs / "monday"), str(live))
    assert live.resolve() == runs / "monday"
    assert not [*runs.glob("*.unfinished")]


def test_only_a_link_is_switched_and_only_to_a_run(runs, tmp_path):
    with pytest.raises(UserError, match="is a folder, not a link; name a link"):
        promote(str(runs / "tuesday"), str(runs / "monday"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="does not exist: no run has saved"):
        promote(str(tmp_path / "empty"), str(tmp_path / "live"))
    assert not (tmp_path / "live").is_symlink()


@pytest.mark.slow  # trains twice
def test_a_start_from_nothing_is_trained_beside(runs, tmp_path, capsys):
    config = tiny_config(tmp_path)
    log_of(tmp_path / "data", first=3, seed=2)
    config.epochs, today = 1, str(tmp_path / "today")
    with pytest.raises(UserError, match=r"needs config\.warm_start"):
        train_both(config, today, 2)
    config.warm_start = str(runs / "monday")
    _, both = train_both(config, today, 2)
    assert {*both[0]} == {"all", "old targets", "new targets", "old and new"}
    assert "from_nothing" in capsys.readouterr().out
    results = json.loads((tmp_path / "today/from_nothing/results.json").read_text())
    assert results["runs"][0]["epochs"] == 2
    assert results["runs"][0]["parents"] == []
    for name, value in results["mean"]["test"].items():
        assert both[1]["all"][name] == pytest.approx(value)


def write_days(path, days):
    """Writes the sessions of some days; each day gains one item and loses one.

    Each day has twenty items. Item i is followed by item i + 1 or i + 2 of its day.
    """
    rng = np.random.default_rng(0)
    lines = ["session_id,item_id,timestamp"]
    for day in range(days):
        for session in range(90):
            item, time = int(rng.integers(20)), 86_400 * day + 900 * session
            for click in range(int(rng.integers(2, 5))):
                lines.append(f"{day}-{session},item{day + item},{time + click}")
                item = (item + int(rng.choice([1, 1, 1, 2]))) % 20
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow  # eight processes, one of them serving
def test_a_nightly_job(tmp_path):
    """Three nights: the served model knows the items of the day before."""
    flags = [
        f"--config={ROOT / 'configs' / 'click_log.py'}",
        *("--config.data_dir=data", "--config.prepared_dir=prepared"),
        *("--config.embedding_size=8", "--config.batch_size=32"),
        *("--config.learning_rate=0.01", "--config.parallel=jit"),
    ]

    def night(days, name, *more, status=0):
        write_days(tmp_path / "data" / "log.csv", days)
        workdir = f"--workdir=runs/{name}"
        done = srgnn(*flags, workdir, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        live = "--live=runs/live"
        done = srgnn("--mode=promote", workdir, live, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stdout

    def ask(item):
        body = {"session": [f"item{item}"]}
        url = f"http://127.0.0.1:{served.port}/v1/recommend"
        return httpx.post(url, json=body, timeout=30).json()

    def wait_until_known(item):
        for _ in range(300):
            if not ask(item)["unknown"]:
                return
            time.sleep(0.1)
        raise AssertionError(served.said())

    warm = "--config.warm_start=runs/live", "--config.train_days=2"
    night(3, "monday", "--config.epochs=6")
    log = tmp_path / "served.log"
    with Process(tmp_path / "runs/live", log, reload_every=0.2, max_wait=30) as served:
        # The last day is the test split: its new item is not trained on.
        assert ask(20)["unknown"] == []
        assert ask(21)["unknown"] == ["item21"]
        assert "promoted" in night(4, "tuesday", *warm, "--config.epochs=3")
        wait_until_known(21)
        worse = *warm, "--config.epochs=1", "--config.learning_rate=10"
        said = night(5, "worse", *worse, status=3)
        assert "in tuesday; runs/live is unchanged" in said
        # Time for the service to check several times.
        time.sleep(1)
        assert ask(22)["unknown"] == ["item22"]
        assert ask(21)["model"] == ask(20)["model"]
        assert "promoted" in night(5, "wednesday", *warm, "--config.epochs=3")
        wait_until_known(22)
        assert "ERROR" not in served.said().upper()
    results = json.loads((tmp_path / "runs/live/results.json").read_text())
    parents = results["runs"][0]["parents"]
    assert [one["workdir"] for one in parents] == ["tuesday", "monday"]
    # The window has lost the first day, and with it the first item.
    assert parents[0]["new_items"] == parents[0]["gone_items"] == 1
