"""The second tab: what is to be merged and how, beside the run."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gradio as gr

from hfmega.app import command, runs, words
from hfmega.app.pair import PRIVATE, Pair
from hfmega.app.watch import HIDDEN, followed, launch, listed, refresher, written
from hfmega.errors import HfmegaError
from hfmega.folder import SETTINGS
from hfmega.settings import METHODS, default_folder

METHOD_WORDS: Final = {
    "mega": "Genetic search",
    "cmaes": "CMA-ES search",
    "learned": "Learned coefficients",
    "random": "Random search",
    "greedy-soup": "Greedy soup",
    "average": "Plain average",
}
GENERATIONS: Final = 20
STILL: Final = 1.5  # seconds for which settings do not change before their cost is asked for
FIELDS: Final[tuple[words.Field, ...]] = ("sources", "name", "dataset", "images", "method", "settings")


@dataclass(frozen=True)
class Controls:
    """The components of the form."""

    sources: gr.HTML
    name: gr.Textbox
    dataset: gr.Textbox
    images: gr.Textbox
    method: gr.Dropdown
    extras: gr.CheckboxGroup
    budget: gr.Slider
    text: gr.Code
    wrong: dict[words.Field, gr.HTML]


class Estimates:
    """The dry run of the settings of each window that stand still, asked once for each of them."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._wanted: dict[str | None, str] = {}  # window to its newest settings; none while it starts a merge

    def want(self, text: str | None, request: gr.Request) -> None:
        self._wanted[request.session_hash] = text or ""

    def price(self, text: str | None, request: gr.Request) -> Iterator[str]:
        """Minutes here. Nothing where the settings are wrong, which is said beside their field, or have changed."""
        text, window = text or "", request.session_hash
        place = self._base / runs.OWN / ".estimates" / hashlib.sha256(text.encode()).hexdigest()[:16]
        time.sleep(STILL)
        try:
            if self._wanted.get(window) != text or len(words.checked(text).get("sources", [])) < 2:
                raise HfmegaError("there is nothing to estimate.")
            if command.read(place).result is None:
                yield words.note("Estimating the time …")
                words_ = ["merge", "--config", str(written(place, text)), "--dry-run", "-o", str(place / "merge")]
                command.start(words_, place)
            while command.running(place):
                if self._wanted.get(window) != text:
                    command.stop(place)
                time.sleep(0.2)
        except HfmegaError:
            yield ""
            return
        found = command.read(place).result
        yield words.note(words.priced(found)) if found else ""


