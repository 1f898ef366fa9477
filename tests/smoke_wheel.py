"""Installs the package into an empty environment of each Python, and uses it there.

    python -m tests.smoke_wheel python3.11 python3.12 python3.13

From its wheel without extras, then with those that need no accelerator, then from its
source archive. Takes some minutes for each Python, as all packages are installed anew.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = "export,plots,search,serve"
PORT = 8765
SMALL = (
    "--config=synthetic --config.progress=False --config.train_fraction=0.1 "
    "--config.embedding_size=16 --config.epochs=1"
)
PLAIN = (
    "srgnn --help; srgnn; true",  # both end with 1
    f"srgnn {SMALL} --workdir=run",
    "srgnn --mode=evaluate --workdir=run --config.progress=False",
    "echo '{\"session\": [1, 2]}' | srgnn --mode=recommend --workdir=run --sessions=-",
    "python -c 'import srgnn_jax as s; print(s.Recommender.load(\"run\"))'",
)
WITH_EXTRAS = (
    "srgnn --mode=plot --workdir=run",
    f"srgnn --mode=search {SMALL} --trials=2 --workdir=search",
    "srgnn --mode=export --workdir=run --output=exported",
)
# A mode without its extra is refused in one line.
WITHOUT = "srgnn --mode=search --config=synthetic --trials=1 --workdir=none"


def build(folder: Path) -> tuple[Path, Path]:
    """Builds source archive and wheel; returns their paths."""
    for target in ("sdist", "wheel"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d"]
        subprocess.run([*command, folder], cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


class Environment:
    """An empty environment of a Python, in a folder of its own."""

    def __init__(self, python: str, folder: Path):
        self.folder = folder
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
        path = os.pathsep.join([str(folder / "venv/bin"), os.environ["PATH"]])
        self.variables = {**os.environ, "PATH": path, "HOME": str(folder)}
        self.variables |= {"JAX_PLATFORMS": "cpu"}
        self.variables.pop("PYTHONPATH", None)

    def run(self, command: str, status: int = 0) -> str:
        """Runs a shell command, which must end so; returns what it printed."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
        if done.returncode != status:
            sys.exit(f"{command}\nended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def serve(self) -> None:
        """Starts the service, asks it, and stops it."""
        srgnn = self.folder / "venv/bin/srgnn"
        command = [srgnn, "--mode=serve", "--workdir=run", f"--port={PORT}"]
        process = subprocess.Popen(command, cwd=self.folder, env=self.variables)
        address = f"http://127.0.0.1:{PORT}"
        try:
            for _ in range(300):
                time.sleep(1)
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/v2/health/ready").close()
                    break
            # Where it was never ready, this fails.
            asked = urllib.request.Request(
                f"{address}/v1/recommend",
                json.dumps({"session": ["1", "2"], "k": 3}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(asked) as answer:
                if len(json.load(answer)["items"]) != 3:
                    sys.exit("the service did not answer with three items")
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(30)
        if status:
            sys.exit(f"the service ended with {status}")


def smoke(python: str, wheel: Path, archive: Path, folder: Path) -> None:
    """Installs and uses the package with one Python."""
    there = Environment(python, folder)
    version = there.run("python --version").strip()
    there.run(f"pip install --quiet '{wheel}'")
    if "srgnn_jax[search]" not in there.run(WITHOUT, status=1):
        sys.exit(f"{WITHOUT}\ndoes not say what to install")
    for command in PLAIN:
        there.run(command)
    there.run(f"pip install --quiet '{wheel}[{EXTRAS}]'")
    for command in WITH_EXTRAS:
        there.run(command)
    there.serve()
    there.run(f"pip install --quiet --no-deps --force-reinstall '{archive}'")
    there.run("srgnn --mode=evaluate --workdir=run --config.progress=False")
    packages = there.run("pip list --format=freeze").split()
    jax = next(package for package in packages if package.startswith("jax=="))
    print(f"{version}, {jax}: installed and used", flush=True)


def main():
    """Tries each Python that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", default=["python3"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive, wheel = build(Path(folder))
        for number, python in enumerate(arguments.pythons):
            if shutil.which(python) is None:
                sys.exit(f"there is no {python}")
            (Path(folder) / str(number)).mkdir()
            smoke(python, wheel, archive, Path(folder) / str(number))


if __name__ == "__main__":
    main()
