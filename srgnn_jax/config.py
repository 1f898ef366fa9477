"""Turns a config into checked fields, data, a model and an optimizer.

This is the only place where config fields become the plain arguments of other code.
"""

import codecs
import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
import optax
from jaxtyping import Bool
from ml_collections import ConfigDict

from srgnn_jax.configs import default
from srgnn_jax.data import store
from srgnn_jax.data.frames import Clicks
from srgnn_jax.data.sessions import Dataset, Examples, Sessions
from srgnn_jax.data.sources import Settings
from srgnn_jax.data.times import TIME_UNITS
from srgnn_jax.devices import layouts, processes
from srgnn_jax.devices.layouts import Devices
from srgnn_jax.errors import UserError, differences, nearest
from srgnn_jax.evaluate import metrics
from srgnn_jax.model.losses import LOSSES, Loss
from srgnn_jax.model.readout import ATTENTION_READOUTS, READOUTS
from srgnn_jax.model.srgnn import SRGNN
from srgnn_jax.runs.progress import Progress, check_same_model, model_name
from srgnn_jax.train.optimizer import step_decay

# Makes a model from a config and V, the number of rows of its item table.
MakeModel = Callable[[ConfigDict, int], nn.Module]
# Attributes of a model that steps use, besides the parameter "item_embedding".
MODEL_FIELDS = ("num_items", "normalize", "compute_dtype", "encode")

# Fields that change what a network computes from its parameters.
NETWORK_FIELDS = (
    *("embedding_size", "step", "readout", "normalize", "scale"),
    *("reverse_positions", "softmax_attention"),
)

# Clicks of a prefix. Its graph has this many entries squared, some ten times over.
MAX_LENGTH = 4096

# Limits of `Devices`, which do not change a run's results.
_LIMITS = ("max_clicks", "max_positions", "max_scores", "steps_per_call")
# Fields about the use of a trained network.
AFTER_TRAINING = frozenset(
    {"joined", "neighbours", "neighbours_weight", "repeats_weight"}
)
# None of these changes a parameter, so all may differ when a run is resumed.
MAY_DIFFER = AFTER_TRAINING.union(
    _LIMITS,
    ["checkpoint_every_minutes", "checkpoint_every_steps", "log_every_steps"],
    ["epochs", "max_steps", "runs", "eval_batch_size", "parallel", "mesh_shape"],
    ["name", "data_dir", "prepared_dir", "progress"],
)
# Those that may also differ when its checkpoint is evaluated again.
MAY_DIFFER_IN_EVALUATION = MAY_DIFFER | {"ks", "warm_start"}

# Fields that are passed unchanged to the data set's source.
PREPARATION_FIELDS = tuple(field.name for field in dataclasses.fields(Settings))

_CHOICES = {
    "compute_dtype": ("", "tensorfloat32", "bfloat16"),
    "header": ("", "none"),
    "neighbours": ("STAN", "V-SKNN"),
    "new_items": ("uniform", "neighbours"),
    "on_bad_row": ("error", "skip"),
    "parallel": ("auto", "jit", "pmap", "mesh"),
    "readout": READOUTS,
    "quoting": ("", "none"),
    "recbole_time": ("exact", "float32", "normalized"),
    "select_on": ("valid", "test", "last"),
    "time_unit": TIME_UNITS,
    "warm_start_schedule": ("anew", "go_on"),
}
# All other numbers must be at least 0.
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


def _is_encoding(name: str) -> bool:
    with contextlib.suppress(LookupError, ValueError):
        return not name or codecs.lookup(name)._is_text_encoding
    return False


def _are_words(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


# For each field, a check of its value and the message after "it must".
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "test_days": (math.isfinite, "be finite"),
    "encoding": (_is_encoding, "name an encoding that Python has, such as cp1252"),
    "separator": (
        lambda s: "\n" not in s and '"' not in s,
        "not contain a quote or a line break",
    ),
    "events": (_are_words, "hold strings, in parentheses: ('view',)"),
    "missing_values": (_are_words, "hold strings, in parentheses: ('NULL',)"),
    "learning_rate": (lambda x: x > 0, "be positive"),
    "lr_decay": (lambda x: x > 0, "be positive"),
    "scale": (lambda x: x > 0, "be positive"),
    # JAX's keys drop higher bits.
    "seed": (lambda x: x < 2**32, "be below 2**32"),
    "averaging": (lambda x: x <= 1, "be at most 1"),
    "item_dropout": (lambda x: x < 1, "be 0, or a share below 1"),
    "neighbours_weight": (lambda x: x < 1, "be 0, or a share below 1"),
    "repeats_weight": (lambda x: x <= 1, "be at most 1"),
    "train_fraction": (lambda x: 0 < x <= 1, "be above 0 and at most 1"),
    "valid_fraction": (lambda x: 0 < x < 1, "be between 0 and 1"),
    "mesh_shape": (
        lambda shape: len(shape) == 2 and min(shape) >= 0,
        "be two numbers, (data, items)",
    ),
    "ks": (
        lambda ks: bool(ks) and all(isinstance(k, int) and k > 0 for k in ks),
        "hold list lengths such as 5, 20",
    ),
}


