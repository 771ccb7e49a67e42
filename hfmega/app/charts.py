"""Pictures of a page as inline SVG and HTML: they follow its theme, need no file, and are read out by their titles.

Every name in them comes from outside, and is escaped.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any, Final

from hfmega.app.answers import Answer, Disputed
from hfmega.app.runs import Live

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 250, 74, 40, 14, 14  # of a chart, in its own units
AXES: Final = {"accuracy": "Accuracy", "loss": "Mean loss (nats; lower is better)"}
WAYS: Final = {  # a walk of `hfmega inspect`: in words, its class
    "as they are": ("as they are", "plain"),
    "calibrated": ("BN re-estimated", "re-estimated"),
    "aligned": ("channels aligned", "aligned"),
    "aligned, calibrated": ("aligned, BN re-estimated", "both"),
}


def way_of(walk: Mapping[str, Any]) -> tuple[str, str]:
    """What a walk of `inspection.json` is called, and its class."""
    words = [word for word, so in (("aligned", walk["align"] != "none"), ("calibrated", walk["calibrated"])) if so]
    return WAYS[", ".join(words) or "as they are"]


def paths(pair: Mapping[str, Any], what: str, ensemble: float | None, at: int) -> str:
    """Accuracy or loss along the line between two sources, and a mark at one of its eleven points."""
    walks = [(way_of(walk), walk[what]) for walk in pair["walks"]]
    values = [v for _, told in walks for v in told if isinstance(v, int | float)]
    values += [ensemble] if ensemble is not None and what == "accuracy" else []
    low, high = ends(values)
    parts = [frame(low, high, what == "accuracy")]
    parts += [
        text(x_of(0), HEIGHT - 22, short(pair["first"]), "start"),
        text(x_of(1), HEIGHT - 22, short(pair["second"]), "end"),
    ]
    if ensemble is not None and what == "accuracy":
        y = y_of(ensemble, low, high)
        parts.append(f'<line class="ensemble" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(
        f'<line class="at" x1="{x_of(at / 10):.1f}" x2="{x_of(at / 10):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    )
    for (name, style), told in walks:
        points = [(x_of(k / 10), y_of(v, low, high), v) for k, v in enumerate(told) if isinstance(v, int | float)]
        parts.append(line(points, style, name))
        parts += [dot(x, y, style, f"{name}: {v:.4f}", large=k == at) for k, (x, y, v) in enumerate(points)]
    title = f"{what} along the line from {pair['first']} to {pair['second']}"
    return f'<p class="hf-axis">{AXES[what]}</p>{svg(title, parts)}'


def legend(pair: Mapping[str, Any], ensemble: float | None) -> str:
    """The names of the lines."""
    return keys([way_of(walk) for walk in pair["walks"]] + ([("ensemble", "ensemble")] if ensemble is not None else []))


def keys(entries: Sequence[tuple[str, str]]) -> str:
    """Names and classes of lines."""
    inside = "".join(f'<span class="entry"><span class="key {c}"></span> {escape(name)}</span> ' for name, c in entries)
    return f'<p class="hf-legend">{inside}</p>'


def search(live: Live) -> str:
    """Best and mean of each generation of the newest search."""
    if not live.searches:
        return ""
    name, told = live.searches[-1]
    planned = max(live.planned, len(told), 2)
    low, high = ends([v for g in told for v in (g.best, g.mean)])
    parts = [frame(low, high, not live.by_loss)]
    parts += [text(x_of(0), HEIGHT - 22, "generation 1", "start"), text(x_of(1), HEIGHT - 22, f"{planned}", "end")]
    for what, style in (("mean", "mean"), ("best", "merged")):
        points = [
            (x_of(k / (planned - 1)), y_of(getattr(g, what), low, high), getattr(g, what)) for k, g in enumerate(told)
        ]
        parts.append(line(points, style, what))
        parts += [dot(x, y, style, f"generation {k + 1}, {what}: {v:.4f}") for k, (x, y, v) in enumerate(points)]
    named = keys([("best", "merged"), ("mean of the population", "mean")])
    return svg(f"fitness of {name}, generation by generation", parts) + named


def bars(answers: Sequence[Answer]) -> str:
    """What each model says of an image, side by side."""
    return '<div class="hf-answers">' + "".join(bar(answer) for answer in answers) + "</div>"


def bar(answer: Answer) -> str:
    """The likeliest classes of one model."""
    rows = "".join(
        f'<div class="row"><span class="class">{escape(name)}</span><span class="track"><span class="fill" '
        f'style="width:{100 * share:.1f}%"></span></span><span class="share">{100 * share:.1f} %</span></div>'
        for name, share in answer.probabilities
    )
    return f'<section class="answer {answer.kind}"><h4>{escape(answer.model)}</h4>{rows}</section>'


def disputed(one: Disputed) -> str:
    """A test image and what each model says of it."""
    return (
        f'<section class="hf-case"><img alt="test image" src="{data_of(one.image)}"><div>'
        f'<p class="hf-line">It is <b>{escape(one.truth)}</b>.</p>{bars(one.answers)}</div></section>'
    )


def data_of(image: Any) -> str:
    """An image as an address that holds it."""
    content = BytesIO()
    shown = image.convert("RGB")
    shown.thumbnail((128, 128))
    shown.save(content, "PNG")
    return f"data:image/png;base64,{b64encode(content.getvalue()).decode()}"


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The axis of some values, with a margin."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.08 * (high - low) or 0.02
    return low - margin, high + margin


def frame(low: float, high: float, percent: bool) -> str:
    """A grid of four lines and their values."""
    parts = []
    for k in range(4):
        value = low + (high - low) * (k + 0.5) / 4
        y = y_of(value, low, high)
        said = f"{100 * value:.1f} %" if percent else f"{value:.2f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 6, y + 4, said, "end"))
    return "".join(parts)


def x_of(share: float) -> float:
    return LEFT + 8 + share * (WIDTH - LEFT - RIGHT - 16)


def y_of(value: float, low: float, high: float) -> float:
    return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def line(points: Sequence[tuple[float, float, float]], style: str, name: str) -> str:
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    return f'<polyline class="{style}" points="{told}"><title>{escape(name)}</title></polyline>'


def dot(x: float, y: float, style: str, said: str, large: bool = False) -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{5.5 if large else 3}"'
    return f'<circle class="{style}" {place}><title>{escape(said)}</title></circle>'


def text(x: float, y: float, said: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def short(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:14]}…{name[-14:]}"


def svg(title: str, parts: Sequence[str]) -> str:
    inside = "".join(parts)
    return (
        f'<svg class="hf-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg>'
    )
