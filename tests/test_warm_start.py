"""A run that starts from another: what it keeps, prints, refuses and resumes."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

from srgnn_jax import Recommender
from srgnn_jax.data.sessions import Sessions, Vocabulary
from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate.workdir import evaluate_workdir
from srgnn_jax.model.srgnn import SRGNN
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.workdir import load_vocabulary, save_vocabulary, seed_folders
from srgnn_jax.train import warm_start
from srgnn_jax.train.loop import train_and_evaluate
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.search_config import check_config
from srgnn_jax.train.step import init_state
from tests.tiny import tiny_config, write_log


def log_of(folder, first=0, seed=0):
    """Writes a log as `tiny.write_log` does, with `first` added to item numbers."""
    write_log(folder / "log.csv", seed=seed)
    lines = (folder / "log.csv").read_text().splitlines()
    for n, line in enumerate(lines[1:], 1):
        session, item, time = line.split(",")
        lines[n] = f"{session},item{int(item[4:]) + first},{time}"
    (folder / "log.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """The workdir of a run of two epochs, and its config."""
    folder = tmp_path_factory.mktemp("parent")
    config = tiny_config(folder)
    train_and_evaluate(config, str(folder / "yesterday"))
    return folder / "yesterday", config


@pytest.fixture
def config(parent, tmp_path):
    """The config of a run that starts from it, with the same items in another order."""
    config = tiny_config(tmp_path)
    log_of(tmp_path / "data", seed=1)
    config.warm_start = str(parent[0])
    return config


@dataclasses.dataclass
class Held:
    """The contents of a checkpoint."""

    progress: Progress
    vocabulary: Vocabulary
    state: object

    @classmethod
    def of(cls, workdir, like):
        with contextlib.closing(Checkpoints(workdir)) as checkpoints:
            progress = checkpoints.progress()
            step = progress.best_step or progress.step
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like
            )
            state = checkpoints.restore(shapes, step)
        return cls(progress, load_vocabulary(workdir, progress.vocabulary), state)

    def rows(self, ids):
        """Returns parameters and moments, with only the table's rows of these ids."""
        rows = np.append(0, self.vocabulary.rows(ids))

        def of(path, x):
            return np.asarray(x)[rows] if layouts.is_table(path) else np.asarray(x)

        trees = self.state.params, self.state.opt_state[1]
        return jax.tree_util.tree_map_with_path(of, trees)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_with_nothing_new_it_is_the_parent_bit_for_bit(config, parent, tmp_path):
    config.epochs = 0
    state = train_and_evaluate(config, str(tmp_path / "today")).state
    old, new = Held.of(parent[0], state), Held.of(tmp_path / "today", state)
    ids = old.vocabulary.ids
    assert sorted(ids) == sorted(new.vocabulary.ids)
    assert ids != new.vocabulary.ids
    assert_equal(old.rows(ids), new.rows(ids))
    assert new.state.opt_state[1].count == old.progress.best_step > 0
    assert new.state.opt_state[1].nu["item_embedding"].any()
    assert (new.progress.step, new.state.step) == (0, 0)
    assert not new.vocabulary.is_new.any()
    # The state to train on is the one that was saved.
    assert_equal(state, new.state)
    sessions = [[ids[n], ids[3 * n % 20]] for n in range(20)]
    lists = [
        Recommender.load(workdir).recommend(sessions, k=10)
        for workdir in (parent[0], tmp_path / "today")
    ]
    for a, b in zip(*lists, strict=True):
        assert a.items == b.items
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6)


@pytest.mark.parametrize("averaging", [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)])
def test_averages_begin_anew_with_what_the_parent_learnt(config, tmp_path, averaging):
    of_parent, config.averaging = averaging
    log_of(tmp_path / "data")
    before = tiny_config(tmp_path)
    before.averaging = of_parent
    train_and_evaluate(before, str(tmp_path / "before"))
    config.warm_start, config.epochs = str(tmp_path / "before"), 0
    state = train_and_evaluate(config, str(tmp_path / "today")).state
    like = state._replace(latest=state.params if of_parent else ())
    old = Held.of(tmp_path / "before", like)
    assert_equal(old.state.params, state.params)
    assert_equal(state.latest, state.params if config.averaging else ())
    assert_equal(old.state.opt_state[1].mu, state.opt_state[1].mu)
    config.epochs = 1
    train_and_evaluate(config, str(tmp_path / "today"))


