"""Plots show the values that they are drawn from."""

import importlib
import io
import itertools
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from srgnn_jax.errors import UserError
from srgnn_jax.evaluate.plots import (
    item_map,
    learning_curves,
    metrics_by_length,
    principal_components,
    recall_over_k,
)
from srgnn_jax.evaluate.session_plots import session_graph


def test_session_graph_shows_items_and_weights():
    figure = session_graph(["a", "b", "c", "b", "b", "d"])
    graph, incoming, outgoing = figure.axes
    assert [text.get_text() for text in graph.texts if text.get_text()] == list("abcd")
    shown = sorted(text.get_text() for text in outgoing.texts)
    # a -> b; b -> b, c and d, a third each; c -> b.
    assert shown == ["1", "1", "1/3", "1/3", "1/3"]
    assert len(incoming.texts) == 5
    assert figure.get_suptitle() == "session a → b → c → b → b → d"
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getbuffer().nbytes > 5000


def overlaps(figure):
    """Returns the pairs of texts in a figure that overlap."""
    figure.canvas.draw()
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible()
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    width, height = figure.canvas.get_width_height()
    for text, box in boxes:
        assert min(box.x0, box.y0) > -1, f"{text} is cut"
        assert box.x1 < width + 1, f"{text} is cut"
        assert box.y1 < height + 1, f"{text} is cut"
    return [
        (a, b)
        for (a, one), (b, other) in itertools.combinations(boxes, 2)
        if one.overlaps(other) and one != other
    ]


@pytest.mark.parametrize("clicks", [3, 12, 50])
def test_ids_of_any_length_are_numbered_and_nothing_is_drawn_over_another(clicks):
    ids = [f"214{716_935 + 7 * n} and more" for n in range(clicks)]
    session = [*ids[1:], ids[0]]
    weights = np.linspace(-3, 12, clicks).tolist()
    figure = session_graph(session, weights, weights[::-1])
    FigureCanvasAgg(figure)
    assert not overlaps(figure)
    said = [text.get_text() for text in figure.findobj(Text)]
    for n, item in enumerate(session, 1):
        assert f"{n}   {item}" in said
        assert said.count(str(n)) >= 3
    title = figure.get_suptitle().replace("\n", " ")
    assert title.startswith("session 1 → 2 → 3")
    assert title.endswith(f"→ {clicks}")


def test_attention_is_drawn_click_by_click():
    figure = session_graph(["a", "b", "a"], [0.5, -0.25, 1.0])
    bars = figure.axes[3]
    assert [bar.get_height() for bar in bars.patches] == [0.5, -0.25, 1.0]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["a", "b", "a"]
    assert [text.get_text() for text in bars.texts] == ["0.50", "-0.25", "1.00"]
    with pytest.raises(ValueError, match="attention: 1 for 2 clicks"):
        session_graph(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="parts: 1 for 2 clicks"):
        session_graph(["a", "b"], parts=[1.0])


def test_learning_curves_show_every_run():
    lines = [
        {"step": 5, "train/loss": 3.0, "train/learning_rate": 0.1},
        {"step": 7, "epoch": 1, "train/loss": 2.5, "valid/mrr@20": 0.2},
        {"step": 14, "epoch": 2, "train/loss": 2.0, "valid/mrr@20": 0.3},
        {"step": 14, "test/mrr@20": 0.9},
    ]
    records = {"seed 0": lines, "seed 1": lines[:2]}
    baselines = {"POP": {"recall@20": 0.05, "mrr@20": 0.01}}
    figure = learning_curves(records, 20, {"seed 0": 2, "seed 1": 1}, baselines)
    loss, recall, mrr = figure.axes
    assert [[*line.get_ydata()] for line in loss.lines] == [
        *([3.0], [2.5, 2.0], [3.0], [2.5])
    ]
    assert [*loss.lines[1].get_xdata()] == [7, 14]
    assert [[*line.get_ydata()] for line in recall.lines] == [[5.0, 5.0]]
    assert [[*line.get_ydata()] for line in mrr.lines] == [
        *([1.0, 1.0], [20.0, 30.0], [20.0])
    ]
    assert [text.get_text() for text in mrr.texts] == ["POP, on test"]
    assert mrr.get_title() == "mrr@20 on validation"
    rings = [ring.get_offsets().tolist() for ring in mrr.collections]
    assert rings == [[[2, 30]], [[1, 20]]]
    assert not loss.collections


def test_recall_over_k_and_by_length_hold_the_numbers():
    (axes,) = recall_over_k({"seed 0": [0.1, 0.2, 0.25], "seed 1": [0.1, 0.3]}).axes
    assert axes.lines[0].get_ydata().tolist() == [10, 20, 25]
    assert [text.get_text() for text in axes.texts] == ["10.0"]
    part = {
        "examples": 3,
        "recall@20": 0.5,
        "mrr@20": 0.2,
        "interval": {"recall@20": (0.4, 0.7), "mrr@20": (0.1, 0.3)},
    }
    other = {**part, "recall@20": 0.6}
    breakdowns = [{"length, finely": {"1": p, "2 to 4": p}} for p in (part, other)]
    # One seed has its interval, several seeds their standard deviation.
    std = 10 / 2**0.5
    for seeds, mean, low, high in ((1, 50, 40, 70), (2, 55, 55 - std, 55 + std)):
        recall, _ = metrics_by_length(breakdowns[:seeds]).axes
        points, bars = recall.containers[0][0], recall.containers[0][2][0]
        assert points.get_ydata() == pytest.approx([mean, mean])
        assert bars.get_segments()[0][:, 1] == pytest.approx([low, high])
        assert ("intervals" in recall.get_title()) == (seeds == 1)
        assert recall.get_xticklabels()[1].get_text() == "2-4\n50%"


def test_the_items_map_draws_the_most_clicked_items():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(30, 6)) * [9, 3, 1, 1, 1, 1]
    clicks = np.array([0, *range(20), *[0] * 9])
    axes, _ = item_map(table, clicks, most=12).axes
    assert len(axes.collections[0].get_offsets()) == 12
    assert axes.collections[0].get_array().tolist() == list(range(8, 20))
    assert "12 most clicked" in axes.get_title()
    place, share = principal_components(table[1:])
    centred = table[1:] - table[1:].mean(axis=0)
    values, axes_of = np.linalg.eigh(centred.T @ centred)
    assert share == pytest.approx(values[::-1][:2] / values.sum())
    expected = np.abs(centred @ axes_of[:, ::-1][:, :2])
    np.testing.assert_allclose(np.abs(place), expected)


def test_what_plots_need_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "srgnn_jax.evaluate.plots")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="plots need matplotlib: pip install"):
        importlib.import_module("srgnn_jax.evaluate.plots")
