"""Runs every command on the pages in order, as a user would type it.

Commands are the lines of ```sh blocks, the ```python blocks, and text in backticks that
starts with the name of a program. Each is run in a folder with synthetic data, or is
listed in NOT_RUN.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.against_original import made_data, write_data
from srgnn_jax.convert import params_to_torch
from srgnn_jax.model.srgnn import SRGNN, init_params
from tests.command import QUICK_TO_COMPILE
from tests.raw_files import write_clicks, write_views
from tests.test_docs import GENERATE
from tests.torch_files import tensors, write_pth

ROOT = Path(__file__).parents[1]
ITEMS = 20

# Commands that are not run here, with the reason or the test that covers them.
INSTALLS = "installs"
BY_MAKE = "a target of the Makefile, which installs; "
PLAN = (
    "python -m srgnn_jax.plan --items=100_000_000 --embedding_size=64 "
    "--batch_size=4096 "
)
PLANNED = "test_tpu.py::test_an_exact_step_of_diginetica"
NOT_RUN = {
    "make test": BY_MAKE + "runs this",
    "make test-slow": BY_MAKE + "runs this",
    "make test-long": BY_MAKE + "test_promises runs its commands with fewer cases",
    "make test-tpu": "installs libtpu; " + PLANNED,
    "make parity": BY_MAKE + "test_parity.py::test_recorded_numbers_of_both_codes",
    "make parity-table": BY_MAKE + "test_parity.py::test_live_torch_model",
    "pip install -e '.[export]'": INSTALLS,
    "python -m benchmarks.markov_log --output=markov/log.csv": "test_benchmarks.py::"
    "test_the_next_click_of_a_made_log_depends_on_the_last_one",
    "pip install '.[search]'": INSTALLS,
    "pip install '.[plots]'": INSTALLS,
    "pip install '.[serve]'": INSTALLS,
    "pip install '.[hub]'": INSTALLS,
    "make docs": "installs Sphinx; test_docs.py::test_the_site_has_every_page",
    "pip install -e '.[cuda]'": INSTALLS,
    "python -m srgnn_jax.main": "the name of the program",
    "srgnn --help": "test_main.py::test_help_says_what_every_flag_and_every_mode_does",
    "python -m benchmarks.against_recbole --epochs=2 --rounds=1": "installs RecBole; "
    "test_benchmarks.py::test_epochs_are_timed_apart_from_the_first",
    "pip install '.[tpu]'": INSTALLS,
    PLAN + "--target=v5e:4x4 --mesh_shape 1 16": "needs libtpu; " + PLANNED,
    PLAN + "--target=h100:8 --mesh_shape 1 8": "needs two wheels of CUDA; " + PLANNED,
    "srun python -m srgnn_jax.main --config=configs/yoochoose.py:1_4 --workdir=DIR "
    "--distributed": "needs Slurm; "
    "test_processes.py::test_two_processes_of_four_devices_are_one_of_eight",
    "python -m srgnn_jax.main --config=configs/yoochoose.py:1_4 --workdir=DIR "
    "--coordinator_address=HOST:PORT --num_processes=2 --process_id=0": "one of two; "
    "test_processes.py::test_two_processes_of_four_devices_are_one_of_eight",
}
# The command that a target of the Makefile runs after installing.
TRAIN = ".venv/bin/python -m srgnn_jax.main --config=configs/synthetic.py"
MADE = {"make train": TRAIN}
# Pages whose blocks another test runs.
HELD = {
    "own_data.md": "test_wheel.py::test_every_command_of_own_data_works_in_turn",
    "index.md": "test_docs.py::test_the_site_has_every_page",
    "changelog.md": "test_docs.py::test_the_site_has_every_page",
    "contributing.md": "test_docs.py::test_the_site_has_every_page",
    "tables.md": "test_docs.py::test_the_site_has_every_page",
    "how_it_works.md": "test_notebooks.py::"
    "test_the_code_of_how_it_works_prints_what_it_says",
    "leaks.md": "test_leaks.py",
    "data_sets.md": "test_sources.py::test_events_of_visitors_are_cut_into_visits, "
    "test_ready_made.py and "
    "test_store.py::test_named_data_sets_are_read_by_the_source_of_their_form",
    "joined.md": "test_joined.py",
    "serving.md": "test_server.py::test_every_command_of_serving_works_in_turn",
    "own_model.md": "test_handed_in.py::test_an_example_goes_through_every_mode and "
    "test_a_config_file_hands_its_model_in",
}
# Pages that are run here, and settings of their processes.
RUN = {
    "README.md": {},
    "recommend.md": {},
    "results.md": {},
    "pytorch.md": {},
    "speed.md": {},
    "many_devices.md": {"JAX_NUM_CPU_DEVICES": "8"},
    "promises.md": {},
    "find_settings.md": {},
    "nightly.md": {},
}

# Flags to append to commands that match a pattern, to make them small.
BENCHMARK = "--items=300 --embedding_size=8 --rounds=1"
SMALL = {
    r"^(?!.*=baselines).*--config=\S*(diginetica|yoochoose|ml100k|click_log|synthetic|"
    "shop)": "--config.embedding_size=8 --config.epochs=1 --config.batch_size=50",
    "--config=(configs/)?synthetic": "--config.train_fraction=0.02",
    "--config=click_log.*=data ": "--config.train_fraction=0.05",
    "configs/click_log.py|--config=click_log.*=DIR": "--config.log_file=LOG.csv",
    "--config=shop.py": "--config.data_dir=DIR --config.log_file=LOG.csv",
    "benchmarks.against_original": "--rounds=1 --steps=4 --window=2 --embedding_size=8",
    r"benchmarks\.(as_)?original": "--epochs=1 --window=2 --embedding_size=8",
    "benchmarks.train_step": f"{BENCHMARK} --calls=2",
    "benchmarks.evaluate": f"{BENCHMARK} --examples=512",
    "benchmarks.recommend": f"{BENCHMARK} --calls=2 --sessions=100 --neighbours=200",
    "benchmarks.first_pass": f"{BENCHMARK} --components=4 --kept=32",
    "benchmarks.warm_start": "--sessions=300 --items=60 --epochs=1 "
    "--config.embedding_size=8 --config.batch_size=50",
    "benchmarks.prepare": "--clicks=50000 --fractions=1_4",
    # One of its points; each is a process.
    "benchmarks.scaling": '--point=\'{"items": 300, "embedding_size": 8, '
    '"batch_size": 8, "mean_length": 4}\'',
    "tests.kill_and_resume": "--kills=1",
    "tests.kill_search": "--trials=6 --kills=1",
    "--mode=search": "--trials=2",
    "--config.runs=3": "--config.runs=2",
    "tests.fuzz_readers": "--cases=20",
    "tests.fuzz_http": "--cases=20",
}
SMALL_IN_PYTHON = """
config = click_log.get_config()
config.update(embedding_size=8, epochs=1, batch_size=50, train_fraction=0.05)
"""
PROGRAMS = "echo|git|make|pip|python|srgnn|srun"


def commands(page):
    """Returns (kind, text) of a page's commands: "sh", "python" or "inline"."""
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    found = []
    for language, block, inline in re.findall(
        rf"^```(\w*)\n(.*?)^```$|`((?:{PROGRAMS}) [^`\n]+)`",
        path.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    ):
        if inline:
            found.append(("inline", inline))
        elif language == "sh":
            lines = re.sub(r" *\\\n *", " ", block).splitlines()
            found += [("sh", re.sub(r" +# .*", "", line)) for line in lines]
        elif language == "python":
            found.append(("python", block))
        else:
            assert language in ("", "bibtex"), f"{page}: a block of {language}"
    return found


