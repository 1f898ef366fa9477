"""Compares two runs on the same test, and promotes the better one.

Axes: E examples, V item rows.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax import tables
from srgnn_jax.data.sessions import Examples
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import breakdown, joined, metrics
from srgnn_jax.evaluate.workdir import OpenedRun, make_evaluator, open_run
from srgnn_jax.model.losses import Loss
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.workdir import load_vocabulary
from srgnn_jax.serve.exported import by_popularity
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.train.loop import train_and_evaluate

# The rank of a target that a run does not know: longer than any list.
_NOWHERE = np.iinfo(np.int32).max
FROM_NOTHING = "from_nothing"


def promote(
    workdir: str,
    live: str,
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> bool:
    """Points a link to a workdir, unless the run it points to is better.

    Both runs are evaluated on the test split of the workdir's run (see `compare`), and
    its `config.select_by` decides; an equal value is enough. If the link does not exist
    yet, nothing is compared. The link is switched in one step: anyone who follows it
    finds one run or the other.

    Args:
      workdir: folder of the new run.
      live: the link, such as the workdir that is passed to `--mode=serve`.
      config, model: of both runs; see `evaluate_workdir`.

    Returns:
      Whether the link now points to the workdir.

    Raises:
      UserError: something the user can fix, such as a folder in the link's place.
    """
    folder, link = (pathlib.Path(path).expanduser() for path in (workdir, live))
    if not link.exists():
        # A run that cannot be loaded is not promoted.
        Recommender.load(folder, model)
    elif not link.is_symlink():
        raise UserError(
            f"--live={live} is a folder, not a link; name a link, which is created if "
            "it does not exist"
        )
    elif link.resolve() != folder.resolve():
        by, both = compare(workdir, live, config, model)
        new, old = (means["all"][by] for means in both)
        if not new >= old:
            processes.say(
                f"\nnot promoted: {by} is {100 * new:.2f}, but {100 * old:.2f} in "
                f"{link.resolve().name}; {live} is unchanged"
            )
            return False
    # What the service would refuse is not promoted.
    with contextlib.closing(Checkpoints(folder.resolve())) as checkpoints:
        checkpoints.check_newest()
    _switch(link, folder)
    processes.say(f"\npromoted: {live} now points to {folder.resolve().name}")
    return True


def _switch(link: pathlib.Path, folder: pathlib.Path) -> None:
    """Points a link to a folder, in one step."""
    unfinished = link.with_name(f"{link.name}.unfinished")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        # A relative path: both may be moved together, or mounted elsewhere.
        target = os.path.relpath(folder.resolve(), link.parent.resolve())
        unfinished.symlink_to(target, target_is_directory=True)
        unfinished.replace(link)
    except OSError as error:
        raise UserError(f"cannot link {link} to {folder} ({reason(error)})") from error


# By group of examples, then by metric.
Means = dict[str, dict[str, float]]


def compare(
    workdir: str,
    other: str,
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> tuple[str, list[Means]]:
    """Evaluates the runs of two workdirs on the test split of the first; prints both.

    Each run answers as it would be served: joined, if it was last evaluated joined. The
    other run answers by raw id: clicks on items that it does not know are left out, a
    session without a known click gets its most popular items, and a target that it does
    not know is in no list.

    Returns:
      The metric that decides, and for each run the means over "all" examples and over
      the groups of `breakdown.ages`. New items are those that the first run's parent
      does not know or, if it has no parent, those that the other run does not know.
    """
    folders = [pathlib.Path(path).expanduser().resolve() for path in (workdir, other)]
    run = open_run(folders[0], config, model)
    examples, ks, by = run.test, run.config.ks, run.config.select_by
    ids = load_vocabulary(folders[0], run.progress.vocabulary).ids
    rank, rows = _ranks_by_raw_id(folders[1], run, ids, model)
    is_new = run.splits.is_new
    if is_new is None:
        is_new = np.append(False, rows[1:] == 0)
    groups = {"all": np.ones(len(rank), bool), **breakdown.ages(examples, is_new)}
    groups = {name: chosen for name, chosen in groups.items() if chosen.any()}
    neighbours = joined.load(folders[0], run.progress.num_items)
    own = joined.served_ranks(run.evaluator(), run.params, neighbours)
    both = [
        {name: metrics.means(of[chosen], ks) for name, chosen in groups.items()}
        for of in (own, rank)
    ]
    table = [["", "examples", *(folder.name for folder in folders)]]
    for name, chosen in groups.items():
        for metric in dict.fromkeys((f"recall@{metrics.usual_k(ks)}", by)):
            values = [tables.percent(means[name][metric]) for means in both]
            table.append([f"{metric}, {name}", f"{chosen.sum():,}", *values])
    processes.say("\n".join(["", *tables.plain(table)]))
    return by, both


def _ranks_by_raw_id(
    folder: pathlib.Path,
    run: OpenedRun,
    ids: Sequence[str],
    model: config_lib.MakeModel | None,
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " V"]]:
    """Ranks a run's targets with the run of another workdir; `ids` are the first's.

    Returns:
      The rank of each target, and the other run's row of each item, 0 if it has none.
    """
    recommender = Recommender.load(folder, model)
    vocabulary = recommender.vocabulary
    rows = np.append(0, vocabulary.rows(ids))
    # Whole prefixes: the other run may keep more clicks of a session.
    examples = run.data.test.examples()
    clicks, ends = rows[examples.items], examples.starts + examples.lengths
    # The position of each click among the known ones.
    before = np.append(0, np.cumsum(clicks > 0))
    target, lengths = clicks[ends], before[ends] - before[examples.starts]
    seen = np.minimum(lengths, recommender.max_length).astype(np.int32)
    # Ranked by popularity, unless a click of the session is known.
    order, _ = by_popularity(vocabulary.clicks, len(vocabulary.ids))
    place = np.full(vocabulary.num_items, _NOWHERE, np.int64)
    place[order] = 1 + np.arange(len(order))
    rank = place[target]
    if (asked := (target > 0) & (lengths > 0)).any():
        some = before[ends[asked]] - seen[asked], seen[asked]
        known = Examples(clicks[clicks > 0], *some)
        devices = layouts.find_devices("jit", max_scores=run.config.max_scores)
        evaluate = make_evaluator(run.config, recommender.model, known, devices)
        rank[asked] = joined.served_ranks(
            evaluate, recommender.params, recommender.neighbours
        )
    return rank, rows


def train_both(
    config: ConfigDict,
    workdir: str,
    epochs: int,
    command: str = "",
    model: config_lib.MakeModel | None = None,
    losses: Mapping[str, Loss] | None = None,
) -> tuple[str, list[Means]]:
    """Trains a run with `config.warm_start`, then one from scratch; see `compare`.

    The second uses the same data and settings except for its number of epochs, and is
    in the workdir's folder `from_nothing`. For the arguments see `train_and_evaluate`.
    """
    if not config.warm_start or config.runs > 1:
        raise UserError("--compare needs config.warm_start, and config.runs = 1")
    train_and_evaluate(config, workdir, command, model, losses)
    other = str(pathlib.Path(workdir).expanduser() / FROM_NOTHING)
    fields = {**config_lib.to_dict(config), "warm_start": "", "epochs": epochs}
    train_and_evaluate(config_lib.from_dict(fields), other, command, model, losses)
    return compare(workdir, other, None, model)
