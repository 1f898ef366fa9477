"""Adam with coupled L2 and a step decay of the learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Leaves with at most this many numbers are small.
SMALL = 2**15


def step_decay(
    learning_rate: float,
    lr_decay_epochs: int,
    lr_decay: float,
    steps_per_epoch: int,
    first_epoch: int = 0,
) -> optax.Schedule:
    """Multiplies the learning rate by `lr_decay` after every `lr_decay_epochs` epochs.

    This is `torch.optim.lr_scheduler.StepLR`, stepped after each epoch. The learning
    rate is constant if `lr_decay_epochs` is 0. `first_epoch` epochs count as done at
    step 0.
    """
    every, first = lr_decay_epochs * steps_per_epoch, first_epoch * steps_per_epoch
    decay = optax.exponential_decay(learning_rate, every, lr_decay, staircase=True)
    return lambda count: decay(count + first)


def adam_with_l2(
    learning_rate: optax.ScalarOrSchedule, l2: float
) -> optax.GradientTransformation:
    """Builds `torch.optim.Adam(lr, weight_decay=l2)`, over the optimizer's steps.

    The decay is coupled: l2 times the parameter is added to the gradient *before* the
    moments, for every row of the item table, used or not (this is not AdamW).
    """
    return optax.chain(
        optax.add_decayed_weights(l2),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.scale_by_learning_rate(learning_rate),
    )


def through_one_array(tree: Any) -> Any:
    """Returns a tree unchanged, with its small leaves cut from one array.

    On a GPU, XLA then updates parameters of equal shape in one operation; separate ones
    take longer to launch than to run.
    """
    leaves, structure = jax.tree.flatten(tree)
    small = [leaf.size <= SMALL for leaf in leaves]
    flat = [leaf.ravel() for leaf, of_it in zip(leaves, small, strict=True) if of_it]
    if not flat:
        return tree
    joined = jax.lax.optimization_barrier(jnp.concatenate(flat))
    parts = iter(jnp.split(joined, np.cumsum([len(x) for x in flat])[:-1]))
    found = [
        next(parts).reshape(leaf.shape) if of_it else leaf
        for leaf, of_it in zip(leaves, small, strict=True)
    ]
    return jax.tree.unflatten(structure, found)
