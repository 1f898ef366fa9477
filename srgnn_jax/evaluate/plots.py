"""Plots, drawn with matplotlib (`pip install 'srgnn_jax[plots]'`).

Each function returns a matplotlib figure, which notebooks show inline; `plot_workdir`
plots a run and writes files. Axes: N rows, D embedding, V item rows (row 0: padding).
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import metrics, results_json
from srgnn_jax.runs.workdir import seed_folders
from srgnn_jax.serve import recommend

try:
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise UserError("plots need matplotlib: pip install 'srgnn_jax[plots]'") from error

INK, ACCENT = "#1f2d3d", "#d9622b"
# Okabe and Ito's colours, which colour-blind people can distinguish.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS, LINES = "osD^vP", ("-", "--", ":", "-.", "-", "--")
RING: dict[str, Any] = {"facecolors": "none", "edgecolors": INK}
LABEL: dict[str, Any] = {"fontsize": 8, "ha": "right", "va": "bottom", "color": INK}
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
}


def plot_workdir(workdir: str) -> list[pathlib.Path]:
    """Plots a run of one or several seeds: png files in the workdir's folder `plots`.

    Raises:
      UserError: there is nothing to plot, as the run has not finished.
    """
    folder = pathlib.Path(workdir).expanduser()
    path = folder / results_json.FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {path.name}: let the run finish, or write one with "
            "--mode=evaluate"
        )
    results = results_json.read(path)
    runs, k = results["runs"], metrics.usual_k(results["config"]["ks"])
    folders = seed_folders(folder) or {runs[0]["seed"]: folder}
    found = {r["seed"]: folders[r["seed"]] for r in runs if r["seed"] in folders}
    if not found:
        raise UserError(
            f"{folder} holds no folder for any seed in its {path.name}; write that "
            "file again with --mode=evaluate"
        )
    figures = {
        "recall_over_k": recall_over_k(
            {f"seed {run['seed']}": run["test_recall_curve"] for run in runs}
        ),
        "by_length": metrics_by_length([run["test_breakdown"] for run in runs], k),
    }
    records = {
        f"seed {seed}": results_json.read_lines(of_seed / "metrics.jsonl")
        for seed, of_seed in found.items()
    }
    if any(records.values()):
        chosen = {f"seed {run['seed']}": run["best_epoch"] for run in runs}
        baselines = runs[0].get("test_baselines")
        figures["learning_curves"] = learning_curves(records, k, chosen, baselines)
    recommender = recommend.Recommender.load(next(iter(found.values())))
    clicks = recommender.vocabulary.clicks
    if clicks is not None:
        table = np.asarray(recommender.params["item_embedding"])[: len(clicks) + 1]
        figures["items"] = item_map(table, np.append(0, clicks))
    return save_figures(folder, figures)


def save_figures(
    folder: pathlib.Path, figures: Mapping[str, Figure]
) -> list[pathlib.Path]:
    """Writes figures, by name, as png files to the folder's `plots`.

    Raises:
      UserError: the files cannot be written.
    """
    plots = folder / "plots"
    try:
        plots.mkdir(exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(plots / f"{name}.png", dpi=150)
            processes.say(str(plots / f"{name}.png"))
    except OSError as error:
        raise UserError(f"cannot write to {plots} ({reason(error)})") from error
    return [plots / f"{name}.png" for name in figures]


@rc_context(STYLE)
def learning_curves(
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    k: int = 20,
    chosen: Mapping[str, int] | None = None,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Plots loss, recall@k and mrr@k over the steps and epochs of runs.

    Args:
      records: lines of metrics.jsonl, by run label.
      chosen: the chosen epoch, which is ringed, by run label.
      baselines: test metrics of other recommenders, by name; drawn as horizontal lines.
    """
    figure = Figure(figsize=(12.6, 3.4))
    loss, *others = figure.subplots(1, 3)
    epochs = {run: [x for x in records[run] if "epoch" in x] for run in records}
    curves = [(loss, "step", "train/loss", 1)]
    loss.set(xlabel="steps, in thousands", ylabel="training loss (nats)")
    loss.set_title("loss: as logged, and the mean of each epoch")
    loss.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}")
    for axes, metric in zip(others, (f"recall@{k}", f"mrr@{k}"), strict=True):
        keys = {key for lines in epochs.values() for line in lines for key in line}
        splits = [s for s in ("test", "valid") if f"{s}/{metric}" in keys]
        curves += [(axes, "epoch", f"{split}/{metric}", 100) for split in splits]
        on = " and ".join(splits).replace("valid", "validation") or "no split"
        axes.set(xlabel="epoch", ylabel=f"{metric} (%)", title=f"{metric} on {on}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for name, means in (baselines or {}).items():
            value = 100 * means[metric]
            axes.axhline(value, color=INK, linewidth=0.8, linestyle=":")
            side: dict[str, Any] = {"transform": axes.get_yaxis_transform(), **LABEL}
            axes.text(1, value, f"{name}, on test", **side)
    styles = itertools.cycle(zip(COLOURS, MARKERS, strict=True))
    for (label, lines), (colour, marker) in zip(records.items(), styles, strict=False):
        steps = [line for line in lines if "train/learning_rate" in line]
        losses = [line["train/loss"] for line in steps]
        faint: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.6}
        loss.plot([line["step"] for line in steps], losses, **faint)
        for axes, x, y, scale in curves:
            points = [(line[x], scale * line[y]) for line in epochs[label] if y in line]
            style: dict[str, Any] = {"color": colour, "marker": marker, "label": label}
            axes.plot(*zip(*points, strict=True), markersize=5, linewidth=1.4, **style)
            of_epoch = [p for p in points if p[0] == (chosen or {}).get(label)]
            if axes is not loss and of_epoch:
                axes.scatter(*of_epoch[0], s=130, **RING, zorder=3)
                axes.set_xlabel("epoch (ringed: the chosen one)")
    if len(records) > 1:
        loss.legend()
    return figure


