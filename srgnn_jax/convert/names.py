"""Weights from and to the two PyTorch SR-GNNs.

RecBole's `SRGNN` and the original repository's `SessionGraph` compute the same model as
`srgnn_jax.SRGNN`. They differ in names, in torch's kernels lying [out, in], and
in the original's update gate, which is turned round: its H' = (1 - z) n + z H becomes
the paper's H' = (1 - z) H + z n when the rows that make z are negated.

Axis letters: V item rows (row 0 is the padding item), D embedding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from srgnn_jax.errors import UserError
from srgnn_jax.model.readout import ATTENTION_READOUTS

TABLE = "item_embedding"
# Path in Flax, name in RecBole, shape in torch: Flax has the transpose, but
# for the table.
_WEIGHTS = (
    ("item_embedding", "item_embedding.weight", "V D"),
    ("gnn/linear_edge_in/kernel", "gnn.linear_edge_in.weight", "D D"),
    ("gnn/linear_edge_in/bias", "gnn.linear_edge_in.bias", "D"),
    ("gnn/linear_edge_out/kernel", "gnn.linear_edge_out.weight", "D D"),
    ("gnn/linear_edge_out/bias", "gnn.linear_edge_out.bias", "D"),
    ("gnn/b_iah", "gnn.b_iah", "D"),
    ("gnn/b_oah", "gnn.b_ioh", "D"),
    ("gnn/w_ih", "gnn.w_ih", "3D 2D"),
    ("gnn/w_hh", "gnn.w_hh", "3D D"),
    ("gnn/b_ih", "gnn.b_ih", "3D"),
    ("gnn/b_hh", "gnn.b_hh", "3D"),
    ("readout/linear_one/kernel", "linear_one.weight", "D D"),
    ("readout/linear_one/bias", "linear_one.bias", "D"),
    ("readout/linear_two/kernel", "linear_two.weight", "D D"),
    ("readout/linear_two/bias", "linear_two.bias", "D"),
    ("readout/linear_three/kernel", "linear_three.weight", "1 D"),
    ("readout/linear_transform/kernel", "linear_transform.weight", "D 2D"),
    ("readout/linear_transform/bias", "linear_transform.bias", "D"),
)
_TRANSFORM = ("linear_transform.weight", "linear_transform.bias")
_ORIGINAL_NAMES = {
    "item_embedding.weight": "embedding.weight",
    "gnn.b_ioh": "gnn.b_oah",
}
EMBEDDING = {"recbole": "item_embedding.weight", "original": "embedding.weight"}
# What the original's state_dict holds beside, and its forward pass never reads.
_ORIGINAL_UNREAD = ("gnn.linear_edge_f.weight", "gnn.linear_edge_f.bias")


def params_from_torch(
    state_dict: Mapping[str, Any], source: str, readout: str = "hybrid"
) -> dict[str, Any]:
    """Turns a PyTorch SR-GNN's weights into the Flax parameters of `SRGNN`.

    What the original's forward pass never reads is dropped: `linear_edge_f`, and its
    `linear_transform` where `readout` is "attention". Half precision becomes float32.

    Args:
      state_dict: names to arrays, NumPy's or torch's.
      source: whose names they are, "recbole" or "original".
      readout: of the model, "hybrid" or "attention". RecBole's is always hybrid.

    Returns:
      The tree that `SRGNN(num_items=V, embedding_size=D, readout=readout)` takes as
      `{"params": tree}`; copies, NumPy's.

    Raises:
      UserError: `source` or `readout` is none of theirs, or names are missing, unknown
        or of the wrong shape or type; all of them are listed.
    """
    if readout not in ATTENTION_READOUTS:
        raise UserError(
            f"the readout is {readout!r}; PyTorch weights are for "
            + " or ".join(ATTENTION_READOUTS)
        )
    hybrid = readout == "hybrid"
    weights = _weights(source, hybrid)
    unread: tuple[str, ...] = ()
    if source == "original":
        unread = _ORIGINAL_UNREAD if hybrid else _ORIGINAL_UNREAD + _TRANSFORM
    arrays = {n: as_numpy(a) for n, a in state_dict.items() if n not in unread}
    whose = {"recbole": "RecBole", "original": "the original"}[source]
    _check(
        {name: shape for _, name, shape in weights},
        arrays,
        EMBEDDING[source],
        f"these are not the weights of {whose}'s SR-GNN with readout={readout!r}",
    )
    params = {}
    for path, name, shape in weights:
        array = arrays[name] if path == TABLE else arrays[name].T
        params[path] = _in_gates_of(source, array, shape)
    return traverse_util.unflatten_dict(params, sep="/")


def params_to_torch(params: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Turns the Flax parameters of `SRGNN` into a PyTorch SR-GNN's weights.

    The weights load with `strict=True`:

        weights = params_to_torch(params, "recbole")
        model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})

    Of `SRGNN`'s options, PyTorch's models know the readouts "hybrid" and "attention".
    RecBole's is always hybrid: other parameters get the `linear_transform` that passes
    the global part on alone. The original's `linear_edge_f` is never read: it is zero.

    Args:
      params: the tree that `SRGNN.init` returns under "params".
      source: whose names to write, "recbole" or "original".

    Returns:
      Names to arrays, in the types of `params`; copies, [out, in] as torch has them.

    Raises:
      UserError: `source` is unknown, or parameters are missing, unknown or of the wrong
        shape or type; all of them are listed.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    leaves = {path: as_numpy(leaf) for path, leaf in flat.items()}
    hybrid = any(path.startswith("readout/linear_transform/") for path in leaves)
    weights = _weights(source, hybrid)
    _check(
        {path: s if path == TABLE else s[::-1] for path, _, s in weights},
        leaves,
        TABLE,
        "these are not the parameters of SRGNN",
    )
    state_dict = {}
    for path, name, shape in weights:
        array = _in_gates_of(source, leaves[path], shape)
        state_dict[name] = np.ascontiguousarray(array if path == TABLE else array.T)
    table = leaves[TABLE]
    d = table.shape[1]
    if source == "original":
        weight, bias = _ORIGINAL_UNREAD
        state_dict[weight] = np.zeros((d, d), table.dtype)
        state_dict[bias] = np.zeros(d, table.dtype)
    if not hybrid:
        # Passes the global part on alone.
        weight, bias = _TRANSFORM
        state_dict[weight] = np.eye(d, 2 * d, dtype=table.dtype)
        state_dict[bias] = np.zeros(d, table.dtype)
    return state_dict


def _weights(source: str, hybrid: bool) -> list[tuple[str, str, list[str]]]:
    """Lists the path, the name in torch and the shape there of each parameter."""
    if source not in EMBEDDING:
        raise UserError(
            f"the source of PyTorch weights is {source!r}, not 'recbole' or 'original'"
        )
    names = _ORIGINAL_NAMES if source == "original" else {}
    return [
        (path, names.get(name, name), shape.split())
        for path, name, shape in _WEIGHTS
        if hybrid or name not in _TRANSFORM
    ]


def _in_gates_of(source: str, array: np.ndarray, torch_shape: list[str]) -> np.ndarray:
    """Copies an array of Flax's layout, with the original's gate turned round."""
    array = np.array(array, order="C")
    if source == "original" and torch_shape[0] == "3D":
        d = array.shape[-1] // 3  # The gates lie in the order r, z, n.
        array[..., d : 2 * d] *= -1
    return array


def as_numpy(value: Any) -> np.ndarray:
    """Returns any library's array as NumPy's; half precision as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16, so torch hands it over only after it is widened.
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    array = np.asarray(value)
    is_half = array.dtype.name in ("float16", "bfloat16")
    return array.astype(np.float32) if is_half else array


