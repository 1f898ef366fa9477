"""Trains and evaluates SR-GNN, recommends, and imports weights of its PyTorch codes.

    python -m srgnn_jax.main --config=configs/yoochoose.py
    python -m srgnn_jax.main --mode=evaluate --workdir=runs/yoochoose_1_64
    python -m srgnn_jax.main --mode=recommend --workdir=runs/yoochoose_1_64 \\
        --sessions=sessions.jsonl > items.jsonl
    python -m srgnn_jax.main --mode=plot --workdir=runs/yoochoose_1_64
    python -m srgnn_jax.main --mode=export --workdir=runs/yoochoose_1_64 \\
        --output=exported
    python -m srgnn_jax.main --mode=serve --workdir=runs/yoochoose_1_64 --port=8000
    python -m srgnn_jax.main --mode=import --config=configs/diginetica.py \\
        --torch_checkpoint=SRGNN.pth --workdir=runs/imported
    python -m srgnn_jax.main --mode=baselines --config=configs/diginetica.py
    python -m srgnn_jax.main --mode=search --config=configs/click_log.py \\
        --config.data_dir=DIR --trials=50

Where the package is installed, `srgnn` is the same command, and the configs that come
with it are found by name: srgnn --config=yoochoose:1_4. Every field of a config can be
set: --config.batch_size=512 (see configs/default.py).
"""

import contextlib
import logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from srgnn_jax.configs import default
from srgnn_jax.errors import UserError, nearest
from srgnn_jax.train.interrupt import Stopped

MOST_CONFIG_BYTES = 2**20
SHIPPED = {
    path.stem: path
    for path in pathlib.Path(__file__).with_name("configs").glob("[!_]*.py")
}
MODES = (
    *("train", "evaluate", "recommend", "serve", "export"),
    *("import", "baselines", "search", "plot"),
)

# The modes that a flag is for, where these are not all.
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
    "host": ("serve",),
    "port": ("serve",),
    "auth_token_file": ("serve",),
    "candidates_folder": ("serve",),
    "reload_every": ("serve",),
    "max_wait": ("serve",),
    "log_requests": ("serve",),
    "trials": ("search",),
    "minutes": ("search",),
}
# The flag that a mode cannot do without, beside --config or --workdir.
NEEDS = {
    "recommend": ("sessions", "a file, or - for stdin"),
    "export": ("output", "the folder to write"),
    "import": ("torch_checkpoint", "the file to read"),
}

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: prepare data, train, evaluate; the same command again continues. "
    "search: try settings of --config, and keep what is best on validation; the same "
    "command again continues, and several share the work. "
    "evaluate: evaluate the best checkpoint of --workdir, on its test split or on the "
    "click log --sessions. "
    "recommend: print the next items of each session in --sessions. "
    "serve: answer HTTP requests from the best checkpoint of --workdir. "
    "export: write the best checkpoint of --workdir to --output, to recommend without "
    "this package. "
    "import: make a --workdir of the weights in --torch_checkpoint. "
    "baselines: evaluate simple recommenders on the test split of --config. "
    "plot: draw the results of --workdir into its folder plots.",
)
for _name, _help in {
    "workdir": "Folder of the run [runs/<name of the config>; for search, that with "
    "_search behind].",
    "torch_checkpoint": "For import: a .pth or safetensors file of the SRGNN of "
    "RecBole or RecBole-GNN, or of the original code's SessionGraph.",
    "vocabulary": "For import: a file with the raw id of each item row, one a line, "
    "where the rows are not numbered as in the config's data set.",
    "coordinator_address": "Elsewhere than --distributed: host:port of process 0, told "
    "to all processes, with --num_processes and --process_id.",
    "sessions": 'For recommend: a file, or - for stdin, with a line {"session": ["id", '
    "...]} per session, or a csv with the ids of a session a line, or a click log in "
    "csv. For evaluate: a click log, instead of the test split.",
    "candidates": "For recommend: a file with the ids that may be recommended, one a "
    "line, or in the first column, or in the one that a header names item_id.",
    "output": "For export: a new folder.",
    "auth_token_file": "For serve: a file with the token that requests must bring.",
    "candidates_folder": "For serve: keeps the candidates that were given a name.",
}.items():
    flags.DEFINE_string(_name, None, _help)
for _name, _help in {
    "distributed": "Join the other processes of a TPU pod or a Slurm job, which JAX "
    "finds by itself.",
    "exclude_seen": "For recommend: leave out clicked items.",
    "as_probabilities": "For recommend: print probabilities, not scores.",
}.items():
    flags.DEFINE_bool(_name, False, _help)
