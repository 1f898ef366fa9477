"""Weights from and to the two PyTorch SR-GNNs.

RecBole's `SRGNN` and the original repository's `SessionGraph` compute the same model as
`srgnn_jax.SRGNN`. They differ in names, in torch's kernels lying [out, in], and
in the original's update gate, which is turned round: its H' = (1 - z) n + z H becomes
the paper's H' = (1 - z) H + z n when the rows that make z are negated.

Axis letters: V item rows (row 0 is the padding item), D embedding.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from srgnn_jax.errors import UserError
from srgnn_jax.model.readout import ATTENTION_READOUTS


class _Weight(NamedTuple):
    """A parameter: its path in the Flax tree, its name and shape in torch."""

    path: str
    name: str
    shape: tuple[str, ...]

    @property
    def is_kernel(self) -> bool:
        """Whether torch holds it [out, in], and Flax [in, out]."""
        return len(self.shape) == 2 and self.shape[0] != "V"

    @property
    def is_gated(self) -> bool:
        """Whether its torch rows are those of the gates r, z and n, D each."""
        return self.shape[0] == "3D"


# Path in Flax, name in RecBole, shape in torch.
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

    The original's `linear_edge_f`, which its forward pass never reads, is dropped, as
    is its `linear_transform` where `readout` is "attention". float64 stays float64;
    half precision becomes float32.

    Args:
      state_dict: names to arrays, NumPy's or torch's.
      source: whose names they are, "recbole" or "original".
      readout: of the model, "hybrid" or "attention". RecBole's is always hybrid.

    Returns:
      The tree that `SRGNN(num_items=V, embedding_size=D, readout=readout)` takes as
      `{"params": tree}`, where [V, D] is the shape of its `item_embedding`. Its arrays
      are copies, NumPy's.

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
    unread = (*_ORIGINAL_UNREAD, *(() if hybrid else _TRANSFORM))
    arrays = {
        name: as_numpy(value)
        for name, value in state_dict.items()
        if source == "recbole" or name not in unread
    }
    whose = {"recbole": "RecBole", "original": "the original"}[source]
    _check(
        {weight.name: weight.shape for weight in weights},
        arrays,
        EMBEDDING[source],
        f"these are not the weights of {whose}'s SR-GNN with readout={readout!r}",
    )
    params = {}
    for weight in weights:
        array = _turn_gate(arrays[weight.name], weight, source)
        params[weight.path] = array.T.copy() if weight.is_kernel else array
    return traverse_util.unflatten_dict(params, sep="/")


def params_to_torch(params: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Turns the Flax parameters of `SRGNN` into a PyTorch SR-GNN's weights.

    PyTorch's models know none of the options of `SRGNN` beside its readouts "hybrid"
    and "attention". The weights load with `strict=True`:

        weights = params_to_torch(params, "recbole")
        model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})

    RecBole's model is always hybrid: parameters that are not get the `linear_transform`
    that passes the global part on alone, which gives the same scores. The original's
    `linear_edge_f`, which it never reads, is zero.

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
        {w.path: w.shape[::-1] if w.is_kernel else w.shape for w in weights},
        leaves,
        "item_embedding",
        "these are not the parameters of SRGNN",
    )
    state_dict = {}
    for weight in weights:
        leaf = leaves[weight.path]
        array = leaf.T if weight.is_kernel else leaf
        state_dict[weight.name] = _turn_gate(array, weight, source)
    table = leaves["item_embedding"]
    d = table.shape[1]
    if source == "original":
        state_dict["gnn.linear_edge_f.weight"] = np.zeros((d, d), table.dtype)
        state_dict["gnn.linear_edge_f.bias"] = np.zeros(d, table.dtype)
    if not hybrid:
        # Passes the global part on alone.
        state_dict["linear_transform.weight"] = np.eye(d, 2 * d, dtype=table.dtype)
        state_dict["linear_transform.bias"] = np.zeros(d, table.dtype)
    return state_dict


def _weights(source: str, hybrid: bool) -> list[_Weight]:
    if source not in EMBEDDING:
        raise UserError(
            f"the source of PyTorch weights is {source!r}, not 'recbole' or 'original'"
        )
    names = _ORIGINAL_NAMES if source == "original" else {}
    return [
        _Weight(path, names.get(name, name), tuple(letters.split()))
        for path, name, letters in _WEIGHTS
        if hybrid or name not in _TRANSFORM
    ]


def _turn_gate(array: np.ndarray, weight: _Weight, source: str) -> np.ndarray:
    """Copies an array of torch's layout, with the original's gate turned round."""
    array = np.array(array, order="C")
    if source == "original" and weight.is_gated:
        d = len(array) // 3
        array[d : 2 * d] *= -1
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
    shapes: Mapping[str, tuple[str, ...]],
    arrays: Mapping[str, np.ndarray],
    table: str,
    message: str,
) -> None:
    """Raises one error that lists all that is missing, unknown or mis-shaped."""
    sizes: dict[str, int] = {}
    if table in arrays and arrays[table].ndim == 2:
        num_items, d = arrays[table].shape
        sizes = {"V": num_items, "D": d, "2D": 2 * d, "3D": 3 * d, "1": 1}
    mis_shaped, not_float = [], []
    for name, letters in shapes.items():
        if name not in arrays:
            continue
        shape, dtype = arrays[name].shape, arrays[name].dtype
        expected = tuple(sizes[letter] for letter in letters) if sizes else None
        if shape != expected and (sizes or name == table):
            wanted = f" = {list(expected)}" if expected else ""
            mis_shaped.append(
                f"{name} {list(shape)} instead of [{', '.join(letters)}]{wanted}"
            )
        if dtype not in (np.float32, np.float64):
            not_float.append(f"{name} ({dtype})")
    faults = {
        "missing": [name for name in shapes if name not in arrays],
        "unknown": [name for name in arrays if name not in shapes],
        "of the wrong shape": mis_shaped,
        "not floating-point": not_float,
    }
    found = [f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names]
    if found:
        raise UserError(f"{message}; {'; '.join(found)}")
