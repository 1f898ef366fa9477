"""A search: what it draws, ends, refuses and reports; and it survives kills."""

import contextlib
import importlib.util
import json
import math

import pytest

from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.evaluate.workdir import evaluate_workdir
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.train import epochs, interrupt, loop, search_config, space, study
from srgnn_jax.train.loop import train_and_evaluate
from srgnn_jax.train.search import search
from srgnn_jax.train.space import choice, log, uniform
from tests.command import srgnn
from tests.kill_search import found, kill_search
from tests.tiny import tiny_config

# A few rates, each compiled once; the last one learns nothing.
RANGES = {"learning_rate": choice(0.01, 0.02, 1e-6), "patience": choice(3, 4)}
TRIALS = 4


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def make_config(folder):
    config = tiny_config(folder)
    config.epochs, config.progress, config.seed = 3, False, 1
    return config


@pytest.fixture(autouse=True)
def judges_early(monkeypatch):
    monkeypatch.setattr(study, "UNJUDGED_TRIALS", 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed search and of its data."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "UNJUDGED_TRIALS", 2)
        search(make_config(folder), str(folder / "search"), RANGES, TRIALS)
    return folder


def trials_of(workdir):
    """Returns the trials in the journal of a workdir."""
    return study.trials(study.open_study(workdir, 0, {}, lambda params: True))


def states_of(workdir):
    return [trial.state.name for trial in trials_of(workdir)]


def best_py(workdir):
    """Loads the best.py of a search, as the flag does."""
    spec = importlib.util.spec_from_file_location("best", workdir / "best.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_poor_trials_end_early_and_test_is_seen_by_the_best_alone(whole):
    workdir = whole / "search"
    trials = trials_of(workdir)
    assert len(trials) == TRIALS
    assert {t.state.name for t in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        folder = workdir / f"trial_{trial.number:04}"
        lines = results_json.read_lines(folder / "metrics.jsonl")
        epochs = {x["epoch"]: x["valid/mrr@20"] for x in lines if "epoch" in x}
        assert trial.intermediate_values == epochs
        assert len(epochs) == (2 if trial.state.name == "PRUNED" else 3)
    done = [t for t in trials if t.state.name == "COMPLETE"]
    best = max(done, key=lambda t: t.value)
    for trial in trials:
        folder = workdir / f"trial_{trial.number:04}"
        said = (folder / "metrics.jsonl").read_text() + (folder / "log.txt").read_text()
        assert (folder / "results.json").exists() == (trial is best)
        assert ("test/" in said or "SR-GNN test" in said) == (trial is best)
        if trial.state.name == "PRUNED":
            others = [t.intermediate_values[2] for t in done if t.number < trial.number]
            assert max(trial.intermediate_values.values()) < sorted(others)[-1]
    names = {path.stem for path in (workdir / "plots").iterdir()}
    assert names == {"trials", "epochs", "settings"}


@pytest.mark.slow  # a search and a training
def test_best_py_reproduces_the_best_trial(whole):
    workdir = whole / "search"
    config = best_py(workdir).get_config()
    assert config.name == "click_log_best"
    assert config.progress
    config.progress = False
    train_and_evaluate(config, str(whole / "again"))
    again = results_json.read(whole / "again" / "results.json")["runs"][0]
    (path,) = workdir.glob("trial_*/results.json")
    best = results_json.read(path)["runs"][0]
    assert again["valid"] == best["valid"]
    assert again["test"] == best["test"]
    assert again["by_epoch"] == best["by_epoch"]


def test_the_same_command_after_the_end_does_nothing_new(whole, monkeypatch, capsys):
    workdir = whole / "search"
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("trial_*/**/*")}
    journal = (workdir / study.JOURNAL).read_text()
    search(make_config(whole), str(workdir), RANGES, TRIALS)
    assert {p: p.stat().st_mtime_ns for p in workdir.glob("trial_*/**/*")} == before
    # Optuna only records that the study was opened.
    added = (workdir / study.JOURNAL).read_text().removeprefix(journal)
    assert '"trial' not in added
    assert "params" not in added
    said = capsys.readouterr().out
    assert f"{TRIALS} of {TRIALS} trials" in said
    assert "test was evaluated for it alone:" in said


def test_another_search_in_the_workdir_is_refused(whole):
    config = make_config(whole)
    config.step = 2
    ranges = {**RANGES, "patience": choice(3, 5)}
    with pytest.raises(UserError) as error:
        search(config, str(whole / "search"), ranges, TRIALS)
    for said in ("another search", "config.step: 1 -> 2", "range of patience"):
        assert said in str(error.value)


class Killed(BaseException):
    """Acts like a kill: nothing is done after it."""


# The call, its number, and whether the process is lost before or after it.
MOMENTS = {
    "between a trial's begin and its values": (study, "ask", 4, "before the values"),
    "before an epoch is recorded": (study, "report", 8, "before"),
    "after an epoch is recorded": (study, "report", 9, "after"),
    "before an epoch is saved": (Checkpoints, "save", 8, "before"),
    "after an epoch is saved": (Checkpoints, "save", 7, "after"),
    "before the end is recorded": (study, "complete", 2, "before"),
    "after the end is recorded": (study, "complete", 2, "after"),
    "before an early end is recorded": (study, "prune", 1, "before"),
    "after an early end is recorded": (study, "prune", 1, "after"),
}


# Only one is quick enough for every run of the tests.
QUICK = ("after an epoch is saved",)


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MOMENTS],
)
def test_lost_at_any_moment_the_trials_are_the_same(
    moment, whole, tmp_path, monkeypatch
):
    owner, name, number, when = MOMENTS[moment]
    does, calls = getattr(owner, name), []

    def lost(*arguments):
        calls.append(arguments)
        if len(calls) == number and when == "before the values":
            arguments[0].ask()
        if len(calls) == number and when != "after":
            raise Killed
        result = does(*arguments)
        if len(calls) == number:
            raise Killed
        return result

    config = make_config(whole)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lost)
        with pytest.raises(Killed):
            search(config, str(tmp_path / "search"), RANGES, TRIALS)
    search(config, str(tmp_path / "search"), RANGES, TRIALS)
    assert found(tmp_path / "search") == found(whole / "search")


