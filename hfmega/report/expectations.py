"""What to expect of a merge, by what the sources are to each other and by what a person has: measured, not promised.

The figures are rows of cards/quality, on CIFAR-10; a test compares them with that card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hfmega.weights.relation import Relation

Situation = Literal["identical", "one trunk", "one start", "independent"]
CARD: Final = "cards/quality"
NOTHING: Final = "the sources alone"
IMAGES: Final = "unlabelled images"
LABELS: Final = "time to train on the labels that steer the search"


@dataclass(frozen=True)
class Case:
    """A family that was merged so: its name and row in cards/quality, and the points over its best source (as it is or
    with BN re-estimated) with their 95 % interval.
    """

    family: str
    row: str
    gain: float
    low: float
    high: float

    @property
    def shown(self) -> str:
        """In points, with the interval."""
        return f"{self.gain:+.1f} ({self.low:.1f} to {self.high:.1f})"


@dataclass(frozen=True)
class Expectation:
    """What a person has, the flags of `hfmega merge` that make use of it, and what they gave."""

    have: str
    flags: str
    cases: tuple[Case, ...]


EXPECTED: Final[dict[Situation, tuple[Expectation, ...]]] = {
    "identical": (),
    "one trunk": (
        Expectation(
            NOTHING,
            "",
            (
                Case("trunk-pair", "mega", 1.46, 0.9, 2.02),
                Case("trunk-four", "mega", 1.85, 1.29, 2.41),
                Case("resnet20-trunk-pair", "mega", 1.64, 1.1, 2.18),
                Case("unequal-pair", "mega", 1.18, 0.65, 1.71),
                Case("done-branches", "mega", 0.39, -0.03, 0.81),
                Case("done-fine-tunes", "mega", 2.54, 1.93, 3.15),
            ),
        ),
        Expectation(
            IMAGES,
            "--distill",
            (
                Case("done-branches", "mega, --distill", 0.41, -0.01, 0.83),
                Case("done-fine-tunes", "mega, --distill", 2.54, 1.93, 3.15),
            ),
        ),
        Expectation(
            LABELS,
            "--fine-tune",
            (
                Case("done-branches", "mega, --fine-tune", 0.39, -0.03, 0.81),
                Case("done-fine-tunes", "mega, --fine-tune", 2.54, 1.93, 3.15),
            ),
        ),
    ),
    "one start": (
        Expectation(
            NOTHING,
            "",
            (
                Case("effnet-fine-tunes", "mega", 0.52, -0.61, 1.65),
                Case("unequal-four", "mega", 0.44, 0.13, 0.75),
            ),
        ),
        Expectation(NOTHING, "--fitness loss", (Case("unequal-four", "mega, by loss", 0.44, 0.15, 0.73),)),
    ),
    "independent": (
        Expectation(
            NOTHING,
            "",
            (
                Case("independent-44-45", "mega", 0.0, 0.0, 0.0),
                Case("independent-46-47", "mega", 0.0, 0.0, 0.0),
                Case("tree-of-8", "mega", 0.0, 0.0, 0.0),
                Case("done-independent", "mega", 0.0, 0.0, 0.0),
            ),
        ),
        Expectation(
            IMAGES,
            "--distill",
            (
                Case("independent-44-45", "mega, --distill", 0.95, 0.45, 1.45),
                Case("tree-of-8", "mega, --distill", 1.91, 1.41, 2.41),
                Case("done-independent", "mega, --distill", 0.0, 0.0, 0.0),
            ),
        ),
    ),
}


def situation(relation: Relation, average_gains: bool) -> Situation:
    """Which row of the table sources are in.

    average_gains: whether a network between two of them, channels as they are, was ahead of the best source: so it is
    between branches that were trained alike, and not between fine-tunes of unequal merit.
    """
    if relation == "shared trunk":
        return "one trunk" if average_gains else "one start"
    return relation


def rows(expected: Sequence[Expectation]) -> tuple[list[str], list[list[str]]]:
    """The table of `hfmega inspect`: a line for each family that was measured."""
    lines = [
        [one.have, f"hfmega merge ... {one.flags}".strip(), case.shown, case.family]
        for one in expected
        for case in one.cases
    ]
    return ["you have", "command", "points over the best source (95 %)", "family"], lines