def test_items_come_and_go(config, parent, tmp_path, capsys):
    log_of(tmp_path / "data", first=3)
    config.epochs = 1
    state = train_and_evaluate(config, str(tmp_path / "today")).state
    assert "items 17 kept, 3 new, 3 gone" in capsys.readouterr().out
    like = jax.eval_shape(lambda: state)
    old, new = Held.of(parent[0], like), Held.of(tmp_path / "today", like)
    (born,) = new.progress.parents
    with contextlib.closing(Checkpoints(parent[0])) as checkpoints:
        checksum = checkpoints.checksum(old.progress.best_step)
    assert born == {
        "workdir": "yesterday",
        "step": old.progress.best_step,
        "epoch": old.progress.best_epoch,
        "checksum": checksum,
        "data": old.progress.data,
        "vocabulary": old.progress.vocabulary,
        "kept_items": 17,
        "new_items": 3,
        "gone_items": 3,
    }
    ids = np.array(new.vocabulary.ids)
    assert {*ids[new.vocabulary.is_new]} == {"item20", "item21", "item22"}
    (run,) = json.loads((tmp_path / "today" / "results.json").read_text())["runs"]
    assert run["parents"] == [born]
    ages = run["test_breakdown"]["age"]
    assert set(ages) == {"old targets", "new targets", "old and new"}
    # A run that starts from that one lists both.
    config.warm_start = str(tmp_path / "today")
    train_and_evaluate(config, str(tmp_path / "tomorrow"))
    newest = Held.of(tmp_path / "tomorrow", like).progress.parents
    assert [one["workdir"] for one in newest] == ["today", "yesterday"]
    assert newest[1] == born
    assert newest[0]["kept_items"] == 20


def drawn(devices, num_items, seed):
    """Returns the state of a new run on devices, for a number of items."""
    model, optimizer = SRGNN(num_items, 8), adam_with_l2(lambda _: 0.01, 1e-3)
    return devices.make(lambda: init_state(model, optimizer, seed))


def saved_parent(folder, num_items, rows):
    """Saves a state with nonzero moments; returns its run and its parameters."""
    state = drawn(layouts.find_devices("jit"), num_items, seed=1)
    free, adam, decay = state.opt_state
    adam = adam._replace(
        count=adam.count + 7,
        mu=jax.tree.map(lambda x: x + 1, state.params),
        nu=jax.tree.map(lambda x: x + 2, state.params),
    )
    progress = Progress({}, "", "", num_items, step=7)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(state._replace(opt_state=(free, adam, decay)), progress)
    return warm_start.Parent(folder, progress, "", rows), state.params