@pytest.mark.slow  # starts and kills eight processes
def test_killed_at_random_moments_a_search_ends_the_same(tmp_path):
    assert kill_search(tmp_path, trials=6, kills=2) > 0


def test_half_a_line_of_the_journal_is_dropped(whole, tmp_path):
    journal = tmp_path / study.JOURNAL
    written = (whole / "search" / study.JOURNAL).read_bytes()
    journal.write_bytes(written + b'{"op_code":')
    assert len(trials_of(tmp_path)) == TRIALS
    assert journal.read_bytes().startswith(written)
    assert json.loads(journal.read_text().splitlines()[-1])


def test_a_damaged_journal_is_told_in_one_line(whole, tmp_path):
    written = (whole / "search" / study.JOURNAL).read_bytes()
    (tmp_path / study.JOURNAL).write_bytes(written[9:])
    with pytest.raises(UserError, match=r"search.log is damaged .*; restore it"):
        trials_of(tmp_path)


@pytest.mark.slow
def test_a_journal_that_cannot_be_written_ends_the_search(
    config, tmp_path, monkeypatch
):
    def full(*arguments):
        raise OSError(28, "No space left on device", "search.log")

    monkeypatch.setattr(study, "complete", full)
    with pytest.raises(UserError, match=r"search.log: No space left.*same command"):
        search(config, str(tmp_path / "search"), {"learning_rate": choice(0.01)}, 1)
    monkeypatch.undo()
    search(config, str(tmp_path / "search"), {"learning_rate": choice(0.01)}, 1)
    assert states_of(tmp_path / "search") == ["COMPLETE"]


@pytest.mark.slow  # processes
def test_a_signal_ends_a_trial_that_goes_on(config, tmp_path, monkeypatch, whole):
    begun = []

    def check(run):
        begun.append(run)
        if len(begun) == 25:
            raise interrupt.Stopped(15)

    with monkeypatch.context() as patch:
        patch.setattr(epochs.Run, "check_signals", check)
        with pytest.raises(interrupt.Stopped, match="saved at step"):
            search(make_config(whole), str(tmp_path / "search"), RANGES, 2)
    assert states_of(tmp_path / "search")[-1] == "RUNNING"
    search(make_config(whole), str(tmp_path / "search"), RANGES, 2)
    assert (
        trials_of(tmp_path / "search")[1].value == trials_of(whole / "search")[1].value
    )