def validate(config: Any) -> None:
    """Raises UserError for the first field with an invalid value."""
    known = default.get_config()
    if not isinstance(config, ConfigDict) or config.keys() != known.keys():
        wrong = sorted({*known} ^ {*config}) if isinstance(config, ConfigDict) else []
        what = f"has missing or unknown fields ({', '.join(wrong[:5])})"
        if not wrong:
            what = f"is a {type(config).__name__}, not a ConfigDict"
        raise UserError(
            f"the config passed {what}; pass what get_config() of a module in "
            "srgnn_jax.configs returns"
        )

    def refuse(field, what):
        raise UserError(f"config.{field} is {config[field]!r}{what}")

    for field, choices in _CHOICES.items():
        if config[field] not in choices:
            hint = nearest(str(config[field]), choices)
            refuse(field, f"; choose one of {', '.join(choices)}{hint}")
    for field, usual in known.items():
        least = _AT_LEAST.get(field, 0)
        if isinstance(usual, int | float) and not config[field] >= least:
            refuse(field, f"; it must be at least {least}")
    for field, (holds, what) in _RULES.items():
        if not holds(config[field]):
            refuse(field, f"; it must {what}")
    if config.seed + config.runs > 2**32:
        refuse("seed", f"; with config.runs = {config.runs} seeds reach 2**32")
    if config.readout not in ATTENTION_READOUTS:
        those = " or ".join(ATTENTION_READOUTS)
        for field in ("reverse_positions", "softmax_attention"):
            if config[field]:
                what = f", but config.readout = {config.readout!r} has no attention; "
                refuse(field, f"{what}leave it out, or choose the readout {those}")
    if not keeps_test(config):
        if config.select_on == "test":
            refuse("select_on", ", but config.test_days = 0 means there is no test")
        if config.joined:
            refuse("joined", ", which is judged on test; set config.test_days")
    weighs = config.neighbours_weight or config.repeats_weight
    if config.joined and config.select_on != "valid" and not weighs:
        what = "; without config.select_on = 'valid', no weight is chosen: set one"
        refuse("neighbours_weight", what)
    known = metrics.names(config.ks)
    if config.select_by not in known:
        ks, names = tuple(config.ks), ", ".join(known)
        refuse("select_by", f"; with config.ks = {ks} it can be one of {names}")


