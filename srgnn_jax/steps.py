"""What runs on the devices: a step of training, of ranking, of listing the best items.

A step is a function of one device's part of a batch; `parallel` runs it. A batch comes
as *tiers*, groups of its sessions that are padded to one length each (see
`data.batches`). All items of all tiers are looked up at once, the model encodes tier by
tier, and all sessions together meet the item table.

Axes: B batch, b sessions of a tier, L positions, C clicks, N parts of a batch, R rows
of a part, K negatives or items of a list.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from srgnn_jax import parallel
from srgnn_jax.data import batches
from srgnn_jax.data.batches import Batch, Tier
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import MAX_SCORES, ItemTable
from srgnn_jax.model.layers import Params
from srgnn_jax.model.losses import LOSSES, Loss
from srgnn_jax.model.srgnn import init_params


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
      step: optimizer steps done.
      params: of the model.
      opt_state: of the optimizer.
      loss: sum of the examples' losses since the last logged step.
      examples: their number.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    loss: Float[Array, ""]
    examples: Float[Array, ""]


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Draws the parameters from the seed."""
    params = init_params(model, seed)
    # Each its own buffer, as a step donates them all.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        loss=jnp.zeros(()),
        examples=jnp.zeros(()),
    )


def encode(
    model: nn.Module,
    params: Params,
    tiers: Sequence[Tier],
    *ids: Int[AnyArray, "B ..."],
    example: Int[Array, " B"] | None = None,
    dropout_key: Key[Array, ""] | None = None,
    **table_options: Any,
) -> tuple[Any, ...]:
    """Encodes the sessions of all tiers, in the order given.

    Args:
      model: the model.
      params: its parameters, the item table whole or this device's rows of it.
      tiers: item ids [b, L], 0 = padding at the end, and lengths [b] >= 1 of each.
      *ids: items whose rows are wanted too.
      example: the examples' numbers, where there is a `dropout_key`.
      dropout_key: for what is dropped in training; None: nothing is.
      **table_options: fields of `ItemTable`.

    Returns:
      The session embeddings [B, D], the `ItemTable` to score them with, and the rows of
      each of `ids` [B, ..., D].
    """
    table = ItemTable(
        params["item_embedding"],
        model.num_items,
        compute_dtype=model.compute_dtype,
        **table_options,
    )
    found, table = table.lookup(
        *(item_seq for item_seq, _ in tiers), *ids, normalize=model.normalize
    )
    sessions: list[Any] = []
    first = 0
    for (item_seq, item_seq_len), embedded in zip(tiers, found, strict=False):
        number = None
        if example is not None:
            number = example[first : first + len(item_seq)]
        first += len(item_seq)
        sessions.append(
            model.apply(
                {"params": params},
                item_seq,
                item_seq_len,
                embedded,
                number,
                dropout_key is None,
                rngs=None if dropout_key is None else {"dropout": dropout_key},
                method=model.encode,
            )
        )
    return jnp.concatenate(sessions), table, *found[len(tiers) :]


def sample_negatives(
    key: jax.Array,
    example: Int[AnyArray, " B"],
    target: Int[AnyArray, " B"],
    num_items: int,
    count: int = 1,
) -> Int[Array, "B K"]:
    """Draws for each example items that are not its target, evenly, with replacement.

    The draw depends on the key and the example's number, not on its place in the batch:
    it is the same however a batch is split over devices.
    """

    def draw(example):
        own = jax.random.fold_in(key, example)
        return jax.random.randint(own, (count,), 1, max(num_items - 1, 2))

    drawn = jax.vmap(draw)(example)
    return drawn + (drawn >= target[:, None])


def train_step(
    state: TrainState,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    loss: Loss = LOSSES["CE"],
    score_padding: bool = False,
    max_scores: int = MAX_SCORES,
    axis_name: str | None = None,
    item_axis: str | None = None,
) -> TrainState:
    """Takes one optimizer step on the mean loss over the examples of a batch.

    Args:
      state: before the step.
      clicks: what the batch's starts point into.
      batch: this device's parts of the batch; see `data.batches`.
      model: the model.
      optimizer: the optimizer.
      seed: of the run; from it and the step negatives and what is dropped are drawn.
      loss: of each example.
      score_padding: whether row 0 takes part in the softmax.
      max_scores: scores that the softmax may hold at a time.
      axis_name: axis of the devices that share the batch, or None.
      item_axis: axis of the devices that share the item table, or None.
    """
    examples = parallel.total(jnp.sum(batch.length > 0), axis_name)
    examples = examples.astype(state.examples.dtype)
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_of_part(params, part):
        negative = sample_negatives(
            key, part.example, part.target, model.num_items, loss.negatives
        )
        encoded = encode(
            model,
            params,
            part.tiers,
            part.target,
            negative,
            example=part.example,
            dropout_key=key,
            score_padding=score_padding,
            max_scores=max_scores,
            axis_name=item_axis,
        )
        return jnp.sum(loss.function(*encoded) * part.weight) / examples

    gradient_of_part = jax.value_and_grad(loss_of_part)
    mean_loss, gradient = parallel.total(
        batches.sum_over_parts(
            lambda part: gradient_of_part(state.params, part), clicks, batch
        ),
        axis_name,
    )
    # Else XLA moves the decay before the lookup's scatter, a pass over the table more.
    gradient = jax.lax.optimization_barrier(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    return TrainState(
        state.step + 1,
        optax.apply_updates(state.params, updates),
        opt_state,
        state.loss + mean_loss * examples,
        state.examples + examples,
    )


def rank_step(
    params: Params,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    *,
    model: nn.Module,
    max_scores: int = MAX_SCORES,
    axis_name: str | None = None,
    item_axis: str | None = None,
) -> Int[Array, "N R"]:
    """Returns the rank of each target of a batch, of all devices' parts, 1 = best.

    See `train_step` for the arguments.
    """

    def rank(part):
        session, table = encode(
            model, params, part.tiers, max_scores=max_scores, axis_name=item_axis
        )
        return table.target_rank(session, part.target)

    return parallel.gather(batches.map_parts(rank, clicks, batch), axis_name)


def list_step(
    params: Params,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    *,
    model: nn.Module,
    k: int,
    max_scores: int = MAX_SCORES,
    axis_name: str | None = None,
    item_axis: str | None = None,
) -> Int[Array, "N R K"]:
    """Returns the k best items for each example of a batch; see `rank_step`."""

    def best(part):
        session, table = encode(
            model, params, part.tiers, max_scores=max_scores, axis_name=item_axis
        )
        return table.top_k(session, k)[1]

    return parallel.gather(batches.map_parts(best, clicks, batch), axis_name)


@jax.jit
def _finite(tree: Any) -> Any:
    """Returns for each array whether it holds no NaN and no infinity."""
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def check_finite(params: Any) -> None:
    """Raises ValueError, naming an array of the tree, unless all are finite."""
    for path, is_finite in jax.tree_util.tree_leaves_with_path(_finite(params)):
        if not is_finite:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"the parameter {name} holds NaN or infinity")
