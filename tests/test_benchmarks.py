"""The comparisons measure what they say: the same model, the right figures."""

import argparse
import functools
import json
import pickle
import sys
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest

from benchmarks import (
    against_original,
    against_recbole,
    common,
    markov_log,
    warm_start,
)
from srgnn_jax.convert import params_to_torch
from srgnn_jax.model.srgnn import SRGNN
from tests.parity import part

GOLDEN = Path(__file__).parent / "golden"
# Of a run of six steps, a record after every second, within one epoch.
TINY = argparse.Namespace(steps=6, window=2, embedding_size=4, batch_size=50)
ITEMS = 60


def load(model, weights):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    model.load_state_dict(tensors, strict=True)


@pytest.mark.parametrize("name", ["original_step1", "original_step3_nonhybrid"])
def test_original_gives_the_numbers_recorded_of_the_authors_code(name):
    pytest.importorskip("torch")
    from benchmarks import original

    with np.load(GOLDEN / f"{name}.npz") as file:
        recording = dict(file)
    cfg = {key: value.item() for key, value in part(recording, "cfg").items()}
    model = original.SessionGraph(
        cfg["num_items"], cfg["embedding_dim"], cfg["num_steps"], not cfg["nonhybrid"]
    )
    load(model, part(recording, "param"))
    inputs = recording["in/item_seq"].astype(np.int64)
    targets = recording["in/target"].astype(np.int64)

    graphs = original.session_graphs(inputs[0])
    for what, found in zip(("alias", "items", "A"), graphs, strict=True):
        np.testing.assert_array_equal(found, recording[f"out/{what}"], err_msg=what)
    scores = model(inputs[0]).detach().numpy()
    np.testing.assert_allclose(scores, recording["out/scores"], atol=2e-6)
    batches = map(original.Examples, inputs, targets)
    losses = [
        x["train/loss"]
        for x in original.train(model, original.adam(model), batches, window=1)
    ]
    np.testing.assert_allclose(losses, recording["traj/loss"], atol=1e-5)
    for key, after in part(recording, "after").items():
        found = model.state_dict()[key].numpy()
        np.testing.assert_allclose(found, after, atol=2e-5, err_msg=key)


def test_original_agrees_with_ours_on_loss_and_metrics():
    pytest.importorskip("torch")
    from benchmarks import original

    sessions, prefixes, targets = against_original.made_data(ITEMS, 200, 70)
    examples, test = original.expand(sessions), original.pad(prefixes, targets)
    lengths = (test.inputs > 0).sum(1).astype(np.int32)
    item_seq = test.inputs.astype(np.int32)
    model = SRGNN(ITEMS, embedding_size=8)
    variables = jax.jit(model.init)(jax.random.key(0), item_seq, lengths)
    theirs = original.SessionGraph(ITEMS, embedding_size=8)
    load(theirs, params_to_torch(variables["params"], "original"))

    def ours(method, *arguments):
        apply = jax.jit(functools.partial(model.apply, method=method))
        return np.asarray(apply(variables, *arguments))

    scores = ours("full_sort_predict", item_seq, lengths)[:, 1:]
    of_target = scores[np.arange(len(test.targets)), test.targets - 1]
    rank = 1 + (scores > of_target[:, None]).sum(1)
    found = original.evaluate(theirs, test, batch_size=32)
    assert found["test/recall@20"] == pytest.approx(np.mean(rank <= 20))
    assert found["test/mrr@20"] == pytest.approx(np.mean((rank <= 20) / rank))
    # Neither is so good or bad that a mistake could not show.
    assert 0.2 < found["test/recall@20"] < 0.8

    chosen = next(original.shuffled(len(examples.targets), 50, 1, seed=0))
    batch = original.Examples(examples.inputs[chosen], examples.targets[chosen])
    lengths = (batch.inputs > 0).sum(1).astype(np.int32)
    loss = ours(
        "calculate_loss",
        batch.inputs.astype(np.int32),
        lengths,
        batch.targets.astype(np.int32),
    )
    (record,) = original.train(theirs, original.adam(theirs), [batch], window=1)
    assert record["train/loss"] == pytest.approx(float(loss), rel=1e-5)


