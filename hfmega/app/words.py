"""What the page says: sentences of the command line beside their fields, facts as HTML, settings as YAML.

Whatever comes from outside is escaped.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from hfmega.app.look import Facts, Tone
from hfmega.app.runs import PHASES, Live, Status
from hfmega.errors import SettingsError
from hfmega.settings import OFFERED, SWITCHES, MergeSettings

Field = Literal["name", "sources", "dataset", "images", "method", "settings"]
FIELD_OF_FLAG: Final[dict[str, Field]] = {
    "dataset": "dataset",
    "image-column": "dataset",
    "label-column": "dataset",
    "fitness-images": "images",
    "fitness-split": "images",
    "method": "method",
    "base": "method",
    "sources": "sources",
    "o": "name",
    "overwrite": "name",
}
FLAG: Final = re.compile(r"--?([a-z][a-z-]*)")
BEFORE: Final[dict[Tone, str]] = {"good": "Worth a try.", "doubt": "Do not expect much.", "bad": "Will not pay."}
AFTER: Final[dict[Tone, str]] = {"good": "It pays.", "doubt": "Perhaps.", "bad": "It will not pay."}
CODE: Final = re.compile("`([^`]+)`")
STATUS: Final[dict[Status, str]] = {
    "new": "not started",
    "running": "running",
    "stopped": "stopped",
    "finished": "finished",
}


def problem(sentence: str | None) -> str:
    """A sentence of the command line, for the place beside a field; empty where nothing is wrong."""
    return f'<p class="hf-problem" role="alert">{coded(sentence)}</p>' if sentence else ""


def coded(sentence: str) -> str:
    """A sentence as HTML; what stands between backticks is code."""
    return CODE.sub(r"<code>\1</code>", escape(sentence))


def note(sentence: str) -> str:
    return f'<p class="hf-note" role="status">{coded(sentence)}</p>'


def field_of(sentence: str) -> Field:
    """The field that a sentence is about."""
    for flag in FLAG.findall(sentence):
        if flag in FIELD_OF_FLAG:
            return FIELD_OF_FLAG[flag]
    for word, field in FIELD_OF_FLAG.items():
        if re.search(rf"(^|: ){re.escape(word)}: ", sentence):
            return field
    if re.search(r"dataset|split|column|image", sentence):
        return "dataset"
    about_sources = r"safetensors|checkpoint|folder|Hub|source|tensor|architecture|classes"
    return "sources" if re.search(about_sources, sentence) else "settings"


def shortened(sentence: str, *places: Path) -> str:
    """A sentence without the page's own paths in it."""
    for place in places:
        sentence = sentence.replace(f"{place}: ", "").replace(str(place), place.name)
    return sentence


def as_yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=10**6) if settings else ""


def parsed(text: str | None) -> dict[str, Any]:
    """Settings as typed; None is empty. Raises SettingsError unless they are names and values."""
    try:
        found = yaml.safe_load(text or "") or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"this is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise SettingsError("this must hold the names of flags and their values, e.g. 'dataset: digits'.")
    return found


def changed(text: str | None, **values: Any) -> str:
    """The YAML with some flags at other values; one that is None or False is left away."""
    try:
        found = parsed(text)
    except SettingsError:
        return text or ""  # what is being typed is not lost
    for name, value in values.items():
        key = name.replace("_", "-")
        found.pop(key, None)
        if value not in (None, "", False, []):
            found[key] = value
    return as_yaml(found)


def number(text: str) -> int | str:
    """A whole number where the text is one; anything else is for the command to refuse."""
    return int(text) if text.strip().isdecimal() else text.strip()


def checked(text: str | None) -> dict[str, Any]:
    """The settings, after the checks that need no checkpoint and no image. Raises SettingsError as the command does."""
    found = parsed(text)
    names = {key: key.removeprefix("--").replace("-", "_") for key in found}
    sources = found.get("sources", [])
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise SettingsError("sources must be a list of checkpoints.")
    known = {name: found[key] for key, name in names.items() if name in OFFERED or name in SWITCHES}
    MergeSettings.of(*sources, **{name: value for name, value in known.items() if name != "output"})
    return found


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows that begin with a name."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    inside = f'<table class="hf-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="hf-scroll" tabindex="0">{inside}</div>'


def facts(seen: Facts) -> str:
    """Sources side by side, and what to expect of a merge of them."""
    columns = ["checkpoint", "network", "classes", "parameters", "license", "where"]
    rows = [
        [one.name, one.architecture, f"{one.classes:,}", f"{one.parameters:,}", one.license or "not stated", one.place]
        for one in seen.sources
    ]
    fits = {True: "yes", False: "no", None: "not known yet"}[seen.fits]
    said = [] if len(seen.sources) < 2 else [f"<b>Same network, same classes:</b> {fits}"]
    said += [f"<b>Relation:</b> {escape(seen.relation)}"] if seen.relation else []
    line = f'<p class="hf-line">{" · ".join(said)}</p>' if said else ""
    return table(columns, rows) + line + advice(seen.advice, seen.tone, BEFORE)


