"""The training step: a function of one device's part of a batch; `devices` runs it.

Axes: B batch, C clicks, K negatives.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from srgnn_jax.data import batches
from srgnn_jax.data.batches import Batch
from srgnn_jax.devices.tiers import encode
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import MAX_SCORES
from srgnn_jax.model.layers import Params, over_devices
from srgnn_jax.model.losses import LOSSES, Loss
from srgnn_jax.model.srgnn import init_params
from srgnn_jax.train.optimizer import through_one_array


class TrainState(NamedTuple):
    """What a step changes."""

    step: Int[Array, ""]  # optimizer steps done
    params: Params
    opt_state: optax.OptState
    loss: Float[Array, ""]  # sum of the examples' losses since the last logged step
    examples: Float[Array, ""]  # their number
    # The parameters as the last step left them, if `params` average over steps.
    latest: Params | tuple[()] = ()

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        size = sum(leaf.size for leaf in leaves)
        return (
            f"TrainState(step={self.step}, {size:,} parameters in {len(leaves)} arrays)"
        )


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    averages: bool = False,
) -> TrainState:
    """Draws the parameters from the seed; `averages`: see `train_step`'s averaging."""
    params = init_params(model, seed)
    # Separate buffers, as a step donates them all.
    step, loss, examples = jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(())
    latest = jax.tree.map(jnp.copy, params) if averages else ()
    return TrainState(step, params, optimizer.init(params), loss, examples, latest)


def sample_negatives(
    key: jax.Array,
    example: Int[AnyArray, " B"],
    target: Int[AnyArray, " B"],
    num_items: int,
    count: int = 1,
) -> Int[Array, "B K"]:
    """Draws K items except the target for each example, uniformly, with replacement.

    The draw depends only on the key and the example's number, so it is the same however
    a batch is split over devices.
    """

    def draw(example):
        own = jax.random.fold_in(key, example)
        return jax.random.randint(own, (count,), 1, max(num_items - 1, 2))

    drawn = jax.vmap(draw)(example)
    return drawn + (drawn >= target[:, None])


def average(state: TrainState, latest: Params, averaging: float) -> Params:
    """Returns the weighted mean of a state's parameters and those after its next step.

    The latter have the weight 1 / (1 + averaging * t) after t steps: with `averaging` 1
    all steps count equally, with less the latest count most. Source: Shamir and Zhang
    2013, "Stochastic gradient descent for non-smooth optimization", section 4.
    """
    share = 1 / (1 + averaging * state.step)
    return optax.incremental_update(latest, state.params, share)


def train_step(
    state: TrainState,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    averaging: float = 0.0,
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
      model: see `SRGNN`.
      optimizer: see `adam_with_l2`.
      seed: with the step, determines the negatives and the dropout.
      averaging: last share of the steps so far that the state's parameters average
        over, see `average`; 0: they are the latest.
      loss: the loss of each example.
      score_padding: whether the softmax includes row 0.
      max_scores: how many scores the softmax may hold at a time.
      axis_name: axis of the devices that share the batch, or None.
      item_axis: axis of the devices that share the item table, or None.
    """
    examples = over_devices(jnp.sum(batch.length > 0), axis_name)
    examples = examples.astype(state.examples.dtype)
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_of_part(params, part):
        negative = sample_negatives(
            key, part.example, part.target, model.num_items, loss.negatives
        )
        encoded = encode(
            *(model, params, part.tiers, part.target, negative),
            example=part.example,
            dropout_key=key,
            score_padding=score_padding,
            max_scores=max_scores,
            axis_name=item_axis,
        )
        return jnp.sum(loss.function(*encoded) * part.weight) / examples

    latest = state.latest if averaging else state.params
    gradient_of_part = functools.partial(jax.value_and_grad(loss_of_part), latest)
    summed = batches.sum_over_parts(gradient_of_part, clicks, batch)
    mean_loss, gradient = over_devices(summed, axis_name)
    # Otherwise XLA decays before the lookup's scatter: one more pass over the table.
    gradient = jax.lax.optimization_barrier(gradient)
    gradient = jax.lax.platform_dependent(
        gradient, cuda=through_one_array, default=lambda gradient: gradient
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, latest)
    latest = optax.apply_updates(latest, updates)
    params = average(state, latest, averaging) if averaging else latest
    return TrainState(
        state.step + 1,
        params,
        opt_state,
        state.loss + mean_loss * examples,
        state.examples + examples,
        latest if averaging else (),
    )
