"""The package as it is installed: from a wheel, far from the repository."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

from tests.tiny import write_log

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow]  # builds a wheel, and trains with it


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")

    def build(target, source):
        command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d"]
        subprocess.run([*command, folder], cwd=source, check=True, capture_output=True)

    # By way of the source archive, as a release is.
    build("sdist", ROOT)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "source", filter="data")
    build("wheel", next((folder / "source").iterdir()))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def srgnn(wheel):
    """Returns what runs a shell command with the wheel's package and console script."""
    site = wheel.parent / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, wheel], check=True)
    python = site / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    def run(command, cwd):
        path = os.pathsep.join([str(site / "bin"), os.environ["PATH"]])
        environment = {**os.environ, "PYTHONPATH": str(site), "PATH": path}
        return subprocess.run(
            ["bash", "-c", command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


def test_the_wheel_holds_the_package_and_nothing_beside(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names}
    assert {name.removesuffix(".dist-info") for name in folders} == {
        "srgnn_jax",
        wheel.name.removesuffix("-py3-none-any.whl"),
    }
    shipped = {Path(name).name for name in names if "/configs/" in name}
    assert shipped == {path.name for path in (ROOT / "configs").glob("*.py")}


def test_help_of_the_console_script(srgnn, tmp_path):
    done = srgnn("srgnn --help", tmp_path)
    assert done.stdout.startswith("Trains and evaluates SR-GNN")
    for flag in ("--mode:", "--workdir:", "--config:", "--sessions:"):
        assert flag in done.stdout


def test_a_config_of_ones_own_builds_on_the_shipped_ones(srgnn, tmp_path):
    write_log(tmp_path / "data" / "log.csv")
    (tmp_path / "mine.py").write_text(
        "from srgnn_jax.configs import click_log\n\n\n"
        "def get_config():\n"
        "    c = click_log.get_config()\n"
        "    c.name, c.epochs, c.test_days = 'mine', 0, 0.35\n"
        "    return c\n"
    )
    done = srgnn("srgnn --config=mine.py --config.prepared_dir=prepared", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"items\s+20\b", done.stdout)
    assert (tmp_path / "runs" / "mine" / "counts.json").is_file()


def shorten(path):
    """Keeps a log's clicks on the ten items that are clicked most, of some sessions."""
    log = pl.read_csv(path)
    common = log["item"].value_counts(sort=True)["item"].head(10).implode()
    log.filter(pl.col("item").is_in(common)).gather_every(3).write_csv(path)


def test_every_command_of_own_data_works_in_turn(srgnn, tmp_path):
    page = (ROOT / "docs" / "own_data.md").read_text()
    blocks = re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 10
    for language, code in blocks:
        if "def get_config" in code:
            (tmp_path / "shop.py").write_text(code)
            continue
        command = code if language == "sh" else f"python - <<'END'\n{code}END"
        done = srgnn(f"set -e\n{command}", tmp_path)
        assert done.returncode == 0, done.stderr
        if "draw_clicks" in code:
            shorten(tmp_path / "data" / "log.csv")
        if "echo" in code:
            assert len(json.loads(done.stdout)["items"]) == 5
            assert not json.loads(done.stdout)["unknown"]
        if "print(found" in code:
            assert [text.count("'") for text in done.stdout.splitlines()] == [10, 6]
    assert list((tmp_path / "runs" / "shop" / "plots").glob("*.png"))
    assert (tmp_path / "runs" / "shop_wide" / "results.json").is_file()
