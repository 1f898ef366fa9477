"""Imports run one way and exclude TensorFlow; modules stay small."""

import ast
import builtins
import dis
import importlib
import subprocess
import sys
import types
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "srgnn_jax"

# A module may import from groups before its own, and from its own.
LAYERS = [
    ["configs", "errors", "tables"],
    # The last two are functions of arrays and import nothing from the package.
    ["data", "model", "evaluate.metrics", "train.optimizer"],
    ["devices"],
    ["runs"],
    ["config"],
    ["evaluate"],
    ["results"],
    ["train"],
    ["serve"],
    ["convert"],
    ["evaluate.plots"],
    ["evaluate.search_plots", "evaluate.session_plots"],
    ["train.search_report"],
    ["train.search"],
    ["plan"],
    ["arguments"],
    ["main"],
]
LAYER = {name: n for n, names in enumerate(LAYERS) for name in names}


def known(parts):
    """Returns a module's name in LAYERS: its own or its subpackage's."""
    module = ".".join(parts[:2])
    return module if module in LAYER else parts[0]


def imported(path):
    """Yields the modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("srgnn"):
            inner = node.module.split(".")[1:]
            for alias in node.names:
                yield known([*inner, alias.name])


def test_imports_run_one_way():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            continue
        for name in imported(path):
            assert LAYER[name] <= LAYER[known(parts)], f"{path.name} imports {name}"


def test_the_model_and_the_metrics_stand_alone():
    modules = [*(PACKAGE / "model").glob("*.py"), PACKAGE / "evaluate/metrics.py"]
    assert len(modules) > 8
    for module in modules:
        assert {*imported(module)} <= {"model"}, module


def test_the_model_is_small_enough_to_be_read():
    """The item table and the shared layers are not counted."""
    read = ("graph", "gnn", "readout", "losses", "srgnn")
    files = [PACKAGE / "model" / f"{name}.py" for name in read]
    assert sum(len(path.read_text().splitlines()) for path in files) < 700


def test_only_the_entry_point_knows_flags():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "main.py":
            assert "absl import app" not in path.read_text()
            assert "config_flags" not in path.read_text()


def test_importing_everything_needs_no_tensorflow_and_no_torch():
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.stem != "__init__"
    ]
    code = (
        "import importlib, sys\n"
        # tensorboardX would import torch if it is installed.
        "sys.modules['torch'] = None\n"
        f"[importlib.import_module(m) for m in {modules}]\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)


def test_no_module_and_no_function_is_too_long_to_be_read():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path.name}: {node.name}"


def functions_in(code):
    """Yields the code of all functions and classes within some code."""
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield inner
            yield from functions_in(inner)


def test_every_global_name_is_defined():
    """Linters cannot say: axis letters in annotations look like names to them."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if "configs" in parts:
            continue
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        known = {*vars(module), *vars(builtins)}
        for code in functions_in(compile(path.read_text(), path, "exec")):
            used = {
                step.argval
                for step in dis.get_instructions(code)
                if step.opname == "LOAD_GLOBAL"
            }
            assert used <= known, f"{path}, {code.co_name}: {used - known}"
