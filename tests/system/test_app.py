"""The page in a real browser: a merge from the first click to its card, stopped, killed and resumed; keys alone; zoom.

Minutes: merges, inspections and estimates are processes of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.page import address_of, serving

from hfmega.app import command, runs, space
from hfmega.data.dataset import Dataset
from hfmega.folder import WORK

pytest.importorskip("gradio", reason="the extra `app` is not installed")
pytestmark = pytest.mark.system

TABS: Final = ("1 Pair", "2 Merge", "3 Result", "4 Publish")
SCREENS: Final = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
CONTROLS: Final = "button, input:not([type=file]), textarea, [role=tab], [contenteditable=true], summary"
UNREACHED: Final = """wanted => [...document.querySelectorAll(wanted)].filter(e => {
    const box = e.getBoundingClientRect(), seen = getComputedStyle(e).visibility != 'hidden';
    const open = e.checkVisibility({contentVisibilityAuto: true});  // not in a <details> that is closed
    return seen && open && box.width > 1 && box.height > 1 && !e.disabled && e.tabIndex >= 0 && !e.dataset.reached;
}).map(e => e.outerHTML.slice(0, 160))"""
REACH: Final = """(e => {
    if (e.tagName == 'IFRAME') return false;  // focus is in the report, whose own controls show it
    const again = e.dataset.reached && e != document.body;  // where focus is for a moment when a list closes
    e.dataset.reached = 1;
    return again || (e != document.body && getComputedStyle(e).outlineStyle == 'none' && 'no outline');
})(document.activeElement)"""
OUTSIDE: Final = """wanted => [...document.querySelectorAll(wanted)].filter(e => {
    const box = e.getBoundingClientRect(), cut = e.tagName == 'BUTTON' && e.scrollWidth > e.clientWidth + 12;
    return box.width > 1 && (box.left < -1 || box.right > innerWidth + 1 || cut);
}).map(e => e.outerHTML.slice(0, 160))"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "merges"


@pytest.fixture(scope="module")
def address(base: Path) -> Iterator[str]:
    """The page over an empty folder, without a network."""
    with serving(base, {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}) as address:
        yield address
        for name, status in runs.names(base).items():
            if status == "running":
                runs.stop(base, name)


