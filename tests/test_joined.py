"""A network joined with neighbours gives the same answer everywhere."""

import collections
import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from srgnn_jax import config as config_lib
from srgnn_jax import results
from srgnn_jax.configs import click_log
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import baselines, joined, results_json, session_knn
from srgnn_jax.evaluate.session_knn import Neighbours, Prefixes
from srgnn_jax.evaluate.workdir import evaluate_workdir, make_evaluator, own_config
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.serve import exported
from srgnn_jax.serve.bodies import Asked
from srgnn_jax.serve.export import export_workdir
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.serve.served import Served, group_of
from srgnn_jax.serve.stream import evaluate_sessions
from srgnn_jax.train.loop import train_and_evaluate
from tests.tiny import spelled_out, tiny_config, write_log

V = 30
RNG = np.random.default_rng(0)
# The weight of neighbours, then that of repeats.
WEIGHTS = ((0.4, 0.6), (0.4, 0.0), (0.0, 1.0), (0.0, 0.0))
# Two prefix lengths, so that little is compiled; the last item is never in training.
TRAIN = RNG.integers(1, V - 1, (50, 3)).tolist()
TEST = Sessions.from_lists([*RNG.integers(1, V, (20, 3)).tolist(), [V - 1, V - 1, 1]])


def neighbours(weight=0.4, method="STAN", again=0.0):
    train = Sessions.from_lists(TRAIN)
    rates = session_knn.repeat_rates(train, V)
    return Neighbours(method, weight, train.items, train.offsets, V, again, rates)


def kinds(prefix):
    """Returns what each item's rate depends on, as in `session_knn.KINDS`."""
    age = {item: len(prefix) - 1 - place for place, item in enumerate(prefix)}
    distinct = min(int(math.log2(len(age))), 5)
    return {
        item: (distinct, min(prefix.count(item), 6) - 1, min(age[item], 23))
        for item in prefix
    }


def plain_rates(sessions):
    """Counts repeats click by click."""
    held, came = collections.Counter(), collections.Counter()
    for session in sessions:
        for end in range(1, len(session)):
            for item, kind in kinds(session[:end]).items():
                held[kind] += 1
                came[kind] += item == session[end]
                held[kind[1:]] += 1
                came[kind[1:]] += item == session[end]
    mean = came.total() / held.total()

    def rate(kind):
        of_all = (came[kind[1:]] + 10 * mean) / (held[kind[1:]] + 10)
        return (came[kind] + 10 * of_all) / (held[kind] + 10)

    return rate


def plain_joined(examples, params, weight, method="STAN", again=0.0):
    """Joins by the formula, in float64."""
    learnt = baselines.METHODS[method](Sessions.from_lists(TRAIN), V)
    item_seq = np.zeros((len(examples), examples.lengths.max()), np.int32)
    for row, (prefix, _) in zip(item_seq, spelled_out(examples), strict=True):
        row[: len(prefix)] = prefix
    predict = jax.jit(functools.partial(SRGNN(V, 8).apply, method="full_sort_predict"))
    scores = np.asarray(predict({"params": params}, item_seq, examples.lengths))
    network = softmax(scores[:, 1:].astype(np.float64), axis=1)
    knn = learnt.score(examples).toarray()[:, 1:]
    total = knn.sum(axis=1, keepdims=True)
    w = np.where(total > 0, weight, 0)
    both = (1 - w) * network + w * knn / np.where(total > 0, total, 1)
    both = np.pad(both, [(0, 0), (1, 0)])
    rate = plain_rates(TRAIN)
    for row, (prefix, _) in zip(both, spelled_out(examples), strict=True):
        repeats = {item: rate(kind) for item, kind in kinds(list(prefix)).items()}
        most = max(sum(repeats.values()) / 0.95, 1.0)
        row *= 1 - again * sum(repeats.values()) / most
        for item, share in repeats.items():
            row[item] += again * share / most
    return both


