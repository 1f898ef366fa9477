"""Weights from and to the two PyTorch SR-GNNs.

RecBole's `SRGNN` and the original repository's `SessionGraph` compute the same model as
`srgnn_jax.SRGNN`. They differ in names, in torch's kernels lying [out, in], and
in the original's update gate, which is turned round: its H' = (1 - z) n + z H becomes
the paper's H' = (1 - z) H + z n when the rows that make z are negated.

Axis letters: V item rows (row 0 is the padding item), D embedding.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.checkpoint import Checkpoints, Progress, make_workdir, only_run
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.errors import UserError
from srgnn_jax.model.readout import ATTENTION_READOUTS
from srgnn_jax.optimizer import adam_with_l2
from srgnn_jax.steps import init_state
from srgnn_jax.torch_file import read_torch_file


class Weight(NamedTuple):
    """A parameter: its path in the Flax tree, RecBole's name, its shape in torch."""

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


_WEIGHTS = (
    Weight("item_embedding", "item_embedding.weight", ("V", "D")),
    Weight("gnn/linear_edge_in/kernel", "gnn.linear_edge_in.weight", ("D", "D")),
    Weight("gnn/linear_edge_in/bias", "gnn.linear_edge_in.bias", ("D",)),
    Weight("gnn/linear_edge_out/kernel", "gnn.linear_edge_out.weight", ("D", "D")),
    Weight("gnn/linear_edge_out/bias", "gnn.linear_edge_out.bias", ("D",)),
    Weight("gnn/b_iah", "gnn.b_iah", ("D",)),
    Weight("gnn/b_oah", "gnn.b_ioh", ("D",)),
    Weight("gnn/w_ih", "gnn.w_ih", ("3D", "2D")),
    Weight("gnn/w_hh", "gnn.w_hh", ("3D", "D")),
    Weight("gnn/b_ih", "gnn.b_ih", ("3D",)),
    Weight("gnn/b_hh", "gnn.b_hh", ("3D",)),
    Weight("readout/linear_one/kernel", "linear_one.weight", ("D", "D")),
    Weight("readout/linear_one/bias", "linear_one.bias", ("D",)),
    Weight("readout/linear_two/kernel", "linear_two.weight", ("D", "D")),
    Weight("readout/linear_two/bias", "linear_two.bias", ("D",)),
    Weight("readout/linear_three/kernel", "linear_three.weight", ("1", "D")),
)
_TRANSFORM = (
    Weight("readout/linear_transform/kernel", "linear_transform.weight", ("D", "2D")),
    Weight("readout/linear_transform/bias", "linear_transform.bias", ("D",)),
)
_EMBEDDING = {"recbole": "item_embedding.weight", "original": "embedding.weight"}
_ORIGINAL_NAMES = {
    "item_embedding.weight": "embedding.weight",
    "gnn.b_ioh": "gnn.b_oah",
}
# What the original's state_dict holds beside, and its forward pass never reads.
_ORIGINAL_UNREAD = ("gnn.linear_edge_f.weight", "gnn.linear_edge_f.bias")


@dataclasses.dataclass(frozen=True, eq=False)
class TorchCheckpoint(Mapping[str, np.ndarray]):
    """The weights of a PyTorch checkpoint, as a mapping of their names to arrays.

    Attributes:
      state_dict: the same mapping, as a dict.
      source: whose names they are, "recbole" or "original".
      config: RecBole's config, {} where the file holds none; enums and other objects in
        it are text.
    """

    state_dict: dict[str, np.ndarray]
    source: str
    config: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.state_dict[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state_dict)

    def __len__(self) -> int:
        return len(self.state_dict)


