"""Trains and evaluates SR-GNN, recommends, and imports weights from PyTorch.

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
    python -m srgnn_jax.main --mode=promote --workdir=runs/today --live=runs/live

If the package is installed, `srgnn` is the same command. It finds the shipped configs
by name: srgnn --config=yoochoose:1_4. Any field of a config can be set:
--config.batch_size=512 (see configs/default.py).
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

try:
    from absl import app, flags
    from absl import logging as absl_logging
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"error: {sys.executable} does not find {error.name}: in a clone, run "
        "make venv, then source .venv/bin/activate; otherwise run pip install ."
    )
from ml_collections import ConfigDict, config_flags

from srgnn_jax import arguments
from srgnn_jax.configs import default
from srgnn_jax.errors import UserError
from srgnn_jax.train.interrupt import Stopped

MODES = (
    *("train", "evaluate", "recommend", "serve", "export"),
    *("import", "baselines", "search", "plot", "promote"),
)

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: prepare data, train, evaluate; run it again to continue. "
    "search: try settings of --config and keep the best on validation; run it again to "
    "continue, or several times at once to share the work. "
    "evaluate: evaluate the best checkpoint of --workdir, on its test split or on the "
    "click log --sessions. "
    "recommend: print the next items for each session in --sessions. "
    "serve: answer HTTP requests with the best checkpoint of --workdir. "
    "export: write the best checkpoint of --workdir to --output, to recommend without "
    "this package. "
    "import: make a --workdir from the weights in --torch_checkpoint. "
    "baselines: evaluate simple recommenders on the test split of --config. "
    "plot: draw the results of --workdir into its folder plots. "
    "promote: point the link --live to --workdir, unless its run is worse than the "
    "live one on the same test; then the exit status is 3.",
)
for _name, _help in {
    "workdir": "Folder of the run [runs/<name of the config>; for search, with _search "
    "appended].",
    "torch_checkpoint": "For import: a .pth or safetensors file of the SRGNN of "
    "RecBole or RecBole-GNN, or of the original code's SessionGraph.",
    "vocabulary": "For import: a file with the raw id of each item row, one per line, "
    "if the rows are not numbered as in the config's data set.",
    "coordinator_address": "Outside TPU pods and Slurm: host:port of process 0, the "
    "same in all processes, with --num_processes and --process_id.",
    "sessions": 'For recommend: a file, or - for stdin, with a line {"session": ["id", '
    "...]} per session, or a csv with the ids of a session per line, or a click log in "
    "csv. For evaluate: a click log, instead of the test split.",
    "candidates": "For recommend: a file with the ids that may be recommended, one per "
    "line, or in the first column, or in the column named item_id.",
    "output": "For export: a new folder.",
    "auth_token_file": "For serve: a file with the token that requests must send.",
    "candidates_folder": "For serve: where to keep named candidates.",
    "live": "For promote: a link to the workdir that is served.",
}.items():
    flags.DEFINE_string(_name, None, _help)
for _name, _help in {
    "distributed": "Join the other processes of a TPU pod or Slurm job, found by JAX.",
    "exclude_seen": "For recommend: leave out clicked items.",
    "as_probabilities": "For recommend: print probabilities, not scores.",
}.items():
    flags.DEFINE_bool(_name, False, _help)
flags.DEFINE_integer("num_processes", None, "The number of processes.")
flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")
flags.DEFINE_integer("k", 20, "For recommend and export: items per session.")
flags.DEFINE_float(
    "recall",
    1.0,
    "For recommend: below 1, return approximate lists that should hold this share of "
    "the best items; faster on a TPU.",
)
flags.DEFINE_string("host", "127.0.0.1", "For serve: the address to listen on.")
flags.DEFINE_integer("port", 8000, "For serve: the port to listen on.")
for _name, _default, _least, _help in (
    ("trials", 50, 1, "For search: settings to try, including earlier ones."),
    ("compare", 0, 0, "For train with a warm start: epochs of a run from scratch."),
):
    flags.DEFINE_integer(_name, _default, _help, lower_bound=_least)
for _name, _number, _help in (
    ("minutes", 0.0, "For search: start no epoch after so many minutes; 0: no limit."),
    ("reload_every", 10.0, "For serve: seconds between workdir checks; 0: none."),
    ("max_wait", 0.05, "For serve: the longest that a request may wait, in seconds."),
):
    flags.DEFINE_float(_name, _number, _help, lower_bound=0.0)
flags.DEFINE_enum(
    "log_requests",
    "no",
    ("no", "yes", "contents"),
    "For serve: log each request; contents: with its sessions.",
)
config_flags.DEFINE_config_file(
    "config",
    None,
    f"A shipped config, one of {', '.join(sorted(arguments.SHIPPED))}, or your own "
    "file. Append :1_4 to pass 1_4 to its get_config.",
)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; reports errors in one line.

    If fields of a config are set and no config is named, `FLAGS.config` is the default
    config with these fields, which names no data set.
    """
    if not argv[1:]:
        sys.exit(arguments.first_steps())
    try:
        given = "\0".join(FLAGS.read_flags_from_files(argv))
        named = r"(?<![^\0])(--?config[=\0])([^:\0]+)"
        found = re.sub(named, lambda m: m[1] + arguments.config_file(m[2]), given)
        if fields := re.findall(r"\0--?config\.([^\0=]+)", found):
            arguments.check_names(fields)
            if not re.search(named, found):
                program, _, others = found.partition("\0")
                found = f"{program}\0--config={arguments.SHIPPED['default']}\0{others}"
        rest = FLAGS(found.split("\0"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(arguments.what_is_wrong(error, FLAGS, MODES)) from error
    if rest[1:]:
        raise UserError(
            f"unexpected argument {rest[1]!r}; flags look like --name=value"
        )
    if FLAGS.config is not None and not isinstance(FLAGS.config, ConfigDict):
        raise UserError("cannot use --config: its get_config returns no ConfigDict")
    return rest


def fields_set() -> dict[str, Any]:
    """Returns the fields of the config that were set on the command line."""
    given = FLAGS.config is not None
    return config_flags.get_override_values(FLAGS["config"]) if given else {}


def check_flags() -> None:
    """Raises UserError if a flag does not fit the mode, or the mode lacks one."""
    mode, config = FLAGS.mode, FLAGS.config
    for name, modes in arguments.ONLY_FOR.items():
        if FLAGS[name].present and mode not in modes:
            those = " and ".join(f"--mode={other}" for other in modes)
            raise UserError(
                f"--{name} has no effect with --mode={mode}; it is for {those}"
            )
    fields = fields_set()
    arguments.check_fields(mode, fields, bool(FLAGS.sessions))
    is_import = mode == "import" and not FLAGS.vocabulary
    if is_import or mode in ("train", "search", "baselines"):
        if config is None:
            raise UserError("--config is missing; try --config=synthetic")
        if not config.dataset:
            raise UserError(
                "the config names no data set: to set fields, also name a config, as "
                "in --config=synthetic"
            )
    if not FLAGS.workdir and not (config and config.dataset):
        raise UserError(f"--mode={mode} needs --workdir, the folder of the run")
    if mode in arguments.NEEDS:
        flag, what = arguments.NEEDS[mode]
        if not FLAGS[flag].value:
            raise UserError(f"--mode={mode} needs --{flag}, {what}")


def run() -> None:
    """Sets this process up, joins it with the others, and runs the mode."""
    check_flags()
    # Imported late, so that wrong flags are reported at once and --help needs no JAX.
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
    """Calls the function of the mode with the flags."""
    from srgnn_jax.convert.import_mode import import_checkpoint
    from srgnn_jax.devices import processes
    from srgnn_jax.evaluate.results_json import portable_command
    from srgnn_jax.evaluate.workdir import (
        evaluate_baselines,
        evaluate_workdir,
        own_config,
    )
    from srgnn_jax.serve.export import export_workdir
    from srgnn_jax.serve.promote import promote, train_both
    from srgnn_jax.serve.stream import evaluate_sessions, recommend_file
    from srgnn_jax.train.loop import train_and_evaluate

    mode, config, model, losses = FLAGS.mode, FLAGS.config, None, None
    if config is not None:
        # The file has already run: ml_collections names its module after the flag.
        module = sys.modules["config_config"]
        model, losses = custom_parts(module)
    if model and mode in ("import", "plot"):
        raise UserError(
            f"--mode={mode} is only for SRGNN; remove get_model from the --config"
        )
    workdir = FLAGS.workdir or f"runs/{config.name or config.dataset}" + (
        "_search" if mode == "search" else ""
    )
    command = portable_command(sys.argv[1:])
    options: dict[str, Any]
    options = {
        name: FLAGS[name].value
        for name, modes in arguments.ONLY_FOR.items()
        if mode in modes
    }
    is_own = mode in ("evaluate", "promote") and config is not None
    if is_own and not config.dataset:
        config = own_config(workdir, fields_set())
    if mode == "train" and FLAGS.compare:
        train_both(config, workdir, FLAGS.compare, command, model, losses)
    elif mode == "train":
        if train_and_evaluate(config, workdir, command, model, losses):
            processes.say(arguments.next_steps(workdir))
    elif mode == "search":
        options |= {"command": command, "model": model, "losses": losses}
        find_settings(config, workdir, module, **options)
    elif mode == "evaluate" and FLAGS.sessions:
        evaluate_sessions(workdir, FLAGS.sessions, config, model)
    elif mode == "evaluate":
        evaluate_workdir(workdir, config, model)
    elif mode == "recommend":
        recommend_file(workdir, model=model, **options)
    elif mode == "serve":
        serve(workdir, model, options)
    elif mode == "promote":
        if not promote(workdir, config=config, model=model, **options):
            sys.exit(3)  # 1 means an error.
    elif mode == "export":
        export_workdir(workdir, model=model, **options)
    elif mode == "import":
        files = FLAGS.torch_checkpoint, FLAGS.vocabulary
        import_checkpoint(config or default.get_config(), workdir, *files)
    elif mode == "baselines":
        evaluate_baselines(config, workdir, command)
    else:
        # Its imports need an extra.
        from srgnn_jax.evaluate.plots import plot_workdir

        plot_workdir(workdir)


def find_settings(
    config: ConfigDict, workdir: str, module: Any, **options: Any
) -> None:
    """Searches, within the ranges of the config file if it has any."""
    # Its imports need an extra.
    from srgnn_jax.train.search import search

    get_search = getattr(module, "get_search", None)
    own = options["model"] or options["losses"]
    options["source"] = pathlib.Path(module.__file__).read_text("utf-8") if own else ""
    ranges = get_search and get_search()
    search(config, workdir, ranges=ranges, fixed=fields_set(), **options)


def serve(workdir: str, model: Any, options: dict[str, Any]) -> None:
    """Serves; raises UserError if the extra is not installed."""
    try:
        from srgnn_jax.serve.server import serve_workdir
    except ModuleNotFoundError as error:
        message = f"--mode=serve needs {error.name}: pip install 'srgnn_jax[serve]'"
        raise UserError(message) from error
    serve_workdir(workdir, model=model, ends_process=True, **options)


def custom_parts(config_module: Any) -> tuple[Any, Any]:
    """Returns a config module's `get_model` and the losses of `get_losses`, or None."""
    get_losses = getattr(config_module, "get_losses", None)
    return getattr(config_module, "get_model", None), get_losses and get_losses()


def main() -> None:
    """Entry point: errors that the user can fix end in one line, not a traceback."""

    def guarded(do, *arguments):
        try:
            return do(*arguments)
        except UserError as error:
            sys.exit(f"error: {error}")
        except RuntimeError as error:
            if "home directory" not in str(error):
                raise
            sys.exit(
                "error: a path begins with ~, but this user has no home folder; write "
                "the path in full, or set HOME"
            )
        except BrokenPipeError:
            # The reader of stdout is gone. Python would complain when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Stopped as stopped:
            name = signal.Signals(stopped.number).name
            print(f"\n{name}: {stopped}", file=sys.stderr)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            hint = "; run the same command to continue" * (
                FLAGS["mode"].value in ("train", "search")
            )
            print(f"\ninterrupted{hint}", file=sys.stderr)
            sys.exit(130)

    # Otherwise --help of `srgnn`, where this is not the main module, lacks all of this.
    sys.modules["__main__"].__doc__ = __doc__
    for flag in FLAGS.flags_by_module_dict().get(__name__, ()):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def after_parsing(_):
        if not FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.WARNING)
            form = logging.Formatter("%(levelname)s: %(message)s")
            absl_logging.get_absl_handler().setFormatter(form)
            # Orbax and asyncio log tracebacks from threads and tasks; the errors that
            # matter are raised later.
            for name in ("absl", "asyncio"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        guarded(run)

    sys.unraisablehook = _print_unraisable
    app.run(after_parsing, flags_parser=lambda argv: guarded(parse, argv))


def _print_unraisable(found: Any) -> None:
    """Hides TensorStore's follow-up noise when a checkpoint cannot be written."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


if __name__ == "__main__":
    main()