@pytest.fixture
def window(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open another window on the page; nothing in it may fail, or ask for anything from elsewhere."""
    opened, problems, asked = [], [], []

    def open_window(**how: Any) -> Any:
        context = browser.new_context(**{"viewport": SCREENS["desktop"], **how})
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(180_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#sources input")
        return page

    yield open_window
    for context in opened:
        context.close()
    assert problems == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))] == []


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def fill(page: Any, field: str, text: str) -> None:
    page.locator(f"#{field} textarea, #{field} input").first.fill(text)


def choose_sources(page: Any, sources: tuple[Path, Path]) -> None:
    for source in sources:
        page.locator("#sources input").fill(str(source))
        page.locator("#sources input").press("Enter")
    page.wait_for_selector("#facts:has-text('Relation')")


def settle(page: Any) -> None:
    """Wait until what the server adds to a tab has come: no new control for a second."""
    before = -1
    while before != (before := page.locator(CONTROLS).count()):
        page.wait_for_timeout(1000)


def generation(page: Any) -> int:
    """The generation that the page shows."""
    page.wait_for_selector("#status dd")
    return int(page.locator("#status dd").first.inner_text().split(" of ")[0])


def until_generation(page: Any, number: int) -> None:
    until = time.monotonic() + 180
    while generation(page) < number:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_merge_from_the_first_click_to_its_card(
    window: Callable[..., Any], base: Path, tiny_sources: tuple[Path, Path], digits: Dataset, tmp_path: Path
) -> None:
    page = window()
    choose_sources(page, tiny_sources)
    assert "Do not expect much." in page.locator("#facts").inner_text()
    fill(page, "look-images", "100")
    page.get_by_role("button", name="Draw the paths").click()
    page.wait_for_selector("#drawn svg")
    fill(page, "share", "70")
    page.locator("#share input").first.press("Enter")
    page.wait_for_selector("#drawn:has-text('30 % of s1, 70 % of s2')")

    tab(page, "2 Merge")
    fill(page, "name", "clicked")
    fill(page, "merge-dataset", "digits")
    fill(page, "images", "many")
    page.wait_for_selector("#images-problem:has-text('--fitness-images must be a whole number, not many.')")
    fill(page, "images", "200")
    page.wait_for_selector("#images-problem", state="hidden")
    page.get_by_role("button", name="Every setting").click()
    page.locator("#yaml .cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\npatience: 0\ngenerations: 24\n")
    page.wait_for_selector("#price:has-text('on this machine')")
    page.locator("#start").click()
    until_generation(page, 2)
    other = window()  # sees the same run
    tab(other, "2 Merge")
    assert generation(other) >= 2
    page.locator("#stop").click()
    for one in (page, other):
        one.wait_for_selector("#status .stopped")
    assert "Nothing is lost" in page.locator("#status").inner_text()
    stopped_at = generation(page)

    other.locator("#resume").click()
    page.wait_for_selector("#status .running")
    until_generation(page, stopped_at + 1)
    os.kill(command.noted(runs.place_of(base, "clicked"))["pid"], signal.SIGKILL)
    page.wait_for_selector("#status .stopped")
    page.locator("#resume").click()
    page.wait_for_selector("#status .finished")
    made = json.loads((base / "clicked" / "lineage.json").read_text())
    assert (made["settings"]["generations"], made["settings"]["patience"]) == (24, 0)
    assert len(made["nodes"][0]["history"]) == 24

    tab(page, "3 Result")
    page.wait_for_selector("#verdict table")
    assert page.frame_locator("#report iframe").locator("h1").inner_text()
    digits.splits["test"][5]["image"].save(tmp_path / "digit.png")
    page.locator("#image input[type=file]").set_input_files(tmp_path / "digit.png")
    page.wait_for_selector("#answers .answer")
    assert page.locator("#answers h4").all_inner_texts() == ["this merge", "s1", "s2", "ensemble"]
    shares = page.locator("#answers .answer.merged .share").all_inner_texts()
    assert 0 < sum(float(share.removesuffix(" %")) for share in shares) <= 100.1
    page.locator("#find").click()
    page.wait_for_selector("#disputed .hf-case, #disputed .hf-note")

    tab(page, "4 Publish")
    page.wait_for_selector("#card h1")
    assert "model.safetensors" in page.locator("#contents").inner_text()
    assert page.locator("#card img").first.evaluate("e => e.complete && e.naturalWidth > 0")
    fill(page, "target", "ann/clicked")
    page.locator("#push").click()
    page.wait_for_selector("#target-problem .hf-problem")
    assert "nothing could be published as ann/clicked" in page.locator("#target-problem").inner_text()


def test_what_the_command_refuses_stands_beside_the_field(
    window: Callable[..., Any], base: Path, tiny_sources: tuple[Path, Path]
) -> None:
    page = window()
    page.locator("#sources input").fill("./nowhere")
    page.locator("#sources input").press("Enter")
    page.wait_for_selector("#sources-problem:has-text('there is no folder nowhere')")
    page.get_by_role("button", name="Search the Hub").click()
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("Folders on this machine can still be merged.").wait_for()
    page = window()
    choose_sources(page, tiny_sources)
    tab(page, "2 Merge")
    fill(page, "name", "../out")
    page.locator("#start").click()
    page.wait_for_selector("#name-problem:has-text('is not a name for a merge')")
    fill(page, "name", "refused")
    fill(page, "merge-dataset", "./no-photos")
    page.wait_for_selector("#price", state="hidden")
    page.locator("#start").click()
    page.wait_for_selector("#dataset-problem .hf-problem")
    assert "no-photos" in page.locator("#dataset-problem").inner_text()
    assert "refused" not in runs.names(base)


def test_a_merge_that_was_started_in_a_terminal_is_followed_and_stopped(
    window: Callable[..., Any], base: Path, tiny_sources: tuple[Path, Path]
) -> None:
    words = ["merge", *map(str, tiny_sources), "--dataset", "digits", "--fitness-images", "200", "--patience", "0"]
    words += ["--generations", "60", "-o", str(base / "typed")]
    merge = subprocess.Popen(
        [sys.executable, "-m", "hfmega", *words], stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        until = time.monotonic() + 120
        while not (base / "typed" / WORK / "progress.json").exists():
            assert time.monotonic() < until
            assert merge.poll() is None
            time.sleep(0.2)
        page = window()
        tab(page, "2 Merge")
        page.wait_for_selector("#status:has-text('typed')")
        until_generation(page, 2)
        assert "It was started in a terminal" in page.locator("#log").inner_text()
        page.locator("#stop").click()
        assert merge.wait(60) == 143
        page.wait_for_selector("#status .stopped")
        assert page.locator("#resume").is_enabled()  # its settings lie in its work folder
    finally:
        merge.kill()
        merge.wait()


def test_every_control_is_reached_with_the_keyboard_alone(
    window: Callable[..., Any], tiny_sources: tuple[Path, Path]
) -> None:
    page = window()
    choose_sources(page, tiny_sources)
    for name in TABS:
        page.get_by_role("tab", name=name).focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(f"[role=tab][aria-selected=true]:has-text('{name}')")
        settle(page)
        page.evaluate("document.querySelectorAll('[data-reached]').forEach(e => delete e.dataset.reached)")
        page.evaluate("document.activeElement.blur()")
        for _ in range(300):
            page.keyboard.press("Tab")
            reached = page.evaluate(REACH)
            assert reached != "no outline", page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
            if reached:
                break
        assert page.evaluate(UNREACHED, CONTROLS) == [], name


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("screen", [*SCREENS, "zoom"])
def test_everything_fits_a_phone_and_200_per_cent(
    window: Callable[..., Any], tiny_sources: tuple[Path, Path], screen: str, colours: str
) -> None:
    size = SCREENS.get(screen, {"width": 640, "height": 450})  # 200 % of 1280 x 900
    page = window(viewport=size, color_scheme=colours, device_scale_factor=2 if screen == "zoom" else 1)
    choose_sources(page, tiny_sources)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(1000)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, screen)
        assert page.evaluate(OUTSIDE, "button, input, textarea, [role=tab], .hf-problem, .hf-advice") == [], name


def test_the_written_app_starts_from_an_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "space"
    folder.mkdir()
    space.write("ann/merges", folder)
    log = tmp_path / "said"
    with log.open("wb") as stream:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=folder, stdout=stream, stderr=stream)
    try:
        with urllib.request.urlopen(address_of(app, log)) as answer:
            assert answer.status == 200
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "merges", "requirements.txt"]
    finally:
        app.terminate()
        app.wait(60)
