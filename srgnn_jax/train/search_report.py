"""Reports a search: lines, tables, the best trial's config, plots."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from srgnn_jax import tables
from srgnn_jax.configs import default
from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.evaluate.workdir import metric_table
from srgnn_jax.train import study

BEST = "best.py"
# Trials in the table.
MOST_SHOWN = 10


def reached(trial: study.FrozenTrial) -> float:
    """Returns the metric of a trial that did not fail, as a fraction."""
    assert trial.value is not None
    return trial.value


def best_trials(of: study.Study) -> list[study.FrozenTrial]:
    """Returns the completed trials, the best first."""
    done = study.trials(of, "COMPLETE")
    return sorted(done, key=lambda trial: (-reached(trial), trial.number))


def line(trial: study.FrozenTrial, metric: str) -> str:
    """Returns one line on how a trial ended, and its settings."""
    if trial.state.name == "FAIL":
        outcome = f"failed: {trial.user_attrs['reason']}"
    else:
        outcome = f"{metric} {100 * reached(trial):.2f}"
        if trial.state.name == "PRUNED":
            outcome += f", below the median after epoch {trial.last_step}: ended"
    values = " ".join(f"{field}={value}" for field, value in trial.params.items())
    return f"trial {trial.number}: {outcome} ({values})"


def report(
    of: study.Study,
    folder: pathlib.Path,
    config: ConfigDict,
    asked: int,
    source: str,
) -> None:
    """Prints the results, and writes best.py and plots.

    Args:
      of: the search.
      folder: its workdir.
      config: the best trial's.
      asked: the number of trials asked for.
      source: text of the config file, if that defines a model or a loss; else "".
    """
    best, metric = best_trials(of), config.select_by
    ended = {state: len(study.trials(of, state)) for state in study.ENDED}
    number = sum(ended.values())
    summary = (
        f"{number} of {asked} trials, {ended['PRUNED']} of them ended early, "
        f"{ended['FAIL']} failed"
    )
    if number < asked:
        summary += "; time is up; the same command continues"
    if study.is_shared(of):
        summary += "\nseveral workers shared them: another search would draw others"
    number_of_best = best[0].number
    seen = {
        path.parent.name: results_json.read(path)["mean"]["test"]
        for path in folder.glob(f"trial_*/{results_json.FILE}")
    }
    columns = {
        "valid": best[0].user_attrs["found"]["metrics"],
        "test": seen.pop(f"trial_{number_of_best:04}"),
    }
    alone = "for it alone"
    if seen:
        earlier = ", ".join(sorted(seen))
        alone = f"for it, and earlier for {earlier}, the best until then"
    path = folder / BEST
    results_json.write_text(path, best_config(config, best[0], number, source))
    parts = [
        summary,
        f"the best, by {metric} on validation:",
        "\n".join(_table(best[:MOST_SHOWN], metric)),
    ]
    if shares := study.importances(of):
        rows = [["importance for being among the best", ""]]
        rows += [[field, tables.percent(share)] for field, share in shares.items()]
        parts.append("\n".join(tables.plain(rows)))
    parts += [
        f"trial {number_of_best}, chosen on validation; test was evaluated {alone}:",
        "\n".join(metric_table(config.ks, columns)),
        f"its settings: {path}",
    ]
    processes.say("\n" + "\n\n".join(parts))
    _draw(of, folder, metric)


def _table(best: list[study.FrozenTrial], metric: str) -> list[str]:
    """Renders the settings of trials, one column each."""
    rows = [
        ["trial", *(str(trial.number) for trial in best)],
        [metric, *(tables.percent(reached(trial)) for trial in best)],
        ["epoch", *(str(trial.user_attrs["found"]["epoch"]) for trial in best)],
    ]
    for field in best[0].params:
        rows.append([field, *(str(trial.params[field]) for trial in best)])
    return tables.plain(rows, width=8)


def best_config(
    config: ConfigDict, best: study.FrozenTrial, number: int, source: str
) -> str:
    """Returns a config file with the best trial's fields that are not the defaults.

    If the search's config file defines a model or a loss, its text goes before.
    """
    usual = default.get_config()
    # The trial showed no progress bars; a run of its own may.
    own = {"name": f"{config.name}_best", "progress": usual.progress}
    found = f"{config.select_by} {100 * reached(best):.2f} on validation"
    about = f"The best of {number} trials, number {best.number}: {found}."
    lines = [
        f"    c.{name} = {_in_python(value)}"
        for name, value in sorted({**config, **own}.items())
        if value != usual[name]
    ]
    head = f"{source.rstrip()}\n\n\n# {about}\n" if source else f'"""{about}"""\n\n'
    body = "\n".join(lines)
    return (
        f"{head}from srgnn_jax.configs import default\n\n\n"
        f'def get_config():\n    """Returns the config."""\n'
        f"    c = default.get_config()\n{body}\n    return c\n"
    )


def _in_python(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _draw(of: study.Study, folder: pathlib.Path, metric: str) -> None:
    """Plots the search into the folder plots, if matplotlib is installed."""
    try:
        from srgnn_jax.evaluate import search_plots
    except UserError as error:
        processes.say(str(error))
        return
    records: list[dict[str, Any]] = [
        {
            "number": trial.number,
            "state": trial.state.name,
            "value": trial.value,
            "epochs": trial.intermediate_values,
            "params": trial.params,
        }
        for trial in study.trials(of, *study.ENDED)
    ]
    search_plots.plot_search(folder, records, metric)
