"""What a config turns into: checked fields, data, a model, an optimizer.

This is the one place where config fields become the plain arguments of everything else.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import optax
from ml_collections import ConfigDict

from srgnn_jax.configs import default
from srgnn_jax.data import store
from srgnn_jax.data.sessions import Dataset, Examples, Sessions
from srgnn_jax.data.sources import Settings
from srgnn_jax.devices import layouts
from srgnn_jax.devices.layouts import Devices
from srgnn_jax.errors import UserError, nearest
from srgnn_jax.evaluate import metrics
from srgnn_jax.model.losses import LOSSES, Loss
from srgnn_jax.model.readout import ATTENTION_READOUTS, READOUTS
from srgnn_jax.model.srgnn import SRGNN
from srgnn_jax.runs.progress import Progress, check_same_model, model_name
from srgnn_jax.train.optimizer import step_decay

# What makes a model of a config and V, the rows of its item table.
MakeModel = Callable[[ConfigDict, int], nn.Module]
# What steps ask of a model, beside the parameter "item_embedding".
MODEL_FIELDS = ("num_items", "normalize", "compute_dtype", "encode")

# Clicks of a prefix: its graph has this many squared entries, some ten times over.
MAX_LENGTH = 4096

# Fields that change no number of a run, and so may differ when it is resumed.
MAY_DIFFER = frozenset(
    {
        "checkpoint_every_minutes",
        "checkpoint_every_steps",
        "data_dir",
        "epochs",
        "eval_batch_size",
        "log_every_steps",
        "max_clicks",
        "max_positions",
        "max_scores",
        "max_steps",
        "mesh_shape",
        "name",
        "parallel",
        "prepared_dir",
        "progress",
        "runs",
        "steps_per_call",
    }
)
# Those, and what may differ when its checkpoint is evaluated again.
MAY_DIFFER_IN_EVALUATION = MAY_DIFFER | {"ks"}

# Fields that are handed to the data set's source as they are.
PREPARATION_FIELDS = tuple(field.name for field in dataclasses.fields(Settings))

_CHOICES = {
    "compute_dtype": ("", "tensorfloat32", "bfloat16"),
    "on_bad_row": ("error", "skip"),
    "parallel": ("auto", "jit", "pmap", "mesh"),
    "readout": READOUTS,
    "recbole_time": ("exact", "float32", "normalized"),
    "select_on": ("valid", "test", "last"),
}
# Of all other numbers the least is 0.
_AT_LEAST = {
    "batch_size": 1,
    "embedding_size": 1,
    "eval_batch_size": 1,
    "log_every_steps": 1,
    "max_clicks": 1,
    "min_item_count": 1,
    "min_session_length": 2,
    "runs": 1,
}
# What holds of a field's value, and how that is said.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "test_days": (math.isfinite, "be finite"),
    "separator": (lambda s: len(s.replace("\\t", "\t")) <= 1, "be one character"),
    "learning_rate": (lambda x: x > 0, "be positive"),
    "lr_decay": (lambda x: x > 0, "be positive"),
    "scale": (lambda x: x > 0, "be positive"),
    "item_dropout": (lambda x: x < 1, "be 0, or a share below 1"),
    "train_fraction": (lambda x: 0 < x <= 1, "lie between 0 and 1"),
    "valid_fraction": (lambda x: 0 < x < 1, "lie between 0 and 1"),
    "mesh_shape": (
        lambda shape: len(shape) == 2 and all(n >= 0 for n in shape),
        "be two numbers, (data, items)",
    ),
    "ks": (
        lambda ks: bool(ks) and all(isinstance(k, int) and k > 0 for k in ks),
        "hold list lengths such as 5, 20",
    ),
}


def validate(config: ConfigDict) -> None:
    """Raises UserError naming the first field whose value cannot be used."""
    for field, choices in _CHOICES.items():
        if config[field] not in choices:
            raise UserError(
                f"config.{field} is {config[field]!r}; choose one of "
                + ", ".join(choices)
                + nearest(str(config[field]), choices)
            )
    for field, usual in default.get_config().items():
        least = _AT_LEAST.get(field, 0)
        if isinstance(usual, int | float) and not config[field] >= least:
            raise UserError(
                f"config.{field} is {config[field]}; it must be at least {least}"
            )
    for field, (holds, what) in _RULES.items():
        if not holds(config[field]):
            raise UserError(f"config.{field} is {config[field]!r}; it must {what}")
    for field in ("reverse_positions", "softmax_attention"):
        if config[field] and config.readout not in ATTENTION_READOUTS:
            raise UserError(
                f"config.{field} is {config[field]}, but config.readout = "
                f"{config.readout!r} has no attention; leave it out, or choose the "
                f"readout {' or '.join(ATTENTION_READOUTS)}"
            )
    known = metrics.names(config.ks)
    if config.select_by not in known:
        raise UserError(
            f"config.select_by is {config.select_by!r}; with config.ks = "
            f"{tuple(config.ks)} it can be one of {', '.join(known)}"
        )


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields as plain values that JSON can hold."""
    return {
        field: list(value) if isinstance(value, tuple) else value
        for field, value in sorted(config.to_dict().items())
    }


