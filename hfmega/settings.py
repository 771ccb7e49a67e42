"""What a merge depends on: searches, splits, presets, methods, and what of them a lineage records."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hfmega.errors import HfmegaError

Genome = Literal["model", "stage", "layer", "tensor", "channel"]


@dataclass(frozen=True)
class GASettings:
    """The constants of the search. A generation is one evaluated population; the first is the initial one.

    mutation_sigma: in units of a weight. anchors: the uniform average and the sources are in the first population.
    redraw_parents: parents are drawn anew for every child, and only the first two of them are crossed.
    break_ties: equal accuracies are ordered by mean loss.
    genome: what has coefficients of its own. In one finer than `model` parents are crossed with a share for each group,
    and a mutation is a step of the coefficients of some groups instead of noise on weights.
    Raises HfmegaError for constants that make no search.
    """

    population: int = 20
    generations: int = 20
    parents: int = 4
    tournament: int = 3
    mutation_rate: float = 0.02
    mutation_sigma: float = 0.1
    mutation_unit: Literal["element", "tensor"] = "element"
    anchors: bool = False
    redraw_parents: bool = False
    break_ties: bool = False
    fitness: Literal["accuracy", "loss"] = "accuracy"
    genome: Genome = "model"

    def __post_init__(self) -> None:
        if self.population < 2:
            raise HfmegaError(f"a population of {self.population} cannot be crossed: it needs at least 2.")
        if self.generations < 1:
            raise HfmegaError(f"{self.generations} generations make no search: it needs at least 1.")
        if self.parents < 2:
            raise HfmegaError(f"{self.parents} parents cannot be crossed: it needs at least 2.")
        if not 1 <= self.tournament <= self.population:
            raise HfmegaError(f"a tournament of {self.tournament} does not fit a population of {self.population}.")
        if not 0 <= self.mutation_rate <= 1:
            raise HfmegaError(f"a mutation rate of {self.mutation_rate} is no probability: it lies between 0 and 1.")
        if not (math.isfinite(self.mutation_sigma) and self.mutation_sigma >= 0):
            raise HfmegaError(f"a mutation sigma of {self.mutation_sigma} is no standard deviation.")


# The paper prints no sigma: it gets the one of the author's program. On trained weights that is a large step, after
# which fitness rises and unseen images lose: the default takes a tenth of it.
PAPER: Final = GASettings()
AUTHOR: Final = GASettings(mutation_unit="tensor", redraw_parents=True)
DEFAULT: Final = GASettings(mutation_sigma=0.01, anchors=True, break_ties=True)


@dataclass(frozen=True)
class SplitRequest:
    """What the user said of the splits, in `datasets` slice syntax; None is: choose for me.

    fitness_images: how many of the fitness images are used, drawn at random; None: all.
    distill: unlabelled images for the last mile, if it distills; None: all images that calibration may take.
    """

    fitness: str | None = None
    fitness_images: int | None = None
    calibration: str | None = None
    test: str | None = None
    confirm_share: float = 0.4
    allow_leak: bool = False
    distill: str | None = None
    distills: bool = False


@dataclass(frozen=True)
class LastMileSettings:
    """A short training after the merge. distill: from the ensemble's answers on unlabelled images; fine_tune: from the
    labels of the search images. epochs, learning_rate None: as many as show 45,000 images; two rates are tried.

    Raises HfmegaError for constants that train nothing.
    """

    distill: bool = False
    fine_tune: bool = False
    epochs: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise HfmegaError(f"--last-epochs must be at least 1, not {self.epochs}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise HfmegaError(f"--last-lr must be above 0, not {self.learning_rate}.")
        if not self.wanted and (self.epochs or self.learning_rate):
            raise HfmegaError("--last-epochs and --last-lr belong to a last mile: add --distill or --fine-tune.")

    @property
    def wanted(self) -> bool:
        return self.distill or self.fine_tune


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
    last: LastMileSettings = LastMileSettings()
    seed: int = 0
    overwrite: bool = False

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
        if self.last.wanted and self.splits.confirm_share == 0:
            raise HfmegaError("--distill and --fine-tune need confirm images: --confirm-share must be above 0.")
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
        **(recorded_last_mile(settings) if settings.last.wanted else {}),
        "confirm_share": settings.splits.confirm_share,
        "fitness_split": settings.splits.fitness,
        "fitness_images": settings.splits.fitness_images,
        "calibration_split": settings.splits.calibration,
        "test_split": settings.splits.test,
        "allow_leak": settings.splits.allow_leak,
        "image_column": settings.image_column,
        "label_column": settings.label_column,
    }


def recorded_last_mile(settings: MergeSettings) -> dict[str, Any]:
    """What of a last mile is recorded; older lineages, and merges without one, have none of it."""
    last = settings.last
    return {
        "distill": last.distill,
        "distill_split": settings.splits.distill,
        "fine_tune": last.fine_tune,
        "last_epochs": last.epochs,
        "last_lr": last.learning_rate,
    }