flags.DEFINE_integer("num_processes", None, "The number of processes.")
flags.DEFINE_integer("process_id", None, "Which of the processes this is, from 0.")
flags.DEFINE_integer("k", 20, "For recommend and export: items per session.")
flags.DEFINE_integer(
    "trials",
    50,
    "For search: how many settings to try, those of earlier commands included.",
    lower_bound=1,
)
flags.DEFINE_float(
    "minutes",
    0.0,
    "For search: after so many no epoch is begun; 0: no such limit.",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "recall",
    1.0,
    "For recommend: below 1, approximate lists that are to hold this share of the "
    "best items; faster on a TPU.",
)
flags.DEFINE_string("host", "127.0.0.1", "For serve: the address to listen on.")
flags.DEFINE_integer("port", 8000, "For serve: the port to listen on.")
for _name, _default, _help in (
    ("reload_every", 10.0, "Seconds between looks for a better checkpoint; 0: none."),
    ("max_wait", 0.05, "Seconds that a request may wait; longer ones are refused."),
):
    flags.DEFINE_float(_name, _default, f"For serve: {_help}", lower_bound=0.0)
flags.DEFINE_enum(
    "log_requests",
    "no",
    ("no", "yes", "contents"),
    "For serve: log each request; contents: with its sessions.",
)
config_flags.DEFINE_config_file(
    "config",
    None,
    f"A config that comes along, one of {', '.join(sorted(SHIPPED))}, or a file of "
    "your own; :1_4 after it hands its get_config the argument 1_4.",
)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags, reducing what is wrong with them to one line."""
    try:
        arguments = "\0".join(FLAGS.read_flags_from_files(argv))
        named = r"(?<![^\0])(--?config[=\0])([^:\0]+)"
        found = re.sub(named, lambda m: m[1] + _config_file(m[2]), arguments)
        rest = FLAGS(found.split("\0"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(_what_is_wrong(error, str(error))) from error
    if rest[1:]:
        raise UserError(
            f"unexpected argument {rest[1]!r}; flags look like --name=value"
        )
    if FLAGS.config is not None and not isinstance(FLAGS.config, ConfigDict):
        raise UserError("cannot use --config: its get_config returns no ConfigDict")
    return rest


def _what_is_wrong(error: Exception, said: str) -> str:
    """Returns what absl, ml_collections or a config file says in one line."""
    if isinstance(error, AttributeError | KeyError) and "no attribute" not in said:
        field = re.findall(r'Key "(\w+)"|(\w+)', said)[0]
        key = "".join(field)
        hint = nearest(key, default.get_config()) or "; see configs/default.py"
        return f"the config has no field {key}{hint}"
    last = said.strip().splitlines()[-1].strip() if said.strip() else repr(error)
    if not isinstance(error, flags.Error):
        return f"cannot use --config: {last}"
    if mode := re.search(r"--mode=(\S+): ", said):
        return last + nearest(mode[1], MODES)
    if "flag 'config." in said:
        return f"{last}: fields can be set where --config names a config"
    if field := re.search(r"flag '(\w+)\.\w+'", said):
        return last + nearest(field[1], FLAGS)
    if "get_config() takes 0" in said:
        return f"{last}; there is nothing to choose by a colon after this config"
    return last


def check_flags() -> None:
    """Refuses flags that the mode ignores, and a mode without what it needs."""
    mode, config = FLAGS.mode, FLAGS.config
    for name, modes in ONLY_FOR.items():
        if FLAGS[name].present and mode not in modes:
            those = " and ".join(f"--mode={other}" for other in modes)
            raise UserError(
                f"--{name} does nothing with --mode={mode}; it is for {those}"
            )
    if config is None and mode in ("train", "search", "import", "baselines"):
        raise UserError("--config is missing; try --config=configs/synthetic.py")
    if not FLAGS.workdir and config is None:
        raise UserError(f"--mode={mode} needs --workdir, the folder of the run")
    if mode in NEEDS:
        flag, what = NEEDS[mode]
        if not FLAGS[flag].value:
            raise UserError(f"--mode={mode} needs --{flag}, {what}")


def run() -> None:
    """Settles this process, joins it with the others, and runs the mode."""
    check_flags()
    # Imported late: a wrong flag is told at once, and --help needs no JAX.
    from srgnn_jax.devices import processes
    from srgnn_jax.runs.workdir import count_items

    processes.settle_process()
    with contextlib.ExitStack() as stack:
        if FLAGS.distributed or FLAGS.coordinator_address:
            address, number = FLAGS.coordinator_address, FLAGS.num_processes
            stack.enter_context(processes.joined(address, number, FLAGS.process_id))
        if FLAGS.mode == "serve":
            processes.settle_threads(count_items(FLAGS.workdir or ""))
        processes.start_backend()
        run_mode()


def run_mode() -> None:
    """Hands the flags to the function of the mode."""
    from srgnn_jax.convert.import_mode import import_checkpoint
    from srgnn_jax.evaluate.results_json import portable_command
    from srgnn_jax.evaluate.workdir import evaluate_baselines, evaluate_workdir
    from srgnn_jax.serve.export import export_workdir
    from srgnn_jax.serve.stream import evaluate_sessions, recommend_file
    from srgnn_jax.train.loop import train_and_evaluate

    mode, config, model, losses = FLAGS.mode, FLAGS.config, None, None
    if config is not None:
        # The file has run already: ml_collections names its module after the flag.
        module = sys.modules["config_config"]
        model, losses = handed_in(module)
    if model and mode in ("import", "plot"):
        raise UserError(
            f"--mode={mode} is for SRGNN alone; take get_model out of the --config"
        )
    workdir = FLAGS.workdir or f"runs/{config.name or config.dataset}" + (
        "_search" if mode == "search" else ""
    )
    command = portable_command(sys.argv[1:])
    options: dict[str, Any]
    options = {name: FLAGS[name].value for name in ONLY_FOR if mode in ONLY_FOR[name]}
    if mode == "train":
        train_and_evaluate(config, workdir, command, model, losses)
    elif mode == "search":
        # An extra brings what it imports.
        from srgnn_jax.train.search import search

        get_search = getattr(module, "get_search", None)
        source = pathlib.Path(str(module.__file__)).read_text("utf-8")
        search(
            config,
            workdir,
            ranges=get_search and get_search(),
            fixed=config_flags.get_override_values(FLAGS["config"]),
            command=command,
            model=model,
            losses=losses,
            source=source if model or losses else "",
            **options,
        )
    elif mode == "evaluate" and FLAGS.sessions:
        evaluate_sessions(workdir, FLAGS.sessions, config, model)
    elif mode == "evaluate":
        evaluate_workdir(workdir, config, model)
    elif mode == "recommend":
        recommend_file(workdir, model=model, **options)
    elif mode == "serve":
        serve(workdir, model, options)
    elif mode == "export":
        export_workdir(workdir, model=model, **options)
    elif mode == "import":
        import_checkpoint(config, workdir, FLAGS.torch_checkpoint, FLAGS.vocabulary)
    elif mode == "baselines":
        evaluate_baselines(config, workdir, command)
    else:
        # An extra brings what it imports.
        from srgnn_jax.evaluate.plots import plot_workdir

        plot_workdir(workdir)


def serve(workdir: str, model: Any, options: dict[str, Any]) -> None:
    """Serves, where what an extra brings is installed."""
    try:
        from srgnn_jax.serve.server import serve_workdir
    except ModuleNotFoundError as error:
        told = f"--mode=serve needs {error.name}: pip install 'srgnn_jax[serve]'"
        raise UserError(told) from error
    serve_workdir(workdir, model=model, **options)


def handed_in(config_module: Any) -> tuple[Any, Any]:
    """Returns a config module's `get_model` and losses of `get_losses`, or None."""
    get_losses = getattr(config_module, "get_losses", None)
    return getattr(config_module, "get_model", None), get_losses and get_losses()


