"""Messages about a command line: its errors, and the next commands to run."""

import json
import os
import pathlib
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable

from absl import flags

from srgnn_jax.configs import default
from srgnn_jax.errors import UserError, nearest

# The modes of flags that are not for all modes.
ONLY_FOR = {
    "torch_checkpoint": ("import",),
    "vocabulary": ("import",),
    "sessions": ("recommend", "evaluate"),
    "k": ("recommend", "export"),
    "exclude_seen": ("recommend",),
    "candidates": ("recommend",),
    "as_probabilities": ("recommend",),
    "recall": ("recommend",),
    "output": ("export",),
    **dict.fromkeys(("host", "port", "auth_token_file"), ("serve",)),
    **dict.fromkeys(("candidates_folder", "reload_every", "max_wait"), ("serve",)),
    "log_requests": ("serve",),
    "trials": ("search",),
    "minutes": ("search",),
    "compare": ("train",),
    "live": ("promote",),
}
# The flag that a mode requires besides --config or --workdir.
NEEDS = {
    "recommend": ("sessions", "a file, or - for stdin"),
    "export": ("output", "the folder to write"),
    "import": ("torch_checkpoint", "the file to read"),
    "promote": ("live", "the link to switch"),
}
MOST_CONFIG_BYTES = 2**20
SHIPPED = {
    path.stem: path
    for path in pathlib.Path(__file__).with_name("configs").glob("[!_]*.py")
}
# These modes ignore all fields of a config, because the run has its own.
_OF_A_RUN = ("recommend", "serve", "export", "plot")
# An evaluation ignores these, which may therefore differ from the run's.
_OF_TRAINING = {
    *("checkpoint_every_minutes", "checkpoint_every_steps", "epochs", "max_steps"),
    *("log_every_steps", "name", "runs"),
}
# An evaluation on a log uses only these, and those for reading a log.
_OF_SESSIONS = {
    *("date_column", "eval_batch_size", "ks"),
    *("max_positions", "max_scores", "progress"),
}
# Baselines use only these, and those for preparing data.
_OF_BASELINES = {
    *("dataset", "data_dir", "prepared_dir", "name", "progress", "ks"),
    *("max_session_length", "select_by", "select_on", "valid_fraction"),
}


def check_names(fields: Iterable[str]) -> None:
    """Raises UserError if a field is spelled with hyphens, like a flag."""
    for name in fields:
        field = name.replace("-", "_")
        if field != name and field in default.get_config():
            raise UserError(f"the config has no field {name}; did you mean {field}?")


def check_fields(mode: str, names: Collection[str], sessions: bool = False) -> None:
    """Raises UserError if the mode ignores a field of the command line.

    `sessions`: the mode is given a log with --sessions.
    """
    ignored = set(names)
    # Imported late: --help needs no JAX.
    if mode == "evaluate" and sessions:
        from srgnn_jax.data.sources import source

        mode += " --sessions"
        ignored -= _OF_SESSIONS.union(source.LOG_SETTINGS, source.VISIT_SETTINGS)
    elif mode == "baselines":
        from srgnn_jax.config import PREPARATION_FIELDS

        ignored -= _OF_BASELINES.union(PREPARATION_FIELDS)
    elif mode == "promote":
        from srgnn_jax.config import AFTER_TRAINING

        ignored &= _OF_TRAINING | AFTER_TRAINING
    elif mode not in _OF_A_RUN:
        ignored &= _OF_TRAINING if mode == "evaluate" else set()
    if ignored:
        own = ": the run has its own settings" if mode in _OF_A_RUN else ""
        message = f"--config.{min(ignored)} has no effect with --mode={mode}{own}"
        raise UserError(f"{message}; leave it out")


def what_is_wrong(error: Exception, known: Iterable[str], modes: Iterable[str]) -> str:
    """Returns an error of absl, ml_collections or a config file in one line.

    `known` are the names of all flags, `modes` the values of --mode.
    """
    said = str(error)
    fields = default.get_config()
    if isinstance(error, AttributeError | KeyError) and "no attribute" not in said:
        field = re.findall(r'Key "(\w+)"|(\w+)', said)[0]
        key = "".join(field)
        hint = nearest(key, fields) or "; see configs/default.py"
        return f"the config has no field {key}{hint}"
    last = said.strip().splitlines()[-1].strip() if said.strip() else repr(error)
    if not isinstance(error, flags.Error):
        return f"cannot use --config: {last}"
    if mode := re.search(r"--mode=(\S+): ", said):
        return last + nearest(mode[1], modes)
    if field := re.search(r"flag '(\w+)\.\w+'", said):
        return last + nearest(field[1], known)
    if (field := re.search(r"command line flag '([\w-]+)'", said)) and (
        name := field[1].replace("-", "_")
    ) in fields:
        return f"there is no flag --{field[1]}; set a field with --config.{name}"
    if "get_config() takes 0" in said:
        return f"{last}; this config takes no argument after a colon"
    return last


def config_file(name: str) -> str:
    """Returns the file of a config; raises UserError if it is not a Python file."""
    path = SHIPPED.get(name, pathlib.Path(name))
    if not path.exists():
        those = f"; the shipped configs are {', '.join(sorted(SHIPPED))}"
        hint = nearest(path.stem, SHIPPED) or those
        raise UserError(f"cannot load the config: no file {name}{hint}")
    if not (path.suffix == ".py" and path.is_file()):
        what = "a config is a Python file, name.py"
    elif path.stat().st_size > MOST_CONFIG_BYTES:
        what = f"it has {path.stat().st_size:,} bytes, too many for a config"
    else:
        return str(path)
    raise UserError(f"cannot use --config={name}: {what}; nothing was run")


def program() -> str:
    """Returns how to call this command from here: srgnn, or its path."""
    script = pathlib.Path(sys.executable).with_name("srgnn")
    if not script.is_file():
        return "python -m srgnn_jax.main"
    found = shutil.which("srgnn")
    if found and os.path.samefile(found, script):
        return "srgnn"
    if script.is_relative_to(pathlib.Path.cwd()):
        script = script.relative_to(pathlib.Path.cwd())
    return shlex.quote(str(script))


def first_steps() -> str:
    """Returns the text to print for a command without arguments."""
    return f"""\
Trains SR-GNN on click logs, and recommends the next click. Try it:

  {program()} --config=synthetic
      trains on synthetic clicks, within two minutes
  {program()} --config=click_log --config.data_dir=DIR
      trains on your own log in the folder DIR
  {program()} --help
      lists all modes and flags"""


def next_steps(workdir: str) -> str:
    """Returns where a run is, and the commands that recommend with it and plot it."""
    # Imported late: --help needs no JAX.
    from srgnn_jax.evaluate.results_json import FILE as RESULTS
    from srgnn_jax.runs.workdir import popular_items, seed_folders

    folder = pathlib.Path(workdir).expanduser()
    one = next(iter(seed_folders(folder).values()), folder)
    session = json.dumps({"session": popular_items(one, 2)}, ensure_ascii=False)
    command = program()
    has_results = (folder / RESULTS).exists()  # Unless nothing was kept for test.
    plot = f"  {command} --mode=plot --workdir={shlex.quote(workdir)}" * has_results
    return f"""
The run is in {workdir}. Next, recommend{", and plot its results" * has_results}:

  echo {shlex.quote(session)} | \\
      {command} --mode=recommend --workdir={shlex.quote(str(one))} --sessions=- --k=5
{plot}"""
