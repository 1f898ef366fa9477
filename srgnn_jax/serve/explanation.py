"""What the model saw in a session, and what each click adds to an item's score."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import numpy as np

from srgnn_jax.errors import UserError
from srgnn_jax.model import graph
from srgnn_jax.model.layers import Params
from srgnn_jax.serve import step
from srgnn_jax.serve.exported import Lists, RawSession


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What the model saw in a session.

    Attributes:
      items: raw ids of the clicks that the model saw, in order.
      attention: the weight of each click in the readout's sum (for the paper's readout,
        equation 6 of Wu et al. 2019); the weights need not sum to 1.
      edges: (item, next item, weight) of the session graph; the weights of the edges
        that leave an item sum to 1.
      unknown: ids that are not in the vocabulary, each once.
      item: the item whose score is explained, if any.
      score: the score of this item.
      parts: what each click adds to the score: the score minus the score of the session
        without the click. The parts need not sum to the score.
    """

    items: list[str]
    attention: list[float]
    edges: list[tuple[str, str, float]]
    unknown: list[str]
    item: str | None = None
    score: float | None = None
    parts: Sequence[float] = ()


def explain(
    lists: Lists, model: nn.Module, params: Params, session: RawSession
) -> Explanation:
    """Returns the graph of a session and the attention to each click.

    Raises UserError if no click of the session is known, or the readout does not report
    click weights.
    """
    known, unknown = lists.look_up([session])
    if not len(known[0]):
        raise UserError(f"nothing to explain: no item of {list(session)} is known")
    _, item_seq, _ = next(lists.batches(known))
    length = np.count_nonzero(item_seq)
    weights = step.click_weights(params, item_seq, np.array([length]), model=model)
    if not weights:
        raise UserError(
            "this model's readout does not report click weights; have it call "
            'self.sow("intermediates", "click_weights", weights)'
        )
    nodes, _, connections = graph.connection_matrix(item_seq)
    outgoing = np.asarray(connections)[0, :, item_seq.shape[1] :]
    names = lists.ids[np.asarray(nodes)[0]]
    return Explanation(
        items=lists.ids[item_seq[0, :length]].tolist(),
        attention=np.asarray(weights[0])[0, :length].tolist(),
        edges=[
            (names[u], names[v], float(outgoing[u, v]))
            for u, v in np.argwhere(outgoing)
        ],
        unknown=unknown[0],
    )
