"""The third tab: what a merge is worth, and what its models say of an image."""

from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr

from hfmega.app import answers, charts, runs, words
from hfmega.app.pair import PRIVATE
from hfmega.errors import HfmegaError
from hfmega.folder import CONFIG, LINEAGE, REPORT

HIDDEN: Final[dict[str, Any]] = {"show_progress": "hidden", **PRIVATE}


def tab(base: Path) -> gr.Dropdown:
    """Draw the tab; returns the choice of the merge."""
    which = gr.Dropdown(finished(base), value=None, label="Finished merge", elem_id="finished")
    verdict = gr.HTML(elem_id="verdict")
    gr.Markdown("### Try it")
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            image = gr.Image(
                type="filepath", sources=["upload", "clipboard"], label="An image", height=240, elem_id="image"
            )
            ask = gr.Button("What do they say?", variant="primary", elem_id="ask")
        with gr.Column(scale=5, min_width=320):
            said = gr.HTML(words.note("Drop an image, or choose one."), elem_id="answers")
    gr.Markdown("### Where they disagree")
    find = gr.Button("Find test images on which the merge and its best source disagree", elem_id="find")
    disputed = gr.HTML(elem_id="disputed")
    gr.Markdown("### The report")
    report = gr.HTML(elem_id="report")

    which.change(shower(base), [which], [verdict, report, disputed], **HIDDEN)
    gr.on([image.upload, ask.click], asker(base), [which, image], [said], **PRIVATE)
    find.click(finder(base), [which], [disputed], **PRIVATE)
    return which


def finished(base: Path) -> list[str]:
    """The merges that are done."""
    return [name for name, status in runs.names(base).items() if status == "finished"]


def shower(base: Path) -> Any:
    """The verdict, and the report in a frame of its own."""

    def show(name: str | None) -> tuple[str, str, str]:
        if not name:
            return "", "", ""
        try:
            return verdict(base / name), framed(base / name), ""
        except HfmegaError as error:
            return words.problem(str(error)), "", ""

    return show


def verdict(folder: Path) -> str:
    """The verdict in words and the comparison on the test images."""
    from hfmega.report import card, lineage, wording

    told = lineage.read(folder / LINEAGE)
    columns, rows = card.comparison_rows(told)
    tone: Any = {"better": "good", "worse": "bad"}.get(told.result.verdict, "doubt")
    title, below = escape(wording.title(told)), escape(wording.below_title(told))
    said = f'<div class="hf-advice {tone}" role="status"><h3>{title}</h3><p>{below}</p></div>'
    return said + words.table(columns, rows)


def framed(folder: Path) -> str:
    """The report in a frame whose script reaches nothing of this page; made on the spot where a merge has none."""
    path = folder / REPORT
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else made(folder)
    return (
        '<iframe class="hf-report" title="report of the merge" sandbox="allow-scripts allow-popups" '
        f'allow="clipboard-write" srcdoc="{escape(text, quote=True)}"></iframe>'
    )


def made(folder: Path) -> str:
    """The report of a merge that is older than reports."""
    from hfmega.models import library
    from hfmega.report import lineage, page, thumbnails

    spec = library.read(folder / CONFIG, str(folder))
    return page.text(lineage.read(folder / LINEAGE), spec, thumbnails.read(folder))


def asker(base: Path) -> Any:
    """What the models of the merge say of an image."""

    def ask(name: str | None, path: str | None) -> str:
        try:
            if not name:
                raise HfmegaError("Choose a finished merge above.")
            if not path:
                raise HfmegaError("Drop an image first, or choose one.")
            told, notes = answers.ask(base / name, Path(path).read_bytes())
        except HfmegaError as error:
            return words.problem(str(error))
        how = "The sources answer as they are; the ensemble is the mean of their answers."
        return charts.bars(told) + "".join(words.note(sentence) for sentence in (how, *notes))

    return ask


def finder(base: Path) -> Any:
    """Test images on which merge and best source disagree, each with what all models say."""

    def find(name: str | None) -> str:
        try:
            if not name:
                raise HfmegaError("Choose a finished merge above.")
            found = answers.disputed(base / name)
        except HfmegaError as error:
            return words.problem(str(error))
        if not found:
            return words.note(f"They agree on each of the first {answers.LOOKED:,} test images.")
        return '<div class="hf-disputed">' + "".join(charts.disputed(one) for one in found) + "</div>"

    return find
