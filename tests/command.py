"""Runs the command in this process, or in one that has already imported everything."""

import importlib.metadata
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[1]
# XLA flags: half the compile time, and faster to run for tiny sizes.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"
# Later versions lack this flag and abort the process if it is set.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "srgnn_jax.convert.import_mode",
        "srgnn_jax.main",
        "srgnn_jax.serve.stream",
        "srgnn_jax.train.loop",
        "tests.tiny",
    ]
)


def srgnn(*arguments, cwd=ROOT):
    """Does what `python -m srgnn_jax.main` does; returns its outputs and status."""
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
        process = PROCESSES.Process(target=_command, args=(arguments, cwd, files))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
        texts = [file.read_text() for file in files]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _command(arguments, cwd, files):
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.argv = ["srgnn", *arguments]
    from srgnn_jax.main import main

    main()


def run_command(**given):
    """Runs the command with these flags in this process."""
    from srgnn_jax import main

    main.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(**{name: str(value) for name, value in given.items()}):
        main.check_flags()
        main.run_mode()