def _check(
    shapes: Mapping[str, list[str]],
    arrays: Mapping[str, np.ndarray],
    table: str,
    message: str,
) -> None:
    """Raises one error that lists all that is missing, unknown or mis-shaped."""
    known = {name: arrays[name] for name in shapes if name in arrays}
    sizes: dict[str, int] = {}
    mis_shaped = []
    if table in known and known[table].ndim == 2:
        num_items, d = known[table].shape
        sizes = {"V": num_items, "D": d, "2D": 2 * d, "3D": 3 * d, "1": 1}
    elif table in known:
        mis_shaped = [f"{table} {list(known[table].shape)} instead of [V, D]"]
    for name, array in known.items() if sizes else ():
        expected = [sizes[letter] for letter in shapes[name]]
        if list(array.shape) != expected:
            letters = ", ".join(shapes[name])
            mis_shaped.append(
                f"{name} {list(array.shape)} instead of [{letters}] = {expected}"
            )
    faults = {
        "missing": [name for name in shapes if name not in known],
        "unknown": [name for name in arrays if name not in known],
        "of the wrong shape": mis_shaped,
        "not floating-point": [
            f"{name} ({array.dtype})"
            for name, array in known.items()
            if array.dtype not in (np.float32, np.float64)
        ],
    }
    found = [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]
    if found:
        raise UserError(f"{message}; {'; '.join(found)}")
