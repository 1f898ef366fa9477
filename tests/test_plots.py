"""Pictures hold what they are drawn from."""

import io

import pytest

from srgnn_jax.plots import session_graph


def test_session_graph_shows_items_and_weights():
    figure = session_graph(["a", "b", "c", "b", "b", "d"])
    graph, incoming, outgoing = figure.axes
    assert [text.get_text() for text in graph.texts if text.get_text()] == list("abcd")
    shown = sorted(text.get_text() for text in outgoing.texts)
    # a -> b; b -> b, c, d, a third each; c -> b.
    assert shown == ["1", "1", "1/3", "1/3", "1/3"]
    assert len(incoming.texts) == 5
    assert figure.get_suptitle() == "session a → b → c → b → b → d"
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getbuffer().nbytes > 5000


def test_attention_is_drawn_click_by_click():
    figure = session_graph(["a", "b", "a"], [0.5, -0.25, 1.0])
    bars = figure.axes[3]
    assert [bar.get_height() for bar in bars.patches] == [0.5, -0.25, 1.0]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["a", "b", "a"]
    assert [text.get_text() for text in bars.texts] == ["0.50", "-0.25", "1.00"]
    with pytest.raises(ValueError, match="1 attention weights for 2 clicks"):
        session_graph(["a", "b"], [1.0])
