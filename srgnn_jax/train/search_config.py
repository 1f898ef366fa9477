"""Which fields of a config a search may choose, checked before its first trial."""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.configs import default
from srgnn_jax.errors import UserError, nearest
from srgnn_jax.model.losses import Loss
from srgnn_jax.train import space, study

# Fields that cannot be searched: they change what is measured, or no result at all.
_NOT_SEARCHED = {*config_lib.PREPARATION_FIELDS, *config_lib.MAY_DIFFER} | {
    *("dataset", "ks", "seed", "select_by", "select_on", "valid_fraction"),
    *("new_items", "warm_start", "warm_start_schedule"),
}


def with_params(config: ConfigDict, params: study.Params) -> ConfigDict:
    """Returns the config of a trial, which shows no progress bars of its own."""
    fields = {**config_lib.to_dict(config), **params, "progress": False}
    return config_lib.from_dict(fields)


def _check(config: ConfigDict, losses: Mapping[str, Loss] | None) -> None:
    """Raises UserError unless a run could start with these settings."""
    config_lib.validate(config)
    config_lib.find_loss(config, losses)


def accepts(
    config: ConfigDict,
    num_items: int,
    model: config_lib.MakeModel | None,
    losses: Mapping[str, Loss] | None,
    params: study.Params,
) -> bool:
    """Whether both the config and the model accept a combination of values."""
    one = with_params(config, params)
    try:
        _check(one, losses)
        config_lib.make_model(one, num_items, model)
    except UserError:
        return False
    return True


def searched(
    ranges: Mapping[str, Any] | None,
    config: ConfigDict,
    fixed: Collection[str] = (),
    losses: Mapping[str, Loss] | None = None,
) -> space.Space:
    """Returns the ranges of the fields that are not fixed, after checking each value.

    Without ranges they are `space.DEFAULT`. The config may rule out some of its values:
    those are never drawn.

    Raises:
      UserError: no trial could have a field or a value, or nothing is left.
    """
    of_all = space.DEFAULT if ranges is None else ranges
    left = {field: of for field, of in of_all.items() if field not in fixed}
    usual = default.get_config()
    for field, of in left.items():
        if field not in usual:
            hint = nearest(field, usual) or "; see configs/default.py"
            raise UserError(f"get_search: the config has no field {field}{hint}")
        if field in _NOT_SEARCHED:
            raise UserError(
                f"get_search: {field} cannot be searched: it decides what is measured, "
                "or changes no result"
            )
        left[field] = _checked(field, of, usual[field])
    if not left:
        raise UserError(
            "nothing is left to search: the command line sets every field of get_search"
        )
    if "loss_type" not in left:
        config_lib.find_loss(config, losses)
    if ranges is None:
        return left
    # A value is valid if it is with the other searched fields at their defaults.
    base = config_lib.to_dict(config) | {field: usual[field] for field in left}
    for field, of in left.items():
        for value in of.values if isinstance(of, space.Choice) else (of.low, of.high):
            try:
                _check(config_lib.from_dict({**base, field: value}), losses)
            except UserError as error:
                raise UserError(f"get_search: {error}") from None
    return left


def own_settings(config: ConfigDict, ranges: space.Space) -> study.Params | None:
    """Returns the config's values of the searched fields; None unless all in range."""
    own = {field: config[field] for field in ranges}
    return own if all(space.holds(ranges[k], own[k]) for k in own) else None


def _checked(field: str, of: Any, usual: Any) -> space.Choice | space.Range:
    """Returns a range whose values have the type of the field's default."""
    kind = type(usual)
    suits: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if isinstance(of, space.Choice):
        values = of.values
    elif isinstance(of, space.Range) and kind in (int, float):
        values = of[:2]
    else:
        numbers = ", uniform(low, high) or log(low, high)" * (kind in (int, float))
        raise UserError(f"get_search: {field} is {of!r}; write choice(...){numbers}")
    for value in values:
        if type(value) not in suits:
            raise UserError(
                f"get_search: {field} cannot be {value!r}; it takes {kind.__name__}"
            )
    typed = [kind(value) for value in values]
    if isinstance(of, space.Choice):
        return space.Choice(tuple(typed))
    return space.Range(typed[0], typed[1], of.log)


def check_config(config: ConfigDict) -> None:
    """Raises UserError for settings that a search cannot use."""
    config_lib.validate(config)
    for field, wanted, why in (
        ("select_on", "valid", "a search chooses on validation, never on test"),
        ("joined", False, "a search is for a network; join its best run's afterwards"),
        ("runs", 1, "a trial is one run; train best.py with it instead"),
        ("max_steps", 0, "a trial is judged by whole epochs"),
        ("warm_start", "", "a trial's network may differ from that run's"),
    ):
        if config[field] != wanted:
            problem = f"config.{field} is {config[field]!r}, but {why}"
            raise UserError(f"{problem}; set {wanted!r}")
    if not config_lib.keeps_test(config):
        raise UserError(
            "config.test_days is 0; a search evaluates its best trial on test"
        )
    if not config.epochs:
        raise UserError("config.epochs is 0; a search needs at least one epoch")


def facts(config: ConfigDict, ranges: space.Space) -> dict[str, Any]:
    """Returns, by name, what must not change when a search continues."""
    may_differ = config_lib.MAY_DIFFER - {"epochs"} | ranges.keys()
    fields = config_lib.to_dict(config)
    return {
        **{f"config.{k}": v for k, v in fields.items() if k not in may_differ},
        **{f"range of {field}": list(of) for field, of in ranges.items()},
    }
