"""The first tab: which checkpoints, and whether a merge of them is likely to pay."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr

from hfmega.app import charts, command, look, runs, words
from hfmega.errors import HfmegaError

PRIVATE: Final[dict[str, Any]] = {"api_visibility": "private"}
LAST_LINES: Final = 6  # of a log, under a button that was pressed


@dataclass(frozen=True)
class Pair:
    """What the other tabs need of this one."""

    sources: gr.Dropdown
    dataset: gr.Textbox


def tab(base: Path) -> Pair:
    """Draw the tab."""
    gr.Markdown("### Which checkpoints?")
    sources = gr.Dropdown(
        choices=runs.checkpoints(base),
        value=[],
        multiselect=True,
        allow_custom_value=True,
        label="Sources",
        info="Hub ids (user/name) and folders on this machine; type one and press Enter. Two or more.",
        elem_id="sources",
    )
    wrong = gr.HTML(elem_id="sources-problem")
    with gr.Accordion("Search the Hub", open=False):
        asked = gr.Textbox(label="Words in the name or the tags", elem_id="search")
        find = gr.Button("Search", elem_id="search-button")
        unheard = gr.HTML()
        found = gr.CheckboxGroup([], label="Image classifiers on the Hub", visible=False)
    seen = gr.HTML(elem_id="facts")
    gr.Markdown("### Look along the line between them")
    gr.Markdown("What a blend of any share would score on held-out images. The test images are not touched.")
    with gr.Row():
        dataset = gr.Textbox(
            label="Dataset",
            info="Hub id, folder, or digits; empty: that of the sources' own records.",
            scale=3,
            min_width=220,
            elem_id="dataset",
        )
        images = gr.Number(
            2000, label="Images", info="At most so many.", precision=0, minimum=2, min_width=140, elem_id="look-images"
        )
    draw = gr.Button("Draw the paths", variant="primary", elem_id="draw")
    doing = gr.HTML(elem_id="look-status")
    inspection = gr.State(None)
    with gr.Column(visible=False, elem_id="paths") as shown:
        which = gr.Radio([], label="From the first source to", visible=False)
        share = gr.Slider(0, 100, 50, step=10, label="Share of the second source, in per cent", elem_id="share")
        drawn = gr.HTML(elem_id="drawn")

    sources.change(facts, [sources], [seen, wrong], show_progress="minimal", **PRIVATE)
    gr.on([find.click, asked.submit], search, [asked, sources], [found, unheard], **PRIVATE)
    found.input(chosen, [sources, found], [sources], show_progress="hidden", **PRIVATE)
    look_again: dict[str, Any] = {"inputs": [inspection, which, share], "outputs": [drawn], "show_progress": "hidden"}
    draw.click(
        inspector(base), [sources, dataset, images], [doing, inspection, shown, which, share, draw], **PRIVATE
    ).then(picture, **look_again, **PRIVATE)
    gr.on([which.change, share.change], picture, trigger_mode="always_last", **look_again, **PRIVATE)
    return Pair(sources, dataset)


def facts(sources: list[str]) -> tuple[str, str]:
    """What is known of the sources at once, or the sentence about the one that cannot be had."""
    if not sources:
        return "", ""
    try:
        return words.facts(look.look(sources)), ""
    except HfmegaError as error:
        return "", words.problem(str(error))


def search(text: str, sources: list[str]) -> tuple[Any, str]:
    """Ids to tick, or why there are none."""
    try:
        ids = look.search(text)
    except HfmegaError as error:
        return gr.CheckboxGroup(visible=False), words.problem(f"{error} Folders on this machine can still be merged.")
    said = "" if ids else words.note("Nothing on the Hub has these words.")
    return gr.CheckboxGroup(choices=ids, value=[i for i in ids if i in sources], visible=bool(ids)), said


def chosen(sources: list[str], ticked: list[str]) -> Any:
    """The sources, and behind them what was ticked."""
    return gr.Dropdown(value=[*sources, *(one for one in ticked if one not in sources)])


def inspector(base: Path) -> Any:
    """What the button does: `hfmega inspect` as a child, or what it found before."""

    def inspect(sources: list[str], dataset: str, images: float | None) -> Iterator[tuple[Any, ...]]:
        asked = ["inspect", *sources, "--fitness-images", str(int(images or 0))]
        asked += ["--dataset", dataset.strip()] if dataset.strip() else []
        place = base / runs.OWN / ".inspections" / named(asked, sources)
        busy, free = gr.Button("Looking …", interactive=False), gr.Button("Draw the paths", interactive=True)
        still = (gr.skip(),) * 4
        try:
            if len(sources) < 2:
                raise HfmegaError("Choose at least two sources above.")
            if command.read(place).result is None and not command.running(place):
                command.start([*asked, "-o", str(place / "seen")], place)
            while (state := command.read(place)).running:
                yield (log(state.log), *still, busy)
                time.sleep(0.5)
        except HfmegaError as error:
            yield (words.problem(str(error)), *still, free)
            return
        if state.result is None:
            yield (words.problem(words.shortened(state.problem or "", place)), *still, free)
            return
        yield (*drawn(state.result), free)

    return inspect


def drawn(found: dict[str, Any]) -> tuple[Any, ...]:
    """An inspection on the page: its advice, itself, and the controls of the picture."""
    pairs = [pair["second"] for pair in found.get("pairs", [])]
    told = words.advice(found["advice"], words.tone_of(found), words.AFTER)
    if found.get("images"):
        told += f'<p class="hf-line">On {found["images"]:,} held-out images ({escape(found["split"])}).</p>'
    which = gr.Radio(choices=pairs, value=pairs[0] if pairs else None, visible=len(pairs) > 1)
    at = round(100 * found["pairs"][0]["prospect"]["share"]) if pairs else 50
    return told, found, gr.Column(visible=bool(pairs)), which, gr.Slider(value=at)


def picture(found: dict[str, Any] | None, which: str | None, share: float) -> str:
    """Accuracy and loss along the line, and the figures at the slider."""
    pairs = found.get("pairs", []) if found else []
    if not pairs or found is None:
        return ""
    pair = next((one for one in pairs if one["second"] == which), pairs[0])
    at, ensemble = min(max(round(share / 10), 0), 10), found.get("ensemble_accuracy")
    both = "".join(f"<div>{charts.paths(pair, what, ensemble, at)}</div>" for what in ("accuracy", "loss"))
    return f'<div class="hf-two">{both}</div>{charts.legend(pair, ensemble)}{words.along(pair, at)}'


def log(text: str) -> str:
    """The newest lines of a log."""
    lines = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
    said = "\n".join(lines) or "starting …"
    return f'<pre class="hf-log" role="status">{escape(said)}</pre>'


def named(asked: Sequence[str], sources: Sequence[str]) -> str:
    """A name for the same question about the same files."""
    files = [str(look.stamp(source)) for source in sources]
    return hashlib.sha256("\0".join([*asked, *files]).encode()).hexdigest()[:16]