@pytest.mark.parametrize("method", session_knn.METHODS)
def test_ranks_and_lists_are_those_of_the_formula(method):
    examples, params = TEST.examples(), init_params(SRGNN(V, 8), 0)
    found = joined.rank(
        SRGNN(V, 8), params, examples, neighbours(method=method), WEIGHTS, k=5
    )
    for column, (weight, again) in enumerate(WEIGHTS):
        expected = plain_joined(examples, params, weight, method, again)
        of_target = expected[np.arange(len(examples)), examples.targets][:, None]
        ranks = (expected[:, 1:] >= of_target * (1 - 1e-6)).sum(axis=1)
        np.testing.assert_array_equal(found.ranks[:, column], ranks)
    expected = plain_joined(examples, params, 0.4, method, 0.6)
    listed = np.take_along_axis(expected, found.lists, axis=1)
    np.testing.assert_allclose(listed, -np.sort(-expected)[:, :5], rtol=1e-5)


def test_how_often_and_how_long_ago_decide_on_repeats():
    sessions = [[1, 1, 2, 1, *range(3, 40), 1], [5, 6] * 12, [7], [8, 8], [9] * 9]
    rates = session_knn.repeat_rates(Sessions.from_lists(sessions), 40)
    expected = plain_rates(sessions)
    assert rates.shape == session_knn.KINDS
    kinds = np.ndindex(rates.shape)
    np.testing.assert_allclose(rates.reshape(-1), [*map(expected, kinds)])


def test_rates_of_any_number_of_items_are_read_as_they_were_saved(tmp_path):
    now = neighbours(again=0.6)
    of_any = dataclasses.replace(now, rates=now.rates[0])
    of_any.save(tmp_path / "before.npz")
    with (tmp_path / "before.npz").open("rb") as file:
        read = Neighbours.load(file)
    same = np.broadcast_to(now.rates[0], session_knn.KINDS)
    expected = dataclasses.replace(now, rates=same).shares(TEST.examples())
    np.testing.assert_array_equal(read.shares(TEST.examples()), expected)
    assert (expected != now.shares(TEST.examples())).any()


def test_repeats_leave_something_to_the_network():
    # The two items of all sessions always come again.
    sessions = Sessions.from_lists([[1, 2] * 9] * 50)
    rates = session_knn.repeat_rates(sessions, 3)
    one = Neighbours("STAN", 0.0, sessions.items, sessions.offsets, 3, 1.0, rates)
    shares = one.shares(Prefixes.of(np.array([[1, 2, 1, 2], [0, 0, 0, 0]])))
    assert shares[0, 1] > 0.9
    np.testing.assert_allclose(shares.sum(axis=1), [0.95, 0], rtol=1e-6)
    # With candidates, the share of other items goes to the network.
    alone = one.shares(Prefixes.of(np.array([[1, 2, 1, 2]])), np.array([0, 2]))
    np.testing.assert_allclose(alone, [[0, one.rates[1, 1, 0]]], rtol=1e-6)


def test_ties_count_against_the_target_and_nothing_hides_a_nan():
    scores = jnp.array([[-jnp.inf], [0.0], [0.0], [jnp.nan]])
    shares = jnp.zeros((4, 1))
    both = joined.add_up(scores[:3], shares[:3])[:, 0].tolist()
    assert both == [-np.inf, 0.5, 0.5]
    assert np.isnan(joined.add_up(scores, shares)[1:]).all()


