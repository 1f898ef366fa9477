"""Writes docs/configs.md and docs/api.md: `make docs`.

    python docs/generate.py

Both are drawn from the text of the source: the comments of configs/default.py, and the
docstrings of what `API` names. Nothing is imported, so nothing needs to be installed.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = "<!-- Made by `make docs`; change the source, not this page. -->\n"

# What a user of the package would import, by module.
API = {
    "serve.recommend": "Recommender Explanation",
    "train.loop": "train_and_evaluate",
    "train.search": "search",
    "train.space": "choice uniform log",
    "data.frames": "Clicks",
    "model.srgnn": "SRGNN init_params dropout",
    "model.gnn": "GNN gnn_cell",
    "model.readout": "Readout",
    "model.losses": "Loss cross_entropy bpr",
    "model.graph": "connection_matrix node_alias adjacency normalised_connections "
    "check_sessions",
    "model.item_table": "ItemTable item_scores",
    "model.ranking": "count_not_below largest",
    "devices.tiers": "encode",
    "train.step": "train_step",
    "evaluate.evaluator": "rank_step",
    "convert.names": "params_from_torch params_to_torch",
    "convert.torch_file": "load_torch_checkpoint TorchCheckpoint",
    "convert.import_mode": "import_checkpoint",
    "evaluate.workdir": "evaluate_workdir evaluate_baselines",
    "evaluate.metrics": "ranking_metrics means recall_curve",
    "evaluate.baselines": "pop session_pop item_knn markov",
    "evaluate.session_knn": "Scorer vsknn stan Neighbours Prefixes",
    "evaluate.scorer": "target_ranks",
    "evaluate.joined": "add_up rank",
    "serve.stream": "recommend_stream evaluate_sessions",
    "serve.server": "serve_workdir",
    "serve.export": "export_workdir",
    "serve.exported": "Recommender Recommendation",
    "evaluate.plots": "plot_workdir learning_curves recall_over_k metrics_by_length "
    "item_map session_graph",
    "evaluate.results_json": "read read_lines",
    "results": "find document",
    "plan": "plan plan_all",
    "devices.aot": "find_sizes device_memory find_topology find_devices compile_step "
    "read_memory",
    "devices.compiled_text": "read_operations",
    "errors": "UserError",
}

Definition = ast.FunctionDef | ast.ClassDef


def configs() -> str:
    """Returns docs/configs.md."""
    page = [
        "# Every setting\n",
        MADE,
        "A field is set on the command line, `--config.batch_size=512`, or in a config "
        "of your own,\n`c.batch_size = 512` (see [Your own clicks](own_data.md)). The "
        "defaults are those of\n[configs/default.py](../configs/default.py), the "
        "paper's; [the configs that come along](#the-configs-that-come-along)\n"
        "differ from them.",
    ]
    for title, fields in sections((ROOT / "configs" / "default.py").read_text()):
        page += [f"\n## {title}\n", "| field | default | |", "|---|---|---|"]
        page += [
            f"| `{name}` | `{value}` | {text(why)} |" for name, value, why in fields
        ]
    page += ["\n## The configs that come along"]
    for path in sorted((ROOT / "configs").glob("[!_]*.py")):
        if path.stem != "default":
            page += [shipped(path)]
    return "\n".join(page) + "\n"


def sections(source: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Reads default.py: the title of each block, and its fields.

    A block begins with its title. A field's comment stands behind it, or above it.

    Returns:
      The titles, each with (name, default, comment) of its fields.

    Raises:
      ValueError: a field has no comment.
    """
    body = source.split("ConfigDict()\n", 1)[1].split("    return", 1)[0]
    for block in textwrap.dedent(body).strip().split("\n\n"):
        title, *lines = block.splitlines()
        fields, above = [], ""
        for line in lines:
            if line.startswith("# "):
                above += line[1:]
                continue
            field, _, comment = line.partition("  # ")
            name, value = field.removeprefix("c.").split(" = ")
            if not (above or comment):
                raise ValueError(f"configs/default.py: {name} has no comment")
            fields.append((name, value, f"{above} {comment}".strip()))
            above = ""
        yield title.removeprefix("# ").removesuffix("."), fields


