"""results.json, runs of several seeds, and RESULTS.md."""

import copy
import json
import shutil
import statistics
import sys
from pathlib import Path

import pytest

from srgnn_jax import config as config_lib
from srgnn_jax import results
from srgnn_jax.data import batches
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.evaluate.plots import plot_workdir
from srgnn_jax.evaluate.workdir import evaluate_workdir, seeds_table
from srgnn_jax.train.loop import train_and_evaluate
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[1]
COMMAND = "python -m srgnn_jax.main --config=configs/click_log.py"


def without_clock(value):
    """Drops what depends on the clock, at any depth."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if "second" not in k}
    if isinstance(value, list):
        return [without_clock(v) for v in value]
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two seeds, and a run of the first one alone with the same command."""
    folder = tmp_path_factory.mktemp("results")
    config = tiny_config(folder)
    config.runs, config.seed, config.ks = 2, 3, (5, 20)
    train_and_evaluate(config, str(folder / "first"), COMMAND)
    config.runs = 1
    evaluated = []
    original = batches.eval_batches

    def spy(examples, *arguments):
        evaluated.append(len(examples))
        return original(examples, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "eval_batches", spy)
        train_and_evaluate(config, str(folder / "second"), COMMAND)
    (folder / "evaluated.json").write_text(json.dumps(evaluated))
    return folder


def test_the_same_command_gives_the_same_results(folder):
    first, second = (
        results_json.read(folder / run / results_json.FILE)
        for run in ("first/seed_3", "second")
    )
    assert first != second
    assert without_clock(first) == without_clock(second)
    assert first["runs"][0]["train_seconds"] > 0
    assert first["runs"][0]["test_seconds"] > 0


def test_the_end_of_a_run_goes_over_test_once(folder):
    first, second, test = json.loads((folder / "evaluated.json").read_text())
    assert first == second != test


def test_several_seeds_are_told_one_by_one_and_together(folder):
    found = results_json.read(folder / "first" / results_json.FILE)
    assert [run["seed"] for run in found["runs"]] == [3, 4]
    each = [run["test"]["mrr@20"] for run in found["runs"]]
    assert each[0] != each[1]
    assert found["mean"]["test"]["mrr@20"] == pytest.approx(statistics.mean(each))
    deviation = found["standard_deviation"]["test"]["mrr@20"]
    assert deviation == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert found["config"]["runs"] == 2
    assert found["command"] == COMMAND
    assert found["protocol"]["select_on"] == "valid"
    for run in found["runs"]:
        one = results_json.read(
            folder / "first" / f"seed_{run['seed']}" / results_json.FILE
        )
        assert one["runs"] == [run]
        assert run["valid"].keys() == run["test"].keys()


def test_the_parts_of_a_run_fit_each_other(folder):
    found = results_json.read(folder / "first" / results_json.FILE)
    run = found["runs"][0]
    everything = run["test_breakdown"]["all"]["all"]
    assert everything["examples"] == found["data"]["counts"]["test_examples"]
    for name, value in run["test"].items():
        assert everything[name] == pytest.approx(value, rel=1e-12)
    curve = run["test_recall_curve"]
    assert [curve[4], curve[19]] == [run["test"]["recall@5"], run["test"]["recall@20"]]
    assert curve[-1] == 1
    assert run["test_lists"]["coverage"] == 1
    lines = results_json.read_lines(folder / "first" / "seed_3" / "metrics.jsonl")
    assert lines[-1]["test/mrr@20"] == run["test"]["mrr@20"]
    epochs = [line for line in lines if "epoch" in line]
    assert run["by_epoch"] == without_clock(epochs)
    assert {"data_dir", "prepared_dir"}.isdisjoint(found["config"])
    assert str(folder) not in json.dumps(found)


