"""Writes docs/configs.md: `make docs`.

    python docs/generate.py

It is drawn from the text of the source: the comments of configs/default.py, and what
the other configs set. Nothing is imported, so nothing needs to be installed.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = "<!-- Made by `make docs`; change the source, not this page. -->\n"


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
    about, *_ = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    lines = re.findall(r"^ +(c(?:\.\w+)? = .*)", source, re.MULTILINE)
    code = "\n".join(lines)
    argument = re.search(r'get_config\((\w+): str = "(\w+)"', source)
    name = f"{path.stem}:{argument[2]}" if argument else path.stem
    what = f" (what is behind the colon is `{argument[1]}`)" if argument else ""
    return (
        f"\n### {path.stem}\n\n[configs/{path.name}](../configs/{path.name}): "
        f"{text(about)}\n"
        f"`--config={name}`{what} sets\n\n```python\n{code}\n```"
    )


def text(found: str) -> str:
    """Escapes what Markdown would take for markup, outside of `code`."""
    parts = re.split(r"(`[^`]*`)", found)
    parts[::2] = [re.sub(r"[<|]", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


PAGES = {"configs.md": configs}


def main() -> None:
    """Writes the pages."""
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