def from_dict(fields: dict[str, Any]) -> ConfigDict:
    """Turns the fields of `to_dict` back into a config.

    A run of an earlier version may lack fields: they take their defaults.
    """
    return ConfigDict(
        {
            field: tuple(value) if isinstance(value, list) else value
            for field, value in with_defaults(fields).items()
        }
    )


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """Returns the config of one of the runs that a config asks for."""
    one = from_dict(to_dict(config))
    one.seed, one.runs = seed, 1
    return one


def with_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds the fields of configs/default.py that are not among those of `to_dict`."""
    return {**to_dict(default.get_config()), **fields}


def start_of_run(config: ConfigDict, data: Dataset, model: nn.Module) -> Progress:
    """Returns the progress of a run that has yet to take its first step."""
    return Progress(
        config=to_dict(config),
        data=data.fingerprint,
        vocabulary=data.vocabulary.fingerprint(),
        num_items=data.vocabulary.num_items,
        model=model_name(model),
    )


def check_same_run(
    stored: Progress, now: Progress, may_differ: Collection[str] = MAY_DIFFER
) -> None:
    """Raises UserError, naming each difference, if `now` cannot go on from `stored`.

    Args:
      stored: of the workdir.
      now: of the run that wants to use it.
      may_differ: the config's fields that may.
    """
    check_same_model(stored.model, now.model)
    was = with_defaults(stored.config)
    found = [
        f"config.{field}: {was.get(field)!r} -> {now.config.get(field)!r}"
        for field in sorted(was.keys() | now.config.keys())
        if field not in may_differ and was.get(field) != now.config.get(field)
    ]
    for field, meaning in (
        ("data", "fingerprint of the prepared data"),
        ("vocabulary", "fingerprint of the item ids"),
        ("num_items", "number of item rows"),
    ):
        old, new = getattr(stored, field), getattr(now, field)
        if old != new:
            found.append(f"{meaning}: {old} -> {new}")
    if found:
        raise UserError(
            "the workdir holds another run; choose another --workdir, or undo: "
            + "; ".join(found)
        )


def load_data(config: ConfigDict) -> Dataset:
    """Prepares the data that the config names, or finds it prepared."""
    return store.load_dataset(
        config.dataset,
        data_dir=pathlib.Path(config.data_dir).expanduser(),
        prepared_dir=pathlib.Path(
            config.prepared_dir or store.DEFAULT_DIR
        ).expanduser(),
        **{field: config[field] for field in PREPARATION_FIELDS},
    )


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a run trains and evaluates on.

    Attributes:
      train_sessions: the sessions behind `train`.
      train: the training examples.
      evaluated: the examples of "test", and of "valid" where sessions are held out.
    """

    train_sessions: Sessions
    train: Examples
    evaluated: dict[str, Examples]

    @property
    def counts(self) -> dict[str, int]:
        """The number of validation examples, held out of the training ones."""
        return {"valid_examples": len(self.evaluated.get("valid", ()))}


