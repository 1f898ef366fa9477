"""The page for people, in a browser if one is installed."""

import re
import shutil
import subprocess

import pytest

from srgnn_jax.serve.http import PAGE
from tests.served import Process
from tests.tiny import old_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def test_the_page_brings_all_that_it_needs():
    text = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"\b(?:src|href)=", text)
    addresses = set(re.findall(r"https?://[^\"' )]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    # No text from a client or a log becomes markup.
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text
    )
    asked = set(re.findall(r'ask\("(/v1/\w+)', text))
    assert asked == {"/v1/items", "/v1/recommend", "/v1/explain"}


@pytest.mark.slow  # starts a browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_shows_the_list_the_graph_and_completions(tmp_path):
    with Process(old_run(tmp_path), tmp_path / "log", max_wait=30.0) as served:
        script = (
            "<script>addEventListener('load', async () => {"
            "$('session').value = 'item3 item4 item3 nope item1';"
            "$('session').dispatchEvent(new Event('input'));"
            "$('form').requestSubmit();})</script>"
        )
        # The page itself, and a script that does what a person would.
        driven = tmp_path / "page.html"
        page = PAGE.read_text(encoding="utf-8")
        address = f"http://127.0.0.1:{served.port}"
        page = page.replace("fetch(path", f"fetch('{address}' + path")
        driven.write_text(page.replace("</html>", script + "</html>"))
        done = subprocess.run(
            [
                BROWSER,
                *(
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-web-security",
                ),
                f"--user-data-dir={tmp_path / 'profile'}",
                *("--virtual-time-budget=20000", "--dump-dom", driven.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=100,
        )
    shown = done.stdout
    assert "model of step 14; unknown: nope" in shown, done.stderr
    rows = re.findall(r"<tr><td class=\"n\">(\d+)</td><td>(item\d+)</td>", shown)
    assert [int(n) for n, _ in rows] == list(range(1, 21))
    assert len({item for _, item in rows}) == 20
    assert len(re.findall("<circle", shown)) == 3
    assert len(re.findall(r"<path d=\"M[^\"]+Q", shown)) == 3
    assert 'value="item3 item4 item3 nope item1"' in shown
    assert 'value="item3 item4 item3 nope item18"' in shown
