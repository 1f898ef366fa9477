"""The result of training: its state, and what it reached on test."""

import dataclasses
import statistics
from collections.abc import Sequence

from srgnn_jax import tables
from srgnn_jax.model.layers import Params
from srgnn_jax.train.step import TrainState


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
    """What `train_and_evaluate` returns; a notebook shows it as a table.

    Attributes:
      state: after the last step; for several runs, that of the last run. The best
        epoch's parameters are in the workdir: `Recommender.load(trained.workdir)`.
      workdir: the folder of the run.
      metrics: the mean of every metric on test, as fractions; for several runs, the
        mean over them.
    """

    state: TrainState
    workdir: str
    metrics: dict[str, float]

    @classmethod
    def of_several(cls, runs: Sequence["Trained"], workdir: str) -> "Trained":
        """Joins the runs of several seeds in one workdir."""
        means = {
            name: statistics.fmean(run.metrics[name] for run in runs)
            for name in runs[0].metrics
        }
        return cls(runs[-1].state, workdir, means)

    @property
    def step(self) -> int:
        """The number of optimizer steps taken."""
        return int(self.state.step)

    @property
    def params(self) -> Params:
        """The parameters after the last step."""
        return self.state.params

    def _rows(self) -> list[list[str]]:
        if not self.metrics:
            return [["nothing was kept for test"]]
        names = list(dict.fromkeys(metric.partition("@")[0] for metric in self.metrics))
        ks = sorted({int(metric.partition("@")[2]) for metric in self.metrics})
        return [["test, percent", *names]] + [
            [f"@{k}", *(tables.percent(self.metrics[f"{name}@{k}"]) for name in names)]
            for k in ks
        ]

    def __repr__(self) -> str:
        return "\n".join([f"run in {self.workdir}", *tables.plain(self._rows())])

    def _repr_html_(self) -> str:
        return tables.html(self._rows(), f"run in {self.workdir}")
