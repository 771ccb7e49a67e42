"""The fourth tab: the card as visitors will see it, what will be public, and the push."""

import re
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr

from hfmega.app import command, look, runs, words
from hfmega.app.pair import PRIVATE, log
from hfmega.app.result import finished
from hfmega.errors import HfmegaError
from hfmega.folder import CARD

FRONT: Final = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
PICTURE: Final = re.compile(r"!\[([^\]]*)\]\((figures/[\w.+-]+\.png)\)")
HIDDEN: Final[dict[str, Any]] = {"show_progress": "hidden", **PRIVATE}


def tab(base: Path, on_space: bool) -> gr.Dropdown:
    """Draw the tab; returns the choice of the merge."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            which = gr.Dropdown(finished(base), value=None, label="Finished merge", elem_id="publish-which")
            who = gr.HTML(elem_id="who")
            if on_space:
                gr.LoginButton()
            target = gr.Textbox(label="Name on the Hub", info="user/name", elem_id="target")
            wrong = gr.HTML(elem_id="target-problem")
            private = gr.Checkbox(label="Private", value=True, elem_id="private")
            sources = gr.Checkbox(label="Publish local sources too, so that others can replay the merge")
            push = gr.Button("Publish", variant="primary", elem_id="push")
            doing = gr.HTML(elem_id="push-status")
        with gr.Column(scale=4, min_width=300):
            gr.Markdown("### What will be on the Hub")
            contents = gr.HTML(elem_id="contents")
    gr.Markdown("### The card")
    card = gr.Markdown(elem_id="card", header_links=False)

    which.change(shower(base), [which], [card, contents], **HIDDEN)
    pusher = on_the_space(base) if on_space else from_here(base)
    push.click(pusher, [which, target, private, sources], [doing, wrong, push], **PRIVATE)
    if not on_space:
        which.change(logged_in, None, [who], **HIDDEN)
    return which


def logged_in() -> str:
    """Who publishes: the owner of the token that `hf auth login` stored. The token itself stays where it is."""
    user = look.user()
    if user:
        return words.note(f"Logged in as {user}.")
    return words.note("Nobody is logged in, or the Hub does not answer: run `hf auth login` in a terminal.")


def shower(base: Path) -> Any:
    """The card and the files of a merge."""

    def show(name: str | None) -> tuple[str, str]:
        return (rendered(base / name), contents(base / name)) if name else ("", "")

    return show


def rendered(folder: Path) -> str:
    """A card without its metadata, with its pictures in it."""
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""

    def inside(match: re.Match[str]) -> str:
        path = folder / match[2]
        data = b64encode(path.read_bytes()).decode() if path.is_file() else ""
        return f"![{match[1]}](data:image/png;base64,{data})"

    return PICTURE.sub(inside, FRONT.sub("", text))


def contents(folder: Path) -> str:
    """The files that are published, and their sizes; whatever else is in the folder stays here."""
    from hfmega.hub.push import files_of

    rows = [[name, size_of(path.stat().st_size)] for name, path in files_of(folder).items()]
    table = words.table(["file", "size"], rows)
    return table + words.note("The images, the paths of this machine and your token are in none of them.")


def size_of(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def pushed(
    base: Path,
    name: str | None,
    target: str,
    private: bool,
    sources: bool,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """`hfmega push` as a child, and what it says."""
    busy, free = gr.Button("Publishing …", interactive=False), gr.Button("Publish", interactive=True)
    try:
        if not name:
            raise HfmegaError("Choose a finished merge above.")
        if not target.strip() or target.strip().startswith("-"):
            raise HfmegaError("Name the repository: user/name.")
        place = base / runs.OWN / ".pushes" / name
        flags = [*(["--private"] if private else []), *(["--push-sources"] if sources else [])]
        command.start(["push", str(base / name), target.strip(), *flags], place, environment)
        while (state := command.read(place)).running:
            yield log(state.log), "", busy
            time.sleep(0.5)
    except HfmegaError as error:
        yield "", words.problem(str(error)), free
        return
    if state.result is None:
        yield "", words.problem(words.shortened(state.problem or "", base / name)), free
        return
    yield done(state.result.get("url"), state.log), "", free


def done(url: str | None, said: str) -> str:
    """Where it is now; or why there is nothing new to publish."""
    if not url:
        lines = [line for line in said.splitlines() if line.startswith("not published")]
        return words.note(lines[-1] if lines else "Nothing was published.")
    safe = escape(url, quote=True)
    return f'<p class="hf-advice good" role="status"><b>Published.</b> <a href="{safe}" target="_blank">{safe}</a></p>'


def from_here(base: Path) -> Any:
    """Publish with the user's own token, which the child finds by itself."""

    def push(name: str | None, target: str, private: bool, sources: bool) -> Iterator[tuple[Any, ...]]:
        yield from pushed(base, name, target, private, sources)

    return push


def on_the_space(base: Path) -> Any:
    """Publish with the token of the visitor, which goes to the child and nowhere else."""

    def push(
        name: str | None, target: str, private: bool, sources: bool, oauth: gr.OAuthToken | None
    ) -> Iterator[tuple[Any, ...]]:
        if oauth is None:
            yield "", words.problem("Sign in with Hugging Face first."), gr.skip()
            return
        yield from pushed(base, name, target, private, sources, {"HF_TOKEN": oauth.token})

    return push