@pytest.mark.slow
def test_minutes_end_a_search_that_goes_on(config, tmp_path, capsys):
    ranges = {"learning_rate": choice(0.01)}
    with pytest.raises(UserError, match=r"no trial in .* is complete"):
        search(config, str(tmp_path / "search"), ranges, 2, minutes=1e-9)
    search(config, str(tmp_path / "search"), ranges, 1)
    capsys.readouterr()
    search(config, str(tmp_path / "search"), ranges, 2, minutes=1e-9)
    said = capsys.readouterr().out
    assert "1 of 2 trials" in said
    assert "time is up; the same command continues" in said
    assert states_of(tmp_path / "search") == ["COMPLETE"]


@pytest.mark.slow
def test_a_trial_under_way_ends_with_the_time_and_goes_on(
    config, tmp_path, monkeypatch
):
    is_late = iter([False, False, True])
    late = lambda worker: next(is_late, True)  # noqa: E731
    ranges = {"learning_rate": choice(0.01)}
    with monkeypatch.context() as patch:
        patch.setattr("srgnn_jax.train.search._Worker.time_is_up", late)
        with pytest.raises(UserError, match=r"no trial in .* is complete"):
            search(config, str(tmp_path / "search"), ranges, 1)
    (trial,) = trials_of(tmp_path / "search")
    assert trial.state.name == "RUNNING"
    assert list(trial.intermediate_values) == [1]
    folder = tmp_path / "search" / "trial_0000"
    evaluate_workdir(str(folder))
    stale = results_json.read(folder / "results.json")["runs"][0]
    search(config, str(tmp_path / "search"), ranges, 1)
    # What an evaluation found before the end is not the trial's result.
    (run,) = results_json.read(folder / "results.json")["runs"]
    assert (stale["epochs"], run["epochs"]) == (1, config.epochs)
    assert states_of(tmp_path / "search") == ["COMPLETE"]


@pytest.mark.slow
def test_trials_that_diverge_or_need_too_much_memory_are_recorded(
    config, tmp_path, monkeypatch, capsys
):
    ranges = {"learning_rate": choice(0.01, 1e38), "batch_size": choice(32, 33)}
    config.seed, config.epochs = 8, 1
    train = loop.train_one

    def fills_memory(config, *arguments, **named):
        if config.batch_size == 33:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return train(config, *arguments, **named)

    monkeypatch.setattr("srgnn_jax.train.search.train_one", fills_memory)
    search(config, str(tmp_path / "search"), ranges, 3)
    assert trials_of(tmp_path / "search")[0].params == {
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
    }
    reasons = {
        ("failed" if t.params["learning_rate"] == 1e38 else t.state.name)
        if t.params["batch_size"] == 32
        else "memory": t.user_attrs.get("reason", "")
        for t in trials_of(tmp_path / "search")
    }
    assert "out of memory (RESOURCE_EXHAUSTED" in reasons["memory"]
    assert "at step" in reasons["failed"]
    assert reasons["COMPLETE"] == ""
    said = capsys.readouterr().out
    assert "failed: out of memory" in said
    assert "failed: the loss is" in said


