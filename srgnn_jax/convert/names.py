"""Weights from and to the PyTorch SR-GNNs, by name.

The `SRGNN` of RecBole, that of RecBole-GNN and the original repository's `SessionGraph`
compute the same model as `srgnn_jax.SRGNN`. They name its parameters differently, and
torch's kernels are [out, in]. The original's update gate is inverted: its
H' = (1 - z) n + z H becomes the paper's H' = (1 - z) H + z n when the rows that produce
z are negated. RecBole-GNN has no b_iah and b_oah: they become zero, and on the way back
they become part of b_ih.

Axes: V item rows (row 0 is the padding item), D embedding.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from srgnn_jax.errors import UserError
from srgnn_jax.model.readout import ATTENTION_READOUTS
from srgnn_jax.model.srgnn import SRGNN, init_params

TABLE = "item_embedding"
# The names in torch that do not follow from the path in Flax; all others do.
_OWN_NAMES = {
    "recbole": {TABLE: "item_embedding.weight", "gnn/b_oah": "gnn.b_ioh"},
    "recbole_gnn": {
        TABLE: "item_embedding.weight",
        "gnn/linear_edge_in/kernel": "gnncell.incomming_conv.lin.weight",
        "gnn/linear_edge_in/bias": "gnncell.incomming_conv.lin.bias",
        "gnn/linear_edge_out/kernel": "gnncell.outcomming_conv.lin.weight",
        "gnn/linear_edge_out/bias": "gnncell.outcomming_conv.lin.bias",
        "gnn/w_ih": "gnncell.lin_ih.weight",
        "gnn/w_hh": "gnncell.lin_hh.weight",
        "gnn/b_ih": "gnncell.lin_ih.bias",
        "gnn/b_hh": "gnncell.lin_hh.bias",
    },
    "original": {TABLE: "embedding.weight"},
}
_WHOSE = {
    "recbole": "RecBole",
    "recbole_gnn": "RecBole-GNN",
    "original": "the original",
}
EMBEDDING = {source: names[TABLE] for source, names in _OWN_NAMES.items()}
# Their last axis in Flax, their first in torch, holds the gates r, z, n.
_GATES = ("gnn/w_ih", "gnn/w_hh", "gnn/b_ih", "gnn/b_hh")
_TRANSFORM = ("linear_transform.weight", "linear_transform.bias")
# The message biases, which RecBole-GNN does not have.
_MESSAGE_BIASES = ("gnn/b_iah", "gnn/b_oah")
# Entries of the original's state_dict that its forward pass never reads.
_UNREAD = ("gnn.linear_edge_f.weight", "gnn.linear_edge_f.bias")
# The prefixes that torch's DataParallel, torch.compile and Lightning add to all names.
_WRAPPERS = re.compile(r"((module|_orig_mod|model)\.)*")


def params_from_torch(
    state_dict: Mapping[str, Any], source: str, readout: str = "hybrid"
) -> dict[str, Any]:
    """Turns a PyTorch SR-GNN's weights into the Flax parameters of `SRGNN`.

    Weights that the original's forward pass never reads are dropped: `linear_edge_f`,
    and its `linear_transform` if `readout` is "attention". Half precision becomes
    float32. The prefixes that DataParallel, torch.compile and Lightning add to all
    names ("module.", "_orig_mod.", "model.") are dropped.

    Args:
      state_dict: names to arrays, NumPy's or torch's.
      source: whose names they are: "recbole", "recbole_gnn" or "original".
      readout: "hybrid" or, for the original only, "attention".

    Returns:
      The tree under "params" of `SRGNN(V, D, readout=readout)`, as NumPy copies.

    Raises:
      UserError: lists everything missing, unknown, or of the wrong shape or type.
    """
    _check_source(source)
    if readout not in ATTENTION_READOUTS:
        known = " or ".join(ATTENTION_READOUTS)
        raise UserError(f"the readout is {readout!r}; the PyTorch models have {known}")
    unread: tuple[str, ...] = ()
    if source == "original":
        unread = _UNREAD if readout == "hybrid" else _UNREAD + _TRANSFORM
    state_dict = unwrapped(state_dict)
    arrays = {n: as_numpy(a) for n, a in state_dict.items() if n not in unread}
    shapes = _shapes(arrays.get(EMBEDDING[source]), readout)
    absent = _MESSAGE_BIASES if source == "recbole_gnn" else ()
    names = {path: _name(path, source) for path in shapes if path not in absent}
    _check(
        {n: shapes[p] if p == TABLE else shapes[p][::-1] for p, n in names.items()},
        arrays,
        f"these are not the weights of {_WHOSE[source]}'s SR-GNN with "
        f"readout={readout!r}",
    )
    flat = {p: arrays[n] if p == TABLE else arrays[n].T for p, n in names.items()}
    flat |= {path: np.zeros(shapes[path], flat[TABLE].dtype) for path in absent}
    return traverse_util.unflatten_dict(_in_gates_of(source, flat), sep="/")


def params_to_torch(params: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Turns the Flax parameters of `SRGNN` into a PyTorch SR-GNN's weights.

    The weights load with `strict=True`:

        weights = params_to_torch(params, "recbole")
        model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})

    The PyTorch models have the readouts "hybrid" and "attention"; for the latter, a
    `linear_transform` passes on only the global part. The original's `linear_edge_f`,
    which it never reads, is zero. RecBole-GNN has no `b_iah` and `b_oah`, so what they
    add to the gates is added to `b_ih`. The arrays are copies, with the types of
    `params`.

    Args:
      params: the tree under "params" of `SRGNN`.
      source: whose model to convert for: "recbole", "recbole_gnn" or "original".

    Raises:
      UserError: lists everything missing, unknown, or of the wrong shape or type.
    """
    _check_source(source)
    flat = traverse_util.flatten_dict(params, sep="/")
    leaves = {path: as_numpy(leaf) for path, leaf in flat.items()}
    hybrid = "readout/linear_transform/kernel" in leaves
    shapes = _shapes(leaves.get(TABLE), "hybrid" if hybrid else "attention")
    _check(shapes, leaves, "these are not the parameters of SRGNN")
    if source == "recbole_gnn":
        biases = np.concatenate([leaves.pop(path) for path in _MESSAGE_BIASES])
        leaves["gnn/b_ih"] = leaves["gnn/b_ih"] + biases @ leaves["gnn/w_ih"]
    state_dict = {
        _name(path, source): np.ascontiguousarray(a if path == TABLE else a.T)
        for path, a in _in_gates_of(source, leaves).items()
    }
    dtype, d = leaves[TABLE].dtype, leaves[TABLE].shape[1]
    if source == "original":
        state_dict[_UNREAD[0]] = np.zeros((d, d), dtype)
        state_dict[_UNREAD[1]] = np.zeros(d, dtype)
    if not hybrid:
        state_dict[_TRANSFORM[0]] = np.eye(d, 2 * d, dtype=dtype)
        state_dict[_TRANSFORM[1]] = np.zeros(d, dtype)
    return state_dict


