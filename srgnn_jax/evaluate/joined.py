"""Joins a network with neighbours and repeat clicks, by a sum of probabilities.

    p(j | s) = v r(j | s) + (1 - v sum r(i | s)) (
        (1 - w) softmax_j(scores of the network) + w knn(j | s) / sum knn(i | s))

with sums over the items i that may be recommended. knn are the scores of `session_knn`;
a session without neighbours has w = 0. r is how often, in training, an item that the
session had clicked as often and as long ago came next (`session_knn.repeat_rates`). The
weights v and w are chosen on validation. Jannach and Ludewig 2017, "When recurrent
neural networks meet the neighborhood for session-based recommendation", add the scores
of GRU4Rec and of neighbours; Ren et al. 2019, "RepeatNet", let a network distinguish
repeats from new items.

Axes: E examples, C clicks, R rows of a part, V item rows, N rows that are scored, B
sessions, W weights, K items of a list, X values of an example.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.data import batches
from srgnn_jax.data.batches import Batch
from srgnn_jax.data.files import reading
from srgnn_jax.data.sessions import Examples, Sessions
from srgnn_jax.devices import layouts
from srgnn_jax.devices.tiers import encode
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import metrics
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.evaluate.session_knn import (
    Neighbours,
    Prefixes,
    repeat_rates,
    weighted,
)
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import MAX_SCORES
from srgnn_jax.model.layers import Params
from srgnn_jax.model.ranking import count_not_below, largest

FILE = "neighbours.npz"
# Candidate weights of repeats, which validation chooses first, and of neighbours.
REPEATS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# The weight of neighbours, then that of repeats.
Weights = tuple[float, float]
ALONE: Weights = 0.0, 0.0


def add_up(
    scores: Float[Array, "N B"], shares: Float[Array, "N B"]
) -> Float[Array, "N B"]:
    """Returns the joined probabilities; -inf where the network's score is -inf.

    Args:
      scores: the network's, for all rows of the table that are scored together.
      shares: what is added to its probabilities; see `Neighbours.shares`.
    """
    joined = (1 - shares.sum(axis=0)) * jax.nn.softmax(scores, axis=0) + shares
    return jnp.where(scores == -jnp.inf, scores, joined)


def rank_step(
    params: Params,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    knn: Float[AnyArray, "R #V"],
    repeats: Float[AnyArray, "R #V"],
    *,
    model: nn.Module,
    weights: tuple[Weights, ...],
    k: int = 0,
    max_scores: int = MAX_SCORES,
) -> Int[Array, "R X"]:
    """Ranks the targets of a one-part batch with each pair of weights, on one device.

    See `evaluator.rank_step`; ties are treated the same. If both weights are 0, the
    network's scores are ranked as they are.

    Returns:
      The ranks with each pair of weights, followed by the rows of the k best items with
      the first pair.
    """
    part = batches.gather_part(clicks, batch, 0)
    session, table = encode(model, params, part.tiers, max_scores=max_scores)
    _, _, scored, scores = table.block(session, 0, 1, 1)
    column = jnp.arange(len(part.target))
    by_weight = [
        add_up(scores, weighted(knn, repeats, *one).T) if any(one) else scores
        for one in weights
    ]
    ranks = [
        count_not_below(joined, joined[part.target, column], scored)
        for joined in by_weight
    ]
    _, best = largest(by_weight[0], k, 1.0)
    return jnp.append(jnp.stack(ranks, axis=1), best, axis=1)


class Ranked(NamedTuple):
    """The result of a pass over a split."""

    ranks: Int[np.ndarray, "E W"]  # of each example's target, with each pair of weights
    lists: Int[np.ndarray, "E K"]  # the best items with the first pair
    seconds: float


def rank(
    model: nn.Module,
    params: Params,
    examples: Examples,
    neighbours: Neighbours,
    weights: Sequence[Weights],
    k: int = 0,
    devices: layouts.Devices = layouts.Devices(),  # noqa: B008 (nothing changes it)
    progress: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> Ranked:
    """Ranks the target of every example among all items with each pair of weights.

    The weights in `neighbours` are ignored. One device ranks, with the same arithmetic
    for an example every time. For the other arguments see `Evaluator`.
    """
    step = jax.jit(
        functools.partial(
            rank_step,
            model=model,
            weights=tuple(weights),
            k=k,
            max_scores=devices.max_scores,
        )
    )
    uses_knn, uses_repeats = map(any, zip(*weights, strict=True))
    one = Evaluator(model, examples, (), 1, devices, progress, after_batch)

    def found(batch):
        prefixes = Prefixes(examples.items, batch.start[0], batch.length[0])
        none = np.zeros((len(prefixes), 1), np.float32)
        knn = neighbours.knn(prefixes) if uses_knn else none
        repeats = neighbours.repeats(prefixes) if uses_repeats else none
        return step(params, *one.with_clicks(batch), knn, repeats)

    # The next part's neighbours are found while the device works on this one.
    values, seconds = one.by_example(found, "joined", in_hand=2)
    return Ranked(values[:, : len(weights)], values[:, len(weights) :], seconds)


def served_ranks(
    evaluator: Evaluator, params: Params, neighbours: Neighbours | None
) -> Int[np.ndarray, " E"]:
    """Ranks targets as a workdir answers: joined with its neighbours, if it has any."""
    if neighbours is None:
        return evaluator.with_lists(params, 0)[1]
    model, weights = evaluator.model, (neighbours.weight, neighbours.repeats_weight)
    return rank(
        model,
        _whole(params, model.num_items),
        evaluator.examples,
        neighbours,
        [weights],
        devices=dataclasses.replace(evaluator.devices, shards=1, mesh=None),
        progress=evaluator.progress,
        after_batch=evaluator.after_batch,
    ).ranks[:, 0]


class Reached(NamedTuple):
    """The results of a joined run."""

    weights: Weights
    test: dict[str, float]  # the means of the metrics, and examples_per_second
    network: dict[str, float]  # the means of the network alone
    rank: Int[np.ndarray, " E"]
    lists: Int[np.ndarray, "E K"]
    # If validation chose the weights: its metrics with each pair.
    valid: dict[Weights, dict[str, float]] | None

    def record(self) -> dict[str, Any]:
        """Returns what results.json holds in addition to any run's entries."""
        weight, again = self.weights
        found = {"weight": weight, "repeats_weight": again, "network": self.network}
        if self.valid is None:
            return {"joined": found}
        # Keys: the weight of neighbours and that of repeats.
        by_weights = {f"{w} {v}": means for (w, v), means in self.valid.items()}
        joined = {**found, "valid_by_weights": by_weights}
        return {"joined": joined, "valid": self.valid[self.weights]}


