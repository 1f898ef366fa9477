"""Imports run one way, and TensorFlow is not among them."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "srgnn_jax"

# A module may import from those before it (and from its own group).
LAYERS = [
    ["configs", "errors", "interrupt"],
    ["data", "graph", "item_table", "losses", "metrics", "optimizer"],
    ["model", "baselines", "plan", "breakdown", "published"],
    ["config", "parallel", "records"],
    ["checkpoint"],
    ["results"],
    ["evaluate"],
    ["train", "recommend", "exported"],
    ["export", "plots"],
    ["convert"],
    ["main"],
]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("srgnn"):
            inner = node.module.split(".")[1:2]
            yield from inner or [alias.name for alias in node.names]


def test_imports_run_one_way():
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if module == "__init__":
            continue
        for name in imported(path):
            assert layer[name] <= layer[module], f"{path.name} imports {name}"


def test_graph_losses_and_metrics_stand_alone():
    for module in ("graph", "item_table", "losses", "metrics"):
        assert not list(imported(PACKAGE / f"{module}.py"))


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
        # tensorboardX would take torch along where it is installed.
        "sys.modules['torch'] = None\n"
        f"[importlib.import_module(m) for m in {modules}]\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)
