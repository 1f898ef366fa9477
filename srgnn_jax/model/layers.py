"""Shared by the layers: matrix products, linear layers and their initialization."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from srgnn_jax.model.graph import AnyArray

Params = dict[str, Any]


# The precision of matrix products for each `compute_dtype`. The hardware's default is
# bfloat16 on TPUs and TensorFloat-32 on NVIDIA GPUs.
COMPUTE_DTYPES: dict[str | None, Any] = {
    None: jax.lax.Precision.HIGHEST,
    "tensorfloat32": jax.lax.Precision.HIGH,
    "bfloat16": jax.lax.DotAlgorithmPreset.BF16_BF16_F32,
}


def product(a: AnyArray, b: AnyArray, compute_dtype: str | None = None) -> Array:
    """Multiplies matrices [..., I, J] and [..., J, K], with sums in float32.

    Args:
      a: the first factor.
      b: the second factor.
      compute_dtype: None: exact on every backend. "tensorfloat32": factors of 11 bits,
        if the hardware has them (on a TPU, three products in bfloat16). "bfloat16":
        factors of 8 bits.
    """
    precision = COMPUTE_DTYPES[compute_dtype]
    multiply = functools.partial(jnp.matmul, precision=precision)
    if compute_dtype != "bfloat16":
        return multiply(a, b)

    # On CPU, XLA multiplies in float32, whatever the precision.
    def rounded(a, b):
        a, b = (jnp.asarray(x, jnp.bfloat16) for x in (a, b))
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    return jax.lax.platform_dependent(a, b, cpu=rounded, default=multiply)


def uniform_init(embedding_size: int) -> nn.initializers.Initializer:
    """Uniform in +-1 / sqrt(D), as both PyTorch codes initialize every parameter."""
    bound = embedding_size**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense(
    features: int, embedding_size: int, compute_dtype: str | None, **named: Any
) -> nn.Dense:
    """Makes a linear layer that uses `product` and `uniform_init`.

    Args:
      features: output size.
      embedding_size: D, which bounds the initial weights.
      compute_dtype: see `product`.
      **named: further fields of `nn.Dense`, such as its name.
    """
    init = uniform_init(embedding_size)
    return nn.Dense(
        features,
        kernel_init=init,
        bias_init=init,
        dot_general=functools.partial(_dot_general, compute_dtype),
        **named,
    )


def _dot_general(compute_dtype, rows, kernel, dimensions, **how):
    """Replaces `jax.lax.dot_general` in `nn.Dense`: [..., I] by [I, O]."""
    del dimensions, how
    return product(rows, kernel, compute_dtype)


def normalise(rows: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Scales each row to Euclidean length 1; a row of zeros stays zero.

    Adam's decay shrinks the padding row until its squares underflow. The gradient of a
    plain norm is NaN there, hence the epsilon inside the root.
    """
    squares = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return rows * jax.lax.rsqrt(squares + 1e-12)


def over_devices(x: Any, axis_name: str | None) -> Any:
    """Sums every leaf over the devices of a mesh axis; None means one device."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)
