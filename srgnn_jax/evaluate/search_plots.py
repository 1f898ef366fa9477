"""Plots of a search: what its trials reached, by epoch and by setting."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srgnn_jax.evaluate.plots import (
    ACCENT,
    COLOURS,
    INK,
    STYLE,
    Figure,
    MaxNLocator,
    rc_context,
    save_figures,
)

# A trial to plot: its "number", its "state" (COMPLETE, PRUNED or FAIL), its "value" as
# a fraction, the metric by epoch as "epochs", and its settings as "params".
Record = Mapping[str, Any]

# How trials that did not fail are drawn.
STATES: dict[str, dict[str, Any]] = {
    "COMPLETE": {"marker": "o", "color": COLOURS[0], "s": 22, "label": "complete"},
    "PRUNED": {"marker": "x", "color": INK, "s": 22, "label": "ended early"},
}


def plot_search(
    folder: pathlib.Path, trials: Sequence[Record], metric: str
) -> list[pathlib.Path]:
    """Plots a search: png files in its folder `plots`.

    Raises:
      UserError: the files cannot be written.
    """
    figures = {
        "trials": trial_values(trials, metric),
        "epochs": epoch_curves(trials, metric),
        "settings": value_by_setting(trials, metric),
    }
    return save_figures(folder, figures)


@rc_context(STYLE)
def trial_values(trials: Sequence[Record], metric: str) -> Figure:
    """Plots what each trial reached, and the best so far."""
    figure = Figure(figsize=(6.4, 3.4))
    axes = figure.subplots()
    for state, style in STATES.items():
        some = [one for one in trials if one["state"] == state]
        numbers = [one["number"] for one in some]
        axes.scatter(numbers, [100 * one["value"] for one in some], **style)
    done = [one for one in trials if one["state"] == "COMPLETE"]
    best = np.maximum.accumulate([100 * one["value"] for one in done])
    numbers = [one["number"] for one in done]
    axes.step(numbers, best, where="post", color=ACCENT, label="the best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=f"{metric} on validation (%)")
    axes.legend()
    return figure


@rc_context(STYLE)
def epoch_curves(trials: Sequence[Record], metric: str) -> Figure:
    """Plots the metric of every trial over its epochs and marks the best trial."""
    figure = Figure(figsize=(6.4, 3.4))
    axes = figure.subplots()
    done = [one for one in trials if one["state"] == "COMPLETE"]
    best = max(done, key=lambda one: one["value"])
    for one in trials:
        epochs = sorted(one["epochs"].items())
        x, y = [epoch for epoch, _ in epochs], [100 * value for _, value in epochs]
        is_best = one is best
        style: dict[str, Any] = {"color": ACCENT if is_best else COLOURS[0]}
        style |= {"linewidth": 1.8 if is_best else 0.8, "zorder": 2 + is_best}
        label = f"trial {one['number']}, the best" if is_best else None
        axes.plot(x, y, marker=".", alpha=1 if is_best else 0.5, label=label, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=f"{metric} on validation (%)")
    axes.legend(loc="lower right")
    return figure


@rc_context(STYLE)
def value_by_setting(trials: Sequence[Record], metric: str) -> Figure:
    """Plots what trials reached against each setting."""
    fields = list(trials[0]["params"])
    columns = min(4, len(fields))
    rows = math.ceil(len(fields) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.6 * rows))
    every = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in every[len(fields) :]:
        axes.axis("off")
    for axes, field in zip(every, fields, strict=False):
        values = {one["params"][field] for one in trials}
        # A few values are drawn as categories, at equal distances.
        places = {value: place for place, value in enumerate(sorted(values))}
        if len(places) <= 6:
            axes.set_xticks(range(len(places)), map(str, places))
            axes.set_xlim(-0.5, len(places) - 0.5)
        else:
            places = {value: value for value in values}
            if min(values) > 0 and max(values) / min(values) >= 10:
                axes.set_xscale("log")
        for state, style in STATES.items():
            some = [one for one in trials if one["state"] == state]
            x = [places[one["params"][field]] for one in some]
            axes.scatter(x, [100 * one["value"] for one in some], **style)
        axes.set_xlabel(field)
    every[0].set_ylabel(f"{metric} on validation (%)")
    return figure
