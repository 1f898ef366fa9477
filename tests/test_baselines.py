"""Baselines against loops that follow their formulas, session by session."""

import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import re

import numpy as np
import pytest

from srgnn_jax import config as config_lib
from srgnn_jax.configs import click_log, click_log_paper, diginetica, yoochoose
from srgnn_jax.data.sessions import Examples, Sessions
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import baselines, metrics, results_json
from srgnn_jax.evaluate.scorer import target_ranks
from srgnn_jax.evaluate.workdir import (
    baseline_metrics,
    evaluate_baselines,
    lost_to,
)
from tests.command import ROOT, srgnn
from tests.tiny import tiny_config

SHARED = pathlib.Path(__file__).parents[1].parent / "shared" / "data"
V = 16
K, SAMPLE = 3, 6


def random_sessions(count, seed, items=V):
    """Sessions full of repeats and ties; the first items are the most frequent."""
    rng = np.random.default_rng(seed)
    draw = functools.partial(rng.geometric, 0.25)
    return [
        [int(item) for item in np.minimum(draw(rng.integers(2, 9)), items - 1)]
        for _ in range(count)
    ]


# The last item is never in training.
TRAIN = random_sessions(60, seed=1, items=V - 1)
TEST = Sessions.from_lists([*random_sessions(40, seed=2), [V - 1, 1, V - 1, 2]])


def clicks():
    return collections.Counter(item for session in TRAIN for item in session)


def last_ages(session):
    """How many clicks ago each item was clicked last."""
    return {item: len(session) - 1 - i for i, item in enumerate(session)}


def loop_pop(prefix):
    return {item: clicks()[item] for item in range(1, V)}


def loop_session_pop(prefix):
    own = collections.Counter(prefix)
    # The factor is far above any number of training clicks.
    return {item: 1e6 * own[item] + clicks()[item] for item in range(1, V)}


def loop_item_knn(prefix):
    last, scores = prefix[-1], {}
    support = collections.Counter(item for session in TRAIN for item in set(session))
    for other in set(range(1, V)) - {last}:
        both = sum({last, other} <= set(session) for session in TRAIN)
        scores[other] = both / math.sqrt((support[last] + 20) * (support[other] + 20))
    best = sorted(scores, key=lambda item: (scores[item], item))[-K:]
    return {item: scores[item] for item in best}


def loop_markov(prefix):
    return collections.Counter(
        after
        for session in TRAIN
        for before, after in itertools.pairwise(session)
        if before == prefix[-1]
    )


def loop_neighbours(similarity):
    sharing = [n for n in range(len(TRAIN)) if similarity(n) > 0][-SAMPLE:]
    return sorted(sharing, key=lambda n: (similarity(n), n))[-K:]


def loop_vsknn(prefix):
    ages, scores = last_ages(prefix), collections.Counter()

    def similarity(n):
        return sum(len(prefix) - ages[item] for item in ages.keys() & set(TRAIN[n]))

    for n in loop_neighbours(similarity):
        latest = min(ages[item] for item in ages.keys() & set(TRAIN[n]))
        for item in set(TRAIN[n]):
            scores[item] += similarity(n) / (latest + 1)
    return scores


def loop_stan(prefix):
    ages, scores = last_ages(prefix), collections.Counter()

    def similarity(n):
        shared = sum(math.exp(-ages[i] / 1.02) for i in ages.keys() & set(TRAIN[n]))
        recency = math.exp(-(len(TRAIN) - 1 - n) / len(TRAIN) / 0.5)
        return shared * recency / math.sqrt(len(set(TRAIN[n])))

    for n in loop_neighbours(similarity):
        there = last_ages(TRAIN[n])
        latest = min(ages.keys() & there.keys(), key=ages.get)
        for item in there:
            distance = abs(there[item] - there[latest])
            scores[item] += similarity(n) * math.exp(-distance / 2.05)
    return scores


def loop_rank(scores, target):
    wanted = scores.get(target, 0) * (1 - 1e-9)
    return sum(scores.get(item, 0) >= wanted for item in range(1, V))


