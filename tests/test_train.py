"""Training end to end on a tiny log: records, resuming, selection, refusals."""

import dataclasses
import functools
import io
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.configs import click_log
from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.evaluate.workdir import evaluate_baselines, evaluate_workdir
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.train import epochs, interrupt, step
from srgnn_jax.train.loop import train_and_evaluate
from tests.tiny import tiny_config, write_log


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an undisturbed run of the same config, and its result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", train_and_evaluate(tiny_config(folder), str(folder / "run"))


def records(workdir):
    """Reads metrics.jsonl, without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "second" not in k}
        for line in lines
    ]


def assert_same_state(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_records_what_it_did(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    state = train_and_evaluate(config, str(workdir)).state
    lines = [
        json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    epochs = [line for line in lines if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert epochs[-1]["step"] == int(state.step)
    for line in epochs:
        assert 0 <= line["valid/recall@20"] <= 1
        assert line["train/examples_per_second"] > 0
        assert line["valid/examples_per_second"] > 0
    steps = [line for line in lines if "train/learning_rate" in line]
    assert [line["step"] for line in steps] == [
        s for s in range(1, int(state.step) + 1) if s % 5 == 0
    ]
    assert lines[-1].keys() >= {"test/mrr@20", "test/examples_per_second"}
    counts = json.loads((workdir / "counts.json").read_text())
    assert counts["train_examples"] > counts["valid_examples"] > 0
    assert any((workdir / "tensorboard").iterdir())
    out = capsys.readouterr().out
    assert "train examples" in out
    assert "POP test" in out
    (run,) = results_json.read(workdir / results_json.FILE)["runs"]
    assert [*run["test_baselines"]] == ["POP", "Markov", "STAN"]
    assert run["test_baselines"]["POP"].keys() == run["test"].keys()
    assert "validation" in out


def test_the_epochs_loss_is_the_mean_over_its_examples(config, tmp_path):
    config.log_every_steps = 1
    config.epochs = 1
    train_and_evaluate(config, str(tmp_path / "run"))
    lines = records(tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "counts.json").read_text())
    examples = counts["train_examples"] - counts["valid_examples"]
    steps = [line["train/loss"] for line in lines if "train/learning_rate" in line]
    sizes = [config.batch_size] * (len(steps) - 1)
    sizes.append(examples - sum(sizes))
    assert sizes[-1] != config.batch_size
    epoch = next(line for line in lines if "epoch" in line)
    assert epoch["train/loss"] == pytest.approx(np.average(steps, weights=sizes))


def test_training_learns(config, tmp_path, capsys):
    config.epochs = 8
    config.select_on = "test"
    train_and_evaluate(config, str(tmp_path / "run"))
    table = capsys.readouterr().out.split(" (step ")[1]
    row = next(line for line in table.splitlines() if line.startswith("mrr@20"))
    _, ours, popularity, *_ = row.split()
    assert float(ours) > 2 * float(popularity)


def test_a_stopped_run_goes_on_exactly(config, tmp_path, whole):
    workdir, trained = whole
    config.checkpoint_every_steps = 4
    # Before the first checkpoint, and in the second epoch.
    stops = 3, 11
    for stop in stops:
        config.max_steps = stop
        train_and_evaluate(config, str(tmp_path / "parts"))
    config.max_steps = 0
    parts = train_and_evaluate(config, str(tmp_path / "parts"))
    assert_same_state(trained.state, parts.state)
    # Each stop adds an evaluation of its own, which the whole run lacks.
    lines, expected_lines = records(tmp_path / "parts"), records(workdir)
    extra = [line for line in lines if line not in expected_lines]
    assert {line["step"] for line in extra} == set(stops)
    assert [line for line in lines if line in expected_lines] == expected_lines
    found, expected = (evaluate_workdir(str(w)) for w in (tmp_path / "parts", workdir))
    assert {**found, "examples_per_second": 0} == {**expected, "examples_per_second": 0}


def test_averages_are_of_the_steps_that_training_took_anyway(config, tmp_path):
    """Stops a run after every step, so it tests resuming as well."""
    averaging, steps = 0.25, 4

    def each_step(name, **fields):
        for step_ in range(1, steps + 1):
            config.update(fields | {"max_steps": step_})
            yield train_and_evaluate(config, str(tmp_path / name)).state

    # They are two programs, which may round differently.
    assert_close = functools.partial(
        jax.tree.map,
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7),
    )
    plain = list(each_step("plain"))
    averaged = list(each_step("averaged", averaging=averaging))
    expected = plain[0].params
    for t, (own, state) in enumerate(zip(plain, averaged, strict=True)):
        assert own.latest == ()
        assert_close(state.latest, own.params)
        assert_close(state.opt_state, own.opt_state)
        share = 1 / (1 + averaging * t)
        expected = jax.tree.map(
            lambda mean, new, share=share: (1 - share) * mean + share * new,
            *(expected, own.params),
        )
        assert_close(state.params, expected)


def test_a_killed_run_goes_on_exactly(config, tmp_path, monkeypatch, whole):
    workdir, trained = whole

    def die(self):
        raise KeyboardInterrupt

    # The second epoch is trained, but neither recorded nor saved.
    with monkeypatch.context() as patch:
        patch.setattr(epochs.Run, "report", die)
        config.epochs = 1
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, str(tmp_path / "killed"))
    config.epochs = 2
    path = tmp_path / "killed" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 10, "train/lo')
    killed = train_and_evaluate(config, str(tmp_path / "killed"))
    assert_same_state(trained.state, killed.state)
    assert records(tmp_path / "killed") == records(workdir)


def test_a_complete_run_says_so_and_changes_nothing(config, tmp_path, capsys):
    first = train_and_evaluate(config, str(tmp_path / "run"))
    before = records(tmp_path / "run")
    capsys.readouterr()
    second = train_and_evaluate(config, str(tmp_path / "run"))
    assert "complete" in capsys.readouterr().out
    assert records(tmp_path / "run") == before
    assert_same_state(first.state, second.state)
    assert second.metrics == pytest.approx(first.metrics)


@pytest.mark.parametrize("select_on", ["valid", "test", "last"])
def test_evaluation_prints_the_numbers_of_training(config, tmp_path, capsys, select_on):
    config.select_on = select_on
    train_and_evaluate(config, str(tmp_path / "run"))
    trained = capsys.readouterr().out.split(" (step ")[1]
    metrics = evaluate_workdir(str(tmp_path / "run"))
    evaluated = capsys.readouterr().out.split(" (step ")[1]
    assert evaluated == trained
    recorded = [r for r in records(tmp_path / "run") if "test/mrr@20" in r]
    assert metrics["mrr@20"] in [r["test/mrr@20"] for r in recorded]


def test_a_run_can_be_evaluated_for_other_list_lengths(config, tmp_path, capsys):
    train_and_evaluate(config, str(tmp_path / "run"))
    before = results_json.read(tmp_path / "run" / results_json.FILE)
    # The new ones are added to those of the run; the other field is ignored.
    config.ks, config.epochs = (1,), 9
    capsys.readouterr()
    metrics = evaluate_workdir(str(tmp_path / "run"), config)
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Validation has no metrics for lists of one.
    (first,) = (row for row in table if row[:1] == ["recall@1"])
    (both,) = (row for row in table if row[:1] == ["recall@20"])
    assert [len(first), len(both)] == [5, 6]
    after = results_json.read(tmp_path / "run" / results_json.FILE)
    assert after["runs"][0]["test"].keys() == {
        f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in (1, 5, 10, 20)
    }
    assert after["config"] == {**before["config"], "ks": [5, 10, 20, 1]}
    assert metrics["recall@1"] == after["runs"][0]["test_recall_curve"][0]
    assert metrics["mrr@20"] == before["mean"]["test"]["mrr@20"]
    with pytest.raises(UserError, match=r"config\.ks"):
        train_and_evaluate(config, str(tmp_path / "run"))


def test_selection_on_test_holds_nothing_out_and_says_so(config, tmp_path, capsys):
    config.select_on = "test"
    train_and_evaluate(config, str(tmp_path / "run"))
    assert "chosen by mrr@20 on TEST" in capsys.readouterr().out
    counts = json.loads((tmp_path / "run" / "counts.json").read_text())
    assert counts["valid_examples"] == 0
    steps = max(line["step"] for line in records(tmp_path / "run"))
    assert steps == 2 * math.ceil(counts["train_examples"] / config.batch_size)


def test_the_last_epoch_is_trained_on_everything_and_chosen_by_nothing(
    config, tmp_path, capsys
):
    config.select_on, config.epochs, config.patience = "last", 3, 1
    state = train_and_evaluate(config, str(tmp_path / "last")).state
    printed = capsys.readouterr().out
    assert f"epoch 3 (step {int(state.step)}), the last, chosen on no split" in printed
    assert "valid" not in printed.split("epoch 1: loss")[1]
    counts = json.loads((tmp_path / "last" / "counts.json").read_text())
    assert counts["valid_examples"] == 0
    lines = records(tmp_path / "last")
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]
    # Test is evaluated once, with the parameters of the last epoch.
    (test,) = (line for line in lines if "test/mrr@20" in line)
    assert test["step"] == int(state.step)
    config.select_on, config.patience = "test", 0
    train_and_evaluate(config, str(tmp_path / "test"))
    (same,) = (r for r in records(tmp_path / "test") if r.get("epoch") == 3)
    assert same["test/mrr@20"] == test["test/mrr@20"]
    (run,) = results_json.read(tmp_path / "last" / results_json.FILE)["runs"]
    assert run["best_epoch"] == 3
    assert run["valid"] is None
    assert "test_each_best" not in run


@pytest.mark.slow  # trains two runs of shapes of their own
def test_with_no_day_for_test_all_sessions_train(config, tmp_path, capsys):
    config.select_on, config.epochs = "last", 1
    config.test_days, least = 0, config.test_days
    workdir = tmp_path / "run"
    trained = train_and_evaluate(config, str(workdir))
    said = capsys.readouterr().out
    assert "nothing is kept for test: config.test_days is 0" in said
    assert "nothing was kept for test: the run is only for recommending" in said
    assert not trained.metrics
    counts = json.loads((workdir / "counts.json").read_text())
    assert counts["test_sessions"] == counts["edge_sessions"] == 0
    assert Recommender.load(workdir).recommend([["1"]], k=3)[0].items
    # The sessions of the last day and of all others.
    config.test_days, config.epochs = least, 0
    train_and_evaluate(config, str(tmp_path / "tested"))
    split = json.loads((tmp_path / "tested" / "counts.json").read_text())
    both = split["train_sessions"] + split["test_sessions"]
    assert counts["train_sessions"] == both > split["train_sessions"]
    for evaluate in (evaluate_workdir, lambda at: evaluate_baselines(config, at)):
        config.test_days = 0
        with pytest.raises(UserError, match="test_days is 0: nothing is kept for test"):
            evaluate(str(workdir))
    config.runs, config.epochs = 2, 1
    assert not train_and_evaluate(config, str(tmp_path / "seeds")).metrics
    config.runs = 1
    config.test_days, config.select_on = 0, "test"
    with pytest.raises(UserError, match="there is no test"):
        train_and_evaluate(config, str(tmp_path / "other"))


def test_the_best_epoch_is_kept_and_reported(config, tmp_path, monkeypatch):
    config.epochs = 4
    values = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    original = Evaluator.with_lists

    def fixed(self, params, k):
        means, *rest = original(self, params, k)
        return {**means, "mrr@20": next(values)}, *rest

    monkeypatch.setattr(Evaluator, "with_lists", fixed)
    train_and_evaluate(config, str(tmp_path / "run"))
    lines = records(tmp_path / "run")
    per_epoch = max(line["step"] for line in lines) // 4
    assert lines[-1]["step"] == 2 * per_epoch
    assert lines[-1]["test/mrr@20"] == 0.9
    saved = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert saved == {2 * per_epoch, 3 * per_epoch, 4 * per_epoch}


def test_patience_ends_a_run(config, tmp_path, monkeypatch):
    config.epochs, config.patience = 9, 2
    original = Evaluator.with_lists

    def constant(self, params, k):
        means, *rest = original(self, params, k)
        return {**means, "mrr@20": 0.5}, *rest

    monkeypatch.setattr(Evaluator, "with_lists", constant)
    train_and_evaluate(config, str(tmp_path / "run"))
    assert [r["epoch"] for r in records(tmp_path / "run") if "epoch" in r] == [1, 2, 3]


def test_a_learning_rate_that_has_decayed_ends_a_run(config, tmp_path, capsys):
    config.epochs, config.lr_decay_epochs, config.lr_decay = 9, 1, 0.03
    train_and_evaluate(config, str(tmp_path / "run"))
    said = "decayed to a thousandth: the run ends after 2 of at most 9 epochs"
    assert said in capsys.readouterr().out
    assert [r["epoch"] for r in records(tmp_path / "run") if "epoch" in r] == [1, 2]
    train_and_evaluate(config, str(tmp_path / "run"))
    assert "the run is complete" in capsys.readouterr().out
    # Where it had decayed before the run began, that is said too.
    config.warm_start, config.warm_start_schedule = str(tmp_path / "run"), "go_on"
    trained = train_and_evaluate(config, str(tmp_path / "next"))
    said = "epochs before this run: nothing is trained; set config.warm_start_schedule"
    assert trained.step == 0
    assert said in capsys.readouterr().out


def test_a_run_that_goes_on_at_an_epochs_end_tells_no_speed(
    config, tmp_path, monkeypatch, capsys
):
    config.epochs = 1

    def stop(*_):
        raise interrupt.Stopped(15)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", stop)
        with pytest.raises(interrupt.Stopped, match="saved at step"):
            train_and_evaluate(config, str(tmp_path / "run"))
    capsys.readouterr()
    train_and_evaluate(config, str(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "epoch 1: loss" in printed
    assert "ex/s" not in printed


def test_bars_have_room_in_80_columns(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    bar = processes.progress_bar(True, total=5_917_745, desc="compiling", file=terminal)
    assert "compiling" in terminal.getvalue()
    started = bar.start_t
    processes.begin(bar, "epoch 12/30")
    assert bar.start_t > started
    bar.set_postfix(loss="12.3456", refresh=False)
    how = {**bar.format_dict, "n": 2_345_678, "elapsed": 700, "ncols": 80}
    line = bar.format_meter(**how)
    bar.close()
    assert len(line) == 80
    assert len(line.split("|")[1]) >= 8
    assert line.startswith("epoch 12/30:  40%|")


def test_what_is_returned_shows_itself(whole):
    _, trained = whole
    lines = repr(trained).splitlines()
    assert lines[0] == f"run in {trained.workdir}"
    assert lines[1].split() == ["test,", "percent", "recall", "mrr", "ndcg"]
    mean = 100 * trained.metrics["mrr@20"]
    assert lines[-1].split()[:1] == ["@20"]
    assert lines[-1].split()[2] == f"{mean:.2f}"
    page = trained._repr_html_()
    assert f"<td>{mean:.2f}</td>" in page
    assert page.count("<tr>") == len(lines) - 1
    assert repr(trained.state) == (
        f"TrainState(step={trained.step}, "
        f"{sum(x.size for x in jax.tree.leaves(trained.params)):,} parameters in "
        f"{len(jax.tree.leaves(trained.params))} arrays)"
    )
    untested = dataclasses.replace(trained, metrics={})
    assert repr(untested).splitlines()[1:] == ["nothing was kept for test"]
    assert "nothing was kept for test" in untested._repr_html_()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("click_log", "is a str, not a ConfigDict; pass what get_config()"),
        (click_log.get_config, "is a function, not a ConfigDict"),
        (ConfigDict({"epochs": 3}), "missing or unknown fields (averaging, "),
    ],
)
def test_what_is_no_config_is_told(wrong, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config_lib.validate(wrong)


def test_zero_epochs_only_count(config, tmp_path):
    config.epochs = 0
    assert train_and_evaluate(config, str(tmp_path / "run")) is None
    first = json.loads((tmp_path / "run" / "counts.json").read_text())
    assert not (tmp_path / "run" / "checkpoints").exists()
    write_log(tmp_path / "data" / "log.csv", sessions=200)
    train_and_evaluate(config, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "counts.json").read_text()) != first


def test_another_runs_workdir_is_refused(config, tmp_path):
    config.epochs = 1
    train_and_evaluate(config, str(tmp_path / "run"))
    config.embedding_size, config.l2 = 4, 0.5
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    before = [path.read_bytes() for path in files]
    write_log(tmp_path / "data" / "log.csv", sessions=200)
    for count in (1, 0):
        config.epochs = count
        with pytest.raises(
            UserError, match=r"embedding_size: 8 -> 4; config\.l2: .* -> 0.5"
        ):
            train_and_evaluate(config, str(tmp_path / "run"))
    assert [path.read_bytes() for path in files] == before


def test_changed_data_is_refused(config, tmp_path):
    config.epochs = 1
    train_and_evaluate(config, str(tmp_path / "run"))
    write_log(tmp_path / "data" / "log.csv", sessions=200)
    with pytest.raises(UserError, match="fingerprint of the prepared data"):
        train_and_evaluate(config, str(tmp_path / "run"))
    with pytest.raises(UserError, match="fingerprint of the prepared data"):
        evaluate_workdir(str(tmp_path / "run"))


def test_what_changes_no_number_may_differ(config, tmp_path, whole):
    config.epochs = 1
    train_and_evaluate(config, str(tmp_path / "parts"))
    config.epochs, config.log_every_steps, config.name = 2, 7, "renamed"
    parts = train_and_evaluate(config, str(tmp_path / "parts"))
    assert_same_state(whole[1].state, parts.state)


def test_a_loss_that_is_not_finite_names_the_step(config, tmp_path, monkeypatch):
    original = step.init_params

    def broken(model, seed):
        params = original(model, seed)
        table = params["item_embedding"].at[3].set(jnp.nan)
        return {**params, "item_embedding": table}

    monkeypatch.setattr(step, "init_params", broken)
    config.checkpoint_every_steps = 2
    with pytest.raises(UserError, match="loss is nan at step 2"):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_bpr_trains(config, tmp_path):
    config.loss_type = "BPR"
    train_and_evaluate(config, str(tmp_path / "run"))
    losses = [r["train/loss"] for r in records(tmp_path / "run") if "epoch" in r]
    assert losses[-1] < losses[0] < 1


def test_negatives_are_all_items_but_the_target():
    target = jnp.tile(jnp.array([1, 3, 5]), 500)
    example = jnp.arange(1500)
    drawn = step.sample_negatives(jax.random.key(0), example, target, 6, 2)
    assert drawn.shape == (1500, 2)
    assert (drawn[:, 0] != drawn[:, 1]).any()
    for t in (1, 3, 5):
        assert set(drawn[target == t].ravel().tolist()) == {1, 2, 3, 4, 5} - {t}


def test_a_workdir_that_cannot_be_made_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the workdir"):
        train_and_evaluate(config, str(tmp_path / "file" / "run"))


def test_evaluation_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run has saved a checkpoint"):
        evaluate_workdir(str(tmp_path / "nothing"))


def test_sessions_whose_graphs_are_too_large_are_named(config, tmp_path):
    log = pathlib.Path(config.data_dir) / "log.csv"
    with log.open("a") as file:
        for click in range(5_000):
            file.write(f"long,item{click % 20},{click / 10}\n")
    config.epochs = 0
    with pytest.raises(UserError, match="train split has a prefix of 4,999 clicks"):
        train_and_evaluate(config, str(tmp_path / "run"))
    config.max_session_length = 256
    assert train_and_evaluate(config, str(tmp_path / "run")) is None