def load_torch_checkpoint(path: str | os.PathLike) -> TorchCheckpoint:
    """Reads a PyTorch SR-GNN's checkpoint; neither torch nor RecBole need be installed.

    Nothing that the file holds is executed: see `srgnn_jax.torch_file`.

    Args:
      path: a `.pth` as RecBole saves it, a plain `torch.save(model.state_dict(),
        path)`, or a safetensors file.

    Returns:
      The weights by name, ready for `params_from_torch(checkpoint, checkpoint.source)`.

    Raises:
      UserError: the file is missing, damaged, hostile, or holds another model.
    """
    state_dict, config = read_torch_file(path)
    for source, name in _EMBEDDING.items():
        if name in state_dict:
            return TorchCheckpoint(state_dict, source, config)
    raise UserError(
        f"{path}: holds no SR-GNN: neither 'item_embedding.weight' (RecBole) nor "
        f"'embedding.weight' (the original) is among its {len(state_dict)} entries "
        f"{', '.join(map(repr, list(state_dict)[:20]))}"
    )


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
    weights, unread = _weights(source, readout == "hybrid")
    arrays = {
        name: _as_numpy(value)
        for name, value in state_dict.items()
        if name not in unread
    }
    whose = {"recbole": "RecBole", "original": "the original"}[source]
    _check(
        {name: weight.shape for name, weight in weights.items()},
        arrays,
        _EMBEDDING[source],
        f"these are not the weights of {whose}'s SR-GNN with readout={readout!r}",
    )
    params: dict[str, Any] = {}
    for name, weight in weights.items():
        array = _turn_gate(arrays[name], weight, source)
        *modules, leaf = weight.path.split("/")
        owner = params
        for module in modules:
            owner = owner.setdefault(module, {})
        owner[leaf] = np.ascontiguousarray(array.T) if weight.is_kernel else array
    return params


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
    leaves = dict(_leaves(params))
    hybrid = any(weight.path in leaves for weight in _TRANSFORM)
    weights, _ = _weights(source, hybrid)
    _check(
        {
            weight.path: weight.shape[::-1] if weight.is_kernel else weight.shape
            for weight in weights.values()
        },
        leaves,
        "item_embedding",
        "these are not the parameters of SRGNN",
    )
    state_dict = {}
    for name, weight in weights.items():
        array = leaves[weight.path]
        state_dict[name] = _turn_gate(
            array.T if weight.is_kernel else array, weight, source
        )
    table = leaves["item_embedding"]
    d = table.shape[1]
    if source == "original":
        state_dict["gnn.linear_edge_f.weight"] = np.zeros((d, d), table.dtype)
        state_dict["gnn.linear_edge_f.bias"] = np.zeros(d, table.dtype)
    if not hybrid:
        passes_on_global = np.eye(d, 2 * d, dtype=table.dtype)
        state_dict["linear_transform.weight"] = passes_on_global
        state_dict["linear_transform.bias"] = np.zeros(d, table.dtype)
    return state_dict


def import_checkpoint(
    config: ConfigDict,
    workdir: str,
    torch_checkpoint: str,
    vocabulary_file: str | None = None,
) -> None:
    """Makes a workdir of a PyTorch checkpoint, to evaluate and train from.

    What the file tells of the model goes before the config: `embedding_size`, that it
    has none of `SRGNN`'s options, and for RecBole's `readout` and, where its config is
    in the file, `step`. The optimizer starts afresh, at step 0.

    No such file holds the items' raw ids. Without a vocabulary file its rows are taken
    to be numbered as in the data set that the config names. With one, rows are matched
    by raw id with that data set's, or keep their order where `config.dataset` is empty
    (the workdir then holds weights and vocabulary, and no data to evaluate on).

    Args:
      config: see configs/default.py.
      workdir: folder without a run in it.
      torch_checkpoint: see `load_torch_checkpoint`.
      vocabulary_file: text, the raw id of each row from 1 on, one a line.

    Raises:
      UserError: a file cannot be used, or weights and items do not belong together.
    """
    checkpoint = load_torch_checkpoint(torch_checkpoint)
    config = _config_of_weights(config, checkpoint)
    config_lib.validate(config)
    config_lib.find_loss(config)
    params = params_from_torch(checkpoint, checkpoint.source, config.readout)
    params = jax.tree.map(np.float32, params)
    table = params["item_embedding"]
    raw_ids = vocabulary_file and _read_vocabulary(vocabulary_file, len(table))
    if config.dataset:
        data = config_lib.load_data(config)
        vocabulary = data.vocabulary.with_clicks(data.train.items)
        fingerprint = data.fingerprint
        if raw_ids:
            params["item_embedding"] = _match_rows(table, raw_ids, vocabulary)
        elif vocabulary.num_items != len(table):
            raise UserError(
                f"{torch_checkpoint} has {len(table):,} item rows (padding included), "
                f"the data set {config.dataset} has {vocabulary.num_items:,}; name the "
                "data that it was trained on, prepared alike, or name a file of its "
                "rows' raw ids with --vocabulary"
            )
    elif raw_ids:
        vocabulary, fingerprint = raw_ids, ""
    else:
        raise UserError(
            "PyTorch checkpoints hold no item ids: name the data set with --config, or "
            "a file with the raw id of each row, one a line, with --vocabulary"
        )
    folder = make_workdir(workdir)
    with only_run(folder), contextlib.closing(Checkpoints(folder)) as checkpoints:
        if checkpoints.latest_step() is not None:
            raise UserError(f"{folder} holds a run already; choose another --workdir")
        vocabulary.save(folder / "vocabulary.parquet")
        model = config_lib.make_model(config, vocabulary.num_items)
        # The number of steps in an epoch is no part of the optimizer's state.
        schedule = config_lib.make_schedule(config, steps_per_epoch=1)
        state = init_state(model, adam_with_l2(schedule, config.l2), config.seed)
        progress = Progress(
            config=config_lib.to_dict(config),
            data=fingerprint,
            vocabulary=vocabulary.fingerprint(),
            num_items=vocabulary.num_items,
        )
        params = jax.tree.map(jnp.asarray, params)
        checkpoints.save(state._replace(params=params), progress)
    print(
        f"imported {model.num_items:,} item rows of {config.embedding_size} numbers "
        f"from {torch_checkpoint} into {folder}"
    )


