"""The picture of an inspection: accuracy and loss along the straight lines between the sources."""

from pathlib import Path
from typing import Final

import matplotlib.style
from matplotlib.axes import Axes

from hfmega.figures import heading, plain
from hfmega.inspect import POINTS, Inspection, Pair
from hfmega.sheet import FAINT, INK, LOOKS, RULE, WIDTH, save, sheet, shortened

PICTURE: Final = "paths.png"
HEIGHT: Final = 3.5  # inches of a pair's row


def draw(found: Inspection, folder: Path) -> Path:
    """Write `paths.png`: a row for each pair, accuracy on the left and loss on the right."""
    height = HEIGHT * len(found.pairs)
    with matplotlib.style.context("default"):
        figure = sheet(WIDTH, height)
        for row, pair in enumerate(found.pairs):
            left, right = (figure.add_subplot(len(found.pairs), 2, 2 * row + side) for side in (1, 2))
            lines(left, pair, "accuracy")
            lines(right, pair, "loss")
            heading(left, f"{shortened(pair.first, 20)} to {shortened(pair.second, 20)}: {pair.kinship.relation}")
            heading(right, f"on {found.images:,} held-out images")
            if found.ensemble_accuracy is not None:
                colour = LOOKS["ensemble"][0]
                left.axhline(found.ensemble_accuracy, color=colour, linestyle="--", linewidth=1, label="ensemble")
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="lower center", ncols=5, fontsize=8, frameon=False, labelcolor=INK)
        figure.subplots_adjust(0.09, 0.85 / height, 0.975, 1 - 0.45 / height, wspace=0.22, hspace=0.45)
        save(figure, folder / PICTURE)
    return folder / PICTURE


def lines(axes: Axes, pair: Pair, what: str) -> None:
    """The walks of a pair: grey as they are, blue calibrated, dotted before alignment and solid after it."""
    for walk in pair.walks:
        colour = LOOKS["calibrated source" if walk.calibrated else "source"][0]
        style = ":" if walk.align == "none" else "-"
        axes.plot(
            POINTS, getattr(walk, what), style, color=colour, marker="o", markersize=3, linewidth=1.6, label=walk.name
        )
    axes.set_xlabel(f"share of {shortened(pair.second, 30)}", fontsize=9, color=FAINT)
    axes.set_ylabel({"accuracy": "accuracy", "loss": "mean loss (nats)"}[what], fontsize=9, color=FAINT)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(color=RULE, linewidth=0.6)
    plain(axes)
