"""The command line as users see it: what works, and one clear line if it fails."""

import json
import os
import pwd
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import types

import jax
import pytest

from srgnn_jax import config as config_lib
from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError
from srgnn_jax.main import MODES
from tests.command import ROOT, srgnn
from tests.tiny import tiny_config, write_log

CLICK_LOG = "--config=configs/click_log.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x"], "--config is missing; try --config=synthetic"),
        (["--config=configs/nowhere.py"], "no file configs/nowhere.py"),
        ([CLICK_LOG, "--config.embeding_size=3"], "did you mean embedding_size?"),
        ([CLICK_LOG, "--config.embedding_size=big"], "embedding_size=big"),
        (["--config=configs/yoochose.py"], "no file configs/yoochose.py; did you mean"),
        (["--config", "yoochose:1_4"], "no file yoochose; did you mean yoochoose?"),
        (["--config=nowhere"], "the shipped configs are click_log, click_log_paper"),
        (["--config=yoochoose:1_5"], "choose one of 1_64, 1_4"),
        (["--config=configs/yoochoose.py:1_5"], "choose one of 1_64, 1_4"),
        (["--config=click_log:3"], "this config takes no argument after a colon"),
        (["--mode=tarin"], "train|evaluate"),
        (["--mode=evalute"], "did you mean evaluate?"),
        (["--mode=exprot"], "did you mean export?"),
        (["--wrkdir=x"], "Did you mean: workdir"),
        (["--confg.epochs=1"], "did you mean config?"),
        (["--config.epochs=1"], "to set fields, also name a config"),
        (["--data_dir=x"], "no flag --data_dir; set a field with --config.data_dir"),
        (["--data-dir=x"], "no flag --data-dir; set a field with --config.data_dir"),
        ([CLICK_LOG, "--config.data-dir=x"], "no field data-dir; did you mean data_di"),
        (
            ["--mode=recommend", "--workdir=x", CLICK_LOG, "--config.batch_size=7"],
            "--config.batch_size has no effect with --mode=recommend: the run has its",
        ),
        (
            ["--mode=plot", "--workdir=x", "--config.ks=7"],
            "--config.ks has no effect with --mode=plot: the run has its own",
        ),
        (
            ["--mode=evaluate", "--workdir=x", "--config.epochs=7"],
            "--config.epochs has no effect with --mode=evaluate; leave it out",
        ),
        (
            ["--mode=evaluate", "--workdir=x", "--sessions=y", "--config.joined=True"],
            "--config.joined has no effect with --mode=evaluate --sessions; leave it",
        ),
        (
            [
                "--mode=evaluate",
                "--workdir=x",
                "--sessions=y",
                "--config.item_column=z",
            ],
            "x/checkpoints does not exist",
        ),
        (
            ["--mode=promote", "--workdir=x", "--live=y", "--config.data_dir=z"],
            "x/checkpoints does not exist",
        ),
        (
            ["--mode=promote", "--workdir=x", "--live=y", "--config.joined=True"],
            "--config.joined has no effect with --mode=promote; leave it out",
        ),
        (
            ["--mode=import", "--workdir=x", "--torch_checkpoint=y", "--vocabulary=z"],
            "y: cannot be read",
        ),
        (
            ["--mode=baselines", CLICK_LOG, "--config.learning_rate=7"],
            "--config.learning_rate has no effect with --mode=baselines",
        ),
        ([CLICK_LOG, "extra"], "unexpected argument 'extra'"),
        (["--mode=evaluate"], "needs --workdir"),
        (["--mode=evaluate", "--workdir="], "needs --workdir"),
        (["--mode=recommend"], "needs --workdir"),
        (["--mode=recommend", "--workdir=x"], "needs --sessions, a file, or -"),
        (["--mode=export", "--workdir=x"], "needs --output"),
        (["--mode=plot"], "needs --workdir"),
        (
            ["--mode=recommend", "--workdir=x", "--output=y"],
            "--output has no effect with --mode=recommend; it is for --mode=export",
        ),
        (
            [CLICK_LOG, "--noexclude_seen"],
            "--exclude_seen has no effect with --mode=tra",
        ),
        (["--mode=plot", "--workdir=x"], "x holds no results.json"),
    ],
)
def test_wrong_flags_end_in_one_line(arguments, message):
    done = srgnn(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_command_alone_says_what_to_do_first():
    done = srgnn()
    assert done.returncode == 1
    (command,) = re.findall(r"^  (.*) --config=synthetic$", done.stderr, re.MULTILINE)
    assert not done.stderr.startswith("error")
    # The command is in the form that works here.
    asked = [*shlex.split(command), "--mode=nothing"]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert "error: flag --mode=nothing" in found.stderr


def test_a_python_without_the_packages_is_told_how_to_have_them():
    command = [sys.executable, "-S", "-m", "srgnn_jax.main"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not find absl: in a clone, run make venv" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_says_what_every_flag_and_every_mode_does():
    command = [sys.executable, "-m", "srgnn_jax.main", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("Trains and evaluates SR-GNN")
    ours = done.stdout.split("srgnn_jax/main.py:\n")[1].split("\nTry --helpfull")[0]
    flags = re.findall(r"^  --(\S+):\s+(.*(?:\n    .*)*)", ours, re.MULTILINE)
    assert len(flags) == len(re.findall("^  --", ours, re.MULTILINE))
    for name, text in flags:
        assert re.match("[A-Z<]", text), name
        assert text.split("\n    (")[0].endswith("."), name
    (mode,) = (" ".join(text.split()) for name, text in flags if name == "mode")
    for one in MODES:
        assert f"{one}: " in mode
        assert one == "train" or f"--mode={one} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.select_on=tset"], "config.select_on is 'tset'; choose one of"),
        (["--config.test_days=inf"], "config.test_days is inf; it must be finite"),
        (["--config.separator=;;"], "no session column among 'session_id,item_id,"),
        (
            ['--config.separator="'],
            "separator is '\"'; it must not contain a quote or a line",
        ),
        (["--config.encoding=klingon"], "encoding is 'klingon'; it must name an enc"),
        (["--config.time_unit=hours"], "config.time_unit is 'hours'; choose one of"),
        (["--config.batch_size=0"], "config.batch_size is 0; it must be at least 1"),
        (["--config.select_by=map@20"], "config.select_by is 'map@20'"),
        (["--config.dataset=yoochose"], "did you mean yoochoose?"),
        (["--config.data_dir=nowhere"], "config.data_dir = 'nowhere' does not exist"),
        (["--config.on_bad_row=error"], "log.csv, line 4: 2 fields instead of 3"),
    ],
)
def test_what_the_user_can_mend_ends_in_one_line(tmp_path, arguments, message):
    write_log(tmp_path / "data" / "log.csv")
    lines = (tmp_path / "data" / "log.csv").read_text().splitlines()
    lines.insert(3, "7,item3")
    (tmp_path / "data" / "log.csv").write_text("\n".join(lines))
    done = srgnn(
        CLICK_LOG,
        f"--config.data_dir={tmp_path / 'data'}",
        f"--config.prepared_dir={tmp_path / 'prepared'}",
        f"--workdir={tmp_path / 'run'}",
        *arguments,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_shipped_configs_are_found_by_name_and_by_path(tmp_path):
    missing = f"--config.data_dir={tmp_path}"
    for config in ("yoochoose:1_4", f"{ROOT}/configs/yoochoose.py:1_4"):
        done = srgnn(f"--config={config}", missing, cwd=tmp_path)
        assert "no file yoochoose-clicks.dat" in done.stderr
    (tmp_path / "yoochoose").mkdir()
    (tmp_path / "flags").write_text("--config=yoochoose:1_5\n")
    done = srgnn("--flagfile=flags", cwd=tmp_path)
    assert "choose one of 1_64, 1_4" in done.stderr


def test_missing_raw_files_are_named_with_their_source(tmp_path):
    for config, file, source in (
        ("diginetica", "train-item-views.csv", "CIKM Cup 2016"),
        ("yoochoose", "yoochoose-clicks.dat", "RecSys Challenge 2015"),
    ):
        done = srgnn(f"--config=configs/{config}.py", f"--config.data_dir={tmp_path}")
        assert done.returncode == 1
        for word in (file, source, str(tmp_path), "all_train_seq.txt"):
            assert word in done.stderr
        assert "Traceback" not in done.stderr


def test_train_then_evaluate(tmp_path):
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
    table, what_next = trained.stdout.split(" (step ")[1].split("\nThe run is in ")
    assert what_next.startswith("runs/click_log. Next")
    assert "--mode=plot --workdir=runs/click_log\n" in what_next
    sessions = re.search(r"echo '(.*)' \|", what_next)[1]
    assert len(json.loads(sessions)["session"]) == 2
    # The default workdir is named after the config.
    counts = json.loads((tmp_path / "runs" / "click_log" / "counts.json").read_text())
    assert counts["items"] == 20
    evaluated = srgnn("--mode=evaluate", "--workdir=runs/click_log", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.split(" (step ")[1] == table
    # Other list lengths need no --config.
    asked = "--mode=evaluate", "--workdir=runs/click_log", "--config.ks=3,20"
    evaluated = srgnn(*asked, cwd=tmp_path)
    assert re.findall(r"^recall@(\d+)", evaluated.stdout, re.MULTILINE) == [
        *("5", "10", "20", "3")
    ]
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
def test_a_broken_config_file_ends_in_one_line(tmp_path, line, message):
    (tmp_path / "mine.py").write_text(
        "from srgnn_jax.configs import default\n\n\ndef get_config():\n"
        f"    c = default.get_config()\n    {line}\n    return c\n"
    )
    done = srgnn(f"--config={tmp_path / 'mine.py'}")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow  # processes
def test_a_command_settles_its_process_and_loading_a_model_does_not(tmp_path):
    """Checks calls of glibc, and where compiled functions are kept."""
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


@pytest.fixture(params=["no home folder", "one that cannot be written"])
def no_cache_folder(request, monkeypatch):
    """Prevents making the usual cache folder; returns its name as printed."""
    if request.param == "one that cannot be written":
        monkeypatch.setenv("HOME", "/proc")
        return "/proc/.cache/srgnn_jax"

    def no_entry(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    return "~/.cache/srgnn_jax"


def test_where_the_cache_folder_cannot_be_written_a_line_says_so(
    no_cache_folder, monkeypatch, caplog
):
    monkeypatch.setattr(processes, "glibc", lambda *_: None)
    settings = {"jax_compilation_cache_dir": None}
    config = types.SimpleNamespace(values=settings, update=settings.__setitem__)
    monkeypatch.setattr(jax, "config", config)
    processes.settle_process()
    assert [record.getMessage() for record in caplog.records] == [
        f"compiled functions are not cached, because {no_cache_folder}/compiled cannot "
        "be written; set JAX_COMPILATION_CACHE_DIR to another folder"
    ]
    if no_cache_folder.startswith("~"):
        assert settings["jax_compilation_cache_dir"] is None


def test_a_named_cache_folder_is_told_too_if_it_cannot_be_written(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(processes, "glibc", lambda *_: None)
    for folder, messages in [
        ("/proc/none", 1),
        (tmp_path / "new", 0),
        ("gs://bucket/x", 0),
    ]:
        caplog.clear()
        settings = {"jax_compilation_cache_dir": str(folder)}
        monkeypatch.setattr(jax, "config", types.SimpleNamespace(values=settings))
        processes.settle_process()
        assert len(caplog.records) == messages, folder


def test_prepared_data_without_a_home_folder_lies_among_this_users_temporary_files(
    no_cache_folder, tmp_path, monkeypatch, caplog
):
    config = tiny_config(tmp_path)
    config.prepared_dir = ""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config_lib.load_data(config)
    message = caplog.records[0].getMessage()
    folder = tmp_path / f"srgnn_jax-{os.getuid()}"
    assert f"kept in {folder}, because {no_cache_folder} cannot be written" in message
    assert "--config.prepared_dir" in message
    assert list(folder.glob("click_log-*/vocabulary.parquet"))
    # Anyone else who may write there could have made it.
    folder.chmod(0o770)
    with pytest.raises(
        UserError, match=r"not private to this user\); set one with --con"
    ):
        config_lib.load_data(config)
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with pytest.raises(UserError, match=r"no folder for prepared data: .*prepared_dir"):
        config_lib.load_data(config)


def run_in_an_environment(environment, *arguments, before=""):
    """Runs the command in a new Python process, after the code `before`."""
    code = f"import sys\nsys.argv[0] = 'srgnn'\n{before}\n"
    code += "from srgnn_jax.main import main\nmain()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_platform_that_is_not_there_is_told_in_one_line():
    arguments = "--mode=recommend", "--workdir=none", "--sessions=-"
    done = run_in_an_environment({"JAX_PLATFORMS": "nonsense"}, *arguments)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: JAX_PLATFORMS=nonsense, but JAX finds only \w+ here \(.*nonsense.*\); "
        r"set JAX_PLATFORMS=\w+, or unset it\n",
        done.stderr,
    )


def test_what_jax_fails_to_say_of_a_platform_is_told(monkeypatch):
    """If a plugin is missing, JAX raises an AssertionError without a message."""
    settings, (device, *_) = {"jax_platforms": "cuda"}, jax.devices()

    def devices():
        assert settings["jax_platforms"] is None
        return [device]

    config = types.SimpleNamespace(values=settings, update=settings.__setitem__)
    monkeypatch.setattr(jax, "config", config)
    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match=r"JAX_PLATFORMS=cuda, but JAX finds only cpu"):
        processes.start_backend()

    def lost():
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    # This is not the platform's fault.
    settings["jax_platforms"] = "cpu"
    monkeypatch.setattr(jax, "devices", lost)
    with pytest.raises(RuntimeError, match="Barrier timed out"):
        processes.start_backend()


@pytest.mark.slow  # processes
def test_a_path_of_a_home_folder_that_there_is_not_ends_in_one_line(tmp_path):
    before = "import os, pwd\ndel os.environ['HOME']\npwd.getpwuid = {}.__getitem__"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    arguments = "--mode=recommend", "--workdir=~/run", "--sessions=/dev/null"
    done = run_in_an_environment(cache, *arguments, before=before)
    assert done.returncode == 1
    expected = "error: a path begins with ~, but this user has no home folder; write "
    assert done.stderr == f"{expected}the path in full, or set HOME\n"