def tab(base: Path, pair: Pair) -> gr.Dropdown:
    """Draw the tab; returns the choice of the run that is shown."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            controls, begin, price = form()
        with gr.Column(scale=6, min_width=320):
            watch = followed(base)
    estimates = Estimates(base)
    follow_form(estimates, pair, controls, price)
    wrong = [controls.wrong[field] for field in FIELDS]
    begin.click(starter(base, estimates), [controls.name, controls.text], [*wrong, watch.which], **PRIVATE).then(
        refresher(base), [watch.which, watch.seen], watch.outputs, **HIDDEN
    )
    return watch.which


def form() -> tuple[Controls, gr.Button, gr.HTML]:
    """What is to be merged, and how."""
    wrong: dict[words.Field, gr.HTML] = {}

    def below(field: words.Field) -> None:
        wrong[field] = gr.HTML(elem_id=f"{field}-problem")

    gr.Markdown("### A new merge")
    sources = gr.HTML(words.chips([]), elem_id="merge-sources")
    below("sources")
    with gr.Row():
        name = gr.Textbox(label="Name", info="Its folder among the merges.", min_width=200, elem_id="name")
        dataset = gr.Textbox(label="Dataset", info="Hub id, folder, or digits.", min_width=200, elem_id="merge-dataset")
    below("name")
    below("dataset")
    with gr.Row():
        choices = [(METHOD_WORDS.get(method, method), method) for method in METHODS]
        method = gr.Dropdown(
            choices, value="mega", label="Method", info="How it is merged.", min_width=200, elem_id="method"
        )
        images = gr.Textbox(
            label="Images that steer it", info="A number; empty: all held out.", min_width=200, elem_id="images"
        )
    below("method")
    below("images")
    extras = gr.CheckboxGroup(
        [("Teach it the ensemble's answers (needs no labels)", "distill"), ("Train it on the labels", "fine-tune")],
        label="And then a short training?",
        elem_id="extras",
    )
    budget = gr.Slider(1, 60, GENERATIONS, step=1, label="Budget: generations of the search", elem_id="budget")
    price = gr.HTML(elem_id="price")
    with gr.Accordion("Every setting (YAML, as --config reads it)", open=False):
        text = gr.Code("", language="yaml", interactive=True, lines=6, label="This is what runs", elem_id="yaml")
    below("settings")
    begin = gr.Button("Start", variant="primary", elem_id="start")
    return Controls(sources, name, dataset, images, method, extras, budget, text, wrong), begin, price


def follow_form(estimates: Estimates, pair: Pair, controls: Controls, price: gr.HTML) -> None:
    """Controls write into the YAML; the YAML is checked, and its cost asked for, when it stands still."""
    c = controls
    wrong = [c.wrong[field] for field in FIELDS]
    pair.sources.change(with_sources, [c.text, pair.sources], [c.text, c.name, c.sources], **HIDDEN)
    pair.dataset.change(lambda text: text, [pair.dataset], [c.dataset], **HIDDEN)
    inputs = [c.text, c.dataset, c.images, c.method, c.extras, c.budget]
    triggers = [c.dataset.change, c.images.change, c.method.change, c.extras.change, c.budget.release, c.budget.change]
    gr.on(triggers, typed, inputs, [c.text, c.budget], trigger_mode="always_last", **HIDDEN)
    c.text.change(check, [c.text], wrong, trigger_mode="always_last", **HIDDEN)
    c.text.change(estimates.want, [c.text], None, trigger_mode="always_last", **HIDDEN)
    c.text.change(estimates.price, [c.text], [price], trigger_mode="always_last", **HIDDEN)


def with_sources(text: str | None, sources: list[str]) -> tuple[str, str, str]:
    """The settings with these sources, a name for their merge, and the sources as they are shown."""
    name = default_folder(*sources).name if sources else ""
    return words.changed(text, sources=sources), name, words.chips(sources)


def typed(
    text: str | None, dataset: str, images: str, method: str, extras: list[str], budget: float
) -> tuple[str, Any]:
    """The settings with what the controls say."""
    searches = METHODS[method].searches  # type: ignore[index]  # one of the choices
    told = words.changed(
        text,
        dataset=dataset.strip(),
        fitness_images=words.number(images),
        method=None if method == "mega" else method,
        generations=int(budget) if searches and int(budget) != GENERATIONS else None,
        distill="distill" in extras,
        fine_tune="fine-tune" in extras,
    )
    return told, gr.Slider(interactive=searches)


def beside(sentence: str | None, field: words.Field | None = None) -> tuple[str, ...]:
    """A sentence beside a field, else the one that it is about, and nothing beside the others."""
    field = field or (words.field_of(sentence) if sentence else None)
    return tuple(words.problem(sentence) if one == field else "" for one in FIELDS)


def check(text: str | None) -> tuple[str, ...]:
    """What is wrong with the settings as far as they alone tell; before there are sources, nothing is."""
    try:
        if words.parsed(text).get("sources"):
            words.checked(text)
    except HfmegaError as error:
        return beside(str(error))
    return beside(None)


def starter(base: Path, estimates: Estimates) -> Any:
    """What Start does: the run to be shown, and the sentences beside the fields, those of its first seconds too."""

    def begin(name: str, text: str | None, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        estimates.want(None, request)
        name, text = name.strip(), text or ""
        place = runs.place_of(base, name)
        try:
            folder = runs.merge_folder(base, name)
        except HfmegaError as error:
            yield (*beside(str(error), "name"), gr.skip())
            return
        try:
            if not words.parsed(text).get("sources"):
                raise HfmegaError("sources: choose at least two in the tab Pair.")
            words.checked(text)
            if runs.status(base, name) == "running":
                raise HfmegaError(f"-o {name} is running already: give this merge another name, or stop that one.")
            launch(base, name, text, folder)
        except HfmegaError as error:
            yield (*beside(str(error)), gr.skip())
            return
        yield (*beside(None), gr.Dropdown(choices=listed(base, name), value=name))
        while command.running(place) and not runs.live(folder).phase:
            time.sleep(0.5)
        problem = command.read(place).problem
        if problem and not runs.live(folder).phase:
            yield (*beside(words.shortened(problem, place / SETTINGS)), gr.skip())

    return begin
