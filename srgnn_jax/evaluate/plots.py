"""Pictures, drawn with matplotlib (`pip install 'srgnn_jax[plots]'`).

Each function returns a matplotlib figure, which notebooks show inline; `plot_workdir`
draws a run and writes files.

Axes: N rows, D embedding, C components, V item rows (row 0 is the padding).
"""

import pathlib
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import metrics, results_json
from srgnn_jax.model import graph
from srgnn_jax.runs.workdir import seed_folders
from srgnn_jax.serve import recommend

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise UserError("plots need matplotlib: pip install 'srgnn_jax[plots]'") from error

INK, ACCENT = "#1f2d3d", "#d9622b"
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vP"
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9}


def plot_workdir(workdir: str) -> list[pathlib.Path]:
    """Draws a run, of one seed or several, from what its workdir holds.

    Args:
      workdir: of a run that has come to its end, or was evaluated since.

    Returns:
      The png files, in the workdir's folder `plots`.

    Raises:
      UserError: there is nothing to draw.
    """
    folder = pathlib.Path(workdir).expanduser()
    if not (folder / results_json.FILE).is_file():
        raise UserError(
            f"{folder} holds no {results_json.FILE}: let the run come to its end, or "
            "make one by --mode=evaluate"
        )
    of_workdir = results_json.read(folder / results_json.FILE)
    runs = {run["seed"]: run for run in of_workdir["runs"]}
    folders = seed_folders(folder) or {next(iter(runs)): folder}
    found = [seed for seed in runs if seed in folders]
    if not found:
        raise UserError(
            f"{folder} holds no folder of a seed that its {results_json.FILE} tells "
            "of; make that anew by --mode=evaluate"
        )
    k = metrics.usual_k(of_workdir["config"]["ks"])
    curves = {f"seed {seed}": run["test_recall_curve"] for seed, run in runs.items()}
    figures = {
        "recall_over_k": recall_over_k(curves),
        "by_length": metrics_by_length([r["test_breakdown"] for r in runs.values()], k),
    }
    records = {
        f"seed {seed}": results_json.read_lines(folders[seed] / "metrics.jsonl")
        for seed in found
    }
    if any(records.values()):
        figures["learning_curves"] = learning_curves(records, k)
    recommender = recommend.Recommender.load(folders[found[0]])
    clicks = recommender.vocabulary.clicks
    if clicks is not None:
        table = np.asarray(recommender.params["item_embedding"])[: len(clicks) + 1]
        figures["items"] = item_map(table, np.append(0, clicks))
    plots = folder / "plots"
    try:
        plots.mkdir(exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(plots / f"{name}.png", dpi=150)
            processes.say(str(plots / f"{name}.png"))
    except OSError as error:
        raise UserError(
            f"cannot write to {plots} ({error.strerror or error})"
        ) from error
    return [plots / f"{name}.png" for name in figures]


def _panels(
    count: int, width: float | int, height: float | int = 3.4
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, height), layout="constrained")
    panels = [figure.add_subplot(1, count, n + 1) for n in range(count)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def learning_curves(
    records: Mapping[str, Sequence[Mapping[str, Any]]], k: int = 20
) -> Figure:
    """Draws loss and metrics over the steps and epochs of runs.

    Args:
      records: lines of metrics.jsonl, by the run's label.
      k: the list length of the metrics.
    """
    figure, (loss, *others) = _panels(3, width=4.2)
    splits = {"valid": "validation", "test": "test"}
    drawn = set()

    def draw(axes, lines, x, y, scale, **style):
        known = [line for line in lines if y in line]
        if known:
            values = [scale * line[y] for line in known]
            axes.plot([line[x] for line in known], values, **style)
            drawn.add(splits.get(y.split("/")[0], ""))

    by_metric = dict(zip((f"recall@{k}", f"mrr@{k}"), others, strict=True))
    for n, (label, lines) in enumerate(records.items()):
        colour = COLOURS[n % len(COLOURS)]
        style: dict[str, Any] = {
            "color": colour,
            "marker": MARKERS[n % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.4,
            "label": label,
        }
        steps = [line for line in lines if "train/learning_rate" in line]
        epochs = [line for line in lines if "epoch" in line]
        faint = {"color": colour, "linewidth": 0.8, "alpha": 0.6}
        draw(loss, steps, "step", "train/loss", 1, **faint)
        draw(loss, epochs, "step", "train/loss", 1, **style)
        for metric, axes in by_metric.items():
            for split in splits:
                draw(axes, epochs, "epoch", f"{split}/{metric}", 100, **style)
    loss.set(xlabel="steps, in thousands", ylabel="training loss (nats)")
    loss.set_title("loss: as logged, and the mean of each epoch", fontsize=10)
    loss.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}")
    on = " and ".join(sorted(drawn - {""})) or "no split"
    for metric, axes in by_metric.items():
        axes.set(xlabel="epoch", ylabel=f"{metric} (%)")
        axes.set_title(f"{metric} on {on}", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(records) > 1:
        loss.legend(**LEGEND)
    return figure


def recall_over_k(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draws recall@k over the length k of the list.

    Args:
      curves: recall@1, recall@2, ... as fractions, by the run's label.
    """
    figure, (axes,) = _panels(1, width=5.4)
    for n, (label, curve) in enumerate(curves.items()):
        percent, colour = 100 * np.array(curve), COLOURS[n % len(COLOURS)]
        line = ("-", "--", ":", "-.")[n % 4]
        lengths = range(1, len(curve) + 1)
        axes.plot(lengths, percent, color=colour, linestyle=line, label=label)
    longest = max(map(len, curves.values()))
    shown = [k for k in (1, 5, 10, 20, 50) if k <= longest]
    axes.set_xticks(shown)
    first = next(iter(curves.values()))
    near: dict[str, Any] = {"xytext": (4, -12), "textcoords": "offset points"}
    for k in shown:
        if k <= len(first):
            place = k, 100 * first[k - 1]
            axes.plot(*place, "o", color=COLOURS[0], markersize=4)
            axes.annotate(f"{place[1]:.1f}", place, fontsize=8, color=INK, **near)
    axes.set(xlabel="items in the list, k", ylabel="recall@k (%)", ylim=(0, None))
    axes.set_xlim(0, longest + 5)
    axes.set_title("targets among the first k items, on test", fontsize=10)
    if len(curves) > 1:
        axes.legend(loc="lower right", **LEGEND)
    return figure


def metrics_by_length(breakdowns: Sequence[Mapping[str, Any]], k: int = 20) -> Figure:
    """Draws recall@k and mrr@k by the length of the prefix.

    Args:
      breakdowns: what `breakdown.break_down` returned for each seed. Of one seed, bars
        are its confidence intervals; of several, points are their means and bars their
        standard deviations.
      k: the list length of the metrics.
    """
    figure, panels = _panels(2, width=4.8)
    seeds = [one["length, finely"] for one in breakdowns]
    parts = seeds[0]
    size = sum(part["examples"] for part in parts.values())
    labels = [
        f"{name.replace(' to ', '-').replace(' or more', '+')}\n"
        f"{100 * part['examples'] / size:.0f}%"
        for name, part in parts.items()
    ]
    bars_are = "95% intervals over sessions"
    if len(seeds) > 1:
        bars_are = f"mean ± std of {len(seeds)} seeds"
    names = f"recall@{k}", f"mrr@{k}"
    for axes, metric, colour in zip(panels, names, COLOURS[:2], strict=True):
        values = np.array([[one[name][metric] for name in parts] for one in seeds])
        mean = values.mean(axis=0)
        if len(seeds) > 1:
            bars = np.tile(values.std(axis=0, ddof=1), (2, 1))
        else:
            bounds = np.array([part["interval"][metric] for part in parts.values()])
            bars = np.maximum([mean - bounds[:, 0], bounds[:, 1] - mean], 0)
        style: dict[str, Any] = {"fmt": "o", "capsize": 3, "markersize": 5}
        axes.errorbar(range(len(labels)), 100 * mean, 100 * bars, color=colour, **style)
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.set(xlabel="clicks in the prefix; share of test", ylabel=f"{metric} (%)")
        axes.set_ylim(0, 1.08 * 100 * (mean + bars[1]).max())
        axes.set_title(f"{metric} by length, {bars_are}", fontsize=10)
    return figure


def principal_components(
    rows: Float[np.ndarray, "N D"], count: int = 2
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, " C"]]:
    """Projects rows on the directions in which they vary most.

    Returns:
      The coordinates, and each direction's share of the variance.
    """
    left, size, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    share = size**2 / max((size**2).sum(), np.finfo(size.dtype).tiny)
    return left[:, :count] * size[:count], share[:count]


def item_map(
    table: Float[np.ndarray, "V D"], clicks: Int[np.ndarray, " V"], most: int = 3000
) -> Figure:
    """Draws the embeddings of the most clicked items on their principal components.

    Args:
      table: the item table, row 0 of the padding included.
      clicks: how often each row was clicked in training.
      most: how many items are drawn, at most; only those that were clicked are.
    """
    order = np.argsort(-clicks[1:], kind="stable")[:most] + 1
    order = order[clicks[order] > 0]
    place, share = principal_components(table[order])
    figure, (axes,) = _panels(1, width=6.0, height=4.8)
    style: dict[str, Any] = {"cmap": "cividis", "s": 9, "linewidths": 0}
    # The most clicked ones on top.
    x, y = place[::-1].T
    points = axes.scatter(x, y, c=clicks[order][::-1], norm=LogNorm(), **style)
    figure.colorbar(points, label="clicks in training (log scale)")
    axes.set(
        xlabel=f"1st principal component ({100 * share[0]:.1f}% of the variance)",
        ylabel=f"2nd principal component ({100 * share[1]:.1f}%)",
    )
    axes.set_title(f"embeddings of the {len(order):,} most clicked items", fontsize=10)
    return figure


def session_graph(
    session: Sequence[Hashable], attention: Sequence[float] | None = None
) -> Figure:
    """Draws a session's graph, and its connection matrices beside it.

    Args:
      session: item ids in click order, numbers or text.
      attention: the weight of each click, drawn as bars below; both as
        `Recommender.explain` gives them.

    Raises:
      ValueError: there are not as many weights as clicks.
    """
    if attention is not None and len(attention) != len(session):
        raise ValueError(
            f"{len(attention)} attention weights for {len(session)} clicks"
        )
    names = list(dict.fromkeys(session))
    item_seq = np.array([[names.index(item) + 1 for item in session]], np.int32)
    nodes, _, connections = (
        np.asarray(x[0]) for x in graph.connection_matrix(item_seq)
    )
    slots = np.flatnonzero(nodes)
    incoming, outgoing = (
        part[np.ix_(slots, slots)] for part in np.split(connections, 2, axis=-1)
    )
    labels = [str(names[nodes[slot] - 1]) for slot in slots]

    size, rows, heights = (9, 2.9), ["gio"], [2.9]
    if attention is not None:
        size, rows, heights = (9, 4.4), ["gio", "aaa"], [2.9, 1.3]
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplot_mosaic(
        "\n".join(rows), width_ratios=(1.5, 1, 1), height_ratios=heights
    )
    clicks = " → ".join(str(item) for item in session)
    figure.suptitle(f"session {clicks}", color=INK, fontsize=12)
    _draw_graph(axes["g"], labels, outgoing)
    _draw_matrix(axes["i"], labels, incoming, "incoming")
    _draw_matrix(axes["o"], labels, outgoing, "outgoing")
    if attention is not None:
        _draw_attention(axes["a"], [str(item) for item in session], attention)
    return figure


def _draw_graph(axes: Axes, labels: Sequence[str], outgoing: np.ndarray) -> None:
    """Draws nodes on a circle and an arrow for every edge."""
    angle = np.pi - 2 * np.pi * np.arange(len(labels)) / len(labels)
    places = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axes.axis("off")
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": INK}
    arrow |= {"shrinkA": 13, "shrinkB": 13, "connectionstyle": "arc3,rad=0.18"}
    for start, end in np.argwhere(outgoing):
        if start == end:
            x, y = 1.28 * places[start]
            axes.scatter(x, y, s=260, facecolors="none", edgecolors=INK, zorder=1)
        else:
            axes.annotate("", places[end], places[start], arrowprops=arrow, zorder=2)
    axes.scatter(places[:, 0], places[:, 1], s=520, color=ACCENT, zorder=3)
    # A box widens the nodes of long labels.
    node = {"boxstyle": "round,pad=0.25", "facecolor": ACCENT, "edgecolor": "none"}
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white"}
    for (x, y), label in zip(places, labels, strict=True):
        axes.text(x, y, label, bbox=node, zorder=4, **style)


def _draw_matrix(
    axes: Axes, labels: Sequence[str], matrix: np.ndarray, title: str
) -> None:
    """Draws a connection matrix with its weights as fractions."""
    axes.imshow(matrix, cmap="Oranges", vmin=0, vmax=1.6)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_title(title, fontsize=10, color=INK)
    axes.tick_params(length=0)
    for row, column in np.argwhere(matrix):
        weight = Fraction(float(matrix[row, column])).limit_denominator(99)
        axes.text(column, row, str(weight), ha="center", va="center", color=INK)


def _draw_attention(
    axes: Axes, labels: Sequence[str], attention: Sequence[float]
) -> None:
    """Draws a bar for each click."""
    bars = axes.bar(range(len(labels)), attention, color=ACCENT, width=0.6)
    axes.bar_label(bars, fmt="%.2f", color=INK, fontsize=8, padding=2)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.margins(y=0.25)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks([])
    axes.set_title("attention to each click", fontsize=10, color=INK)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