def keeps_test(config: ConfigDict) -> bool:
    """Whether a log that is split by time keeps sessions for test."""
    return bool(config.test_days or config.test_start)


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields, sorted, as values that JSON can hold."""
    return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def from_dict(fields: dict[str, Any]) -> ConfigDict:
    """Turns the fields of `to_dict` back into a config.

    Fields that a run of an earlier version lacks take their defaults.
    """
    fields = {**default.get_config().to_dict(), **fields}
    return ConfigDict(
        {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    )


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """Returns a config for a single run with this seed."""
    return from_dict({**to_dict(config), "seed": seed, "runs": 1})


def start_of_run(config: ConfigDict, data: Dataset, model: nn.Module) -> Progress:
    """Returns the progress of a run before its first step."""
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
    """Raises UserError, naming each difference, if `now` cannot resume `stored`.

    Config fields in `may_differ` may differ.
    """
    check_same_model(stored.model, now.model)

    def facts(progress):
        fields = to_dict(from_dict(progress.config))
        return {
            **{f"config.{k}": v for k, v in fields.items() if k not in may_differ},
            "fingerprint of the prepared data": progress.data,
            "fingerprint of the item ids": progress.vocabulary,
            "number of item rows": progress.num_items,
        }

    if found := differences(facts(stored), facts(now)):
        raise UserError(
            "the workdir holds another run; choose another --workdir, or undo: " + found
        )


def settings(config: ConfigDict) -> Settings:
    """Returns the fields that determine how a log is read and prepared."""
    return Settings(**{field: config[field] for field in PREPARATION_FIELDS})


def load_data(config: ConfigDict, clicks: Clicks | None = None) -> Dataset:
    """Prepares the data that the config names, or loads it if already prepared.

    If `clicks` are given, they are the data, and `config.dataset` must be "click_log".
    """
    prepared_dir = processes.prepared_dir(config.prepared_dir)
    if clicks is None:
        return store.load_dataset(
            config.dataset,
            data_dir=pathlib.Path(config.data_dir).expanduser(),
            prepared_dir=prepared_dir,
            **dataclasses.asdict(settings(config)),
        )
    if config.dataset != "click_log":
        what = f"config.dataset is {config.dataset!r}; clicks from a data frame"
        raise UserError(f"{what} need 'click_log', as in configs/click_log.py")
    return clicks.prepare(settings(config), prepared_dir)


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a run trains and evaluates on."""

    train_sessions: Sessions  # the sessions of `train`
    train: Examples
    evaluated: dict[str, Examples]  # "test", and "valid" if sessions are held out
    # With `config.warm_start`: for each item row, whether the earlier run lacks it.
    is_new: Bool[np.ndarray, " V"] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of validation examples, held out from training."""
        return {"valid_examples": len(self.evaluated.get("valid", ()))}


def make_splits(config: ConfigDict, data: Dataset) -> Splits:
    """Holds out validation sessions if the epoch is chosen on them.

    These are the last training sessions, unless the data set has a validation split.
    """
    sessions = {"train": data.train, "test": data.test}
    if config.select_on == "valid":
        train, valid = data.train, data.validation
        if valid is None:
            train, valid = train.split_last(config.valid_fraction)
        sessions |= {"train": train, "valid": valid}
    examples = {k: s.examples(config.max_session_length) for k, s in sessions.items()}
    for split, those in examples.items():
        if split == "test" and not len(data.test):
            continue  # config.test_days is 0.
        if not len(those):
            share = ""
            if split != "test" and "valid" in examples:
                share = (
                    f"; there are {len(data.train)} training sessions, and "
                    f"config.valid_fraction = {config.valid_fraction}"
                )
            raise UserError(
                f"the {split} split has no example: none of its sessions has two "
                f"clicks{share}"
            )
        if (length := those.lengths.max()) > MAX_LENGTH:
            raise UserError(
                f"the {split} split has a prefix of {length:,} clicks, and a graph of "
                f"more than {MAX_LENGTH:,} takes too much memory; keep only the last "
                "clicks of such sessions, e.g. with config.max_session_length=256"
            )
    return Splits(sessions["train"], examples.pop("train"), examples)


def splits_items(config: ConfigDict) -> bool:
    """Whether a run splits its item table over devices."""
    data, items = config.mesh_shape
    return config.parallel in ("mesh", "auto") and (
        items > 1 or bool(data and not items)
    )


def find_devices(config: ConfigDict) -> Devices:
    """Returns the devices that the config asks for."""
    limits = {name: config[name] for name in _LIMITS}
    return layouts.find_devices(
        config.parallel, config.mesh_shape, config.embedding_size, **limits
    )


def make_model(
    config: ConfigDict, num_items: int, make: MakeModel | None = None
) -> nn.Module:
    """Builds the model for a table of `num_items` rows, row 0 included.

    Args:
      config: see configs/default.py.
      num_items: V.
      make: makes a custom model: an SRGNN with a custom layer or readout, a subclass
        of it, or a module with `MODEL_FIELDS` and a parameter "item_embedding".

    Raises:
      UserError: `make` returns no such model.
    """
    if make is None:
        own = {field: config[field] for field in (*NETWORK_FIELDS, "item_dropout")}
        return SRGNN(num_items, compute_dtype=config.compute_dtype or None, **own)
    model = make(config, num_items)
    missing = [name for name in MODEL_FIELDS if not hasattr(model, name)]
    if not isinstance(model, nn.Module) or missing:
        lacks = f"lacks {', '.join(missing)}" if missing else "is no Flax module"
        raise UserError(
            f"the custom model is of type {type(model).__name__}, which {lacks}; "
            "return an SRGNN or a subclass"
        )
    if model.num_items != num_items:
        raise UserError(
            f"the custom model has num_items = {model.num_items}; the data has "
            f"{num_items} item rows, including the padding"
        )
    return model


def find_loss(config: ConfigDict, losses: Mapping[str, Loss] | None = None) -> Loss:
    """Returns the loss that `config.loss_type` names, from `LOSSES` or `losses`.

    Raises:
      UserError: there is no loss of that name.
    """
    known = {**LOSSES, **(losses or {})}
    if config.loss_type not in known:
        own = ", or pass a loss of that name: `get_losses` in the config file"
        raise UserError(
            f"config.loss_type is {config.loss_type!r}; choose one of "
            f"{', '.join(known)}{nearest(config.loss_type, known) or own}"
        )
    return known[config.loss_type]


def make_schedule(
    config: ConfigDict, steps_per_epoch: int, first_epoch: int = 0
) -> optax.Schedule:
    """Builds the learning rate schedule of a run that starts at `first_epoch`."""
    decay = config.lr_decay_epochs, config.lr_decay
    return step_decay(config.learning_rate, *decay, steps_per_epoch, first_epoch)
