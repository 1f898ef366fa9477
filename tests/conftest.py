"""Settings to make before JAX starts.

There are eight fake CPU devices, so that any test can use several. Tiny tests spend
most of their time compiling: it is done without optimization and cached for later runs.
"""

import functools
import os
import pathlib

import numpy as np

from tests.command import QUICK_TO_COMPILE

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        QUICK_TO_COMPILE,
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_sessionstart():
    """Shares one `Compiled` among equal steps; otherwise each run would trace its own.

    Schedules, optimizers and initializers are made once for the same arguments, so that
    steps of equal configs are equal.
    """
    import jax

    from srgnn_jax.model import srgnn

    # Before the planner changes the number of devices.
    assert jax.device_count() == 8

    @functools.cache
    def init_of(model):
        return jax.jit(model.init)

    def init_params(model, seed):
        if isinstance(model, srgnn.SRGNN):
            # Initial parameters do not depend on these.
            model = model.clone(
                step=1,
                normalize=False,
                scale=16.0,
                item_dropout=0.0,
                softmax_attention=False,
                compute_dtype=None,
            )
        session = np.zeros((1, 2), np.int32), np.ones(1, np.int32)
        return init_of(model)(jax.random.key(seed), *session)["params"]

    # Before any other module imports it.
    srgnn.init_params = init_params

    from srgnn_jax import config
    from srgnn_jax.devices.layouts import Devices
    from srgnn_jax.train import epochs

    compile_step, known = Devices.compile, {}

    def compile_once(devices, step, updates_state=False):
        if not isinstance(step, functools.partial):
            return compile_step(devices, step, updates_state)
        named = frozenset(step.keywords.items())
        key = devices, step.func, step.args, named, updates_state
        if key not in known:
            known[key] = compile_step(devices, step, updates_state)
        return known[key]

    Devices.compile = compile_once
    config.step_decay = functools.cache(config.step_decay)
    epochs.adam_with_l2 = functools.cache(epochs.adam_with_l2)