def advice(sentence: str, tone: Tone, chips: Mapping[Tone, str]) -> str:
    """A sentence whose colour, and whose first words, say whether merging pays."""
    chip = f"<b>{chips[tone]}</b> " if tone in chips else ""
    body = coded(sentence[:1].upper() + sentence[1:])
    return f'<p class="hf-advice {tone}" role="status">{chip}{body}</p>'


def tone_of(inspection: Mapping[str, Any]) -> Tone:
    """Whether merging pays, of what `hfmega inspect --json` printed."""
    prospects = [pair["prospect"] for pair in inspection.get("pairs", [])]
    best = max(prospects, key=lambda one: one["gain"], default=None)
    if (
        not inspection.get("compatible")
        or best is None
        or best["gain"] <= 0
        or inspection.get("relation") == "identical"
    ):
        return "bad"
    return "good" if best["p_value"] < 0.05 else "doubt"


def along(pair: Mapping[str, Any], at: int) -> str:
    """The figures at one of the eleven points between two sources."""
    from hfmega.app.charts import way_of

    rows = []
    for walk in pair["walks"]:
        accuracy, loss = walk["accuracy"][at], walk["loss"][at]
        said = f"{loss:.3f}" if isinstance(loss, float) else "not finite"
        rows.append([way_of(walk)[0], f"{100 * accuracy:.1f} %", said])
    mixed = f"{10 * (10 - at)} % of {escape(pair['first'])}, {10 * at} % of {escape(pair['second'])}"
    return f'<p class="hf-line">{mixed}</p>' + table(["weights", "accuracy", "loss"], rows)


def ended(sentence: str | None) -> str:
    """Why a run ended early: stopped by hand is no problem."""
    if sentence and re.match("terminated|interrupted|it was ended", sentence):
        return note("Stopped. Nothing is lost: Resume goes on where it stopped.")
    return problem(sentence)


def standing(name: str, status: Status, live: Live) -> str:
    """What a merge is doing: its phases, and the figures of the newest generation."""
    phases = ["prepare", *PHASES]
    now = live.phase or "prepare"
    done = phases[: phases.index(now)] if status != "finished" else phases
    optional = {"controls", "last mile"} - {now}
    steps = "".join(
        f'<li class="{"done" if p in done else "now" if p == now else ""}"{" aria-current=step" if p == now else ""}>'
        f"{escape(PHASES.get(p, 'Prepare'))}</li>"
        for p in phases
        if p not in optional
    )
    shown = "" if status == "new" else f'<ol class="hf-steps">{steps}</ol>'
    chip = f'<span class="hf-status {status}">{STATUS[status]}</span>'
    return f'<h3 class="hf-name">{escape(name)} {chip}</h3>{shown}{figures(live)}'


def figures(live: Live) -> str:
    """Best and mean of the newest generation, and what it has cost so far."""
    if not live.searches or not live.searches[-1][1]:
        return ""
    name, told = live.searches[-1]
    newest = told[-1]

    def said(value: float) -> str:
        return f"{value:.4f}" if live.by_loss else f"{100 * value:.1f} %"

    which = f" of {name} ({len(live.searches)} of {live.merges})" if live.merges > 1 else ""
    tiles = [
        (f"generation{which}", f"{len(told)} of {live.planned or '?'}"),
        ("best loss" if live.by_loss else "best accuracy", said(newest.best)),
        ("mean", said(newest.mean)),
        ("images seen", f"{live.images:,}"),
        ("search time", f"{live.seconds:.0f} s"),
    ]
    inside = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in tiles)
    return f'<dl class="hf-tiles">{inside}</dl>'


def chips(sources: list[str]) -> str:
    """The sources of the next merge."""
    if not sources:
        return note("No sources yet: choose them in the tab Pair.")
    inside = "".join(f'<span class="hf-chip">{escape(source)}</span>' for source in sources)
    return f'<p class="hf-line"><b>Sources</b> {inside}</p>'


def priced(plan: Mapping[str, Any]) -> str:
    """What a merge would cost, of what `--dry-run --json` printed."""
    said = f"{minutes(plan['seconds']).capitalize()} on this machine, {plan['peak_bytes'] / 1e9:.1f} GB of memory"
    return f"{said}, {plan['download_bytes'] / 1e6:,.0f} MB to download." if plan["download_bytes"] else f"{said}."


def minutes(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} seconds"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"
