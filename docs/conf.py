"""The site of these pages: `make docs` builds it in docs/_build/html."""

import os
import re
import shutil
from pathlib import Path

import srgnn_jax

ROOT = Path(__file__).parents[1]

project = "srgnn_jax"
version = release = srgnn_jax.__version__
author = copyright = f"the authors of {project}"

# Links between notebooks hold in one folder, in which they run from nothing.
shutil.rmtree(ROOT / "docs/notebooks", ignore_errors=True)
shutil.copytree(ROOT / "colab", ROOT / "docs/notebooks")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build"]
# They train, some minutes each, unless they are as they were when they ran last.
nb_execution_mode = "cache"
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_merge_streams = True
path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(path)
# Notebooks hold lines of the shell.
suppress_warnings = ["misc.highlighting_failure"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"{project} {version}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "setup"}  # Flax's own
napoleon_use_ivar = True
# What stands between single backticks in docstrings is code.
default_role = "code"


def paragraphs(app, what, name, obj, options, lines):
    """Has docstrings read as they are written, before napoleon takes their parts.

    What is indented by four is code; several values of Returns are a list.
    """
    made, in_code = [], False
    for line in "\n".join(lines).split("\n"):
        before = made[-1] if made else ""
        is_code = line.startswith("    ") and (in_code or not before.startswith(" "))
        if in_code and line and not is_code and before:
            made.append("")
        if is_code and not in_code:
            made += ["", ".. code-block:: text", ""]
        in_code = is_code or (in_code and not line)
        made.append(line)
    text = "\n".join(made)
    # Several names before one colon are several entries.
    for names, what in re.findall(r"^  (\w+(?:, \w+)+): (.+(?:\n    .+)*)", text, re.M):
        entries = "\n".join(f"  {name}: {what}" for name in names.split(", "))
        text = text.replace(f"  {names}: {what}", entries)
    for title, body in re.findall(r"^(Returns|Yields):\n((?:  .*\n|\n)+)", text, re.M):
        if "\n    " in body:
            values = re.sub(r"^  (?! )", "- ", body, flags=re.M)
            values = re.sub(r"^    ", "  ", values, flags=re.M)
            text = text.replace(f"{title}:\n{body}", f"**{title}**\n\n{values}\n")
    lines[:] = text.split("\n")


# Links of the repository, and what they are on the site.
LINKS = {
    r"\(\.\./README\.md": "(index.md",
    r"\(\.\./RESULTS\.md": "(tables.md",
    r"\(\.\./colab/": "(notebooks/",
    r"\(colab\)": "(docs/notebooks/own_clicks.ipynb)",
    r"\(CHANGELOG\.md\)": "(docs/changelog.md)",
    r"\(CONTRIBUTING\.md\)": "(docs/contributing.md)",
}


def on_the_site(app, *arguments):
    """Has links lead to pages of the site."""
    *_, content = arguments
    for link, page in LINKS.items():
        content[0] = re.sub(link, page, content[0])


def setup(app):
    """Registers what changes docstrings before napoleon does, and pages."""
    app.connect("autodoc-process-docstring", paragraphs, priority=400)
    app.connect("source-read", on_the_site)
    app.connect("include-read", on_the_site)
