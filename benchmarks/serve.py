"""Measures the HTTP service's latencies at constant rates, from when requests are due.

    python -m benchmarks.serve
    python -m benchmarks.serve --catalog 43097 100 --scenarios rate --rate=2000
    python -m benchmarks.serve --scenarios reload stop memory --seconds=600

For each catalog, `--mode=serve` serves random weights in its own process, while this
one sends requests (see `load`). Both share the cores. The scenarios:

    rate      the catalog's target rate
    highest   rates that grow by a quarter until p90 exceeds the limit or a request is
              refused or lost; reports the last rate before that
    twice     twice that rate, for at most 20 seconds
    etude     the catalog's target rate, with ETUDE's sessions
    reload    500/s while a better checkpoint arrives
    stop      500/s while SIGTERM arrives
    memory    300/s; reports the memory and open files of the process
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from benchmarks import common
from benchmarks.load import Bodies, EtudeSessions, Load, made_bodies, send

# Items, D, target requests/s, and target p90 in milliseconds.
WANTED = (
    (1_978, 64, 5_000, 10),
    (43_097, 100, 2_000, 20),
    (100_000, 32, 1_000, 50),
    (1_000_000, 32, 190, 50),
)
GROWTH, STEP_SECONDS, TWICE_SECONDS = 1.25, 5.0, 20.0
STEADY, SLOW_AND_LONG = 500, 300
READY_SECONDS = 300


def make_workdir(folder: pathlib.Path, items: int, embedding_size: int) -> pathlib.Path:
    """Makes a run with random weights, whose row numbers are the raw ids.

    Returns the path of a better checkpoint of the run, stored elsewhere.
    """
    from srgnn_jax import config as config_lib
    from srgnn_jax.configs import default
    from srgnn_jax.data.sessions import Dataset, Vocabulary
    from srgnn_jax.model.srgnn import init_params
    from srgnn_jax.runs.checkpoint import Checkpoints
    from srgnn_jax.runs.workdir import save_vocabulary

    config = default.get_config()
    config.dataset, config.embedding_size = "click_log", embedding_size
    clicks = 1 + np.arange(items) % 100
    vocabulary = Vocabulary([str(row) for row in range(1, items + 1)], clicks)
    model = config_lib.make_model(config, items + 1)
    progress = config_lib.start_of_run(config, Dataset({}, vocabulary, {}), model)
    folder.mkdir()
    save_vocabulary(folder, vocabulary)
    for step, where in ((1, folder), (2, folder / "better")):
        with contextlib.closing(Checkpoints(where)) as checkpoints:
            best = dataclasses.replace(progress, step=step, best_step=step)
            checkpoints.save({"params": init_params(model, step)}, best)
    return folder / "better" / "checkpoints" / "2"


class Served:
    """A serving process; entering it waits until it is ready and returns its port."""

    def __init__(self, command: Sequence[str], folder: str | os.PathLike = common.ROOT):
        self.log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = str(common.ROOT)
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stderr=self.log,
            cwd=folder,
            env=environment,
        )

    def __enter__(self) -> int:
        """Waits until it is ready, and returns its port."""
        for _ in range(READY_SECONDS * 10):
            said = self.said()
            if '"ready after' in said and '"listening on' in said:
                return int(said.split("http://127.0.0.1:")[1].split('"')[0])
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"the service did not become ready:\n{self.said()}")

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def said(self) -> str:
        """Returns its log so far."""
        return pathlib.Path(self.log.name).read_text()


def run(*arguments, **options) -> Load:
    """Sends a load (see `send`) from a fast event loop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send(*arguments, **options))