def test_what_the_user_can_mend_is_no_failed_trial(config, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise UserError("cannot write: the disk is full")

    ranges = {"learning_rate": choice(0.01)}
    with monkeypatch.context() as patch:
        patch.setattr("srgnn_jax.train.search.train_one", full)
        with pytest.raises(UserError, match="disk is full"):
            search(config, str(tmp_path / "search"), ranges, 1)
    assert states_of(tmp_path / "search") == ["RUNNING"]


@pytest.mark.slow
def test_a_trial_that_always_takes_the_process_along_counts_as_failed(
    config, tmp_path, monkeypatch
):
    def killed(*arguments, **named):
        raise Killed

    ranges = {"learning_rate": choice(0.01)}
    with monkeypatch.context() as patch:
        patch.setattr("srgnn_jax.train.search.train_one", killed)
        for _ in range(5):
            with pytest.raises(Killed):
                search(config, str(tmp_path / "search"), ranges, 2)
    search(config, str(tmp_path / "search"), ranges, 2)
    first, second = trials_of(tmp_path / "search")
    assert "memory runs out" in first.user_attrs["reason"]
    assert second.state.name == "COMPLETE"


@pytest.mark.slow
def test_a_trial_that_another_worker_is_at_is_left_to_it(
    config, tmp_path, monkeypatch, capsys
):
    """The other worker is this process too; its locks are on other open files."""
    train, ranges, workdir = (
        loop.train_one,
        {"learning_rate": choice(0.01)},
        tmp_path / "s",
    )
    inner = []

    def meanwhile(*arguments, **named):
        if not inner:
            inner.append(None)
            inner[0] = search(config, str(workdir), ranges, 2)
            assert states_of(workdir) == ["RUNNING", "COMPLETE"]
        return train(*arguments, **named)

    monkeypatch.setattr("srgnn_jax.train.search.train_one", meanwhile)
    best = search(config, str(workdir), ranges, 2)
    # The first to finish leaves the report to the last.
    assert inner == [None]
    assert states_of(workdir) == ["COMPLETE", "COMPLETE"]
    assert best == workdir / "trial_0000"
    said = (workdir / "trial_0000" / "log.txt").read_text()
    assert "other workers are still running trials" in said
    assert "several workers shared them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "ranges", "message"),
    [
        ({"select_on": "test"}, None, "chooses on validation, never on test"),
        ({"select_on": "last"}, None, "chooses on validation, never on test"),
        ({"runs": 3}, None, "config.runs is 3"),
        ({"max_steps": 3}, None, "by whole epochs"),
        ({"epochs": 0}, None, "at least one epoch"),
        ({"test_days": 0}, None, "a search evaluates its best trial on test"),
        ({"batch_size": 0}, None, "config.batch_size is 0"),
        ({"loss_type": "own"}, None, "config.loss_type is 'own'"),
        ({}, {"learnin_rate": log(0.1, 1)}, "did you mean learning_rate"),
        ({}, {"seed": choice(1, 2)}, "seed cannot be searched"),
        ({}, {"ks": choice(5)}, "ks cannot be searched"),
        ({}, {"epochs": choice(1, 2)}, "epochs cannot be searched"),
        ({}, {"min_item_count": choice(1)}, "min_item_count cannot be searched"),
        ({}, {"step": (1, 2)}, r"step is \(1, 2\); write choice.*uniform"),
        ({}, {"readout": log(1, 2)}, r"write choice\(...\)$"),
        ({}, {"step": choice(1, 1.5)}, "step cannot be 1.5; it takes int"),
        ({}, {"step": choice(True)}, "step cannot be True; it takes int"),
        ({}, {"normalize": choice(0, 1)}, "normalize cannot be 0; it takes bool"),
        ({}, {"readout": choice("local", "averge")}, "did you mean average"),
        ({}, {"item_dropout": uniform(0.0, 1.0)}, "item_dropout is 1.0; it must be 0"),
        (
            {},
            {"loss_type": choice("CE", "own")},
            "get_search: config.loss_type is 'own",
        ),
        (
            {"reverse_positions": 4},
            {"readout": choice("hybrid", "average")},
            "has no attention",
        ),
        ({}, {}, "nothing is left to search"),
        (
            {"readout": "average"},
            {"readout": choice("hybrid")},
            "nothing is left to search",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_read(
    settings, ranges, message, tmp_path
):
    config = make_config(tmp_path)
    config.data_dir = "nowhere"
    config.update(settings)
    with pytest.raises(UserError, match=message):
        search(config, str(tmp_path / "search"), ranges, fixed=settings)
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choice(), "nothing to choose from"),
        (lambda: uniform(2, 1), "from a lower to a higher"),
        (lambda: log(3, 3), "from a lower to a higher"),
        (lambda: log(0, 1), "start above 0"),
    ],
)
def test_ranges_that_are_none_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def drawn(ranges, config, number, accepts=None, seed=0, first=None):
    """Returns what the first trials of a search would draw, without training."""
    takes = accepts or (
        lambda params: search_config.accepts(config, 9, None, None, params)
    )
    sampler = study.Sampler(seed, ranges, takes, first)
    opened = study.optuna.create_study(sampler=sampler)
    found = []
    for value in range(number):
        trial = study.ask(opened, ranges)
        found.append(trial.params)
        opened.tell(trial, math.sin(value))
    return found


def test_combinations_that_the_config_refuses_are_never_drawn(config):
    ranges = search_config.searched(None, config)
    free = drawn(ranges, config, 30, lambda params: True)
    kept = drawn(ranges, config, 30)

    def is_refused(params):
        return params["readout"] == "local" and params["reverse_positions"]

    assert any(map(is_refused, free))
    assert not any(map(is_refused, kept))
    assert {params["readout"] for params in kept} == {"hybrid", "attention", "local"}
    with pytest.raises(UserError, match="refuses each of 1000 combinations"):
        drawn(ranges, config, 1, lambda params: False)