FEW = {"k": K, "sample_size": SAMPLE}
CASES = {
    "POP": (baselines.pop, loop_pop),
    "S-POP": (baselines.session_pop, loop_session_pop),
    "Item-KNN": (functools.partial(baselines.item_knn, neighbours=K), loop_item_knn),
    "Markov": (baselines.markov, loop_markov),
    "V-SKNN": (functools.partial(baselines.vsknn, **FEW), loop_vsknn),
    "STAN": (functools.partial(baselines.stan, lambda2=0.5, **FEW), loop_stan),
}


def scorer(name):
    return CASES[name][0](Sessions.from_lists(TRAIN), V)


@pytest.mark.parametrize("name", baselines.METHODS)
def test_ranks_are_those_of_a_loop(name):
    expected = [
        loop_rank(CASES[name][1](session[:cut].tolist()), session[cut])
        for session in (TEST[s] for s in range(len(TEST)))
        for cut in range(1, len(session))
    ]
    ranks = target_ranks(scorer(name), TEST.examples())
    assert ranks.tolist() == expected


@pytest.mark.parametrize("name", baselines.METHODS)
def test_ranks_do_not_depend_on_the_batch(name):
    learnt, examples = scorer(name), TEST.examples()
    ranks = target_ranks(learnt, examples)
    for max_clicks in (1, 7):
        assert (target_ranks(learnt, examples, max_clicks) == ranks).all()


def test_similarities_do_not_depend_on_how_many_are_counted_at_a_time(monkeypatch):
    train, examples = Sessions.from_lists(TRAIN), TEST.examples()
    expected = baselines.item_knn(train, V, neighbours=K).score(examples).toarray()
    for most in (1, 40):
        monkeypatch.setattr(baselines, "MAX_PAIRS", most)
        found = baselines.item_knn(train, V, neighbours=K).score(examples).toarray()
        assert (found == expected).all()


@pytest.mark.parametrize("name", baselines.METHODS)
def test_scores_know_the_prefix_alone(name):
    learnt, examples = scorer(name), TEST.examples()
    scores = learnt.score(examples).toarray()
    for row in range(0, len(examples), 5):
        start, length = examples.starts[row], examples.lengths[row]
        items = np.full_like(examples.items, 1)
        items[start : start + length] = examples.items[start : start + length]
        alone = Examples(items, examples.starts[[row]], examples.lengths[[row]])
        assert (learnt.score(alone).toarray()[0] == scores[row]).all()


@pytest.mark.parametrize("name", ["Item-KNN", "Markov", "V-SKNN", "STAN"])
def test_without_neighbours_the_target_is_last(name):
    never_trained = Sessions.from_lists([[V - 1, 1], [V - 1, V - 1]])
    ranks = target_ranks(scorer(name), never_trained.examples())
    assert ranks.tolist() == [V - 1, V - 1]


def test_ties_count_against_the_target():
    # 1 is followed by 2, 3 and 4, once each.
    train = Sessions.from_lists([[1, 2], [1, 3], [1, 4]])
    test = Sessions.from_lists([[1, 2], [1, 3], [1, 5]]).examples()
    for learn in (baselines.markov, baselines.item_knn):
        assert target_ranks(learn(train, 7), test).tolist() == [3, 3, 6]
    assert target_ranks(baselines.pop(train, 7), test).tolist() == [4, 4, 6]


def test_equal_sums_tie_however_they_round():
    # Each of 2 and 3 is in one of two sessions, and 0.1 + 0.2 is not 0.3.
    weight = baselines.vsknn(
        Sessions.from_lists([[4, 2], [5, 2], [6, 3]]),
        8,
        click_weight=lambda age, length: np.array([0.2, 0.1, 0.3])[age],
        neighbour_weight=lambda age, length: np.ones(len(age)),
    )
    test = Sessions.from_lists([[6, 5, 4, 2], [6, 5, 4, 3]]).examples()
    last = np.flatnonzero(test.lengths == 3)
    ranks = target_ranks(
        weight,
        dataclasses.replace(test, starts=test.starts[last], lengths=test.lengths[last]),
    )
    assert ranks[0] == ranks[1]


