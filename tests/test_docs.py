"""Checks the generated pages, the API page and the links between pages."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import srgnn_jax
from srgnn_jax.configs import default

ROOT = Path(__file__).parents[1]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.mark.parametrize("name", GENERATE["PAGES"])
def test_made_pages_are_up_to_date(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == GENERATE["PAGES"][name](), "run `make docs`"


def test_every_field_is_on_the_page_once():
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    fields = re.findall(r"^\| `(\w+)` \| `.+` \| .+ \|$", page, re.MULTILINE)
    assert sorted(fields) == sorted(default.get_config())


def test_a_field_without_a_comment_is_named():
    source = (
        "c = ConfigDict()\n\n    # Title.\n    c.a = 1  # what\n    c.b = 2\n    return"
    )
    with pytest.raises(ValueError, match="b has no comment"):
        list(GENERATE["sections"](source))


def test_the_api_page_has_all_that_can_be_imported():
    page = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    listed = {
        module: names.split(", ")
        for module, names in re.findall(
            r"^\.\. automodule:: (\S+)\n   :members: (.*)$", page, re.MULTILINE
        )
    }
    for module, names in listed.items():
        found = importlib.import_module(module)
        assert not [name for name in names if not hasattr(found, name)], module
    for name in srgnn_jax.__all__:
        module = getattr(srgnn_jax, name).__module__
        assert name in listed[module], name


def test_the_package_shows_its_public_names_and_nothing_else():
    assert sorted(srgnn_jax.__all__) == dir(srgnn_jax)
    assert (ROOT / "srgnn_jax" / "py.typed").is_file()


def test_importing_the_package_imports_neither_jax_nor_polars():
    code = (
        "import sys, srgnn_jax\nassert not {'jax', 'polars', 'numpy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_site_has_every_page():
    built = ROOT / "docs" / "_build" / "html"
    if not (built / "index.html").exists():
        pytest.skip("make docs builds the site, warnings being errors")
    pages = {path.name: path.read_text() for path in built.glob("*.html")}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"{page.stem}.html" in pages
    assert "train_and_evaluate" in pages["api.html"]
    # Links between pages point to pages of the site.
    assert 'href="own_data.html"' in pages["index.html"]


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
        for target in re.findall(r"\]\((?!http)([^)]*)\)", text):
            path, _, anchor = target.partition("#")
            assert (page.parent / path).exists(), f"{page.name}: {target}"
            assert path or anchor in anchors, f"{page.name}: {target}"
