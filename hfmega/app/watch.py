"""A run as its own files show it: live, whoever started it; stopped and resumed."""

import hashlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr

from hfmega.app import charts, command, runs, words
from hfmega.app.pair import PRIVATE
from hfmega.errors import HfmegaError
from hfmega.folder import SETTINGS, write_atomically

EVERY: Final = 1.5  # seconds between two looks at the files of a run
HIDDEN: Final[dict[str, Any]] = {"show_progress": "hidden", **PRIVATE}


@dataclass(frozen=True)
class Watch:
    """Where a run is shown."""

    which: gr.Dropdown
    status: gr.HTML
    chart: gr.HTML
    log: gr.HTML
    stop: gr.Button
    resume: gr.Button
    seen: gr.State

    @property
    def outputs(self) -> list[Any]:
        return [self.status, self.chart, self.log, self.stop, self.resume, self.seen, self.which]


def followed(base: Path) -> Watch:
    """The run that is shown, of all that are below the folder."""
    gr.Markdown("### The run")
    names = listed(base)
    which = gr.Dropdown(
        names,
        value=names[0][1] if names else None,
        label="Merge",
        info="Also those that were started in a terminal.",
        elem_id="run",
    )
    status, chart = gr.HTML(elem_id="status"), gr.HTML(elem_id="chart")
    with gr.Row():
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
        resume = gr.Button("Resume", interactive=False, elem_id="resume")
    with gr.Accordion("What it says", open=True):
        log = gr.HTML(elem_id="log")
    watch = Watch(which, status, chart, log, stop, resume, gr.State(""))
    timer, look = gr.Timer(EVERY), refresher(base)
    shown: dict[str, Any] = {"inputs": [which, watch.seen], "outputs": watch.outputs, **HIDDEN}
    timer.tick(look, trigger_mode="once", **shown)
    which.change(look, trigger_mode="always_last", **shown)
    stop.click(lambda name: runs.stop(base, name), [which], None, **HIDDEN).then(look, **shown)
    resume.click(resumer(base), [which], [log], **HIDDEN).then(look, **shown)
    return watch


def listed(base: Path, more: str | None = None) -> list[tuple[str, str]]:
    """Every merge with what it is doing, for a choice."""
    names = runs.names(base)
    if more and more not in names:
        names = {more: runs.status(base, more), **names}
    return [(f"{name} ({status})", name) for name, status in names.items()]


def refresher(base: Path) -> Any:
    """Look at the files of the run that is shown; what has not changed since is left as it is."""

    def look(name: str | None, seen: str) -> tuple[Any, ...]:
        names = listed(base, name)
        state = command.read(runs.place_of(base, name)) if name else None
        status = runs.status(base, name) if name else "new"
        live = runs.live(base / name) if name else runs.Live()
        now = hashlib.sha256(repr((name, names, state, status, live)).encode()).hexdigest()
        if now == seen:
            return (gr.skip(),) * 7
        if name is None or state is None:
            return "", "", "", gr.skip(), gr.skip(), now, gr.Dropdown(choices=names)
        ended = state.problem if status != "finished" else None
        told = words.ended(words.shortened(ended, runs.place_of(base, name) / SETTINGS) if ended else None)
        return (
            words.standing(name, status, live) + told,
            charts.search(live),
            whole(state.log) if state.log else words.note("It was started in a terminal: what it says stands there."),
            gr.Button(interactive=status == "running"),
            gr.Button(interactive=status == "stopped" and runs.settings_of(base, name) is not None),
            now,
            gr.Dropdown(choices=names),
        )

    return look


def whole(log: str) -> str:
    return f'<pre class="hf-log tall" tabindex="0" aria-label="log of the run">{escape(log)}</pre>'


def resumer(base: Path) -> Any:
    """What Resume does: the same settings into the same folder."""

    def resume(name: str) -> Any:
        text = runs.settings_of(base, name)
        try:
            if text is None:
                raise HfmegaError(
                    "the settings of this run are not on this machine: run its command again in a terminal."
                )
            launch(base, name, text, base / name)
        except HfmegaError as error:
            return words.problem(str(error))
        return gr.skip()

    return resume


def written(place: Path, text: str) -> Path:
    """The settings as a file."""
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / SETTINGS, text.encode())
    return place / SETTINGS


def launch(base: Path, name: str, text: str, folder: Path) -> None:
    """Start `hfmega merge` with settings as they were typed; the same ones resume it."""
    place = runs.place_of(base, name)
    command.start(["merge", "--config", str(written(place, text)), "-o", str(folder)], place)