@rc_context(STYLE)
def recall_over_k(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Plots recall@k over the length k of the list.

    Args:
      curves: recall@1, recall@2, ... as fractions, by run label.
    """
    figure = Figure(figsize=(5.4, 3.4))
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS, linestyle=LINES)
    for label, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), 100 * np.array(curve), label=label)
    first, longest = next(iter(curves.values())), max(map(len, curves.values()))
    axes.set_xticks([k for k in (1, 5, 10, 20, 50) if k <= longest])
    for k in (1, 5, 10, 20, 50):
        if k <= len(first):
            place, shift = (k, 100 * first[k - 1]), (4, -12)
            axes.plot(*place, "o", color=COLOURS[0], markersize=4)
            near: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
            axes.annotate(f"{place[1]:.1f}", place, shift, color=INK, **near)
    axes.set(xlabel="items in the list, k", ylabel="recall@k (%)", ylim=(0, None))
    axes.set(xlim=(0, longest + 5), title="targets among the first k items, on test")
    if len(curves) > 1:
        axes.legend(loc="lower right")
    return figure


@rc_context(STYLE)
def metrics_by_length(breakdowns: Sequence[Mapping[str, Any]], k: int = 20) -> Figure:
    """Plots recall@k and mrr@k by the length of the prefix.

    Args:
      breakdowns: what `breakdown.break_down` returned for each seed. For one seed, bars
        are its confidence intervals; for several, points are their means and bars their
        standard deviations.
    """
    seeds = [one["length, finely"] for one in breakdowns]
    parts = seeds[0]
    size = sum(part["examples"] for part in parts.values())
    labels = [
        f"{name.replace(' to ', '-').replace(' or more', '+')}\n"
        f"{100 * part['examples'] / size:.0f}%"
        for name, part in parts.items()
    ]
    figure = Figure(figsize=(9.6, 3.4))
    for axes, name, colour in zip(
        figure.subplots(1, 2), ("recall", "mrr"), COLOURS[:2], strict=True
    ):
        metric = f"{name}@{k}"
        values = np.array([[one[part][metric] for part in parts] for one in seeds])
        mean = values.mean(axis=0)
        if len(seeds) > 1:
            bars_are = f"mean ± std of {len(seeds)} seeds"
            bars = np.tile(values.std(axis=0, ddof=1), (2, 1))
        else:
            bars_are = "95% intervals over sessions"
            low, high = np.transpose([p["interval"][metric] for p in parts.values()])
            bars = np.maximum([mean - low, high - mean], 0)
        style: dict[str, Any] = {"fmt": "o", "capsize": 3, "markersize": 5}
        axes.errorbar(range(len(labels)), 100 * mean, 100 * bars, color=colour, **style)
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.set(xlabel="clicks in the prefix; share of test", ylabel=f"{metric} (%)")
        axes.set_ylim(0, 1.08 * 100 * (mean + bars[1]).max())
        axes.set_title(f"{metric} by length, {bars_are}")
    return figure


def principal_components(
    rows: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "2"]]:
    """Projects rows onto the two directions in which they vary most.

    Also returns each direction's share of the variance.
    """
    left, size, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    share = size**2 / max((size**2).sum(), np.finfo(size.dtype).tiny)
    return left[:, :2] * size[:2], share[:2]


@rc_context(STYLE)
def item_map(
    table: Float[np.ndarray, "V D"], clicks: Int[np.ndarray, " V"], most: int = 3000
) -> Figure:
    """Plots the embeddings of the most clicked items on their principal components.

    `clicks` has the training clicks of each row; at most `most` items are drawn.
    """
    order = np.argsort(-clicks, kind="stable")[: min(most, np.count_nonzero(clicks))]
    place, share = principal_components(table[order])
    figure = Figure(figsize=(6.0, 4.8))
    axes = figure.subplots()
    # The most clicked items are drawn on top.
    x, y = place[::-1].T
    style: dict[str, Any] = {"cmap": "cividis", "s": 9, "linewidths": 0}
    points = axes.scatter(x, y, c=clicks[order][::-1], norm=LogNorm(), **style)
    figure.colorbar(points, label="clicks in training (log scale)")
    axes.set_xlabel(f"1st principal component ({100 * share[0]:.1f}% of the variance)")
    axes.set_ylabel(f"2nd principal component ({100 * share[1]:.1f}%)")
    axes.set_title(f"embeddings of the {len(order):,} most clicked items")
    return figure