@pytest.mark.parametrize(
    ("layout", "old_items", "new_items"),
    [
        (("mesh", (2, 4)), 41, 5),
        pytest.param(("jit",), 41, 5, marks=pytest.mark.slow),
        pytest.param(("mesh", (1, 8)), 1001, 10, marks=pytest.mark.slow),
        # Takes a few seconds, and the memory of six such tables.
        pytest.param(("mesh", (1, 8)), 1_000_001, 10_000, marks=pytest.mark.slow),
    ],
)
def test_every_layout_holds_the_rows_of_the_parent(
    tmp_path, layout, old_items, new_items
):
    rng = np.random.default_rng(0)
    kept = rng.permutation(np.arange(1, old_items))[: old_items - 4]
    rows = np.append(0, rng.permutation(np.append(kept, np.full(new_items, -1))))
    parent, old = saved_parent(tmp_path, old_items, rows)
    devices = layouts.find_devices(*layout)
    state = drawn(devices, len(rows), seed=0)
    new, zeros = np.asarray(state.params["item_embedding"]), np.zeros((len(rows), 8))
    sessions = Sessions.from_lists([[1, 2]])
    begun = warm_start.begin(parent, state, devices, sessions, "uniform")
    _, adam, decay = begun.opt_state
    assert (int(adam.count), int(decay.count), int(begun.step)) == (7, 0, 0)
    table = np.asarray(old["item_embedding"])
    for tree, own, of_new in (
        (begun.params, table, new),
        (adam.mu, table + 1, zeros),
        (adam.nu, table + 2, zeros),
    ):
        found = tree["item_embedding"]
        assert found.sharding == state.params["item_embedding"].sharding
        expected = np.where(rows[:, None] < 0, of_new[: len(rows)], own[rows])
        np.testing.assert_array_equal(np.asarray(found)[: len(rows)], expected)
        # The padding rows of a split table stay zero.
        assert not np.asarray(found)[len(rows) :].any()
        held = {shard.data.shape for shard in found.addressable_shards}
        assert held == {(len(found) // devices.item_shards, 8)}
    others = {**old, "item_embedding": 0}
    assert_equal({**begun.params, "item_embedding": 0}, others)


def test_new_items_begin_as_the_mean_of_their_neighbours():
    rows = np.array([0, 2, -1, 1, -1, -1])
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    # Item 4 is next to a new item only, and item 5 is alone in its session.
    sessions = Sessions.from_lists([[1, 2, 3], [2, 1], [2, 4], [5], [1, 3]])
    where, means = warm_start.neighbour_means(sessions, rows, table)
    assert where.tolist() == [-1, -1, 0, -1, -1, -1]
    adjacent = [table[2], table[1], table[2]]
    np.testing.assert_allclose(means, [np.mean(adjacent, axis=0)])


def test_the_rule_of_new_items_is_heeded(config, tmp_path):
    log_of(tmp_path / "data", first=3)
    config.epochs = 0
    states = {}
    for rule in ("uniform", "neighbours"):
        config.new_items = rule
        states[rule] = train_and_evaluate(config, str(tmp_path / rule)).state
    held = Held.of(tmp_path / "uniform", states["uniform"])
    is_new = held.vocabulary.new_rows
    tables = [np.asarray(s.params["item_embedding"]) for s in states.values()]
    assert (tables[0] != tables[1]).any(axis=1).tolist() == is_new.tolist()
    model = SRGNN(held.progress.num_items, 8)
    as_always = init_state(model, adam_with_l2(0.01, 0.0), config.seed).params
    expected = np.asarray(as_always["item_embedding"])[is_new]
    np.testing.assert_array_equal(tables[0][is_new], expected)
    for state in states.values():
        _, adam, _ = state.opt_state
        assert not np.asarray(adam.mu["item_embedding"])[is_new].any()
        assert not np.asarray(adam.nu["item_embedding"])[is_new].any()


@pytest.mark.slow  # trains twice
def test_the_decay_begins_anew_or_goes_on(config, parent, tmp_path):
    config.epochs, config.lr_decay_epochs = 1, 1
    rates = {}
    for schedule in ("anew", "go_on"):
        config.warm_start_schedule = schedule
        train_and_evaluate(config, str(tmp_path / schedule))
        lines = (tmp_path / schedule / "metrics.jsonl").read_text().splitlines()
        rates[schedule] = [
            r["train/learning_rate"]
            for r in map(json.loads, lines)
            if "train/learning_rate" in r
        ]
    (rate,) = {*rates["anew"]}
    assert rate == pytest.approx(0.01)
    with contextlib.closing(Checkpoints(parent[0])) as checkpoints:
        epoch = checkpoints.progress().best_epoch
    assert rates["go_on"] == pytest.approx([0.01 * 0.1**epoch] * len(rates["anew"]))


@pytest.mark.slow  # four trainings, and two evaluations
def test_it_goes_on_exactly_and_from_no_other_run(config, parent, tmp_path):
    log_of(tmp_path / "data", first=2)
    config.checkpoint_every_steps, config.warm_start_schedule = 4, "go_on"
    whole = train_and_evaluate(config, str(tmp_path / "whole")).state
    for stop in (3, 11, 0):
        config.max_steps = stop
        state = train_and_evaluate(config, str(tmp_path / "parts")).state
    assert_equal(whole, state)
    found = [evaluate_workdir(str(tmp_path / w)) for w in ("parts", "whole")]
    for one in found:
        del one["examples_per_second"]
    assert found[0] == found[1]
    results = json.loads((tmp_path / "parts" / "results.json").read_text())
    assert set(results["runs"][0]["test_breakdown"]["age"]) >= {"new targets"}
    assert "warm_start" not in results["config"]
    for other in ("", "elsewhere"):
        config.warm_start = other
        with pytest.raises(UserError, match=r"config\.warm_start: .*yesterday' -> "):
            train_and_evaluate(config, str(tmp_path / "parts"))


@pytest.mark.slow  # trains twice
def test_several_seeds_begin_without_an_epoch(config, tmp_path):
    config.runs, config.epochs = 2, 0
    train_and_evaluate(config, str(tmp_path / "today"))
    config.epochs = 1
    assert train_and_evaluate(config, str(tmp_path / "today")).step > 0
    assert {*seed_folders(tmp_path / "today")} == {config.seed, config.seed + 1}


@pytest.mark.slow  # trains twice
def test_without_an_epoch_it_goes_on_by_the_same_command(config, tmp_path):
    whole = train_and_evaluate(config, str(tmp_path / "whole")).state
    config.epochs = 0
    train_and_evaluate(config, str(tmp_path / "today"))
    config.epochs = 2
    assert_equal(whole, train_and_evaluate(config, str(tmp_path / "today")).state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"embedding_size": 16, "readout": "average"},
            "embedding_size: 8 -> 16; config.readout: 'hybrid' -> 'average'",
        ),
        ({"reverse_positions": 4}, "reverse_positions: 0 -> 4"),
        ({"warm_start": "WORKDIR"}, "the run's own workdir"),
        ({"warm_start": "runs/none"}, "runs/none/checkpoints does not exist"),
        ({"warm_start": "SEEDS"}, "several seeds; name one of them, such as .*seed_3"),
        ({"new_items": "mean"}, "choose one of uniform, neighbours"),
        ({"warm_start_schedule": "on"}, "choose one of anew, go_on"),
    ],
)
def test_what_cannot_be_begun_with_is_refused(config, tmp_path, fields, message):
    (tmp_path / "seeds" / "seed_3").mkdir(parents=True)
    places = {"WORKDIR": str(tmp_path / "today"), "SEEDS": str(tmp_path / "seeds")}
    for field, value in fields.items():
        config[field] = places.get(value, value)
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, str(tmp_path / "today"))
    assert not (tmp_path / "today" / "vocabulary.parquet").exists()


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    parent, _ = saved_parent(tmp_path, 11, np.arange(11))
    state = drawn(layouts.find_devices("jit"), 11, seed=0)
    broken = state._replace(params=jax.tree.map(lambda x: x / 0, state.params))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(broken, parent.progress)
    sessions = Sessions.from_lists([[1, 2]])
    with pytest.raises(UserError, match=r"step 7 is unusable.*NaN or infinity"):
        warm_start.begin(
            parent, state, layouts.find_devices("jit"), sessions, "uniform"
        )


def test_a_search_begins_with_no_run(config):
    with pytest.raises(UserError, match=r"warm_start.*set ''"):
        check_config(config)


def test_a_vocabulary_keeps_what_is_new(tmp_path):
    marked = Vocabulary(["a", "b"], np.array([3, 1]), np.array([False, True]))
    save_vocabulary(tmp_path, marked)
    found = load_vocabulary(tmp_path, marked.fingerprint())
    assert found.new_rows.tolist() == [False, False, True]
    assert found.clicks.tolist() == [3, 1]
    assert found.with_clicks(np.array([1])).is_new.tolist() == [False, True]