def write_everything(folder):
    """Writes the files that the pages' commands read, under the names used there."""
    data = folder / "DIR"
    # Published pickles, and raw files, which take precedence.
    write_data(data, *made_data(ITEMS + 1, 400, 30))
    write_views(data / "train-item-views.csv")
    half_days = [
        (session, 21455 + (session + place) % ITEMS, session * 43_200 + place)
        for session in range(800)
        for place in range(3)
    ]
    write_clicks(
        data / "yoochoose-clicks.dat", [(s, i, 1_000_000 * t) for s, i, t in half_days]
    )
    users = [
        f"{user}\t{(user + place) % ITEMS}\t5\t{100 * user + place}\n"
        for user in range(ITEMS)
        for place in range(10)
    ]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (data / "ml-100k.inter").write_text(header + "".join(users))
    ids = ["81766", "31331", *map(str, range(ITEMS - 2))]
    log = [f"{s},{ids[i - 21455]},{t}" for s, i, t in half_days[-600:]]
    for path in (data / "LOG.csv", folder / "LOG.csv"):
        path.write_text("\n".join(["session_id,item_id,timestamp", *log]))
    params = init_params(SRGNN(ITEMS + 1, 8), 0)
    weights = params_to_torch(params, "recbole")
    write_pth(folder / "SRGNN.pth", {"state_dict": tensors(weights)})
    (folder / "configs").symlink_to(ROOT / "configs")
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    for name, what in (("python", '"$@"'), ("srgnn", '-m srgnn_jax.main "$@"')):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what}\n')
        (programs / name).chmod(0o755)


