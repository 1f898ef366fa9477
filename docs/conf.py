"""The site of these pages: `make docs` builds it in docs/_build/html."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "srgnn_jax"
version = re.search(
    r'__version__ = "(.*)"', (ROOT / "srgnn_jax/__init__.py").read_text()
)[1]
release = version
author = copyright = f"the authors of {project}"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build"]
# Notebooks train: `make notebooks` runs them, here they are shown.
nb_execution_mode = "off"
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = []
templates_path = []

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
# What stands between single backticks in docstrings is code.
default_role = "code"
nitpicky = False


def paragraphs(app, what, name, obj, options, lines):
    """Turns what docstrings indent into blocks of code, as it is written."""
    made, in_code = [], False
    for line in lines:
        is_code = line.startswith("    ") and (in_code or not made or not made[-1])
        if is_code and not in_code:
            made += [".. code-block:: text", ""]
        in_code = is_code or (in_code and not line)
        made.append(line)
    lines[:] = made


def setup(app):
    """Registers what comes before napoleon."""
    app.connect("autodoc-process-docstring", paragraphs, priority=400)
