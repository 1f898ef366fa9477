"""Pictures, drawn with matplotlib (`pip install 'srgnn_jax[plots]'`)."""

from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from srgnn_jax import graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, ACCENT = "#1f2d3d", "#d9622b"


def session_graph(
    session: Sequence[Hashable], attention: Sequence[float] | None = None
) -> "Figure":
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
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(session))
    item_seq = np.array([[names.index(item) + 1 for item in session]], np.int32)
    nodes, _, connections = (
        np.asarray(x[0]) for x in graph.connection_matrix(item_seq)
    )
    slots = np.flatnonzero(nodes)
    incoming, outgoing = np.split(connections, 2, axis=-1)
    incoming, outgoing = incoming[np.ix_(slots, slots)], outgoing[np.ix_(slots, slots)]
    labels = [str(names[nodes[slot] - 1]) for slot in slots]

    figure = Figure(
        figsize=(9, 2.9 if attention is None else 4.4), layout="constrained"
    )
    grid = figure.add_gridspec(
        1 if attention is None else 2,
        3,
        width_ratios=(1.5, 1, 1),
        height_ratios=None if attention is None else (2.9, 1.3),
    )
    axes = [figure.add_subplot(grid[0, n]) for n in range(3)]
    clicks = " → ".join(str(item) for item in session)
    figure.suptitle(f"session {clicks}", color=INK, fontsize=12)
    _draw_graph(axes[0], labels, outgoing)
    _draw_matrix(axes[1], labels, incoming, "incoming")
    _draw_matrix(axes[2], labels, outgoing, "outgoing")
    if attention is not None:
        _draw_attention(figure.add_subplot(grid[1, :]), session, attention)
    return figure


def _draw_graph(axes: "Axes", labels: Sequence[str], outgoing: np.ndarray) -> None:
    """Draws nodes on a circle and an arrow for every edge."""
    angle = np.pi - 2 * np.pi * np.arange(len(labels)) / len(labels)
    places = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axes.axis("off")
    for start, end in np.argwhere(outgoing):
        if start == end:
            x, y = 1.28 * places[start]
            axes.scatter(x, y, s=260, facecolors="none", edgecolors=INK, zorder=1)
            continue
        arrow = {
            "arrowstyle": "-|>",
            "color": INK,
            "shrinkA": 13,
            "shrinkB": 13,
            "connectionstyle": "arc3,rad=0.18",
        }
        axes.annotate("", places[end], places[start], arrowprops=arrow, zorder=2)
    axes.scatter(places[:, 0], places[:, 1], s=520, color=ACCENT, zorder=3)
    for (x, y), label in zip(places, labels, strict=True):
        axes.text(x, y, label, ha="center", va="center", color="white", zorder=4)


def _draw_matrix(
    axes: "Axes", labels: Sequence[str], matrix: np.ndarray, title: str
) -> None:
    """Draws a connection matrix with its weights as fractions."""
    axes.imshow(matrix, cmap="Oranges", vmin=0, vmax=1.6)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set_title(title, fontsize=10, color=INK)
    axes.tick_params(length=0)
    for row, column in np.argwhere(matrix):
        weight = Fraction(float(matrix[row, column])).limit_denominator(99)
        axes.text(column, row, str(weight), ha="center", va="center", color=INK)


def _draw_attention(
    axes: "Axes", session: Sequence[Hashable], attention: Sequence[float]
) -> None:
    """Draws a bar for each click."""
    bars = axes.bar(range(len(session)), attention, color=ACCENT, width=0.6)
    axes.bar_label(bars, fmt="%.2f", color=INK, fontsize=8, padding=2)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.margins(y=0.25)
    axes.set_xticks(range(len(session)), [str(item) for item in session])
    axes.set_yticks([])
    axes.set_title("attention to each click", fontsize=10, color=INK)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
