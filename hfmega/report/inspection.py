"""What an inspection found: the record, its table, and the picture of the paths."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib.style
from matplotlib.axes import Axes

from hfmega.folder import write_atomically
from hfmega.report.expectations import EXPECTED, Expectation, situation
from hfmega.report.figures import heading, plain
from hfmega.report.style import FAINT, INK, LOOKS, RULE, WIDTH, save, sheet, shortened
from hfmega.report.wording import RE_ESTIMATED
from hfmega.weights import align
from hfmega.weights.relation import Kinship, Relation

POINTS: Final = tuple(step / 10 for step in range(11))
FILE: Final = "inspection.json"


@dataclass(frozen=True)
class Walk:
    """Accuracy and mean loss (nats) of (1 - a) * first + a * second at the eleven POINTS a, in one of four ways."""

    align: align.Method
    calibrated: bool
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]

    @property
    def name(self) -> str:
        ways = [word for word, so in (("aligned", self.align != "none"), ("calibrated", self.calibrated)) if so]
        return ", ".join(ways) or "as they are"

    def flags(self, statistics: bool) -> str:
        """The flags of `hfmega merge` that go this way. statistics: whether there are some to re-estimate."""
        align = [] if self.align == "none" else [f"--align {self.align}"]
        calibrate = ["--calibrate" if self.calibrated else "--no-calibrate"] if statistics else []
        return " ".join([*align, *calibrate])

    @property
    def barrier(self) -> float:
        """How far accuracy falls below the straight line between the ends, at most (Frankle et al. 2020, section 2)."""
        start, end = self.accuracy[0], self.accuracy[-1]
        return max((1 - a) * start + a * end - seen for a, seen in zip(POINTS, self.accuracy, strict=True))


@dataclass(frozen=True)
class Prospect:
    """The best point inside a pair's walks, and its accuracy over the best single source on the same images."""

    walk: Walk
    share: float
    accuracy: float
    gain: float
    p_value: float


@dataclass(frozen=True)
class Pair:
    """The first source and another. aligned_cosine: the median cosine of the weight matrices after alignment."""

    first: str
    second: str
    kinship: Kinship
    aligned_cosine: float
    walks: tuple[Walk, ...]
    prospect: Prospect


@dataclass(frozen=True)
class SourceReport:
    """A source's accuracy on the held-out images; calibrated: None where there is nothing to calibrate."""

    name: str
    accuracy: float
    calibrated_accuracy: float | None


@dataclass(frozen=True)
class Inspection:
    """Everything that `hfmega inspect` tells. split: where the held-out images come from, `images` of them."""

    compatible: bool
    advice: str
    sources: tuple[SourceReport, ...] = ()
    pairs: tuple[Pair, ...] = ()
    ensemble_accuracy: float | None = None
    split: str = ""
    images: int = 0
    notes: tuple[str, ...] = ()

    @property
    def expected(self) -> tuple[Expectation, ...]:
        """What merging gave elsewhere, of sources that are to each other as these are."""
        if self.relation is None:
            return ()
        plain = [walk for pair in self.pairs for walk in pair.walks if walk.align == "none"]
        best = max(max(s.accuracy, s.calibrated_accuracy or 0.0) for s in self.sources)
        ahead = any(accuracy > best for walk in plain for accuracy in walk.accuracy[1:-1])
        return EXPECTED[situation(self.relation, ahead)]

    @property
    def statistics(self) -> bool:
        """Whether BatchNorm statistics were re-estimated."""
        return any(source.calibrated_accuracy is not None for source in self.sources)

    @property
    def relation(self) -> Relation | None:
        """That of the pair which is least alike."""
        return min(self.pairs, key=lambda pair: pair.kinship.cosine).kinship.relation if self.pairs else None

    @property
    def barrier(self) -> float | None:
        """The highest barrier between the sources as they are."""
        return max((pair.walks[0].barrier for pair in self.pairs), default=None)


