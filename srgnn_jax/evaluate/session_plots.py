"""The plot of a session: its graph, connection matrices, and bars by click.

Drawn with matplotlib (`pip install 'srgnn_jax[plots]'`) and returned as a figure.
"""

import math
import textwrap
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from srgnn_jax.evaluate.plots import ACCENT, INK, RING, Figure
from srgnn_jax.model import graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The most nodes that leave room for the matrices beside them; columns of a legend.
MOST_BESIDE, LEGEND_COLUMNS = 12, 3
CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}
# The titles of the bars of each click, with the meaning of negative ones.
BARS = {
    "attention": "attention to each click (below 0: its state is subtracted)",
    "parts": "what each click adds to the item's score (below 0: it speaks against it)",
}


def session_graph(
    session: Sequence[Hashable],
    attention: Sequence[float] | None = None,
    parts: Sequence[float] | None = None,
) -> Figure:
    """Draws a session's graph, its connection matrices beside it, and bars by click.

    If an id is longer than three characters, items are numbered by their first click,
    and a legend has the ids. Sessions of up to 50 clicks are legible.

    Args:
      session: item ids in click order, numbers or text.
      attention: the weight of each click, drawn as bars.
      parts: what each click adds to an item's score, also drawn as bars. All three are
        as `Recommender.explain` returns them.

    Raises:
      ValueError: the number of weights, or of parts, is not the number of clicks.
    """
    given = {"attention": attention, "parts": parts}
    bars = {name: values for name, values in given.items() if values is not None}
    for name, values in bars.items():
        if len(values) != len(session):
            raise ValueError(f"{name}: {len(values)} for {len(session)} clicks")
    ids = [str(item) for item in dict.fromkeys(session)]
    are_short = max(map(len, ids)) <= 3
    labels = ids if are_short else [str(n + 1) for n in range(len(ids))]
    place = {item: n for n, item in enumerate(dict.fromkeys(session))}
    clicks = [labels[place[item]] for item in session]
    item_seq = np.array([[place[item] + 1 for item in session]], np.int32)
    nodes, _, connections = (x[0] for x in graph.connection_matrix(item_seq))
    slots = np.flatnonzero(nodes)
    incoming, outgoing = (
        part[np.ix_(slots, slots)]
        for part in np.split(np.array(connections), 2, axis=1)
    )

    title = textwrap.wrap(f"session {' → '.join(clicks)}", 100)
    of_graph, widths = 2.9, [1.5, 1, 1]
    rows = {"gio": of_graph}
    if len(ids) > MOST_BESIDE:
        of_graph, widths = 1.4 + 0.11 * len(ids), [1, 1]
        rows = {"gg": of_graph, "io": 4.4}
    rows |= {len(widths) * name[0]: 1.7 for name in bars}
    if not are_short:
        rows[len(widths) * "l"] = 0.3 + 0.17 * math.ceil(len(ids) / LEGEND_COLUMNS)
    height = sum(rows.values()) + 0.2 * len(title)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplot_mosaic(
        "\n".join(rows), width_ratios=widths, height_ratios=[*rows.values()]
    )
    figure.suptitle("\n".join(title), color=INK, fontsize=11)
    _draw_graph(axes["g"], labels, outgoing, 72 * of_graph)
    _draw_matrix(axes["i"], labels, incoming, "incoming")
    _draw_matrix(axes["o"], labels, outgoing, "outgoing")
    for name, values in bars.items():
        _draw_bars(axes[name[0]], clicks, values, BARS[name])
    if not are_short:
        _draw_legend(axes["l"], labels, ids)
    return figure


def _draw_graph(
    axes: "Axes", labels: Sequence[str], outgoing: np.ndarray, height: float
) -> None:
    """Draws nodes on a circle and an arrow for every edge, `height` points high."""
    angle = np.pi - 2 * np.pi * np.arange(len(labels)) / len(labels)
    places = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axes.axis("off")
    # Neighbouring nodes on the circle do not touch.
    apart = 2 * np.sin(np.pi / max(len(labels), 2)) * height / 2.9
    size = min(24.0, 0.8 * apart)
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": INK}
    arrow |= {"shrinkA": 0.55 * size, "shrinkB": 0.55 * size}
    arrow |= {"connectionstyle": "arc3,rad=0.18", "linewidth": min(1.0, size / 18)}
    for start, end in np.argwhere(outgoing):
        if start == end:
            x, y = 1.28 * places[start]
            axes.scatter(x, y, s=0.45 * size**2, **RING, zorder=1)
        else:
            axes.annotate("", places[end], places[start], arrowprops=arrow, zorder=2)
    axes.scatter(places[:, 0], places[:, 1], s=size**2, color=ACCENT, zorder=3)
    style: dict[str, Any] = {"color": "white", "fontsize": min(10.0, 0.5 * size)}
    for (x, y), label in zip(places, labels, strict=True):
        axes.text(x, y, label, zorder=4, **CENTRED, **style)


def _draw_matrix(
    axes: "Axes", labels: Sequence[str], matrix: np.ndarray, title: str
) -> None:
    """Draws a connection matrix, with its weights as fractions if there is room."""
    axes.imshow(matrix, cmap="Oranges", vmin=0, vmax=1.6)
    every = math.ceil(len(labels) / 25)
    shown = range(0, len(labels), every)
    size = 10 if len(labels) <= 6 else 7
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(shown, [labels[n] for n in shown], fontsize=size)
    axes.set_title(title, fontsize=10, color=INK)
    axes.tick_params(length=0)
    if len(labels) > MOST_BESIDE:
        return
    for row, column in np.argwhere(matrix):
        weight = Fraction(float(matrix[row, column])).limit_denominator(99)
        axes.text(column, row, str(weight), color=INK, fontsize=size, **CENTRED)


def _draw_bars(axes: "Axes", labels: Sequence[str], values: Any, title: str) -> None:
    """Draws a bar with its value for each click."""
    are_many = len(labels) > 20
    bars = axes.bar(range(len(labels)), values, color=ACCENT, width=0.6)
    style: dict[str, Any] = {"color": INK, "fontsize": 7 if are_many else 8}
    axes.bar_label(bars, fmt="%.2f", padding=2, rotation=90 * are_many, **style)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.02, y=0.5 if are_many else 0.25)
    axes.set_xticks(range(len(labels)), labels, fontsize=style["fontsize"])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10, color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_legend(axes: "Axes", labels: Sequence[str], ids: Sequence[str]) -> None:
    """Lists which item each number stands for, in columns."""
    axes.axis("off")
    length = math.ceil(len(ids) / LEGEND_COLUMNS)
    for n, (label, item) in enumerate(zip(labels, ids, strict=True)):
        column, row = divmod(n, length)
        place = column / LEGEND_COLUMNS, 1 - (row + 0.5) / length
        text = f"{label}   {item if len(item) < 40 else item[:39] + '…'}"
        axes.text(*place, text, fontsize=8, va="center", transform=axes.transAxes)