def shipped(path: Path) -> str:
    """Describes a config file: its docstring's first line, and what it sets."""
    source = path.read_text()
    about, *_ = docstring(ast.parse(source)).splitlines()
    lines = re.findall(r"^ +(c(?:\.\w+)? = .*)", source, re.MULTILINE)
    code = "\n".join(lines)
    argument = re.search(r'get_config\((\w+): str = "(\w+)"', source)
    name = f"{path.stem}:{argument[2]}" if argument else path.stem
    what = f" (what is behind the colon is `{argument[1]}`)" if argument else ""
    return (
        f"\n### [{path.stem}](../configs/{path.name})\n\n{text(about)}\n"
        f"`--config={name}`{what} sets\n\n```python\n{code}\n```"
    )


def api() -> str:
    """Returns docs/api.md."""
    page = [
        "# API reference\n",
        MADE,
        'What can be imported, by module. `Int[Array, "B L"]` is an array of integers '
        "with the axes B and L;\nwhat their letters mean stands at the head of each "
        "module.\n",
    ]
    page += [
        f"- [srgnn_jax.{module}](#srgnn_jax{module.replace('.', '')})" for module in API
    ]
    for module, names in API.items():
        source = (ROOT / "srgnn_jax" / f"{module.replace('.', '/')}.py").read_text()
        tree = ast.parse(source)
        known = {node.name: node for node in tree.body if isinstance(node, Definition)}
        page += [f"\n## srgnn_jax.{module}\n", prose(docstring(tree))]
        for name in names.split():
            page += entry(known[name], source)
    return "\n".join(page) + "\n"


def entry(node: Definition, source: str, owner: str = "") -> Iterator[str]:
    """Describes a function, or a class and its public methods."""
    level = "####" if owner else "###"
    code = signature(node, source)
    yield f"\n{level} `{owner}{node.name}`\n\n```python\n{code}\n```\n"
    yield prose(docstring(node))
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and is_public(method):
                yield from entry(method, source, f"{node.name}.")


def is_public(method: ast.FunctionDef) -> bool:
    """Says whether a method is for users, which its docstring and its name tell."""
    hidden = method.name.startswith("_") and method.name not in ("__init__", "__call__")
    return not hidden and bool(ast.get_docstring(method))


def signature(node: Definition, source: str) -> str:
    """Returns the lines of a definition before its docstring, and a class's fields."""
    lines = source.splitlines()
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    shown = [f"@{name}" for name in decorators if name in ("classmethod", "property")]
    head = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))
    if isinstance(node, ast.ClassDef):
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        head += "".join(
            f"\n    {ast.get_source_segment(source, field)}" for field in fields
        )
    return "\n".join([*shown, head.removesuffix(":")])


def docstring(node: Definition | ast.Module) -> str:
    """Returns the docstring of a module, class or function.

    Raises:
      ValueError: there is none.
    """
    found = ast.get_docstring(node)
    if not found:
        raise ValueError(f"{getattr(node, 'name', 'a module')} has no docstring")
    return found


def prose(found: str) -> str:
    """Turns a docstring into Markdown: its parts, such as Args, into lists."""
    before, *parts = re.split(
        r"^(Args|Attributes|Raises|Returns|Yields):\n", found, flags=re.MULTILINE
    )
    written = [paragraphs(before)]
    for title, rest in zip(parts[::2], parts[1::2], strict=True):
        # What is indented no more is of the docstring again.
        body, *after = re.split(r"^(?=\S)", rest, maxsplit=1, flags=re.MULTILINE)
        body = textwrap.dedent(body)
        if title not in ("Returns", "Yields") or "\n  " in body:
            body = re.sub(r"^(?! )([^:\n]+):", r"- `\1`:", body, flags=re.MULTILINE)
        written += [f"*{title}*", text(body), *map(paragraphs, after)]
    return "\n\n".join(part.strip("\n") for part in written if part.strip())


def paragraphs(found: str) -> str:
    """Turns text into Markdown, in which what is indented by 4 stays as it is."""
    lines: list[str] = []
    for line in found.splitlines():
        is_code = line.startswith("    ")
        if is_code and lines and lines[-1] and not lines[-1].startswith("    "):
            lines.append("")
        lines.append(line if is_code else text(line))
    return "\n".join(lines)


def text(found: str) -> str:
    """Escapes what Markdown would take for markup, outside of `code`."""
    parts = re.split(r"(`[^`]*`)", found)
    parts[::2] = [re.sub(r"[<|]", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


PAGES = {"configs.md": configs, "api.md": api}


def main() -> None:
    """Writes the pages."""
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