def test_original_trains_on_every_prefix_once():
    pytest.importorskip("torch")
    from benchmarks import original

    examples = original.expand([[1, 2, 3, 2], [4, 5]])
    assert examples.inputs.tolist() == [[1, 0, 0], [1, 2, 0], [1, 2, 3], [4, 0, 0]]
    assert examples.targets.tolist() == [2, 3, 2, 5]
    orders = [
        np.concatenate(list(original.shuffled(40, 3, 14, seed=seed, epoch=epoch)))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 0))
    ]
    for order in orders:
        assert sorted(order) == list(range(40))
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.slow  # trains twice
def test_a_training_as_the_original_takes_its_path(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    from benchmarks import as_original, original

    sessions, prefixes, targets = against_original.made_data(ITEMS, 800, 70)
    # A step is compiled for each length of a prefix.
    short = [session[:4] for session in sessions], [prefix[:3] for prefix in prefixes]
    against_original.write_data(tmp_path / "data", *short, targets)
    flags = [f"--data_dir={tmp_path / 'data'}", "--epochs=2", "--window=2", "--seed=3"]
    flags += ["--embedding_size=8"]
    printed = []
    for module in (original, as_original):
        monkeypatch.setattr("sys.argv", [module.__name__, *flags])
        module.main()
        printed.append([json.loads(x) for x in capsys.readouterr().out.splitlines()])
    theirs, ours = printed
    assert len(theirs) == len(ours) > 4
    for a, b in zip(theirs, ours, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {f"{x}/examples_per_second" for x in ("train", "test")}:
            assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
    assert len({record.get("test/mrr@20") for record in ours}) == 1 + 2


def write_tiny(folder):
    data = against_original.made_data(ITEMS, 400, 30)
    against_original.write_data(folder, *data)
    return folder


def in_range(found, seconds_at_least):
    assert found.training > 0
    assert min(found.evaluation, found.at_the_end) > 0
    assert found.seconds > seconds_at_least
    # The loss of weights that are nearly as they were drawn.
    assert found.loss == pytest.approx(np.log(ITEMS - 1), rel=0.1)
    assert 0 < found.mrr <= found.recall <= 1


@pytest.mark.slow  # prepares and trains, a process each
def test_our_side_is_measured_through_the_command_line(tmp_path):
    data = write_tiny(tmp_path / "data")
    found = against_original.train_here(data, tmp_path, "run", TINY)
    in_range(found, 0.5)


@pytest.mark.slow  # trains in a process
def test_the_original_side_is_measured_in_its_own_process(tmp_path):
    pytest.importorskip("torch")
    in_range(against_original.train_original(write_tiny(tmp_path / "data"), TINY), 0.1)


def test_missing_torch_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr("sys.argv", ["against_original"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"make \.venv/torch"):
        against_original.main()


def test_a_process_that_fails_is_told_with_its_complaint():
    command = [sys.executable, "-c", "raise SystemExit('no such data')"]
    with pytest.raises(SystemExit, match="failed:\nno such data"):
        common.run_process(command)


def window(rate, loss=1.0, **more):
    return {"train/examples_per_second": rate, "train/loss": loss, **more}


TEST = {"test/examples_per_second": 50.0, "test/recall@20": 0.4, "test/mrr@20": 0.1}


def test_the_first_window_is_not_counted():
    records = [window(1.0), window(100.0), window(300.0, loss=3.0), TEST]
    found = against_original.measured(9.0, records)
    # 100 examples in a second and 100 in a third of one.
    assert found == against_original.Measured(150.0, 50.0, 50.0, 9.0, 3.0, 0.4, 0.1)
    after_an_epoch = against_original.measured(9.0, records, 80.0)
    assert (after_an_epoch.evaluation, after_an_epoch.at_the_end) == (80.0, 50.0)


@pytest.mark.parametrize(
    "records",
    [
        [window(1.0), TEST],
        [window(1.0), window(2.0)],
        [window(1.0), window(2.0), window(2.0, epoch=1), TEST],
        [window(1.0), window(2.0), TEST, TEST],
    ],
)
def test_records_of_another_kind_of_run_are_refused(records):
    with pytest.raises(ValueError, match="those of a run within one epoch"):
        against_original.measured(9.0, records)


def test_made_data_are_as_long_as_they_are_to_be():
    sessions, prefixes, targets = against_original.made_data(1_000, 50_000, 7_000)
    lengths = np.array([len(session) for session in sessions])
    # Of all prefixes, not of sessions: a session of n clicks has those of 1 to n - 1.
    prefix = np.concatenate([np.arange(1, n) for n in lengths])
    assert len(prefix) == pytest.approx(50_000, rel=0.03)
    assert prefix.mean() == pytest.approx(common.MEAN_LENGTH, rel=0.03)
    assert len(prefixes) == len(targets) == 7_000
    assert np.mean([len(x) for x in prefixes]) == pytest.approx(
        common.MEAN_LENGTH, rel=0.05
    )
    items = {item for session in sessions for item in session}
    assert min(items) == 1
    assert max(items) == 999


def test_ratios_are_of_rounds_and_above_one_where_ours_is_faster():
    theirs = [
        against_original.Measured(100.0, 10.0, 10.0, 60.0, 5.0, 0.1, 0.1),
        against_original.Measured(200.0, 10.0, 10.0, 60.0, 5.0, 0.1, 0.1),
        against_original.Measured(100.0, 10.0, 10.0, 60.0, 5.0, 0.1, 0.1),
    ]
    ours = [
        against_original.Measured(400.0, 50.0, 30.0, 20.0, 4.0, 0.1, 0.1),
        against_original.Measured(400.0, 60.0, 30.0, 20.0, 4.0, 0.1, 0.1),
        against_original.Measured(500.0, 70.0, 30.0, 20.0, 4.0, 0.1, 0.1),
    ]
    found, rows = against_original.table(theirs, ours)
    assert found["training"] == {"median": 4.0, "least": 2.0, "greatest": 5.0}
    assert found["evaluation"]["median"] == 6.0
    assert found["at_the_end"]["median"] == 3.0
    assert found["seconds"]["median"] == 3.0
    assert rows[0]["PyTorch"] == 100
    assert rows[0]["ours"] == 400


def test_epochs_are_timed_apart_from_the_first():
    def epoch(number, train, valid):
        return {
            "epoch": number,
            "train/loss": 7.0 - number,
            "train/examples_per_second": train,
            "valid/examples_per_second": valid,
        }

    records = [
        window(1e9),
        epoch(1, 10.0, 1.0),
        epoch(2, 50.0, 10.0),
        epoch(3, 25.0, 5.0),
        {"test/recall@10": 0.2, "test/mrr@10": 0.1},
    ]
    counts = {"train_examples": 100, "valid_examples": 10}
    ours = against_recbole.measured(30.0, records, counts)
    assert ours == against_recbole.Measured(30.0, 10.0, 3.0, 1.5, 4.0, 0.2, 0.1)
    recbole = against_recbole.Measured(90.0, 15.0, 15.0, 6.0, 4.1, 0.2, 0.1)
    found, _ = against_recbole.table([recbole], [ours])
    medians = {field: ratio["median"] for field, ratio in found.items()}
    assert medians == {"process": 3.0, "first": 1.5, "later": 5.0, "valid": 4.0}


def test_days_are_cut_in_order_of_time(tmp_path):
    sessions = [[9, 7], [7, 8, 9], [5, 7], [5, 6, 9], [6, 5]]
    warm_start.write(tmp_path, sessions, ([[9], [5, 9], [9]], [7, 6, 1]))
    train, test = warm_start.read(tmp_path, last=0.8)
    # Numbered anew by first appearance; what is gone or unknown is left out.
    assert train == [[1, 2, 3], [4, 1], [4, 5, 3], [5, 4]]
    assert test == ([[3], [4, 3]], [1, 5])
    folders = warm_start.write_days(tmp_path, train, test, new=0.5, window=0.25)
    expected = {"yesterday": train[:2], "today": train, "window": train[3:]}
    for day, those in expected.items():
        found, _ = warm_start.read(Path(folders[day]), last=1.0)
        assert [len(session) for session in found] == [len(s) for s in those]
    yesterday = pickle.loads((tmp_path / "yesterday" / "test.txt").read_bytes())
    # Of the days after, what yesterday knows.
    assert yesterday == ([[4]], [3])


def test_made_items_come_and_go():
    train, test = warm_start.made(200, 100)
    old = {item for session in train[:60] for item in session}
    new = {item for session in train[-60:] for item in session}
    assert new - old
    assert old - new
    assert {item for session in test for item in session} <= {
        item for session in train for item in session
    }


def test_the_next_click_of_a_made_log_depends_on_the_last_one():
    log = markov_log.draw_log()
    after = log.with_columns(
        log[name].shift(-1).alias(f"next {name}") for name in ("session", "item")
    ).filter(pl.col("session") == pl.col("next session"))
    successors = after.group_by("item").agg(pl.col("next item").n_unique())
    assert successors["next item"].max() <= markov_log.SUCCESSORS
    assert log.equals(markov_log.draw_log())