class Scenarios:
    """Measurements of one catalog; scenario `x` is the method `of_x`."""

    def __init__(self, served: Served, port: int, better: pathlib.Path, **catalog):
        self._served, self._port, self._better = served, port, better
        self.items, self.rate, self.limit, self.seconds = (
            catalog[name] for name in ("items", "rate", "limit", "seconds")
        )
        self._bodies = made_bodies(self.items)
        self._highest = 0.0
        self.by_rate: list[dict[str, float]] = []
        # Warm up the caches.
        self._send(self.rate / 2, 2.0)

    def _send(self, rate: float, seconds: float, **options) -> Load:
        return run(self._port, Bodies(self._bodies), rate, seconds, **options)

    def of_rate(self) -> dict:
        """Sends the target rate."""
        before = self._cpu()
        row = self._send(self.rate, self.seconds).row()
        used = (self._cpu() - before) / (self.rate * self.seconds)
        return row | {"note": f"{1e6 * used:.0f} us of CPU a request"}

    def _cpu(self) -> float:
        """Returns the seconds of CPU that the process has used."""
        stat = pathlib.Path(f"/proc/{self._served.process.pid}/stat").read_text()
        user, system = stat.rpartition(") ")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def of_highest(self) -> dict:
        """Finds the highest rate that stays within the limit."""
        rate, best = self.rate / 2, {}
        while True:
            row = self._send(rate, STEP_SECONDS).row()
            self.by_rate.append(row)
            if row["errors"] or row["refused"] or not row["p90 ms"] <= self.limit:
                break
            best, self._highest = row, rate
            rate *= GROWTH
        return {**best, "note": f"p90 <= {self.limit} ms"}

    def of_twice(self) -> dict:
        """Sends twice the highest rate."""
        peak = self._highest or self.rate
        # Enough connections that requests are refused instead of waiting for one.
        seconds, many = min(self.seconds, TWICE_SECONDS), {"connections": 900}
        row = self._send(2 * peak, seconds, **many).row()
        share = row["answered/s"] / peak
        return row | {"note": f"{share:.0%} of the highest rate answered"}

    def of_etude(self) -> dict:
        """Sends ETUDE's sessions."""
        sessions = EtudeSessions(self.items)
        return run(self._port, sessions, self.rate, self.seconds).row()

    def of_reload(self) -> dict:
        """Moves the better checkpoint into place, and counts the answers of each."""
        steps: collections.Counter = collections.Counter()

        def count(body: bytes) -> None:
            steps[json.loads(body)["model"]["step"]] += 1

        async def send_both():
            loop = asyncio.get_running_loop()
            now = self._better.parents[2] / "checkpoints" / "2"
            loop.call_later(self.seconds / 3, self._better.rename, now)
            bodies = Bodies(self._bodies)
            return await send(self._port, bodies, STEADY, self.seconds, on_answer=count)

        row = asyncio.run(send_both()).row()
        note = ", ".join(f"{count:,} by step {step}" for step, count in steps.items())
        return row | {"note": note}

    def of_stop(self) -> dict:
        """Sends SIGTERM."""

        async def send_both():
            loop = asyncio.get_running_loop()
            pid = self._served.process.pid
            loop.call_later(self.seconds / 2, os.kill, pid, signal.SIGTERM)
            return await send(self._port, Bodies(self._bodies), STEADY, self.seconds)

        load = asyncio.run(send_both())
        status = self._served.process.wait(20)
        note = f"{load.lost} lost, {load.unsent} after its end, exit status {status}"
        return load.row() | {"errors": load.lost + load.failed, "note": note}

    def of_memory(self) -> dict:
        """Watches the memory and open files of the process."""
        seen: list[tuple[float, float, int]] = []
        process = pathlib.Path(f"/proc/{self._served.process.pid}")

        async def look() -> None:
            while True:
                pages = int((process / "statm").read_text().split()[1])
                megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
                files = len(list((process / "fd").iterdir()))
                seen.append((time.monotonic(), megabytes, files))
                await asyncio.sleep(min(5.0, self.seconds / 10))

        async def send_both():
            looking = asyncio.ensure_future(look())
            bodies = Bodies(self._bodies)
            load = await send(self._port, bodies, SLOW_AND_LONG, self.seconds)
            looking.cancel()
            return load

        row = asyncio.run(send_both()).row()
        # Memory used at the start is not growth.
        times, megabytes, files = np.array(seen[len(seen) // 3 :]).T
        slope = np.polyfit(times, megabytes, 1)[0] * 3600
        note = f"{megabytes[-1]:.0f} MB, {slope:+.1f} MB an hour; open files "
        return row | {"note": f"{note}{files.min():.0f} to {files.max():.0f}"}


SCENARIOS = [name[3:] for name in vars(Scenarios) if name.startswith("of_")]


def plot(path: str, by_rate: dict[str, list[dict[str, float]]]) -> None:
    """Plots latencies by rate, one panel per catalog."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure((3 * len(by_rate), 2.8), layout="constrained")
    axes = figure.subplots(1, len(by_rate), squeeze=False)[0]
    for axis, (title, rows) in zip(axes, by_rate.items(), strict=True):
        for name in ("p50 ms", "p90 ms", "p99 ms"):
            axis.plot([row["rate"] for row in rows], [row[name] for row in rows], "o-")
        axis.set(title=title, xlabel="requests a second", yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    axes[0].set_ylabel("milliseconds")
    axes[0].legend(["p50", "p90", "p99"])
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", type=int, nargs=2, metavar=("ITEMS", "D"))
    parser.add_argument("--rate", type=float, help="requests/s, instead of the target")
    parser.add_argument("--seconds", type=float, default=60.0)
    default = ("rate", "highest", "twice")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=default)
    parser.add_argument("--plot", help="file for a plot of the rates of `highest`")
    arguments = parser.parse_args()
    rows, by_rate = [], {}
    load_before = common.load_of_others()
    chosen = WANTED
    if arguments.catalog:
        known = {(items, size): rest for items, size, *rest in WANTED}
        rate, limit = known.get(tuple(arguments.catalog), (100, 50))
        chosen = ((*arguments.catalog, rate, limit),)
    for items, size, rate, limit in chosen:
        with tempfile.TemporaryDirectory() as name:
            workdir = pathlib.Path(name) / "run"
            better = make_workdir(workdir, items, size)
            flags = ["--mode=serve", f"--workdir={workdir}", "--port=0"]
            served = Served(["-m", "srgnn_jax.main", *flags, "--reload_every=1"])
            with served as port:
                scenarios = Scenarios(
                    served,
                    port,
                    better,
                    items=items,
                    rate=arguments.rate or rate,
                    limit=limit,
                    seconds=arguments.seconds,
                )
                for scenario in arguments.scenarios:
                    row = getattr(scenarios, f"of_{scenario}")()
                    rows.append({"items": items, "D": size, "what": scenario, **row})
                    print(rows[-1], file=sys.stderr, flush=True)
            by_rate[f"{items:,} items, D {size}"] = scenarios.by_rate
    if arguments.plot:
        plot(arguments.plot, by_rate)
    common.show(
        "serve", {"arguments": vars(arguments), "load before": load_before}, rows
    )


if __name__ == "__main__":
    main()
