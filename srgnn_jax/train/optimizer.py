"""Adam with coupled L2 and a step decay of the learning rate."""

import optax


def step_decay(
    learning_rate: float,
    lr_decay_epochs: int,
    lr_decay: float,
    steps_per_epoch: int,
    first_epoch: int = 0,
) -> optax.Schedule:
    """Multiplies the learning rate by `lr_decay` after every `lr_decay_epochs` epochs.

    This is `torch.optim.lr_scheduler.StepLR`, stepped after each epoch. The learning
    rate stays constant where `lr_decay_epochs` is 0. `first_epoch` epochs count as done
    at step 0.
    """
    every, first = lr_decay_epochs * steps_per_epoch, first_epoch * steps_per_epoch
    decay = optax.exponential_decay(learning_rate, every, lr_decay, staircase=True)
    return lambda count: decay(count + first)


def adam_with_l2(
    learning_rate: optax.ScalarOrSchedule, l2: float
) -> optax.GradientTransformation:
    """Builds `torch.optim.Adam(lr, weight_decay=l2)`, over the optimizer's steps.

    The decay is coupled: l2 times the parameter joins the gradient *before* the
    moments, for every row of the item table, touched or not (this is not AdamW).
    """
    return optax.chain(
        optax.add_decayed_weights(l2),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.scale_by_learning_rate(learning_rate),
    )
