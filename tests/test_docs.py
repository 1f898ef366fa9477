"""Pages that are made of the source hold what it says."""

import re
import runpy
from pathlib import Path

import pytest

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


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
        for target in re.findall(r"\]\((?!http)([^)]*)\)", text):
            path, _, anchor = target.partition("#")
            assert (page.parent / path).exists(), f"{page.name}: {target}"
            assert path or anchor in anchors, f"{page.name}: {target}"