def evaluate(
    config: ConfigDict,
    model: nn.Module,
    params: Params,
    splits: config_lib.Splits,
    k: int,
    after_batch: Callable[[], None] = lambda: None,
) -> Reached:
    """Chooses the weights, unless the config sets one of them, and ranks test.

    The neighbours are sessions that the network was trained on. The weight of repeats
    is chosen first, without neighbours, then the weight of neighbours. If weights are
    equally good by `config.select_by`, the lower one is chosen.

    Raises:
      UserError: several processes share the run.
    """
    check(config)
    params = _whole(params, model.num_items)
    weights, valid = (config.neighbours_weight, config.repeats_weight), None
    neighbours = _neighbours(config, weights, splits.train_sessions, model.num_items)
    devices = layouts.find_devices(
        "jit",
        embedding_size=config.embedding_size,
        max_scores=config.max_scores,
        max_positions=config.max_positions,
    )
    ranked = functools.partial(
        rank,
        model,
        params,
        neighbours=neighbours,
        devices=devices,
        progress=config.progress,
        after_batch=after_batch,
    )
    if not any(weights):
        valid = {}

        def best_of(pairs: Sequence[Weights]) -> Weights:
            of_pairs = ranked(splits.evaluated["valid"], weights=pairs).ranks.T
            for pair, ranks in zip(pairs, of_pairs, strict=True):
                valid[pair] = metrics.means(ranks, config.ks)
            return max(pairs, key=lambda pair: valid[pair][config.select_by])

        _, again = best_of([(0.0, again) for again in REPEATS])
        weights = best_of([(weight, again) for weight in WEIGHTS])
    found = ranked(splits.evaluated["test"], weights=(weights, ALONE), k=k)
    joined, alone = (metrics.means(of, config.ks) for of in found.ranks.T)
    joined["examples_per_second"] = len(found.ranks) / found.seconds
    return Reached(weights, joined, alone, found.ranks[:, 0], found.lists, valid)


def check(config: ConfigDict) -> None:
    """Raises UserError if neighbours cannot join; called before a run is trained."""
    if config.joined and jax.process_count() > 1:
        raise UserError(
            "only a single process can join neighbours: train without config.joined, "
            "then run --mode=evaluate with it in one process"
        )


def _whole(params: Params, num_items: int) -> Params:
    """Returns parameters on one device, without the padding rows of the item table."""
    here = jax.device_get(params)
    whole = {**here, "item_embedding": here["item_embedding"][:num_items]}
    return jax.device_put(whole, jax.local_devices()[0])


def _neighbours(
    config: ConfigDict, weights: Weights, train: Sessions, num_items: int
) -> Neighbours:
    """Returns what joins; counts the rates only if they weigh or a weight is chosen."""
    train, (weight, again) = train.whole(), weights
    items, offsets = np.asarray(train.items), np.asarray(train.offsets)
    found = Neighbours(config.neighbours, weight, items, offsets, num_items, again)
    if weight and not again:
        return found
    return dataclasses.replace(found, rates=repeat_rates(train, num_items))


def save(
    folder: pathlib.Path,
    config: ConfigDict,
    train: Sessions,
    num_items: int,
    run: Mapping[str, Any],
) -> None:
    """Makes a workdir answer as it was last evaluated: joined, or by the network alone.

    `train` are the sessions among which neighbours are found; `run` is the record that
    `evaluate_best` returned.
    """
    path = folder / FILE
    if config.joined:
        weights = run["joined"]["weight"], run["joined"]["repeats_weight"]
        _neighbours(config, weights, train, num_items).save(path)
    else:
        path.unlink(missing_ok=True)


def load(folder: pathlib.Path, num_items: int) -> Neighbours | None:
    """Reads what a workdir's network is joined with; returns None if it is not joined.

    Raises UserError if the file is damaged or belongs to another vocabulary.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with reading(path, ", sessions of neighbours"), path.open("rb") as file:
        found = Neighbours.load(file)
        if found.num_items != num_items:
            raise ValueError(f"it has {found.num_items} item rows, not {num_items}")
    return found