def _check_source(source: str) -> None:
    if source not in _OWN_NAMES:
        known = ", ".join(map(repr, _OWN_NAMES))
        raise UserError(f"the source is {source!r}, not one of {known}")


def unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Drops the prefix that wrappers of a torch module add to all of its names."""
    prefixes = [found[0] for found in map(_WRAPPERS.match, state_dict) if found]
    prefix = min(prefixes, key=len, default="")
    if not all(own.startswith(prefix) for own in prefixes):
        prefix = ""
    return {name.removeprefix(prefix): array for name, array in state_dict.items()}


def source_of(state_dict: Mapping[str, Any]) -> str:
    """Returns whose names these are; "" if they are not an SR-GNN's."""
    if any(name.startswith("gnncell.") for name in state_dict):
        return "recbole_gnn"
    return next((s for s, name in EMBEDDING.items() if name in state_dict), "")


def _name(path: str, source: str) -> str:
    """Returns torch's name for a path in Flax: "gnn/w_ih" is "gnn.w_ih"."""
    usual = path.removeprefix("readout/").replace("/", ".").replace("kernel", "weight")
    return _OWN_NAMES[source].get(path, usual)


def _shapes(table: np.ndarray | None, readout: str) -> dict[str, tuple]:
    """Returns the shapes of `SRGNN`'s parameters by path; () if unknown."""
    shape = () if table is None else table.shape
    is_known = len(shape) == 2 and 0 not in shape
    num_items, d = shape if is_known else (2, 1)
    model = SRGNN(num_items, d, readout=readout)
    params = jax.eval_shape(lambda: init_params(model, 0))
    flat = traverse_util.flatten_dict(params, sep="/")
    if not is_known:
        return {**dict.fromkeys(flat, ()), TABLE: ("V", "D")}
    return {path: leaf.shape for path, leaf in flat.items()}


def _in_gates_of(source: str, flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies arrays in Flax's layout, with the original's gate inverted."""
    flat = {path: np.array(array, order="C") for path, array in flat.items()}
    for path in _GATES if source == "original" else ():
        d = flat[path].shape[-1] // 3
        flat[path][..., d : 2 * d] *= -1
    return flat


def as_numpy(value: Any) -> np.ndarray:
    """Returns any library's array as a NumPy array; half precision as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16, so torch must widen it first.
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    array = np.asarray(value)
    is_half = array.dtype.name in ("float16", "bfloat16")
    return array.astype(np.float32) if is_half else array


def _check(
    shapes: Mapping[str, tuple], arrays: Mapping[str, np.ndarray], message: str
) -> None:
    """Raises one error for everything missing, unknown or of wrong shape or type."""
    known = {name: arrays[name] for name in shapes if name in arrays}
    faults = {
        "missing": [name for name in shapes if name not in known],
        "unknown": [name for name in arrays if name not in known],
        "of the wrong shape": [
            f"{name} {list(array.shape)} instead of {list(shapes[name])}"
            for name, array in known.items()
            if shapes[name] and array.shape != shapes[name]
        ],
        "not floating-point": [
            f"{name} ({array.dtype})"
            for name, array in known.items()
            if array.dtype not in (np.float32, np.float64)
        ],
    }
    found = [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]
    if found:
        raise UserError(f"{message}; {'; '.join(found)}")
