"""What every figure is drawn with: page, colours, text. Only matplotlib's object-oriented interface: no pyplot."""

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from hfmega.folder import write_atomically

DPI: Final = 160
WIDTH: Final = 8.0  # inches: about the column of a model page, so that 9 points stay 9 points
PAGE: Final = "none"  # the page shows through, light or dark: every colour here reads on both
INK: Final = "#6f7883"
FAINT: Final = "#7a838e"
RULE: Final = "#8b949e66"
BOX: Final = "#8b949e1a"
HEADING: Final[dict[str, Any]] = {"fontsize": 10, "color": INK, "fontweight": "bold"}
NAME_WIDTH: Final = 48  # characters in a line
# Colour and marker of a kind; near Okabe and Ito's, which the colour-blind can tell apart, and of a middle brightness.
LOOKS: Final = {
    "merged": ("#d55e00", "D"),
    "source": ("#7d8690", "o"),
    "calibrated source": ("#1f83c4", "o"),
    "average": ("#b07d00", "s"),
    "ensemble": ("#b0609f", "^"),
}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the version of matplotlib in it."""
    content = BytesIO()
    figure.savefig(content, dpi=DPI, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def sheet(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAGE)
    FigureCanvasAgg(figure)
    return figure


def write(axes: Axes, x: float, y: float, text: str, **style: Any) -> Any:
    """Text as it is: a dollar sign starts no formula, a character that the font lacks is a question mark."""
    shown = "".join(c if c == "\n" or ord(c) in characters() else "?" for c in text)
    return axes.text(x, y, shown, parse_math=False, **{"fontsize": 9, "color": INK, "va": "center", **style})


@cache
def characters() -> frozenset[int]:
    """What the font that comes with matplotlib can write."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def fitted(axes: Axes, texts: Sequence[Any], limit: float = 3.4) -> float:
    """The width of the widest text in inches; texts that are wider than the limit shrink."""

    def widest() -> float:
        renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        return max(float(text.get_window_extent(renderer).width) for text in texts) / DPI

    shrink = min(1.0, limit / widest())
    if shrink < 1.0:
        for text in texts:
            text.set_fontsize(text.get_fontsize() * shrink)
    return widest()


def shortened(text: str, width: int = NAME_WIDTH) -> str:
    """A text cut in its middle: names of checkpoints differ at both ends."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def in_lines(name: str) -> str:
    """A name in one line or two, broken behind a separator where there is one."""
    name = " ".join(name.split())
    if len(name) <= NAME_WIDTH:
        return name
    breaks = [i + 1 for i, c in enumerate(name) if c in "/-_ " and i < NAME_WIDTH and len(name) - i - 1 <= NAME_WIDTH]
    owner = name.find("/") + 1
    middle = owner if owner in breaks else breaks[-1] if breaks else min(NAME_WIDTH, len(name) // 2)
    return f"{shortened(name[:middle].rstrip())}\n{shortened(name[middle:])}"