def _config_of_weights(config: ConfigDict, checkpoint: TorchCheckpoint) -> ConfigDict:
    """Replaces the fields that a checkpoint decides, and says so."""
    told: dict[str, Any] = {
        "normalize": False,
        "reverse_positions": 0,
        "softmax_attention": False,
    }
    table = checkpoint[_EMBEDDING[checkpoint.source]]
    if table.ndim == 2:
        told["embedding_size"] = table.shape[1]
    if checkpoint.source == "recbole":
        told["readout"] = "hybrid"
        step = checkpoint.config.get("step")
        if isinstance(step, int):
            told["step"] = step
    config = config.copy_and_resolve_references()
    for field, value in told.items():
        if config[field] != value:
            print(f"config.{field}: {value}, as the checkpoint has it")
            config[field] = value
    return config


def _read_vocabulary(path: str, num_items: int) -> Vocabulary:
    """Reads the raw ids of rows 1 to V - 1."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    # RecBole's own list of tokens starts with that of row 0.
    first = 2 if lines[:1] == ["[PAD]"] else 1
    ids = lines[first - 1 :]
    seen: dict[str, int] = {}
    for number, raw in enumerate(ids, first):
        if not raw.strip():
            raise UserError(f"{path}, line {number}: an item id is empty")
        if raw in seen:
            raise UserError(
                f"{path}, line {number}: item id {raw!r} stands on line {seen[raw]} too"
            )
        seen[raw] = number
    if len(ids) != num_items - 1:
        raise UserError(
            f"{path} has {len(ids):,} item ids, the weights have {num_items - 1:,} "
            "item rows after the padding; there must be one id a row, in their order"
        )
    return Vocabulary(ids)


def _match_rows(
    table: Float[np.ndarray, "V D"], raw_ids: Vocabulary, wanted: Vocabulary
) -> Float[np.ndarray, "W D"]:
    """Reorders the rows of a table, whose raw ids are given, to another vocabulary."""
    rows = raw_ids.rows(wanted.ids)
    unknown = [raw for raw, row in zip(wanted.ids, rows, strict=True) if row == 0]
    if unknown:
        raise UserError(
            f"{len(unknown):,} of the data set's {len(wanted.ids):,} items have no row "
            f"among the checkpoint's, such as {', '.join(map(repr, unknown[:5]))}"
        )
    dropped = len(raw_ids.ids) - len(wanted.ids)
    if dropped:
        print(f"dropped {dropped:,} item rows that the data set does not hold")
    return table[np.concatenate([[0], rows])]


def _weights(source: str, hybrid: bool) -> tuple[dict[str, Weight], set[str]]:
    """Returns the weights by the source's names, and the names that it never reads."""
    if source not in _EMBEDDING:
        raise UserError(
            f"the source of PyTorch weights is {source!r}, not 'recbole' or 'original'"
        )
    used = _WEIGHTS + _TRANSFORM if hybrid else _WEIGHTS
    if source == "recbole":
        return {weight.name: weight for weight in used}, set()
    unread = set(_ORIGINAL_UNREAD)
    if not hybrid:
        unread |= {weight.name for weight in _TRANSFORM}
    return {_ORIGINAL_NAMES.get(w.name, w.name): w for w in used}, unread


def _turn_gate(array: np.ndarray, weight: Weight, source: str) -> np.ndarray:
    """Copies an array of torch's layout, with the original's gate turned round."""
    array = np.array(array, order="C")
    if source == "original" and weight.is_gated:
        d = len(array) // 3
        array[d : 2 * d] *= -1
    return array


def _as_numpy(value: Any) -> np.ndarray:
    """Returns an array for NumPy's, JAX's or torch's; half precision as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16, so torch hands it over only after it is widened.
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    array = np.asarray(value)
    is_half = array.dtype.name in ("float16", "bfloat16")
    return array.astype(np.float32) if is_half else array


def _leaves(
    tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", _as_numpy(value)


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