def make_splits(config: ConfigDict, data: Dataset) -> Splits:
    """Holds the validation sessions out, if the epoch is chosen on them.

    A data set without a validation split of its own gives its last training sessions.
    """
    train, evaluated = data.train, {"test": data.test}
    if config.select_on == "valid" and data.validation is not None:
        evaluated["valid"] = data.validation
    elif config.select_on == "valid":
        train, evaluated["valid"] = train.split_last(config.valid_fraction)
    longest = config.max_session_length
    examples = {
        split: sessions.examples(longest)
        for split, sessions in {"train": train, **evaluated}.items()
    }
    for split, those in examples.items():
        if not len(those):
            share = ""
            if split != "test" and "valid" in evaluated:
                share = (
                    f", of {len(data.train)} training sessions with "
                    f"config.valid_fraction = {config.valid_fraction}"
                )
            raise UserError(
                f"the {split} split has no example: none of its sessions has two clicks"
                + share
            )
        length = int(those.lengths.max())
        if length > MAX_LENGTH:
            raise UserError(
                f"the {split} split has a prefix of {length:,} clicks, and a graph of "
                f"more than {MAX_LENGTH:,} takes too much memory; keep the last clicks "
                "of such sessions, with config.max_session_length=256 say"
            )
    return Splits(train, examples.pop("train"), examples)


def find_devices(config: ConfigDict) -> Devices:
    """Finds the devices that the config asks for."""
    return layouts.find_devices(
        config.parallel,
        config.mesh_shape,
        config.embedding_size,
        max_scores=config.max_scores,
        max_positions=config.max_positions,
        max_clicks=config.max_clicks,
        steps_per_call=config.steps_per_call,
    )


def make_model(
    config: ConfigDict, num_items: int, make: MakeModel | None = None
) -> nn.Module:
    """Builds the model for a table of `num_items` rows, row 0 included.

    Args:
      config: see configs/default.py.
      num_items: V.
      make: makes another model than `SRGNN` alone: an SRGNN with a layer or a readout
        handed in, a subclass of it, or a module with its `encode`, `num_items`,
        `normalize`, `compute_dtype` and parameter "item_embedding".

    Raises:
      UserError: what `make` returns is no such model.
    """
    if make is not None:
        model = make(config, num_items)
        missing = [name for name in MODEL_FIELDS if not hasattr(model, name)]
        if not isinstance(model, nn.Module) or missing:
            raise UserError(
                f"the model handed in is {type(model).__name__}, which "
                + (f"lacks {', '.join(missing)}" if missing else "is no Flax module")
                + "; return an SRGNN, or a subclass"
            )
        if model.num_items != num_items:
            raise UserError(
                f"the model handed in has num_items = {model.num_items}; the data has "
                f"{num_items} item rows, the padding included"
            )
        return model
    return SRGNN(
        num_items=num_items,
        embedding_size=config.embedding_size,
        step=config.step,
        readout=config.readout,
        normalize=config.normalize,
        scale=config.scale,
        item_dropout=config.item_dropout,
        reverse_positions=config.reverse_positions,
        softmax_attention=config.softmax_attention,
        compute_dtype=config.compute_dtype or None,
    )


def find_loss(config: ConfigDict, losses: Mapping[str, Loss] | None = None) -> Loss:
    """Returns the loss that `config.loss_type` names.

    Args:
      config: see configs/default.py.
      losses: losses handed in, by name, beside `LOSSES`.

    Raises:
      UserError: there is none of that name.
    """
    known = {**LOSSES, **(losses or {})}
    if config.loss_type not in known:
        raise UserError(
            f"config.loss_type is {config.loss_type!r}; choose one of "
            + ", ".join(known)
            + (
                nearest(config.loss_type, known)
                or ", or hand in a loss of that name: `get_losses` in the config file"
            )
        )
    return known[config.loss_type]


def make_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Builds the learning rate's schedule."""
    return step_decay(
        config.learning_rate, config.lr_decay_epochs, config.lr_decay, steps_per_epoch
    )