def run_page(page, folder):
    """Runs a page's commands in order; returns (command, output) of each.

    The README's `source` command applies to all pages.
    """
    if not (folder / "DIR").exists():
        write_everything(folder)
    others = [
        path
        for path in os.environ["PATH"].split(os.pathsep)
        if not Path(path, "srgnn").exists()
    ]
    environment = {
        **os.environ,
        **RUN[page],
        "HOME": str(folder),
        "PATH": os.pathsep.join(others),
        "PYTHONPATH": str(ROOT),
        # One device, as on most machines, unless RUN sets more.
        "XLA_FLAGS": QUICK_TO_COMPILE,
    }

    before = ["set -o pipefail"]
    if page != "README.md":
        before += ["source .venv/bin/activate"]

    def run(command):
        flags = [flags for key, flags in SMALL.items() if re.search(key, command)]
        done = subprocess.run(
            ["bash", "-c", "\n".join([*before, " ".join([command, *flags])])],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("source "):
            before.append(command)
        return command, done.stdout

    outputs = []
    for kind, command in commands(page):
        if command in NOT_RUN:
            continue
        if "def get_config" in command:
            (folder / "shop.py").write_text(command)
            command = "python -m srgnn_jax.main --config=shop.py"
        elif kind == "python":
            call = "click_log.get_config()"
            if call in command:
                head, *rest = command.partition("\n\nclicks")
                command = head + SMALL_IN_PYTHON + "".join(rest).replace(call, "config")
            (folder / "block.py").write_text(command)
            command = "python block.py"
        outputs.append(run(MADE.get(command, command)))
    return outputs


def test_every_page_is_run_or_held_or_made():
    pages = ["README.md", *(path.name for path in (ROOT / "docs").glob("*.md"))]
    assert sorted(pages) == sorted([*RUN, *HELD, *GENERATE["PAGES"]])
    inline = [
        command for page in HELD for kind, command in commands(page) if kind == "inline"
    ]
    assert set(inline) <= NOT_RUN.keys()


def test_what_is_not_run_is_on_a_page_and_held_by_a_test_that_there_is():
    on_pages = {command for page in (*RUN, *HELD) for _, command in commands(page)}
    assert NOT_RUN.keys() <= on_pages
    for why in (*NOT_RUN.values(), *HELD.values()):
        for file, test in re.findall(r"(test_\w+\.py)(?:::(\w+))?", why):
            assert f"def {test}" in (ROOT / "tests" / file).read_text()


def test_what_make_runs_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target, command in MADE.items():
        name = target.removeprefix("make ")
        recipe = re.search(rf"^{name}:.*\n\t(.*)$", makefile, re.MULTILINE)[1]
        assert recipe.replace("$(BIN)", ".venv/bin") == command


@pytest.mark.slow  # some twenty processes
def test_readme_then_recommend(tmp_path):
    said = dict(run_page("README.md", tmp_path))

    def table(command):
        return said[command].split(" (step ")[1].split("\n\nThe run is in")[0].strip()

    evaluated = table("srgnn --mode=evaluate --workdir=runs/synthetic")
    assert evaluated == table(TRAIN)
    assert "STAN test" in evaluated
    (recommended,) = (text for command, text in said.items() if "--k=5" in command)
    found = json.loads(recommended)
    assert len(found["items"]) == 5
    assert not found["unknown"]
    outputs = run_page("recommend.md", tmp_path)
    assert not [text for _, text in outputs if '"unknown": ["' in text]
    assert (tmp_path / "exported" / "recommender.py").is_file()
    assert (tmp_path / "explanation.png").is_file()


@pytest.mark.slow  # some twenty processes
def test_results(tmp_path):
    said = dict(run_page("results.md", tmp_path))
    assert "diginetica" in (tmp_path / "RESULTS.md").read_text().lower()
    assert "STAN" in next(
        text for command, text in said.items() if "=baselin" in command
    )


@pytest.mark.slow  # benchmarks
@pytest.mark.parametrize("page", ["pytorch.md", "speed.md"])
def test_benchmarks_of(page, tmp_path):
    assert len(run_page(page, tmp_path)) > 3


@pytest.mark.slow  # trains under three layouts
def test_many_devices(tmp_path):
    assert len(run_page("many_devices.md", tmp_path)) == 3


@pytest.mark.slow  # kills a training
def test_promises(tmp_path):
    said = {
        re.search(r"tests\.\w+", command)[0]: output
        for command, output in run_page("promises.md", tmp_path)
    }
    assert "all end bit-identical" in said["tests.kill_and_resume"]
    assert "trials are the same" in said["tests.kill_search"]
    assert "forms: 0 of 20 went wrong" in said["tests.fuzz_readers"]


@pytest.mark.slow  # six trainings
def test_nightly(tmp_path):
    said = [output for _, output in run_page("nightly.md", tmp_path)]
    assert "promoted: runs/live now points to 2026-11-26" in said[1]
    assert "0 new" in said[2]
    assert (tmp_path / "runs/compared/from_nothing/results.json").is_file()
    assert "old targets" in said[-1]


@pytest.mark.slow  # two searches, and three runs of the best settings
def test_search(tmp_path):
    said = [output for _, output in run_page("find_settings.md", tmp_path)]
    assert len(said) == 5
    for number in (0, 2):
        assert "2 of 2 trials" in said[number]
    assert "mean" in said[3]
    assert (tmp_path / "runs/shop_search/best.py").is_file()