def main() -> None:
    """Entry point: errors that the user can mend end in one line, not a traceback."""

    def guarded(do, *arguments):
        try:
            return do(*arguments)
        except UserError as error:
            sys.exit(f"error: {error}")
        except RuntimeError as error:
            if "home directory" not in str(error):
                raise
            sys.exit(
                "error: a path begins with ~, and this user has no home folder; write "
                "the path in full, or set HOME"
            )
        except BrokenPipeError:
            # Whoever reads stdout has enough; Python would complain as it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Stopped as stopped:
            name = signal.Signals(stopped.number).name
            print(f"\n{name}: {stopped}", file=sys.stderr)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            goes_on = "; the same command continues" * (
                FLAGS["mode"].value in ("train", "search")
            )
            print(f"\ninterrupted{goes_on}", file=sys.stderr)
            sys.exit(130)

    # Else --help would know nothing of this where it is not the main module: `srgnn`.
    sys.modules["__main__"].__doc__ = __doc__
    for flag in FLAGS.flags_by_module_dict().get(__name__, ()):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def after_parsing(_):
        if not FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.WARNING)
            form = logging.Formatter("%(levelname)s: %(message)s")
            absl_logging.get_absl_handler().setFormatter(form)
            # Orbax and asyncio log the tracebacks of errors in threads and tasks; those
            # that matter are raised later.
            for name in ("absl", "asyncio"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        guarded(run)

    sys.unraisablehook = _print_unraisable
    app.run(after_parsing, flags_parser=lambda argv: guarded(parse, argv))


def _config_file(name: str) -> str:
    """Returns the file of a config, and refuses what is no Python file unrun."""
    path = SHIPPED.get(name, pathlib.Path(name))
    if not path.exists():
        those = f"; those that come along are {', '.join(sorted(SHIPPED))}"
        hint = nearest(path.stem, SHIPPED) or those
        raise UserError(f"cannot load the config: no file {name}{hint}")
    if not (path.suffix == ".py" and path.is_file()):
        what = "a config is a Python file, name.py"
    elif path.stat().st_size > MOST_CONFIG_BYTES:
        what = f"it has {path.stat().st_size:,} bytes, as no config does"
    else:
        return str(path)
    raise UserError(f"cannot use --config={name}: {what}; nothing was run")


def _print_unraisable(found: Any) -> None:
    """Hides what TensorStore says once an array of a checkpoint cannot be written."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


if __name__ == "__main__":
    main()
