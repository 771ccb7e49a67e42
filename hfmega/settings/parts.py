"""What stands inside the settings of a merge: the search, the splits, the last mile; and the presets."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from hfmega.errors import SettingsError
from hfmega.settings.fields import check_slice, require, said

Genome = Literal["model", "stage", "layer", "tensor", "channel"]
Fitness = Literal["accuracy", "loss", "ensemble"]


@dataclass(frozen=True)
class GASettings:
    """The constants of the search. A generation is one evaluated population; the first is the initial one.

    mutation_sigma: in units of a weight. anchors: the uniform average and the sources are in the first population.
    patience: the search stops after so many generations whose best fitness is not higher; 0: it never stops early.
    redraw_parents: parents are drawn anew for every child, and only the first two of them are crossed.
    break_ties: equal accuracies are ordered by mean loss.
    genome: what has coefficients of its own. In one finer than `model` parents are crossed with a share for each group,
    and a mutation is a step of the coefficients of some groups instead of noise on weights.
    Raises SettingsError for constants that make no search.
    """

    population: int = said("Individuals per generation.", "Search", 20, metavar="N")
    generations: int = said("Populations that are scored.", "Search", 20, metavar="G")
    patience: int = said("Stop after N generations without a higher fitness; 0: never.", "Search", 0, metavar="N")
    parents: int = said("Parents per generation.", "Search", 4, metavar="K")
    tournament: int = said("Individuals per tournament.", "Search", 3, metavar="T")
    mutation_rate: float = said("Probability that an element (or tensor) mutates.", "Search", 0.02, metavar="P")
    mutation_sigma: float = said("Standard deviation of a mutation.", "Search", 0.1, metavar="S")
    mutation_unit: Literal["element", "tensor"] = said("Mutate single elements or whole tensors.", "Search", "element")
    anchors: bool = False
    redraw_parents: bool = False
    break_ties: bool = False
    fitness: Fitness = said(
        "Maximise accuracy, minimise loss, or come near the answers of the sources' ensemble, without labels.",
        "Search",
        "accuracy",
    )
    genome: Genome = said("Parts of the network with coefficients of their own: mega, learned.", "Method", "model")

    def __post_init__(self) -> None:
        require(self.population >= 2, "population", "at least 2", self.population)
        require(self.generations >= 1, "generations", "at least 1", self.generations)
        require(self.patience >= 0, "patience", "at least 0", self.patience)
        require(self.parents >= 2, "parents", "at least 2", self.parents)
        fits = 1 <= self.tournament <= self.population
        require(fits, "tournament", f"between 1 and the population ({self.population})", self.tournament)
        require(0 <= self.mutation_rate <= 1, "mutation-rate", "between 0 and 1", self.mutation_rate)
        fits = math.isfinite(self.mutation_sigma) and self.mutation_sigma >= 0
        require(fits, "mutation-sigma", "a number of at least 0", self.mutation_sigma)


# The paper prints no sigma: it gets the one of the author's program. On trained weights that is a large step, after
# which fitness rises and unseen images lose: the default takes a tenth of it.
PAPER: Final = GASettings()
AUTHOR: Final = GASettings(mutation_unit="tensor", redraw_parents=True)
DEFAULT: Final = GASettings(patience=5, mutation_sigma=0.01, anchors=True, break_ties=True)

EARLIER: Final = {"exact": True, "patience": 0}  # of a search whose lineage is older than the setting


@dataclass(frozen=True)
class SplitRequest:
    """The splits that the user named, in `datasets` slice syntax; None: hfmega chooses.

    fitness_images: how many of the fitness images are used, drawn at random; None: all.
    Raises SettingsError for text that is not a slice; whether the dataset has it is seen later.
    """

    confirm_share: float = said("Share of the fitness images kept for the run-off.", "Data", 0.4, metavar="P")
    fitness: str | None = said(
        "Images that steer the search, e.g. 'train[:5000]'.",
        "Data",
        None,
        metavar="S",
        usual="those that no source was trained on, else half of the test split",
        name="fitness_split",
    )
    fitness_images: int | None = said("Use only N of them, drawn at random.", "Data", None, metavar="N", usual="all")
    calibration: str | None = said(
        "Images that re-estimate BatchNorm statistics (labels unused).",
        "Data",
        None,
        metavar="S",
        usual="1,000 of those that the sources were trained on",
        name="calibration_split",
    )
    test: str | None = said(
        "Images of the report, read once at the end.",
        "Data",
        None,
        metavar="S",
        usual="what is left of the test split",
        name="test_split",
    )
    allow_leak: bool = said("Let splits overlap; card, lineage and console will say so.", "Data", False)
    distill: str | None = said(
        "Unlabelled images for --distill and --fitness ensemble.",
        "Data",
        None,
        metavar="S",
        usual="all that calibration may take; for --fitness ensemble the search images",
        name="distill_split",
    )

    def __post_init__(self) -> None:
        require(0 <= self.confirm_share < 1, "confirm-share", "at least 0 and below 1", self.confirm_share)
        least = self.fitness_images is None or self.fitness_images >= 2
        require(least, "fitness-images", "at least 2", self.fitness_images)
        for name in ("fitness", "calibration", "test", "distill"):
            check_slice(f"{name}-split", getattr(self, name))


@dataclass(frozen=True)
class LastMileSettings:
    """A short training after the merge, from the winner of the run-off.

    epochs None: as many as show 45,000 images. learning_rate None: two are tried.
    Raises SettingsError for constants that train nothing.
    """

    distill: bool = said("Train the result on the ensemble's answers to unlabelled images.", "Method", False)
    fine_tune: bool = said("Train the result on the labels of the search images.", "Method", False)
    epochs: int | None = said(
        "Epochs of --distill and --fine-tune.",
        "Method",
        None,
        metavar="N",
        usual="as many as show 45,000 images, at most 10",
        name="last_epochs",
    )
    learning_rate: float | None = said(
        "Learning rate of --distill and --fine-tune.",
        "Method",
        None,
        metavar="X",
        usual="the better of 0.003 and 0.0005 on the confirm images",
        name="last_lr",
    )

    def __post_init__(self) -> None:
        require(self.epochs is None or self.epochs >= 1, "last-epochs", "at least 1", self.epochs)
        rate = self.learning_rate
        require(rate is None or 0 < rate < math.inf, "last-lr", "above 0", rate)
        if not self.wanted and (self.epochs or rate):
            raise SettingsError("--last-epochs and --last-lr need a last mile: add --distill or --fine-tune.")

    @property
    def wanted(self) -> bool:
        """Whether there is a last mile."""
        return self.distill or self.fine_tune


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