def test_the_first_trial_has_the_configs_own_settings(config):
    config.embedding_size, config.batch_size, config.learning_rate = 64, 50, 0.002
    ranges = search_config.searched(None, config)
    own = search_config.own_settings(config, ranges)
    assert own == {field: config[field] for field in space.DEFAULT}
    first, second = drawn(ranges, config, 2, first=own)
    assert first == own != second
    config.learning_rate = 1.0
    assert search_config.own_settings(config, ranges) is None


def test_what_is_drawn_depends_on_seed_and_number_and_is_easy_to_read(config):
    ranges = search_config.searched(None, config)
    some = drawn(ranges, config, 15)
    assert drawn(ranges, config, 15) == some
    assert drawn(ranges, config, 3, seed=1) != some[:3]
    assert len({str(params) for params in some}) == 15
    for params in some:
        assert params.keys() == space.DEFAULT.keys()
        assert float(f"{params['learning_rate']:.3g}") == params["learning_rate"]
        assert 3e-4 <= params["learning_rate"] <= 1e-2
    whole = search_config.searched({"step": uniform(1, 3), "scale": log(1, 9)}, config)
    few = drawn(whole, config, 9)
    assert {params["step"] for params in few} == {1, 2, 3}
    assert all(isinstance(params["scale"], float) for params in few)


@pytest.mark.slow
def test_a_field_on_the_command_line_is_fixed_and_a_file_says_what_is_searched(
    tmp_path, whole
):
    """The file's own model and loss are searched too, and best.py finds them."""
    config = make_config(tmp_path)
    file = tmp_path / "shop.py"
    file.write_text(
        f"""\
from srgnn_jax import SRGNN, Loss
from srgnn_jax.configs import click_log
from srgnn_jax.model.losses import cross_entropy
from srgnn_jax.train.space import choice, log


class Mine(SRGNN):
    pass


def get_config():
    c = click_log.get_config()
    c.name, c.data_dir = "shop", {config.data_dir!r}
    c.prepared_dir, c.test_days = {config.prepared_dir!r}, 0.35
    c.embedding_size, c.batch_size, c.epochs = 8, 32, 1
    c.loss_type, c.parallel = "mine", "jit"
    return c


def get_search():
    return {{"learning_rate": log(1e-3, 1e-2), "patience": choice(3, 4)}}


def get_model(config, num_items):
    return Mine(num_items, config.embedding_size)


def get_losses():
    return {{"mine": Loss(cross_entropy, 0)}}
"""
    )
    workdir = tmp_path / "search"
    given = [f"--config={file}", "--config.learning_rate=0.01", f"--workdir={workdir}"]
    done = srgnn("--mode=search", "--trials=2", *given)
    assert done.returncode == 0, done.stderr
    assert [t.params.keys() for t in trials_of(workdir)] == [{"patience"}] * 2
    with contextlib.closing(Checkpoints(workdir / "trial_0000")) as checkpoints:
        progress = checkpoints.progress()
    assert progress.model == "Mine"
    assert progress.config["learning_rate"] == 0.01
    again = srgnn(f"--config={workdir / 'best.py'}", f"--workdir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    (path,) = workdir.glob("trial_*/results.json")
    for key in ("test", "valid"):
        runs = [
            results_json.read(p)["runs"][0][key]
            for p in (path, tmp_path / "again" / "results.json")
        ]
        assert runs[0] == runs[1]


def test_a_workdir_of_a_run_is_refused(config, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run"):
        search(config, str(tmp_path / "run"), RANGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=search"], "--config is missing"),
        (["--mode=search", "--config=synthetic", "--trials=0"], "trials=0"),
        (["--mode=train", "--config=synthetic", "--trials=3"], "for --mode=search"),
        (["--config=synthetic", "--minutes=3"], "--minutes has no effect"),
        (
            ["--mode=search", "--config=synthetic", "--config.select_on=test"],
            "never on test",
        ),
    ],
)
def test_wrong_flags_end_in_one_line(arguments, message):
    done = srgnn(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_search_that_is_extended_says_which_trials_saw_test(config, tmp_path, capsys):
    workdir = tmp_path / "search"
    rates = {"learning_rate": choice(0.01, 0.02)}
    config.seed = 4
    search(config, str(workdir), rates, 1)
    assert "test was evaluated for it alone:" in capsys.readouterr().out
    best = search(config, str(workdir), rates, 2)
    assert best == workdir / "trial_0001"
    said = capsys.readouterr().out
    assert "evaluated for it, and earlier for trial_0000, the best until then:" in said
