"""report.html in a real browser: nothing leaves the file, and it works with and without script. 8 seconds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.places import ROOT

from hfmega.report import lineage, page, thumbnails
from hfmega.report.thumbnails import Disagreement

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the distilled card, with two images on which they would disagree."""
    folder = shutil.copytree(ROOT / "cards" / "resnet8-distilled", tmp_path_factory.mktemp("page") / "out")
    (folder / ".hfmega").mkdir()
    image = thumbnails.thumbnail(torch.full((3, 32, 32), 128, dtype=torch.uint8), "RGB")
    thumbnails.write([Disagreement("cat", "cat", "dog", image), Disagreement("ship", "truck", "ship", image)], folder)
    return page.write(lineage.read(folder / "lineage.json"), folder)


class Seen:
    """An open page, what it asked for, and what went wrong in it."""

    def __init__(self, browser: Any, report: Path, **how: Any) -> None:
        self.context = browser.new_context(**how)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.goto(report.as_uri())


@pytest.mark.parametrize(
    "how",
    [
        {"viewport": {"width": 1100, "height": 800}},
        {"viewport": {"width": 360, "height": 740}, "has_touch": True},
        {"viewport": {"width": 1100, "height": 800}, "color_scheme": "dark"},
    ],
    ids=["desktop", "phone", "dark"],
)
def test_no_request_leaves_the_file(browser: Any, report: Path, how: dict[str, Any]) -> None:
    seen = Seen(browser, report, **how)
    seen.page.mouse.wheel(0, 10_000)
    seen.page.wait_for_timeout(200)
    assert [url for url in seen.requests if not url.startswith("data:image/png")] == [report.as_uri()]
    assert seen.problems == []
    assert seen.page.evaluate("document.images[0].naturalWidth") == 32  # the images are there
    wide, window = seen.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window  # nothing to scroll sideways
    background = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(13, 17, 23)") == (how.get("color_scheme") == "dark")


def test_a_page_that_reaches_out_is_stopped(browser: Any, report: Path, tmp_path: Path) -> None:
    """The policy in its head forbids what a template might come to hold one day."""
    text = report.read_text(encoding="utf-8")
    (tmp_path / "bad.html").write_text(text.replace("</main>", '<img src="http://192.0.2.1/x.png"></main>'))
    seen = Seen(browser, tmp_path / "bad.html")
    assert any("Content Security Policy" in problem for problem in seen.problems)


def test_hovering_shows_the_interval(browser: Any, report: Path) -> None:
    seen = Seen(browser, report, viewport={"width": 1100, "height": 800})
    row = seen.page.locator("#comparison .row.merged")
    assert not row.locator("small").is_visible()
    row.hover()
    assert row.locator("small").is_visible()
    assert re.fullmatch(r"\d\d\.\d to \d\d\.\d", row.locator("small").inner_text())


def test_the_tree_is_clicked_through_and_the_search_is_stepped_through(browser: Any, report: Path) -> None:
    seen = Seen(browser, report, viewport={"width": 1100, "height": 800})
    assert seen.page.locator(".panel:visible h3").all_inner_texts() == ["merge-3, the result"]
    seen.page.locator('.tree a[href="#merge-0"]').click()
    assert seen.page.locator(".panel:visible h3").all_inner_texts() == ["merge-1"]
    seen.page.locator("#merge-0 dd a").first.click()
    assert seen.page.locator(".panel:visible h3").all_inner_texts() == ["resnet8-s44"]
    figure = seen.page.locator(".search").first
    history = json.loads((report.parent / "lineage.json").read_text())["nodes"][-1]["history"]
    count = len(history)
    assert figure.locator("output").inner_text().startswith(f"{count} of {count}: best {history[-1]['best']:.4f}")
    figure.locator("input").fill("1")
    assert figure.locator("output").inner_text().startswith(f"1 of {count}: best")


def test_buttons_copy(browser: Any, report: Path) -> None:
    seen = Seen(browser, report, permissions=["clipboard-read", "clipboard-write"])
    button = seen.page.locator(".copied", has_text="check every claim").locator("button")
    button.click()
    seen.page.wait_for_function("[...document.querySelectorAll('button')].some(b => b.textContent === 'copied')")
    assert seen.page.evaluate("navigator.clipboard.readText()") == "hfmega verify ."


def test_without_script_everything_is_there(browser: Any, report: Path) -> None:
    seen = Seen(browser, report, java_script_enabled=False)
    assert seen.page.locator(".panel:visible").count() == 7  # four sources, three merges
    assert seen.page.locator("button:visible, input:visible").count() == 0
    assert seen.page.locator("#images img:visible").count() == 2
