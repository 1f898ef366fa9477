"""The trials of a search, by Optuna: what to try next, kept in a journal on disk.

What a trial draws depends on the seed, its number and the trials that have ended, never
on the process that draws, so a killed search continues with the same trials.
"""

import fcntl
import hashlib
import itertools
import json
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from srgnn_jax.errors import UserError, differences, reason
from srgnn_jax.train.space import Choice, Range, Space

try:
    import optuna
    from optuna import Study, distributions, samplers
    from optuna.storages import journal
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError as error:
    raise UserError("a search needs Optuna: pip install 'srgnn_jax[search]'") from error

JOURNAL = "search.log"
# States of trials that are over.
ENDED = ("COMPLETE", "PRUNED", "FAIL")
# Proposals for one trial that the config refuses before the search gives up.
MOST_DRAWS = 1000
# Trials that complete before any is judged, and the first epoch after which one is.
UNJUDGED_TRIALS, FIRST_JUDGED_EPOCH = 5, 2

Params = dict[str, Any]


def lock(path: pathlib.Path, wait: bool = True) -> TextIO:
    """Locks a file until it is closed, or this process ends.

    Raises:
      BlockingIOError: another process holds it and `wait` is false.
      UserError: the file system does not support locks.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise
        raise UserError(
            f"{path} cannot be locked ({reason(error)}); choose a --workdir on a file "
            "system that supports locks"
        ) from error
    return file


class _FileLock(journal.JournalFileOpenLock):
    """A lock that the kernel releases if its process is killed."""

    def acquire(self) -> bool:
        self._file = lock(pathlib.Path(self._lock_file))
        return True

    def release(self) -> None:
        self._file.close()


class Sampler(samplers.BaseSampler):
    """TPE, reseeded for every trial; draws again what `accepts` refuses.

    Trial 0 is `first`, if there is one.
    """

    def __init__(
        self,
        seed: int,
        space: Space,
        accepts: Callable[[Params], bool],
        first: Params | None = None,
    ):
        self._seed, self._accepts, self._first = seed, accepts, first
        self._space = {field: distribution(of) for field, of in space.items()}

    def infer_relative_search_space(self, study, trial):
        return self._space

    def sample_relative(self, study, trial, search_space) -> Params:
        """Draws all fields of a trial together.

        Raises:
          UserError: none of the drawn combinations is accepted.
        """
        if trial.number == 0 and self._first is not None:
            return self._first
        several = {k: v for k, v in search_space.items() if not v.single()}
        for draw in range(MOST_DRAWS):
            key = f"{self._seed} {trial.number} {draw}".encode()
            seed = int.from_bytes(hashlib.sha256(key).digest()[:4])
            tpe = samplers.TPESampler(seed=seed)
            drawn = tpe.sample_relative(study, trial, several)
            params = {}
            for field, of in search_space.items():
                if of.single():
                    params[field] = of.to_external_repr(0.0)
                elif field in drawn:
                    params[field] = drawn[field]
                else:
                    params[field] = tpe.sample_independent(study, trial, field, of)
            params = {k: _rounded(v, search_space[k]) for k, v in params.items()}
            if self._accepts(params):
                return params
        raise UserError(
            f"the config refuses each of {MOST_DRAWS} combinations drawn from the "
            "ranges of the search; narrow them"
        )

    def sample_independent(self, study, trial, param_name, param_distribution):
        raise AssertionError(f"{param_name} is drawn with the others")


def _rounded(value: Any, of: distributions.BaseDistribution) -> Any:
    """Returns a number with three digits, which is easy to read and copy."""
    if not isinstance(of, distributions.FloatDistribution):
        return value
    return min(max(float(f"{value:.3g}"), of.low), of.high)


def distribution(of: Choice | Range) -> distributions.BaseDistribution:
    """Returns Optuna's form of a choice or a range."""
    if isinstance(of, Choice):
        return distributions.CategoricalDistribution(of.values)
    if isinstance(of.low, int):
        return distributions.IntDistribution(of.low, int(of.high), log=of.log)
    return distributions.FloatDistribution(of.low, of.high, log=of.log)


