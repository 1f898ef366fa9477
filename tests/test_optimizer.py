"""Compares Adam with coupled L2 and step decay with their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srgnn_jax.train.optimizer import (
    SMALL,
    adam_with_l2,
    step_decay,
    through_one_array,
)


def test_adam_adds_the_decay_to_the_gradient():
    rng = np.random.default_rng(0)
    parameter = rng.normal(size=5)
    gradients = rng.normal(size=(8, 5))
    # Row 0 never gets a gradient: only coupled decay moves it, by full Adam steps.
    gradients[:, 0] = 0
    lr, l2 = 0.01, 0.1
    expected, m, v = parameter.copy(), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient + l2 * expected
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        expected = expected - lr * m_hat / (np.sqrt(v_hat) + 1e-8)

    optimizer = adam_with_l2(lr, l2)
    params = jnp.array(parameter, jnp.float32)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(
            jnp.array(gradient, jnp.float32), state, params
        )
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, expected, rtol=1e-4)


def test_learning_rate_falls_after_every_third_epoch():
    schedule = step_decay(0.001, 3, 0.1, steps_per_epoch=10)
    rates = [float(schedule(step)) for step in (0, 29, 30, 59, 60)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5], rtol=1e-6)
    goes_on = step_decay(0.001, 3, 0.1, steps_per_epoch=20, first_epoch=2)
    rates = [float(goes_on(step)) for step in (0, 19, 20, 79, 80)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5], rtol=1e-6)


def test_zero_decay_epochs_keep_the_learning_rate():
    schedule = step_decay(0.001, 0, 0.1, steps_per_epoch=10)
    assert float(schedule(1000)) == 0.001


def test_schedule_drives_adam():
    optimizer = adam_with_l2(step_decay(0.1, 1, 0.1, steps_per_epoch=1), 0.0)
    params = jnp.zeros(1)
    state = optimizer.init(params)
    sizes = []
    for _ in range(3):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        sizes.append(float(abs(jax.tree.leaves(updates)[0][0])))
    np.testing.assert_allclose(sizes, [0.1, 0.01, 0.001], rtol=1e-4)


def test_what_goes_through_one_array_stays_as_it_is():
    rng = np.random.default_rng(0)
    shapes = {"bias": (3,), "table": (SMALL, 2), "weight": (2, 3), "column": (4, 1)}
    tree = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    tree = jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)
    found = through_one_array(tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    text = str(jax.make_jaxpr(through_one_array)(tree))
    assert "f32[13]" in text  # The three small ones.
    large = {"table": tree["table"]}
    assert through_one_array(large) is large