def test_session_pop_fills_its_list_with_popular_items():
    train = Sessions.from_lists([[1, 2, 2, 2], [3, 2, 3, 3, 3], [1, 4]])
    # 3 and 2 have four clicks, 1 has two, 4 one, 5 none. The session clicked 4 twice,
    # and 1 and 5 once; POP knows only 1 of these two.
    test = Sessions.from_lists(
        [[4, 5, 1, 4, target] for target in (4, 1, 5, 2, 3, 6)], last_only=True
    )
    ranks = target_ranks(baselines.session_pop(train, 7), test.examples())
    assert ranks.tolist() == [1, 2, 3, 5, 5, 6]


def test_neighbours_are_sampled_from_the_latest_sessions():
    train = Sessions.from_lists([[1, 2, 3]] * 5 + [[1, 4]] * 2)
    test = Sessions.from_lists([[1, 2, 3]]).examples()
    for learn in (baselines.vsknn, baselines.stan):
        assert target_ranks(learn(train, 6, sample_size=2), test).tolist() == [5, 5]
        assert target_ranks(learn(train, 6, sample_size=3), test)[1] < 5


def test_popularity_ranks_by_training_clicks():
    train = Sessions.from_lists([[1, 2, 2], [3, 2, 3]])
    # Ranks: 2 (three clicks), 3 (two), 1 (one), 4 (none).
    test = Sessions.from_lists([[4, 2], [1, 3, 1], [2, 4]]).examples()
    means = metrics.means(target_ranks(baselines.pop(train, 5), test), (1, 3))
    assert means["recall@1"] == pytest.approx(1 / 4)
    assert means["recall@3"] == pytest.approx(3 / 4)
    assert means["mrr@3"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)


@pytest.mark.parametrize("select_on", ["valid", "test"])
def test_they_learn_from_what_a_training_learns_from(tmp_path, capsys, select_on):
    config = tiny_config(tmp_path)
    config.select_on = select_on
    results = evaluate_baselines(config, str(tmp_path / "run"))
    splits = config_lib.make_splits(config, config_lib.load_data(config))
    written = json.loads((tmp_path / "run" / "baselines.json").read_text())
    assert written["test"] == results
    assert written["select_on"] == select_on
    assert written["train_sessions"] == len(splits.train_sessions)
    assert list(results) == list(baselines.METHODS)
    ranks = target_ranks(
        baselines.markov(splits.train_sessions, 21), splits.evaluated["test"]
    )
    means = metrics.means(ranks, config.ks)
    assert {name: results["Markov"][name] for name in means} == means
    # Item i is usually followed by i + 1.
    assert results["Markov"]["recall@5"] > 2 * results["POP"]["recall@5"]
    table = capsys.readouterr().out
    assert f"  {100 * means['mrr@20']:.2f}" in table
    # The table fits a terminal.
    assert max(map(len, table.splitlines())) <= 80
    assert ("held out" in table) == (select_on == "valid")


def test_a_run_of_the_same_data_stands_in_the_first_column(tmp_path, capsys):
    config = tiny_config(tmp_path)
    (tmp_path / "run").mkdir()
    data = config_lib.load_data(config)
    found = {"data": {"fingerprint": data.fingerprint}, "config": {}, "protocol": {}}
    found |= {
        "mean": {"test": {"mrr@20": 0.98765}},
        "standard_deviation": {},
        "runs": [],
    }
    results_json.write(tmp_path / "run" / "results.json", found)
    evaluate_baselines(config, str(tmp_path / "run"))
    header, *rows = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert header.split()[:2] == ["SR-GNN", "POP"]
    assert ["mrr@20", "98.77"] in [row.split()[:2] for row in rows]
    found["data"]["fingerprint"] = "of other data"
    results_json.write(tmp_path / "run" / "results.json", found)
    evaluate_baselines(config, str(tmp_path / "run"))
    assert "SR-GNN" not in capsys.readouterr().out