def open_study(
    folder: pathlib.Path,
    seed: int,
    space: Space,
    accepts: Callable[[Params], bool],
    first: Params | None = None,
) -> Study:
    """Opens the journal of a folder, or creates it.

    Args:
      folder: the workdir of the search.
      seed: of the random draws.
      space: ranges by field.
      accepts: whether a combination of values may be tried.
      first: the combination of trial 0; None: that is drawn too.

    Raises:
      UserError: the journal is damaged, other than by an incomplete last line.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    file_lock = _FileLock(str(path))
    file_lock.acquire()
    try:
        _drop_half_a_line(path)
    finally:
        file_lock.release()
    try:
        backend = journal.JournalFileBackend(str(path), lock_obj=file_lock)
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="search",
            direction="maximize",
            sampler=Sampler(seed, space, accepts, first),
            pruner=optuna.pruners.MedianPruner(UNJUDGED_TRIALS, FIRST_JUDGED_EPOCH),
            load_if_exists=True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({reason(error)}); restore it from a copy, or choose "
            "another --workdir"
        ) from error


def _drop_half_a_line(path: pathlib.Path) -> None:
    """Cuts off what an interrupted write left at the journal's end."""
    held = path.read_bytes() if path.exists() else b""
    if held and not held.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(held.rfind(b"\n") + 1)


def check_same_search(study: Study, facts: Mapping[str, Any]) -> None:
    """Stores the facts of a search, or compares them with the stored ones.

    Raises:
      UserError: they differ; the message names each difference.
    """
    new = json.loads(json.dumps(facts))
    old = study.user_attrs.get("facts")
    if old is None:
        study.set_user_attr("facts", new)
    elif found := differences(old, new):
        raise UserError(
            "the workdir holds another search; choose another --workdir, or undo: "
            + found
        )


def trials(study: Study, *states: str) -> list[FrozenTrial]:
    """Returns the trials so far, or those in some states: "RUNNING", "COMPLETE", ..."""
    wanted = [TrialState[state] for state in states] if states else None
    return study.get_trials(deepcopy=False, states=wanted)


def ask(study: Study, space: Space, running: FrozenTrial | None = None) -> Trial:
    """Returns a new trial with its values, or resumes one that a process has left."""
    trial = study.ask() if running is None else Trial(study, running._trial_id)
    for field, of in space.items():
        if isinstance(of, Choice):
            trial.suggest_categorical(field, of.values)
        elif isinstance(of.low, int):
            trial.suggest_int(field, of.low, int(of.high), log=of.log)
        else:
            trial.suggest_float(field, of.low, of.high, log=of.log)
    return trial


def report(trial: Trial, by_epoch: Mapping[int, float]) -> None:
    """Records the metric of each epoch that is not recorded yet."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for epoch in sorted(by_epoch.keys() - known.keys()):
        trial.report(by_epoch[epoch], epoch)


def is_poor(trial: Trial, epoch: int) -> bool:
    """Whether a trial is below the median after its last recorded epoch.

    A trial that repeats an earlier epoch is not judged again.
    """
    known = trial.study.get_trials(deepcopy=False)[trial.number]
    return known.last_step == epoch and bool(trial.should_prune())


def count_starts(trial: Trial, step: int) -> int:
    """Counts how often in a row a trial has started at a step, including this time."""
    begun = [*trial.user_attrs.get("begun_at", []), step]
    trial.set_user_attr("begun_at", begun)
    return sum(1 for _ in itertools.takewhile(lambda at: at == step, begun[::-1]))


def complete(trial: Trial, value: float, found: Mapping[str, Any]) -> None:
    """Records the value of a trial and what else was found."""
    trial.set_user_attr("found", found)
    trial.study.tell(trial, value)


def prune(trial: Trial) -> None:
    """Records that a trial ended early."""
    trial.study.tell(trial, state=TrialState.PRUNED)


def fail(trial: Trial, why: str) -> None:
    """Records that a trial failed, and why."""
    trial.set_user_attr("reason", why)
    trial.study.tell(trial, state=TrialState.FAIL)


def note_others(study: Study) -> None:
    """Records that several workers share a search."""
    if not is_shared(study):
        study.set_user_attr("shared", True)


def is_shared(study: Study) -> bool:
    """Whether several workers have shared a search, which affects what is drawn."""
    return study.user_attrs.get("shared", False)


def importances(study: Study) -> dict[str, float]:
    """Returns the importance of each field for the best trials, largest first.

    Computed by PED-ANOVA (Watanabe et al., 2023). Empty if there are too few trials.
    """
    done = trials(study, "COMPLETE")
    fields = [f for f in done[0].params if len({t.params[f] for t in done}) > 1]
    if len(done) < 10 or not fields:
        return {}
    with warnings.catch_warnings():
        # Optuna warns if few values of a field were tried.
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, params=fields)
    return {} if any(map(math.isnan, found.values())) else found
