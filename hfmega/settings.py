"""What a merge depends on: the presets, every constant, and what of them a lineage records."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hfmega import HfmegaError
from hfmega.search.ga import AUTHOR, DEFAULT, PAPER, GASettings
from hfmega.splits import SplitRequest

Method = Literal[
    "mega",
    "cmaes",
    "random",
    "learned",
    "greedy-soup",
    "average",
    "slerp",
    "task-arithmetic",
    "ties",
    "dare-linear",
    "dare-ties",
    "fisher",
    "regmean",
]
SEARCHES: Final = ("mega", "cmaes", "random", "learned")
GENOMES: Final = ("mega", "learned")
WITH_EVIDENCE: Final = ("fisher", "regmean")
WITH_BASE: Final = ("task-arithmetic", "ties", "dare-linear", "dare-ties")
AFFINE: Final = ("cmaes", "learned")  # coefficients of any sign, so that a base is one more source


@dataclass(frozen=True)
class Preset:
    """What `--preset` stands for. calibrate None: decided on the fitness images. confirm_share 0: no run-off.

    exact: no racing, every individual sees every image.
    """

    search: GASettings
    calibrate: bool | None
    confirm_share: float
    exact: bool


PRESETS: Final = {
    "default": Preset(DEFAULT, None, 0.4, exact=False),
    "paper": Preset(PAPER, False, 0.0, exact=True),
    "author": Preset(AUTHOR, False, 0.0, exact=True),
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
    method: Method = "mega"
    base: str | None = None
    scale: float = 1.0
    density: float = 0.5
    align: Literal["none", "weights", "activations"] = "none"
    search: GASettings = DEFAULT
    calibrate: bool | None = None
    exact: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    control: bool = False
    seed: int = 0
    overwrite: bool = False
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise HfmegaError("one source cannot be merged: name two or more.")
        if self.method in WITH_BASE and self.base is None:
            raise HfmegaError(
                f"{self.method} merges what the sources learned after a common start: name it with --base."
            )
        if self.method not in (*WITH_BASE, *AFFINE) and self.base is not None:
            raise HfmegaError(f"--method {self.method} has no use for a base: leave --base away.")
        if self.method == "slerp" and len(self.sources) != 2:
            raise HfmegaError(f"slerp goes between two sources, not {len(self.sources)}.")
        if self.search.genome != "model" and self.method not in GENOMES:
            raise HfmegaError(f"--method {self.method} has one coefficient for each source: leave --genome away.")
        if not 0 < self.density <= 1:
            raise HfmegaError(f"a density of {self.density} is no share: it lies above 0 and at most at 1.")
        if not math.isfinite(self.scale):
            raise HfmegaError(f"a scale of {self.scale} is no number to multiply with.")

    @property
    def searches(self) -> bool:
        """Whether the method searches with a population."""
        return self.method in SEARCHES

    @property
    def pulled(self) -> tuple[str, ...]:
        """Everything that is pulled: the sources, and behind them the base."""
        return (*self.sources, *([self.base] if self.base else []))


def recorded(settings: MergeSettings) -> dict[str, Any]:
    """Every constant of a merge, without the places and the token of the machine that made it."""
    return {
        "preset": settings.preset,
        "method": settings.method,
        **({"base": settings.base.rstrip("/").rsplit("/", 1)[-1]} if settings.base else {}),
        **({"scale": settings.scale} if settings.method in WITH_BASE else {}),
        **({"density": settings.density} if settings.method in WITH_BASE[1:] else {}),
        "seed": settings.seed,
        "tree": settings.tree,
        "order": settings.order,
        "align": settings.align,
        **asdict(settings.search),
        "calibrate": settings.calibrate,
        "exact": settings.exact,
        "precision": settings.precision,
        "control": settings.control,
        "confirm_share": settings.splits.confirm_share,
        "fitness_split": settings.splits.fitness,
        "fitness_images": settings.splits.fitness_images,
        "calibration_split": settings.splits.calibration,
        "test_split": settings.splits.test,
        "allow_leak": settings.splits.allow_leak,
        "image_column": settings.image_column,
        "label_column": settings.label_column,
    }
