"""What a merge depends on: the presets, every constant, and what of them a lineage records."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hfmega import HfmegaError
from hfmega.search.ga import AUTHOR, DEFAULT, PAPER, GASettings
from hfmega.splits import SplitRequest


@dataclass(frozen=True)
class Preset:
    """What `--preset` stands for. calibrate None: decided on the fitness images. confirm_share 0: no run-off."""

    search: GASettings
    calibrate: bool | None
    confirm_share: float


PRESETS: Final = {
    "default": Preset(DEFAULT, None, 0.4),
    "paper": Preset(PAPER, False, 0.0),
    "author": Preset(AUTHOR, False, 0.0),
}


@dataclass(frozen=True)
class MergeSettings:
    """Everything that a merge depends on, but the machine. Raises HfmegaError for fewer than two sources."""

    sources: tuple[str, ...]
    output: Path
    dataset: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    splits: SplitRequest = field(default_factory=SplitRequest)
    preset: str = "default"
    tree: Literal["pairs", "flat"] = "pairs"
    order: Literal["given", "strongest-first", "similar-first"] = "given"
    align: Literal["none", "weights", "activations"] = "none"
    search: GASettings = DEFAULT
    calibrate: bool | None = None
    seed: int = 0
    overwrite: bool = False
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise HfmegaError("one source cannot be merged: name two or more.")


def recorded(settings: MergeSettings) -> dict[str, Any]:
    """Every constant of a merge, without the places and the token of the machine that made it."""
    return {
        "preset": settings.preset,
        "seed": settings.seed,
        "tree": settings.tree,
        "order": settings.order,
        "align": settings.align,
        **asdict(settings.search),
        "calibrate": settings.calibrate,
        "confirm_share": settings.splits.confirm_share,
        "fitness_split": settings.splits.fitness,
        "fitness_images": settings.splits.fitness_images,
        "calibration_split": settings.splits.calibration,
        "test_split": settings.splits.test,
        "allow_leak": settings.splits.allow_leak,
        "image_column": settings.image_column,
        "label_column": settings.label_column,
    }
