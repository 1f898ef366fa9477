"""Pictures hold what they are drawn from."""

import io

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
