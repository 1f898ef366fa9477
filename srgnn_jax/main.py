"""Trains and evaluates SR-GNN, recommends, and imports weights of its PyTorch codes.

    python -m srgnn_jax.main --config=configs/yoochoose.py
    python -m srgnn_jax.main --mode=evaluate --workdir=runs/yoochoose_1_64
    python -m srgnn_jax.main --mode=recommend --workdir=runs/yoochoose_1_64 \\
        --sessions=sessions.jsonl > items.jsonl
    python -m srgnn_jax.main --mode=plot --workdir=runs/yoochoose_1_64
    python -m srgnn_jax.main --mode=export --workdir=runs/yoochoose_1_64 \\
        --output=exported
    python -m srgnn_jax.main --mode=import --config=configs/diginetica.py \\
        --torch_checkpoint=SRGNN.pth --workdir=runs/imported
    python -m srgnn_jax.main --mode=baselines --config=configs/diginetica.py

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

from srgnn_jax.errors import UserError, nearest
from srgnn_jax.train.interrupt import Stopped

MOST_CONFIG_BYTES = 2**20
SHIPPED = {
    path.stem: path
    for path in pathlib.Path(__file__).with_name("configs").glob("[!_]*.py")
}
MODES = ("train", "evaluate", "recommend", "export", "import", "baselines", "plot")

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
    "evaluate: evaluate the best checkpoint of --workdir, on its test split or on the "
    "click log --sessions. "
    "recommend: print the next items of each session in --sessions. "
    "export: write the best checkpoint of --workdir to --output, to recommend without "
    "this package. "
    "import: make a --workdir of the weights in --torch_checkpoint. "
    "baselines: evaluate simple recommenders on the test split of --config. "
    "plot: draw the results of --workdir into its folder plots.",
)
flags.DEFINE_string("workdir", None, "Folder of the run [runs/<name of the config>].")
flags.DEFINE_string(
    "torch_checkpoint",
    None,
    "For import: a .pth or safetensors file of RecBole's "
    "SRGNN or of the original code's SessionGraph.",
)
flags.DEFINE_string(
    "vocabulary",
    None,
    "For import: a file with the raw id of each item row, one a line, where the rows "
    "are not numbered as in the config's data set.",
)
flags.DEFINE_bool(
    "distributed",
    False,
    "Join the other processes of a TPU pod or a Slurm job, which JAX finds by itself.",
)
flags.DEFINE_string(
    "coordinator_address",
    None,
    "Elsewhere than --distributed: host:port of process 0, told to all processes, with "
    "--num_processes and --process_id.",
)
flags.DEFINE_integer("num_processes", None, "The number of processes.")
flags.DEFINE_integer("process_id", None, "Which of the processes this is, from 0.")
flags.DEFINE_string(
    "sessions",
    None,
    'For recommend: a file, or - for stdin, with a line {"session": ["id", ...]} '
    "per session, or a csv with the ids of a session a line, or a click log in csv. "
    "For evaluate: a click log, instead of the test split.",
)
flags.DEFINE_integer("k", 20, "For recommend and export: items per session.")
flags.DEFINE_bool("exclude_seen", False, "For recommend: leave out clicked items.")
flags.DEFINE_string(
    "candidates",
    None,
    "For recommend: a file with the ids that may be recommended, one a line.",
)
flags.DEFINE_bool(
    "as_probabilities", False, "For recommend: print probabilities, not scores."
)
flags.DEFINE_float(
    "recall",
    1.0,
    "For recommend: below 1, approximate lists that are to hold this share of the "
    "best items; faster on a TPU.",
)
flags.DEFINE_string("output", None, "For export: a new folder.")
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
        rest = FLAGS(
            re.sub(
                r"(?<![^\0])(--?config[=\0])([^:\0]+)",
                lambda found: found[1] + _config_file(found[2]),
                arguments,
            ).split("\0")
        )
    except flags.Error as error:
        hint = ""
        if mode := re.search(r"--mode=(\S+): ", str(error)):
            hint = nearest(mode[1], MODES)
        elif field := re.search(r"flag '(\w+)\.\w+'", str(error)):
            hint = nearest(field[1], FLAGS)
            if field[1] == "config":
                hint = ": fields can be set where --config names a config"
        elif "get_config() takes 0" in str(error):
            hint = "; there is nothing to choose by a colon after this config"
        raise UserError(_last_line(error) + hint) from error
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(str(error))) from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot use --config: {_last_line(error)}") from error
    if rest[1:]:
        raise UserError(
            f"unexpected argument {rest[1]!r}; flags look like --name=value"
        )
    if FLAGS.config is not None and not isinstance(FLAGS.config, ConfigDict):
        raise UserError("cannot use --config: its get_config returns no ConfigDict")
    return rest


def check_flags() -> None:
    """Refuses flags that the mode ignores, and a mode without what it needs."""
    mode, config = FLAGS.mode, FLAGS.config
    for name, modes in ONLY_FOR.items():
        if FLAGS[name].present and mode not in modes:
            raise UserError(
                f"--{name} does nothing with --mode={mode}; it is for "
                + " and ".join(f"--mode={other}" for other in modes)
            )
    if config is None and mode in ("train", "import", "baselines"):
        raise UserError("--config is missing; try --config=configs/synthetic.py")
    if not FLAGS.workdir and config is None:
        raise UserError(f"--mode={mode} needs --workdir, the folder of the run")
    if mode in NEEDS:
        flag, what = NEEDS[mode]
        if not FLAGS[flag].value:
            raise UserError(f"--mode={mode} needs --{flag}, {what}")


def run() -> None:
    """Does what the flags ask for."""
    check_flags()
    # Imported late: a wrong flag is told at once, and --help needs no JAX.
    from srgnn_jax.devices import processes

    processes.settle_process()
    with (
        processes.joined(
            FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id
        )
        if FLAGS.distributed or FLAGS.coordinator_address
        else contextlib.nullcontext()
    ):
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
        model, losses = handed_in(sys.modules["config_config"])
    if model and mode in ("import", "plot"):
        raise UserError(
            f"--mode={mode} is for SRGNN alone; take get_model out of the --config"
        )
    workdir = FLAGS.workdir or f"runs/{config.name or config.dataset}"
    command = portable_command(sys.argv[1:])
    if mode == "train":
        train_and_evaluate(config, workdir, command, model, losses)
    elif mode == "evaluate" and FLAGS.sessions:
        evaluate_sessions(workdir, FLAGS.sessions, config, model)
    elif mode == "evaluate":
        evaluate_workdir(workdir, config, model)
    elif mode == "recommend":
        recommend_file(
            workdir,
            FLAGS.sessions,
            k=FLAGS.k,
            exclude_seen=FLAGS.exclude_seen,
            candidates=FLAGS.candidates,
            as_probabilities=FLAGS.as_probabilities,
            recall=FLAGS.recall,
            model=model,
        )
    elif mode == "export":
        export_workdir(workdir, FLAGS.output, k=FLAGS.k, model=model)
    elif mode == "import":
        import_checkpoint(config, workdir, FLAGS.torch_checkpoint, FLAGS.vocabulary)
    elif mode == "baselines":
        evaluate_baselines(config, workdir, command)
    else:
        # An extra brings what it imports.
        from srgnn_jax.evaluate.plots import plot_workdir

        plot_workdir(workdir)


def handed_in(config_module: Any) -> tuple[Any, Any]:
    """Returns the `get_model` of a config's module, and the losses of `get_losses`.

    Each is None where the file does not define it.
    """
    get_losses = getattr(config_module, "get_losses", None)
    return getattr(config_module, "get_model", None), get_losses and get_losses()


def main() -> None:
    """Entry point: errors that the user can mend end in one line, not a traceback."""

    def guarded(do, *arguments):
        try:
            return do(*arguments)
        except UserError as error:
            sys.exit(f"error: {error}")
        except BrokenPipeError:
            # Whoever read stdout, such as head, has enough. Python would complain when
            # it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Stopped as stopped:
            name = signal.Signals(stopped.number).name
            print(f"\n{name}: {stopped}", file=sys.stderr)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            goes_on = "; the same command continues" * (FLAGS["mode"].value == "train")
            print(f"\ninterrupted{goes_on}", file=sys.stderr)
            sys.exit(130)

    # Where this is not the main module, as in `srgnn`, --help would know nothing of it.
    sys.modules["__main__"].__doc__ = __doc__
    for flag in FLAGS.flags_by_module_dict().get(__name__, ()):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def after_parsing(_):
        if not FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.WARNING)
            # Orbax and asyncio log the tracebacks of errors in threads and tasks; those
            # that matter are raised later.
            absl_logging.get_absl_logger().setLevel(logging.CRITICAL)
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        guarded(run)

    sys.unraisablehook = _print_unraisable
    app.run(after_parsing, flags_parser=lambda argv: guarded(parse, argv))


def _config_file(name: str) -> str:
    """Returns the file of a config, and refuses what is no Python file unrun."""
    path = SHIPPED.get(name, pathlib.Path(name))
    if not path.exists():
        raise UserError(
            f"cannot load the config: no file {name}"
            + (
                nearest(path.stem, SHIPPED)
                or f"; those that come along are {', '.join(sorted(SHIPPED))}"
            )
        )
    if not (path.suffix == ".py" and path.is_file()):
        raise UserError(
            f"cannot use --config={name}: a config is a Python file, name.py; nothing "
            "was run"
        )
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise UserError(
            f"cannot use --config={name}: it has {path.stat().st_size:,} bytes, as no "
            "config does; nothing was run"
        )
    return str(path)


def _print_unraisable(found: Any) -> None:
    """Hides follow-up noise of errors already reported.

    When a checkpoint cannot be written, TensorStore says this for each other array.
    """
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _unknown_field(text: str) -> str:
    """Names the field, and the nearest one if ml_collections found any."""
    if "has no attribute" in text:
        return f"cannot use --config: {text.strip().splitlines()[-1]}"
    key = re.search(r'Key "(\w+)"', text) or re.search(r"([A-Za-z_]\w*)", text)
    near = re.search(r'Did you mean "(\w+)"', text)
    hint = f"; did you mean {near[1]}?" if near else "; see configs/default.py"
    return f"the config has no field {key[1] if key else text}{hint}"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    main()