def test_evaluation_writes_the_same_results(folder, capsys):
    path = folder / "first" / results_json.FILE
    before = results_json.read(path)
    path.unlink()
    means = evaluate_workdir(str(folder / "first"))
    assert without_clock(results_json.read(path)) == without_clock(before)
    assert means["mrr@20"] == pytest.approx(before["mean"]["test"]["mrr@20"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    table = printed.split("test metrics in percent")[1]
    assert "chosen by mrr@20 on validation" in table
    (row,) = (line for line in table.splitlines() if "| recall@5 " in line)
    assert row.split(" | ")[3] == f"{100 * means['recall@5']:.2f}"


def test_evaluation_needs_no_workdir_that_may_be_written(tmp_path, folder, caplog):
    run = tmp_path / "run"
    shutil.copytree(folder / "first" / "seed_3", run)
    expected = results_json.read(run / results_json.FILE)["mean"]["test"]
    (run / results_json.FILE).unlink()
    (run / results_json.FILE).mkdir()
    found = evaluate_workdir(str(run))
    assert found["mrr@20"] == expected["mrr@20"]
    assert "the results are only printed" in caplog.text


def test_one_run_and_several_do_not_share_a_workdir(folder):
    config = tiny_config(folder)
    with pytest.raises(UserError, match="runs of several seeds"):
        train_and_evaluate(config, str(folder / "first"))
    config.runs = 2
    with pytest.raises(UserError, match="holds a single run"):
        train_and_evaluate(config, str(folder / "first" / "seed_3"))


@pytest.fixture
def recorded(folder, tmp_path):
    """Returns a function that records a run whose epoch another split, or none, chose.

    The model and its ranks do not matter here, so they are those of `folder`.
    """

    def record(select_on):
        config = tiny_config(folder)
        config.select_on, config.ks = select_on, (5, 20)
        (run,) = results_json.read(folder / "second" / results_json.FILE)["runs"]
        lines = [
            {"step": 9, "epoch": n, "train/loss": 2.0, "train/examples_per_second": 1.0}
            for n in (1, 2)
        ]
        if select_on == "test":
            lines[0] |= {"test/recall@20": 0.5, "test/mrr@20": 0.1}
            lines[1] |= {"test/recall@20": 0.4, "test/mrr@20": 0.2}
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
        data = config_lib.load_data(config)
        splits = config_lib.make_splits(config, data)
        run = {**run, "valid": None}
        results_json.record(tmp_path, config, data, splits, COMMAND, run)
        return results_json.read(tmp_path / results_json.FILE)

    return record


def test_selection_on_test_is_told(recorded):
    found = recorded("test")
    assert found["protocol"]["select_on"] == "test"
    assert found["standard_deviation"]["test"] == {}
    assert "on TEST" in seeds_table(found)
    assert "| test | 1 |" in results.document([found])
    assert found["mean"]["test_each_best"] == {"recall@20": 0.5, "mrr@20": 0.2}
    row = "| the same, each metric at its best | test | 1 | 50.00 | 20.00 |"
    assert row in results.document([found])


def test_rows_of_the_network_alone_are_told_from_what_is_joined(recorded):
    found = recorded("test")
    network = dict.fromkeys(found["mean"]["test"], 0.25)
    found["runs"][0]["joined"] = {
        "weight": 0.1,
        "repeats_weight": 0.2,
        "network": network,
    }
    text = results.document([found])
    assert "| the network alone, each metric at its best | test | 1 | 50.00 |" in text
    assert "the same, each metric" not in text


def test_an_epoch_that_nothing_chose_is_told(recorded):
    found = recorded("last")
    assert found["protocol"]["test"] == "evaluated once, after the last epoch"
    assert "the last, chosen on no split" in seeds_table(found)
    text = results.document([found])
    assert "| no split (last epoch) | 1 |" in text
    assert "each metric at its best |" not in text
    assert "\n| epoch | train loss |\n" in text


def test_the_best_of_each_metric_may_be_of_no_single_epoch():
    epochs = [
        {"step": 9, "epoch": 1, "test/recall@20": 0.5, "test/mrr@20": 0.1},
        {"step": 18, "epoch": 2, "test/recall@20": 0.4, "test/mrr@20": 0.2},
        {"step": 27, "epoch": 3, "test/mrr@20": 0.15},
    ]
    assert results_json.each_best(epochs) == {"recall@20": 0.5, "mrr@20": 0.2}


def test_plots_of_a_workdir_are_written(folder):
    paths = plot_workdir(str(folder / "first"))
    assert {path.stem for path in paths} == {
        *("learning_curves", "recall_over_k", "by_length", "items")
    }
    for path in paths:
        assert path.parent == folder / "first" / "plots"
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"holds no results\.json"):
        plot_workdir(str(folder))


def test_plots_need_the_folder_of_a_seed(tmp_path, folder):
    shutil.copy(folder / "first" / results_json.FILE, tmp_path)
    (tmp_path / "seed_9").mkdir()
    with pytest.raises(UserError, match="no folder for any seed"):
        plot_workdir(str(tmp_path))


@pytest.mark.parametrize(
    ("rates", "seconds"), [([], 0), ([0.0], 0), ([50.0, 0.0, 100.0], 3 * 1.5)]
)
def test_an_epoch_without_a_rate_counts_like_the_others(rates, seconds):
    epochs = [{"epoch": 1, "train/examples_per_second": rate} for rate in rates]
    assert results_json.train_seconds(epochs, 100) == pytest.approx(seconds)


def test_commands_are_kept_without_places():
    arguments = [
        *("--config=configs/diginetica.py", "--config.data_dir=/home/me/data"),
        *("--workdir", "/tmp/run", "--config.runs=3", "--config.prepared_dir=/x"),
        *("--config.progress=False", "--config.ks=(5, 20)", "--noconfig.progress"),
        *("--config.progress", "--config.seed=1"),
    ]
    assert results_json.portable_command(arguments) == (
        "python -m srgnn_jax.main --config=configs/diginetica.py "
        "--config.data_dir=DIR --config.runs=3 '--config.ks=(5, 20)' --config.seed=1"
    )


def table_rows(text):
    """Returns the rows of a document's first table, without its header."""
    _, header_and_rows = text.split("\n\n| ", 1)
    return header_and_rows.split("\n\n")[0].splitlines()[2:]


def test_a_document_holds_runs_ablations_baselines_and_published_figures(folder):
    ours = results_json.read(folder / "first" / results_json.FILE)
    ours["data"]["name"] = "diginetica"
    ours["data"]["counts"]["test_examples"] = 60_858
    ablation = copy.deepcopy(ours)
    ablation["config"]["step"] = 3
    ablation["data"]["fingerprint"] = "read in another way, with the same counts"
    ablation["config"]["a_field_of_another_version"] = 1
    on_test = copy.deepcopy(ours)
    on_test["protocol"]["select_on"] = on_test["config"]["select_on"] = "test"
    baselines = {
        "dataset": "diginetica",
        "data": ours["data"]["fingerprint"],
        "train_sessions": 1_234,
        "test_examples": 60_858,
        "test": {"Item-KNN": {"recall@20": 0.3641, "mrr@20": 0.12, "seconds": 7.0}},
    }
    stored = [baselines, ablation, ours, on_test]
    text = results.document(stored)
    assert text == results.document(stored[::-1])
    rows = table_rows(text)
    # Fields that differ from the defaults of this data set's config.
    label = "SR-GNN, batch_size=32, embedding_size=8, learning_rate=0.01"
    assert [row.split(" | ")[:2] for row in rows[:5]] == [
        [f"| **{label}**, this code", "test"],
        ["| the same, on validation", "test"],
        [f"| **{label}**, this code", "validation"],
        ["| the same, on validation", "validation"],
        [f"| **{label}, step=3**, this code", "validation"],
    ]
    for row, split in zip(rows[2:4], ("test", "valid"), strict=True):
        mean, deviation = (
            100 * ours[key][split]["mrr@20"] for key in ("mean", "standard_deviation")
        )
        assert f"| {mean:.2f} ± {deviation:.2f} |" in row
    assert "| 2 of 2 |" in rows[2]
    method = "Item-KNN, learnt from 1,234 sessions, this code"
    assert f"| {method} |  |  | 36.41 | 12.00 |  | 7 s |" in rows
    chosen = "test, per metric"
    row = f"| SR-GNN, Wu et al. 2019, table 2 | {chosen} |  | 50.73 | 17.59 |  |  |"
    assert row in rows
    row = "| POP, Wu et al. 2019, table 2, 2nd |  |  | 0.89 | 0.20 |  |  |"
    assert row in rows
    assert text.count(f"    {COMMAND}\n") == 3
    second = [
        line for run in ours["runs"] for line in run["by_epoch"] if line["epoch"] == 2
    ]
    loss, recall, mrr = (
        statistics.mean(line[key] for line in second)
        for key in ("train/loss", "valid/recall@20", "valid/mrr@20")
    )
    row = f"\n| 2 | {loss:.4f} | {100 * recall:.2f} | {100 * mrr:.2f} |\n"
    assert text.count(row) == 2
    assert "| epoch | train loss | valid recall@20 | valid mrr@20 |" in text
    del ours["runs"][0]["by_epoch"]
    assert "| epoch (seed 4) | train loss |" in results.document([ours])
    assert "length: at most 5" in text
    # A different number of test examples means the data was prepared differently.
    baselines["test_examples"] -= 1
    assert "Wu et al. 2019" not in results.document([ours, baselines])


def test_an_interval_stands_beside_the_seed_that_it_is_of_and_no_mean(folder):
    several = results_json.read(folder / "first" / results_json.FILE)
    alone = results_json.read(folder / "first" / "seed_4" / results_json.FILE)
    values = [
        run["test_breakdown"]["length"]["at most 5"]["mrr@20"]
        for run in several["runs"]
    ]
    text = results.document([several])
    assert "95%" not in text
    assert "Intervals" not in text
    assert "Means of 2 seeds ± their standard deviation." in text
    (row,) = (line for line in text.splitlines() if "| length: at most 5 |" in line)
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    assert row.endswith(f" | {100 * mean:.2f} ± {100 * deviation:.2f} |")
    text = results.document([alone])
    assert "| recall@20 | 95%, seed 4 | mrr@20 | 95%, seed 4 |" in text
    (row,) = (line for line in text.splitlines() if "| length: at most 5 |" in line)
    low, high = alone["runs"][0]["test_breakdown"]["length"]["at most 5"]["interval"][
        "mrr@20"
    ]
    assert row.endswith(f" | {100 * low:.2f} to {100 * high:.2f} |")
    assert f" | {100 * values[1]:.2f} | " in row


def test_a_run_alone_is_told_with_its_settings_and_its_list_length(folder):
    ours = results_json.read(folder / "first" / results_json.FILE)
    ours["config"]["normalize"] = True
    ours["config"]["ks"] = [5]
    text = results.document([ours])
    (row, _) = table_rows(text)
    assert "normalize=True**" in row
    assert f"| {100 * ours['mean']['test']['recall@5']:.2f} ± " in row
    assert "| recall@5 | mrr@5 |" in text
    assert "@20" not in text.split("## ", 2)[1]


def test_what_is_no_result_is_named(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"test": {"POP": {}}}')
    for name, message in (
        ("nowhere.json", "cannot read"),
        ("broken.json", "is not a JSON file"),
        ("other.json", "is neither"),
        ("half.json", "is neither"),
        ("", "holds neither results.json nor baselines.json"),
    ):
        with pytest.raises(UserError, match=message):
            results.find([str(tmp_path / name)])


def test_an_error_without_a_number_is_told(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise OSError("the disk is gone")

    for name in ("read_text", "write_text"):
        monkeypatch.setattr(Path, name, fails)
    path = tmp_path / results_json.FILE
    with pytest.raises(UserError, match=r"cannot write .* \(the disk is gone\)"):
        results_json.write(path, {})
    with pytest.raises(UserError, match=r"cannot read .* \(the disk is gone\)"):
        results_json.read(path)


def test_results_md_is_what_the_stored_results_give(monkeypatch, capsys):
    stored = sorted(str(path) for path in (ROOT / "results").glob("*.json"))
    assert stored
    monkeypatch.setattr(sys, "argv", ["results", *stored])
    results.main()
    expected = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == expected