def test_prefixes_of_padded_rows_are_those_of_examples():
    found = Prefixes.of(np.array([[3, 4, 0], [0, 0, 0], [5, 5, 6]]))
    shares = neighbours(again=0.6).knn(found)
    alone = Sessions.from_lists([[3, 4, 1], [5, 5, 6, 1]], last_only=True).examples()
    np.testing.assert_array_equal(shares[[0, 2]], neighbours().knn(alone))
    assert not shares[1].any()
    np.testing.assert_allclose(shares[[0, 2]].sum(axis=1), 1, rtol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A joined run, its config and its test examples as raw ids."""
    folder = tmp_path_factory.mktemp("joined")
    config = tiny_config(folder)
    write_log(folder / "data" / "log.csv", again=0.5)
    config.joined, config.max_session_length = True, 4
    config.neighbours_weight, config.repeats_weight = 0.2, 0.6
    train_and_evaluate(config, str(folder / "run"), "the command")
    data = config_lib.load_data(config)
    splits = config_lib.make_splits(config, data)
    ids = data.vocabulary.raw
    pairs = [
        (ids(prefix), *ids([target]))
        for prefix, target in spelled_out(splits.evaluated["test"])
    ]
    return folder, config, pairs


def test_every_way_to_ask_gives_the_same_answer(run):
    folder, _, pairs = run
    recommender = Recommender.load(folder / "run")
    sessions = [prefix for prefix, _ in pairs]
    found = recommender.recommend(sessions, k=20)
    # Evaluation.
    hits = [
        target in one.items[:5] for one, (_, target) in zip(found, pairs, strict=True)
    ]
    stored = results_json.read(folder / "run" / results_json.FILE)
    assert stored["mean"]["test"]["recall@5"] == pytest.approx(np.mean(hits))
    # The network alone gives other answers.
    alone = Recommender.load(folder / "run")
    alone.neighbours = None
    assert alone.recommend(sessions) != found
    # The service.
    served = Served.of(recommender)
    asked = Asked(sessions, True, 20, False, None, False)
    ((answers, _),) = served.answer(group_of(asked), [asked])
    # An export.
    export_workdir(str(folder / "run"), str(folder / "out"), k=20)
    loaded = exported.Recommender.load(folder / "out").recommend(sessions)
    for one, answer, there in zip(found, answers, loaded, strict=True):
        assert one.items == answer["items"] == there.items
        np.testing.assert_allclose(answer["scores"], one.scores, rtol=1e-4)
        np.testing.assert_allclose(there.scores, one.scores, rtol=1e-4)
        assert sum(one.scores) == pytest.approx(1, rel=1e-5)


def test_a_log_is_evaluated_joined(run, capsys):
    folder, _, _ = run
    log = folder / "data" / "log.csv"
    means = evaluate_sessions(str(folder / "run"), str(log))
    said = capsys.readouterr().out
    assert "joined" in said
    row = next(line for line in said.splitlines() if line.startswith("mrr@20"))
    assert row.split()[1] == f"{100 * means['mrr@20']:.2f}"
    assert row.split()[1] != row.split()[2]


def test_candidates_share_the_probability(run):
    folder, _, pairs = run
    recommender = Recommender.load(folder / "run")
    few = recommender.vocabulary.ids[3:9]
    sessions = [prefix for prefix, _ in pairs[:20]]
    found = recommender.recommend(sessions, candidates=few)
    again = recommender.recommend(sessions, candidates=few, as_probabilities=True)
    everything = recommender.recommend(sessions, exclude_seen=True)
    for one, other, session, all_others in zip(
        found, again, sessions, everything, strict=True
    ):
        assert sorted(one.items) == sorted(few)
        assert one == other
        assert sum(one.scores) == pytest.approx(1, rel=1e-5)
        assert not {*all_others.items} & {*session}


def test_validation_chooses_the_weights(run, tmp_path):
    folder, given, _ = run
    stored = results_json.read(folder / "run" / results_json.FILE)
    lines = results_json.read_lines(folder / "run" / "metrics.jsonl")
    assert lines[-1]["joined/mrr@20"] == stored["runs"][0]["test"]["mrr@20"]
    assert "valid_by_weights" not in stored["runs"][0]["joined"]
    config = given.copy_and_resolve_references()
    config.neighbours_weight = config.repeats_weight = 0.0
    shutil.copytree(folder / "run", tmp_path / "run")
    evaluate_workdir(str(tmp_path / "run"), config)
    stored = results_json.read(tmp_path / "run" / results_json.FILE)
    (one,) = stored["runs"]
    by_weights = one["joined"]["valid_by_weights"]
    assert len(by_weights) == 15
    _, again = max([*by_weights][:6], key=lambda w: by_weights[w]["mrr@20"]).split()
    those = [weights for weights in by_weights if weights.endswith(f" {again}")]
    best = max(sorted(those), key=lambda w: by_weights[w]["mrr@20"])
    weights = [one["joined"]["weight"], one["joined"]["repeats_weight"]]
    assert best == "{} {}".format(*weights)
    assert one["valid"] == by_weights[best]
    assert weights[1] > 0
    loaded = joined.load(tmp_path / "run", 21)
    assert [loaded.weight, loaded.repeats_weight] == weights
    epochs = {line["epoch"]: line for line in lines if "epoch" in line}
    best_epoch = epochs[one["best_epoch"]]
    assert by_weights["0.0 0.0"]["mrr@20"] == best_epoch["valid/mrr@20"]
    # The document says so.
    assert f"weighs {weights[0]}, repeats {weights[1]}, chosen on validation." in (
        results.document([stored])
    )


def test_results_say_that_they_are_joined(run):
    folder, _, _ = run
    stored = results_json.read(folder / "run" / results_json.FILE)
    assert stored["config"]["joined"] is True
    text = results.document([stored])
    assert "joined=True, " in text
    assert "STAN weighs 0.2, repeats 0.6." in text
    recall, mrr = (
        f"{100 * stored['runs'][0]['joined']['network'][name]:.2f}"
        for name in ("recall@20", "mrr@20")
    )
    assert (
        f"| the same, the network alone | validation | 1 | {recall} | {mrr} |" in text
    )


@pytest.mark.slow  # trains again, and evaluates six times
def test_a_workdir_answers_as_it_was_evaluated_last(run, tmp_path, capsys):
    folder, config, _ = run
    workdir = str(tmp_path / "run")
    alone = config.copy_and_resolve_references()
    alone.joined = False
    train_and_evaluate(alone, workdir)
    network = evaluate_workdir(workdir)
    stored = json.loads((folder / "run" / "results.json").read_text())
    both = evaluate_workdir(workdir, config)
    assert both["mrr@20"] == stored["mean"]["test"]["mrr@20"] != network["mrr@20"]
    # Without a config, it is evaluated as before.
    assert evaluate_workdir(workdir)["mrr@20"] == both["mrr@20"]
    assert Recommender.load(workdir).neighbours is not None
    # So it is when a single field of its own config is replaced.
    assert own_config(workdir, {"progress": False}).joined
    assert not own_config(workdir, {"joined": False}).joined
    printed = capsys.readouterr().out
    _, *tables = printed.split("joined with STAN, weight")
    assert len(tables) == 2
    # The tables fit a terminal of a hundred columns.
    for table in tables:
        rows = [line for line in table.splitlines() if line.startswith("mrr@20")]
        assert len(rows[0]) <= 100
    # The training command, with other fields of joining, joins a complete run.
    config.neighbours, config.neighbours_weight = "V-SKNN", 0.25
    config.repeats_weight = 0.0
    train_and_evaluate(config, workdir)
    assert joined.load(tmp_path / "run", 21).method == "V-SKNN"
    assert joined.load(tmp_path / "run", 21).weight == 0.25
    evaluate_workdir(workdir, alone)
    assert Recommender.load(workdir).neighbours is None


def test_what_cannot_be_joined_is_told(run, tmp_path, monkeypatch):
    folder, _, _ = run
    for on in ("last", "test"):
        one = click_log.get_config()
        one.joined, one.select_on = True, on
        with pytest.raises(UserError, match=r"neighbours_weight is 0\.0; without"):
            config_lib.validate(one)
        for field in ("neighbours_weight", "repeats_weight"):
            given = one.copy_and_resolve_references()
            given[field] = 0.3
            config_lib.validate(given)
        one.neighbours_weight = 0.3
    one.select_on, one.test_days = "last", 0.0
    with pytest.raises(UserError, match="which is judged on test"):
        config_lib.validate(one)
    one.test_days = 1.0
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(UserError, match="single process can join neighbours"):
            make_evaluator(one, SRGNN(V, 8), TEST.examples(), layouts.Devices(1))
    one.neighbours = "KNN"
    with pytest.raises(UserError, match="choose one of STAN, V-SKNN"):
        config_lib.validate(one)
    assert {*session_knn.METHODS} == {"STAN", "V-SKNN"}
    path = tmp_path / joined.FILE
    whole = (folder / "run" / joined.FILE).read_bytes()
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"neighbours\.npz.* 21 item rows, not 30"):
        joined.load(tmp_path, 30)
    for damaged in (b"", whole[:100], whole[:-200], b"PK" + whole[2:90]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot read .*neighbours\.npz"):
            joined.load(tmp_path, 21)