def test_where_a_baseline_wins_the_settings_to_try_are_named():
    config = click_log_paper.get_config()
    reached = {"POP": {"mrr@20": 0.1}, "STAN": {"mrr@20": 0.5}, "Markov": {}}
    assert lost_to(config, {"mrr@20": 0.5}, reached) == []
    said = " ".join(lost_to(config, {"mrr@20": 0.4}, reached))
    assert said.startswith(" STAN has a better mrr@20: try --config.normalize=True")
    # The settings exist and have the values of click_log.
    named = dict(re.findall(r"--config\.(\w+)=(\S+?),? ", said))
    assert named.pop("joined") == "True"
    own = click_log.get_config()
    assert {name: str(own[name]) for name in named} == named
    assert len(named) == 3
    said = " ".join(lost_to(own, {"mrr@20": 0.4}, reached))
    assert re.findall(r"--config\.\S+", said) == ["--config.joined=True"]
    assert "--mode=search" in said
    own.joined = True
    said = " ".join(lost_to(own, {"mrr@20": 0.4}, reached))
    assert "joined" not in said
    assert "--mode=search" in said


def test_what_cannot_be_written_is_printed(tmp_path, capsys):
    (tmp_path / "run" / "baselines.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*baselines\.json"):
        evaluate_baselines(tiny_config(tmp_path), str(tmp_path / "run"))
    assert "V-SKNN" in capsys.readouterr().out


def test_the_mode(tmp_path):
    config = tiny_config(tmp_path)
    done = srgnn(
        "--mode=baselines",
        f"--config={ROOT / 'configs' / 'click_log.py'}",
        f"--config.data_dir={config.data_dir}",
        f"--config.prepared_dir={config.prepared_dir}",
        "--config.test_days=0.35",
        cwd=tmp_path,
    )
    assert "V-SKNN" in done.stdout, done.stderr
    # The default workdir is named after the config.
    written = json.loads((tmp_path / "runs/click_log/baselines.json").read_text())
    assert "--mode=baselines" in written["command"]
    assert "--config is missing" in srgnn("--mode=baselines").stderr


@pytest.mark.slow  # Prepares the published data sets, which takes half a minute.
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(
    ("config", "folder", "published"),
    [
        (
            diginetica.get_config(),
            "diginetica",
            {"POP": (0.89, 0.20), "S-POP": (21.06, 13.68), "Item-KNN": (35.75, 11.57)},
        ),
        (
            yoochoose.get_config("1_64"),
            "yoochoose1_64",
            {"POP": (6.71, 1.65), "S-POP": (30.44, 18.35), "Item-KNN": (51.60, 21.81)},
        ),
    ],
)
def test_published_figures_are_reached(tmp_path, config, folder, published):
    """The figures are those of table 2 of Wu et al. 2019."""
    config.data_dir, config.prepared_dir = str(SHARED / folder), str(tmp_path)
    config.select_on = "test"
    data = config_lib.load_data(config)
    splits = config_lib.make_splits(config, data)
    for name, (recall, mrr) in published.items():
        learnt = baselines.METHODS[name](
            splits.train_sessions, data.vocabulary.num_items
        )
        means = metrics.means(target_ranks(learnt, splits.evaluated["test"]), (20,))
        for metric, value in (("recall@20", recall), ("mrr@20", mrr)):
            # For the smallest figures, 1.5 points would be too loose.
            within = min(1.5, 0.1 * value)
            assert 100 * means[metric] == pytest.approx(value, rel=0, abs=within), name


def test_beside_a_result_they_learn_from_the_sessions_behind_pairs():
    sessions = [[1, 2, 3, 4], [2, 3, 5], [4, 1, 2, 5]]
    pairs = [session[:n] for session in sessions for n in range(len(session), 1, -1)]
    config = click_log.get_config()
    test = Sessions.from_lists([[1, 2, 3], [4, 1, 2]]).examples()
    of_pairs, of_sessions = (
        baseline_metrics(
            config, config_lib.Splits(train, train.examples(), {"test": test}), 6
        )
        for train in (
            Sessions.from_lists(pairs, last_only=True),
            Sessions.from_lists(sessions),
        )
    )
    assert of_pairs == of_sessions