def summary(found: Inspection) -> dict[str, Any]:
    """What `hfmega inspect --json` prints."""
    return {
        "compatible": found.compatible,
        "relation": found.relation,
        "barrier": found.barrier,
        "ensemble_accuracy": found.ensemble_accuracy,
        "sources": [asdict(source) for source in found.sources],
        "advice": found.advice,
        "expected": [asdict(one) for one in found.expected],
        "split": found.split,
        "images": found.images,
        "pairs": [
            {**asdict(pair), "barriers": {walk.name: walk.barrier for walk in pair.walks}} for pair in found.pairs
        ],
        "notes": list(found.notes),
    }


def write(found: Inspection, folder: Path) -> Path:
    """`inspection.json` and, of sources that fit, the picture of the walks; returns what a person opens first."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, (json.dumps(summary(found), indent=2) + "\n").encode())
    return draw(found, folder) if found.pairs else folder / FILE


def rows(found: Inspection) -> tuple[list[str], list[list[str]]]:
    """The table of the sources, and of what lies half-way between them."""
    lines = [
        [s.name, f"{s.accuracy:.4f}", "" if s.calibrated_accuracy is None else f"{s.calibrated_accuracy:.4f}", ""]
        for s in found.sources
    ]
    for pair in found.pairs:
        for walk in (walk for walk in pair.walks if not walk.calibrated):
            after = [other for other in pair.walks if other.calibrated and other.align == walk.align]
            name = f"half-way to {pair.second}{', aligned' if walk.align != 'none' else ''}"
            barriers = " / ".join(f"{100 * walk.barrier:.1f}" for walk in (walk, *after))
            lines.append(
                [name, f"{walk.accuracy[5]:.4f}", *([f"{w.accuracy[5]:.4f}" for w in after] or [""]), barriers]
            )
    together = f"{found.ensemble_accuracy:.4f}"
    lines.append(["ensemble", "", together, ""] if found.statistics else ["ensemble", together, "", ""])
    columns = ["model", "accuracy", RE_ESTIMATED, "barrier (points)"]
    if not found.statistics:
        return columns[:2] + columns[3:], [line[:2] + line[3:] for line in lines]
    return columns, lines


def layer_rows(pair: Pair) -> tuple[list[str], list[list[str]]]:
    """Cosine and distance of every tensor."""
    lines = [[layer.name, f"{layer.cosine:.3f}", f"{layer.distance:.3f}"] for layer in pair.kinship.layers]
    return ["tensor", "cosine", "distance"], lines


PICTURE: Final = "paths.png"
HEIGHT: Final = 3.5  # inches of a pair's row


def draw(found: Inspection, folder: Path) -> Path:
    """Write `paths.png`: a row for each pair, accuracy on the left and loss on the right."""
    height = HEIGHT * len(found.pairs)
    with matplotlib.style.context("default"):
        figure = sheet(WIDTH, height)
        for row, pair in enumerate(found.pairs):
            left, right = (figure.add_subplot(len(found.pairs), 2, 2 * row + side) for side in (1, 2))
            draw_walks(left, pair, "accuracy")
            draw_walks(right, pair, "loss")
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


def draw_walks(axes: Axes, pair: Pair, what: str) -> None:
    """The walks of a pair: grey as they are, blue with BN re-estimated, dotted before alignment and solid after it."""
    for walk in pair.walks:
        colour = LOOKS["calibrated source" if walk.calibrated else "source"][0]
        style = ":" if walk.align == "none" else "-"
        name = walk.name.replace("calibrated", RE_ESTIMATED)
        axes.plot(POINTS, getattr(walk, what), style, color=colour, marker="o", markersize=3, linewidth=1.6, label=name)
    axes.set_xlabel(f"share of {shortened(pair.second, 30)}", fontsize=9, color=FAINT)
    axes.set_ylabel({"accuracy": "accuracy", "loss": "mean loss (nats)"}[what], fontsize=9, color=FAINT)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(color=RULE, linewidth=0.6)
    plain(axes)
