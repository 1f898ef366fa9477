"""The command line as users meet it: what works, and one clear line if it does not."""

import json
import os
import re
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import pytest

from srgnn_jax import main
from srgnn_jax.errors import UserError
from tests.tiny import write_log

ROOT = Path(__file__).parents[1]
CLICK_LOG = "--config=configs/click_log.py"


def srgnn(*arguments, cwd=ROOT):
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.run(
        [sys.executable, "-m", "srgnn_jax.main", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_here(monkeypatch, *arguments):
    """Does what the command does, without a process of its own."""
    monkeypatch.setattr("sys.argv", ["srgnn", *arguments])
    # The flags are those of the process: what another command has set of them goes.
    for name in [name for name in main.FLAGS if name.startswith("config.")]:
        delattr(main.FLAGS, name)
    for flag in main.FLAGS.flags_by_module_dict()[main.__name__]:
        flag.unparse()
    with warnings.catch_warnings():
        # ml_collections loads a config by a method that Python will drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        main.parse(sys.argv)
    main.check_flags()
    main.run_mode()


def refused(monkeypatch, *arguments):
    """Returns the one line that a command ends in."""
    with pytest.raises(UserError) as error:
        run_here(monkeypatch, *arguments)
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config=configs/nowhere.py"], "no file configs/nowhere.py"),
        ([CLICK_LOG, "--config.embeding_size=3"], "did you mean embedding_size?"),
        ([CLICK_LOG, "--config.embedding_size=big"], "embedding_size=big"),
        (["--config=configs/yoochose.py"], "no file configs/yoochose.py; did you mean"),
        (["--config", "yoochose:1_4"], "no file yoochose; did you mean yoochoose?"),
        (["--config=nowhere"], "those that come along are click_log, default"),
        (["--config=yoochoose:1_5"], "choose one of 1_64, 1_4"),
        (["--config=configs/yoochoose.py:1_5"], "choose one of 1_64, 1_4"),
        (["--config=click_log:3"], "nothing to choose by a colon after this config"),
        (["--mode=tarin"], "train|evaluate"),
        (["--mode=evalute"], "did you mean evaluate?"),
        (["--mode=exprot"], "did you mean export?"),
        (["--wrkdir=x"], "Did you mean: workdir"),
        (["--confg.epochs=1"], "did you mean config?"),
        (["--config.epochs=1"], "fields can be set where --config names a config"),
        ([CLICK_LOG, "extra"], "unexpected argument 'extra'"),
        (["--mode=evaluate"], "needs --workdir"),
        (["--mode=evaluate", "--workdir="], "needs --workdir"),
        (["--mode=recommend"], "needs --workdir"),
        (["--mode=recommend", "--workdir=x"], "needs --sessions, a file, or -"),
        (["--mode=export", "--workdir=x"], "needs --output"),
        (["--mode=plot"], "needs --workdir"),
        (
            ["--mode=recommend", "--workdir=x", "--output=y"],
            "--output does nothing with --mode=recommend; it is for --mode=export",
        ),
        (
            [CLICK_LOG, "--noexclude_seen"],
            "--exclude_seen does nothing with --mode=tra",
        ),
        (["--mode=plot", "--workdir=x"], "x holds no results.json"),
    ],
)
def test_wrong_flags_end_in_one_line(monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    assert message in refused(monkeypatch, *arguments)


@pytest.mark.parametrize("argument", ["--wrkdir=x", "--mode=recommend"])
def test_the_process_of_a_wrong_flag_ends_in_that_line(argument):
    done = srgnn(argument)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "workdir" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_says_what_every_flag_and_every_mode_does():
    done = srgnn("--help")
    assert done.stdout.startswith("Trains and evaluates SR-GNN")
    ours = done.stdout.split("srgnn_jax/main.py:\n")[1].split("\nTry --helpfull")[0]
    flags = re.findall(r"^  --(\S+): (.*(?:\n    .*)*)", ours, re.MULTILINE)
    assert len(flags) == len(re.findall("^  --", ours, re.MULTILINE))
    for name, text in flags:
        assert re.match("[A-Z<]", text), name
        assert text.split("\n    (")[0].endswith("."), name
    (mode,) = (" ".join(text.split()) for name, text in flags if name == "mode")
    for one in main.MODES:
        assert f"{one}: " in mode
        assert one == "train" or f"--mode={one} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.select_on=tset"], "config.select_on is 'tset'; choose one of"),
        (["--config.test_days=inf"], "config.test_days is inf; it must be finite"),
        (["--config.separator=;;"], "config.separator is ';;'; it must be one"),
        (["--config.batch_size=0"], "config.batch_size is 0; it must be at least 1"),
        (["--config.select_by=map@20"], "config.select_by is 'map@20'"),
        (["--config.dataset=yoochose"], "did you mean yoochoose?"),
        (["--config.data_dir=nowhere"], "no log in config.data_dir = 'nowhere'"),
    ],
)
def test_what_the_user_can_mend_is_told(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    places = f"--config.data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"
    assert message in refused(monkeypatch, CLICK_LOG, *places, *arguments)


def test_what_the_user_can_mend_ends_in_one_line(tmp_path):
    write_log(tmp_path / "data" / "log.csv")
    lines = (tmp_path / "data" / "log.csv").read_text().splitlines()
    lines.insert(3, "7,item3")
    (tmp_path / "data" / "log.csv").write_text("\n".join(lines))
    done = srgnn(
        CLICK_LOG,
        f"--config.data_dir={tmp_path / 'data'}",
        f"--config.prepared_dir={tmp_path / 'prepared'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.on_bad_row=error",
    )
    assert done.returncode == 1
    assert "log.csv, line 4: 2 fields instead of 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_shipped_configs_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = f"--config.data_dir={tmp_path}"
    for config in ("yoochoose:1_4", f"{ROOT}/configs/yoochoose.py:1_4"):
        said = refused(monkeypatch, f"--config={config}", missing)
        assert "no file yoochoose-clicks.dat" in said
    (tmp_path / "yoochoose").mkdir()
    (tmp_path / "flags").write_text("--config=yoochoose:1_5\n")
    assert "choose one of 1_64, 1_4" in refused(monkeypatch, "--flagfile=flags")


@pytest.mark.parametrize(
    ("config", "file", "source"),
    [
        ("diginetica", "train-item-views.csv", "CIKM Cup 2016"),
        ("yoochoose", "yoochoose-clicks.dat", "RecSys Challenge 2015"),
    ],
)
def test_missing_raw_files_are_named_with_their_source(
    tmp_path, monkeypatch, config, file, source
):
    said = refused(monkeypatch, f"--config={config}", f"--config.data_dir={tmp_path}")
    for word in (file, source, str(tmp_path), "all_train_seq.txt"):
        assert word in said


def test_train_then_evaluate(tmp_path, monkeypatch, capsys):
    write_log(tmp_path / "data" / "log.csv")
    settings = [
        CLICK_LOG.replace("configs", str(ROOT / "configs")),
        f"--config.data_dir={tmp_path / 'data'}",
        f"--config.prepared_dir={tmp_path / 'prepared'}",
        "--config.test_days=0.35",
        "--config.embedding_size=8",
        "--config.epochs=1",
        "--config.parallel=jit",
    ]
    trained = srgnn(*settings, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    table = trained.stdout.split(" (step ")[1]
    # The default workdir is named after the config.
    counts = json.loads((tmp_path / "runs" / "click_log" / "counts.json").read_text())
    assert counts["items"] == 20
    monkeypatch.chdir(tmp_path)
    run_here(monkeypatch, "--mode=evaluate", "--workdir=runs/click_log")
    assert capsys.readouterr().out.split(" (step ")[1] == table
    # No control characters reach a log file.
    assert "\r" not in trained.stdout + trained.stderr
    assert "\x1b" not in trained.stdout + trained.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.embeding_size = 3", "has no field embeding_size; did you mean embedding_s"),
        ("c.batch_size = 'many'", "batch_size"),
        ("c.name = unheard_of", "unheard_of"),
        ("c.name = default.get_confg()", "get_confg"),
        ("c.name = = 1", "invalid syntax"),
        ("c = 1", "returns no ConfigDict"),
    ],
)
def test_a_broken_config_file_ends_in_one_line(tmp_path, monkeypatch, line, message):
    (tmp_path / "mine.py").write_text(
        "from srgnn_jax.configs import default\n\n\ndef get_config():\n"
        f"    c = default.get_config()\n    {line}\n    return c\n"
    )
    assert message in refused(monkeypatch, f"--config={tmp_path / 'mine.py'}")


def test_a_command_settles_its_process_and_loading_a_model_does_not(tmp_path):
    """What glibc is called for, and where compiled functions are kept."""
    code = (
        "import ctypes, sys\n"
        "import jax\n"
        "from srgnn_jax import Recommender\n"
        "from srgnn_jax.devices import processes\n"
        "called, CDLL = [], ctypes.CDLL\n"
        "class Library:\n"
        "    def __getattr__(self, name):\n"
        "        return lambda *_: called.append(name)\n"
        "ctypes.CDLL = lambda name, *_: CDLL(name, *_) if name else Library()\n"
        "Recommender.load(sys.argv[1])\n"
        "assert 'mallopt' not in called, called\n"
        "assert not jax.config.values['jax_compilation_cache_dir']\n"
        "processes.settle_process()\n"
        "assert called[-3:] == ['mallopt'] * 3, called\n"
        "assert jax.config.values['jax_compilation_cache_dir']\n"
    )
    with tarfile.open(ROOT / "tests" / "golden" / "run_0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
