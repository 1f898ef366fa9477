"""`--mode=import`: turns a PyTorch checkpoint into a workdir."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.convert.names import EMBEDDING, TABLE, params_from_torch
from srgnn_jax.convert.torch_file import TorchCheckpoint, load_torch_checkpoint
from srgnn_jax.data.sessions import Dataset, Vocabulary
from srgnn_jax.errors import UserError
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.workdir import (
    check_kind,
    make_workdir,
    only_run,
    save_vocabulary,
)
from srgnn_jax.serve.stream import read_ids
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import init_state


def import_checkpoint(
    config: ConfigDict,
    workdir: str,
    torch_checkpoint: str,
    vocabulary_file: str | None = None,
) -> None:
    """Turns a PyTorch checkpoint into a workdir, to evaluate and train from.

    What the checkpoint (see `load_torch_checkpoint`) says about the model overrides the
    config: `embedding_size`, that it has none of `SRGNN`'s options, and the `readout`
    and `step` of RecBole and RecBole-GNN. The optimizer starts from scratch, at step 0.

    The checkpoint has no raw item ids. Without a vocabulary file, its rows are assumed
    to be numbered as in the data set that the config names. With one, rows are matched
    with that data set by raw id, or keep their order if `config.dataset` is empty; the
    workdir then holds weights and vocabulary, but no data to evaluate on.

    The file is text, with the raw id of each row from 1 on, one per line. Raises
    UserError if a file or the workdir cannot be used, or if weights and items do not
    match.
    """
    checkpoint = load_torch_checkpoint(torch_checkpoint)
    config = _config_of_weights(config, checkpoint)
    config_lib.validate(config)
    config_lib.find_loss(config)
    params = params_from_torch(checkpoint, checkpoint.source, config.readout)
    table = params[TABLE]
    raw_ids = vocabulary_file and _read_vocabulary(vocabulary_file, len(table))
    if config.dataset:
        data = config_lib.load_data(config)
        vocabulary = data.vocabulary.with_clicks(data.train.items)
        data = dataclasses.replace(data, vocabulary=vocabulary)
        if raw_ids:
            params[TABLE] = _match_rows(table, raw_ids, vocabulary)
        elif vocabulary.num_items != len(table):
            raise UserError(
                f"{torch_checkpoint} has {len(table):,} item rows (padding included), "
                f"but the data set {config.dataset} has {vocabulary.num_items:,}; use "
                "the data that it was trained on, prepared the same way, or name a "
                "file of its rows' raw ids with --vocabulary"
            )
    elif raw_ids:
        data = Dataset({}, raw_ids, {})
    else:
        raise UserError(
            "PyTorch checkpoints hold no item ids: name the data set with --config, or "
            "a file with the raw id of each row, one per line, with --vocabulary"
        )
    model = config_lib.make_model(config, data.vocabulary.num_items)
    # The number of steps in an epoch is not part of the optimizer's state.
    schedule = config_lib.make_schedule(config, steps_per_epoch=1)
    state = init_state(model, adam_with_l2(schedule, config.l2), config.seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    state = state._replace(params=params, latest=params if config.averaging else ())
    folder = make_workdir(workdir)
    check_kind(folder, several=False)
    with only_run(folder), contextlib.closing(Checkpoints(folder)) as checkpoints:
        if checkpoints.latest_step() is not None:
            raise UserError(f"{folder} holds a run already; choose another --workdir")
        save_vocabulary(folder, data.vocabulary)
        checkpoints.save(state, config_lib.start_of_run(config, data, model))
    print(
        f"imported {model.num_items:,} item rows of {config.embedding_size} numbers "
        f"from {torch_checkpoint} into {folder}"
    )


def _config_of_weights(config: ConfigDict, checkpoint: TorchCheckpoint) -> ConfigDict:
    """Replaces the fields that a checkpoint decides, and prints them."""
    fields: dict[str, Any]
    fields = {"normalize": False, "reverse_positions": 0, "softmax_attention": False}
    table = checkpoint[EMBEDDING[checkpoint.source]]
    if table.ndim == 2:
        fields["embedding_size"] = table.shape[1]
    if checkpoint.source != "original":
        fields["readout"] = "hybrid"
        step = checkpoint.config.get("step")
        if isinstance(step, int):
            fields["step"] = step
    config = config.copy_and_resolve_references()
    for field, value in fields.items():
        if config[field] != value:
            print(f"config.{field}: {value}, as in the checkpoint")
            config[field] = value
    return config


def _read_vocabulary(path: str, num_items: int) -> Vocabulary:
    """Reads the raw ids of rows 1 to V - 1."""
    ids = read_ids(path, "--vocabulary")
    # RecBole's own list of tokens starts with the token of row 0.
    first = 2 if ids[:1] == ["[PAD]"] else 1
    lines: dict[str, int] = {}
    for number, raw in enumerate(ids[first - 1 :], first):
        if not raw.strip():
            raise UserError(f"{path}, line {number}: an item id is empty")
        if lines.setdefault(raw, number) != number:
            raise UserError(
                f"{path}, line {number}: {raw!r} is on line {lines[raw]} too"
            )
    if len(lines) != num_items - 1:
        raise UserError(
            f"{path} has {len(lines):,} item ids, the weights have {num_items - 1:,} "
            "item rows after the padding; write one id per row, in the rows' order"
        )
    return Vocabulary(list(lines))


def _match_rows(
    table: Float[np.ndarray, "V D"], raw_ids: Vocabulary, wanted: Vocabulary
) -> Float[np.ndarray, "W D"]:
    """Reorders a table's rows from the vocabulary `raw_ids` to `wanted`."""
    rows = raw_ids.rows(wanted.ids)
    unknown = [raw for raw, row in zip(wanted.ids, rows, strict=True) if row == 0]
    if unknown:
        raise UserError(
            f"{len(unknown):,} of the data set's {len(wanted.ids):,} items have no row "
            f"in the checkpoint, such as {', '.join(map(repr, unknown[:5]))}"
        )
    if dropped := len(raw_ids.ids) - len(wanted.ids):
        print(f"dropped {dropped:,} item rows that are not in the data set")
    return table[np.append(0, rows)]
