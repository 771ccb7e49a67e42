"""The settings of a merge, said once: flags, the YAML of --config, lineages and the command of a card follow from them.

A field's metadata is what the command line says of it. Methods and presets are tables.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from hfmega.errors import SettingsError

Group = Literal["Everyday", "Data", "Search", "Method", "Hardware", "Publishing", "Output"]
Genome = Literal["model", "stage", "layer", "tensor", "channel"]
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
UPDATE_BN: Final = "update-bn"  # a command of its own, recorded as a merge of one source
SLICE: Final = re.compile(r"\w+(\.\w+)*(\[(-?[\d_]+%?)?:(-?[\d_]+%?)?\])?(\([^)]*\))?")


def said(text: str, group: Group, default: Any = MISSING, **more: Any) -> Any:
    """A field that the command line offers.

    more: `metavar`; `name`: what flag, YAML and lineage call it, if not as the field is called; `short`: one letter;
    `switches`: flags that stand for a value each; `usual`: the default in words, where it is not a value; `recorded`:
    False for what a lineage records elsewhere or nowhere; `choices`: those that are offered, if not all.
    """
    return field(default=default, metadata={"text": text, "group": group, **more})


def require(holds: bool, flag: str, what: str, value: object) -> None:
    """Raises SettingsError with what a flag must be, unless it is."""
    if not holds:
        raise SettingsError(f"--{flag} must be {what}, not {value}.")


def check_slice(flag: str, text: str | None) -> None:
    """Raises SettingsError for text that is not a slice as `datasets` writes it; None is no slice, and passes."""
    if text is not None and not all(SLICE.fullmatch(part.strip()) for part in text.split("+")):
        raise SettingsError(f"--{flag} {text!r} is not a slice: write train, train[:5000], train[10%:20%] or a+b.")


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
    fitness: Literal["accuracy", "loss"] = said("Maximise accuracy or minimise loss.", "Search", "accuracy")
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
        "Unlabelled images for --distill.",
        "Data",
        None,
        metavar="S",
        usual="all that calibration may take",
        name="distill_split",
    )
    distills: bool = field(default=False, metadata={"recorded": False})  # as LastMileSettings.distill says
    chooses: bool = field(default=True, metadata={"recorded": False})  # False: no image steers or chooses anything

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

TREE: Final = frozenset({"tree", "order", "exact", "fitness", "population", "generations", "patience"})
GENETIC: Final = TREE | {"parents", "tournament", "mutation_rate", "mutation_sigma", "mutation_unit", "genome"}
VECTORS: Final = frozenset({"base", "scale"})


@dataclass(frozen=True)
class Facts:
    """Facts about a method.

    flags: the ones that only some methods use, and this one does. searches: it searches with a population.
    base: a common start of the sources is refused, needed, or one more input of the search. images: it needs evidence
    of the sources on images. sources: exactly so many; None: two or more.
    """

    flags: frozenset[str] = frozenset()
    searches: bool = False
    base: Literal["no", "needed", "one more input"] = "no"
    images: bool = False
    sources: int | None = None

    @property
    def genomes(self) -> bool:
        """Whether parts of the network may have coefficients of their own."""
        return "genome" in self.flags


METHODS: Final[dict[Method, Facts]] = {
    "mega": Facts(GENETIC, searches=True),
    "cmaes": Facts(TREE | {"base"}, searches=True, base="one more input"),
    "random": Facts(TREE, searches=True),
    "learned": Facts(TREE | {"base", "genome"}, searches=True, base="one more input"),
    "greedy-soup": Facts(),
    "average": Facts(),
    "slerp": Facts(sources=2),
    "task-arithmetic": Facts(VECTORS, base="needed"),
    "ties": Facts(VECTORS | {"density"}, base="needed"),
    "dare-linear": Facts(VECTORS | {"density"}, base="needed"),
    "dare-ties": Facts(VECTORS | {"density"}, base="needed"),
    "fisher": Facts(images=True),
    "regmean": Facts(images=True),
}
UPDATING: Final = Facts(sources=1)
SOME_USE: Final = frozenset[str]().union(*(facts.flags for facts in METHODS.values()))


@dataclass(frozen=True)
class MergeSettings:
    """Everything that a merge depends on, but the machine. `MergeSettings.of` makes them from names and a preset.

    Raises SettingsError for what makes no merge, whoever makes them.
    """

    sources: tuple[str, ...]
    output: Path = said(
        "Folder of the merge.", "Everyday", metavar="DIR", usual="merges/FIRST+SECOND", short="o", recorded=False
    )
    dataset: str | None = said(
        "Dataset on the Hub, local folder, or the embedded digits.",
        "Everyday",
        None,
        metavar="ID|FOLDER|digits",
        usual="that of the sources' training records, else uoft-cs/cifar10",
        recorded=False,
    )
    preset: Literal["default", "paper", "author"] = said(
        "Constants of hfmega, of the paper, or of its author's program.", "Everyday", "default"
    )
    search: GASettings = DEFAULT
    tree: Literal["pairs", "flat"] = said(
        "Merge pairs, then pairs of results; or search over all sources at once.", "Search", "pairs"
    )
    order: Literal["given", "strongest-first", "similar-first"] = said(
        "Which sources meet in the tree.", "Search", "given"
    )
    method: Literal[Method, "update-bn"] = said(
        "A search (the first four), or a merge without one.", "Everyday", "mega", choices=tuple(METHODS)
    )
    base: str | None = said(
        "Checkpoint that the sources started from: for task vectors; for cmaes, learned one more source.",
        "Method",
        None,
        metavar="SOURCE",
        usual="none",
    )
    scale: float = said("Lambda of task vectors.", "Method", 1.0, metavar="X")
    density: float = said("Share of the task vectors that ties and dare keep.", "Method", 0.5, metavar="P")
    align: Literal["none", "weights", "activations"] = said(
        "Permute the channels of the sources to match the first one's.", "Method", "none"
    )
    seed: int = said("Seed of the search.", "Everyday", 0, metavar="N")
    calibrate: bool | None = said(
        "Re-estimate BatchNorm statistics or not.", "Method", None, usual="decided on the fitness images"
    )
    exact: bool = said("No racing: every individual sees every fitness image.", "Search", False)
    precision: Literal["float32", "bfloat16", "float16"] = said(
        "Compute the scores of the search in {}, on devices that have it.",
        "Hardware",
        "float32",
        switches={"bf16": "bfloat16", "fp16": "float16"},
    )
    control: bool = said("Also measure what the best source gains alone, with the same budget.", "Search", False)
    last: LastMileSettings = LastMileSettings()
    splits: SplitRequest = field(default_factory=SplitRequest)
    image_column: str | None = said("Image column.", "Data", None, metavar="C", usual="the one of type Image")
    label_column: str | None = said("Label column.", "Data", None, metavar="C", usual="the one of type ClassLabel")
    overwrite: bool = said("Start anew in a folder that holds a run.", "Output", False, recorded=False)

    @classmethod
    def of(
        cls, *sources: str | Path, preset: str = "default", output: str | Path | None = None, **named: Any
    ) -> "MergeSettings":
        """The settings that a preset and named ones amount to, by the names of the flags; None is: not named.

        Raises SettingsError for a name or a value that there is not, and for a flag that the method does not use.
        """
        known, given = PRESETS[checked(SETTINGS["preset"], preset)], understood(named)
        if known.exact and not given.get("exact", True):
            raise SettingsError(f"--preset {preset} scores every individual on every image: remove exact.")
        parts: dict[str, dict[str, Any]] = {
            "": {"calibrate": known.calibrate, "exact": known.exact},
            "search": {},
            "splits": {"confirm_share": known.confirm_share, "distills": bool(given.get("distill"))},
            "last": {},
        }
        for name, value in given.items():
            parts[SETTINGS[name].within][SETTINGS[name].field] = value
        settings = cls(
            sources=tuple(map(str, sources)),
            output=Path(output) if output is not None else default_folder(*sources),
            preset=preset,  # type: ignore[arg-type]  # checked
            search=replace(known.search, **parts["search"]),
            splits=SplitRequest(**parts["splits"]),
            last=LastMileSettings(**parts["last"]),
            **parts[""],
        )
        check_used(given, settings)
        return settings

    def __post_init__(self) -> None:
        if self.method != UPDATE_BN:
            checked(SETTINGS["method"], self.method)
            if len(self.sources) < 2:
                raise SettingsError("one source cannot be merged: name two or more.")
        facts = self.facts
        if facts.base == "needed" and self.base is None:
            raise SettingsError(f"--method {self.method} needs the common start of the sources: name it with --base.")
        if facts.base == "no" and self.base is not None:
            raise SettingsError(f"--method {self.method} does not use a base: remove --base.")
        if facts.sources and len(self.sources) != facts.sources:
            raise SettingsError(f"--method {self.method} merges {facts.sources} sources, not {len(self.sources)}.")
        if self.search.genome != "model" and not facts.genomes:
            raise SettingsError(f"--method {self.method} does not use --genome: remove it.")
        require(0 < self.density <= 1, "density", "above 0 and at most 1", self.density)
        require(math.isfinite(self.scale), "scale", "a finite number", self.scale)
        if self.last.wanted and self.splits.confirm_share == 0:
            raise SettingsError("--distill and --fine-tune need confirm images: --confirm-share must be above 0.")
        if self.preset != "default" and fixed(self.search) != fixed(PRESETS[self.preset].search):
            raise SettingsError(f"the constants are not those of the preset {self.preset}: use MergeSettings.of.")

    @property
    def facts(self) -> Facts:
        """Facts about the method."""
        return UPDATING if self.method == UPDATE_BN else METHODS[self.method]

    @property
    def searches(self) -> bool:
        """Whether the method searches with a population."""
        return self.facts.searches

    @property
    def pulled(self) -> tuple[str, ...]:
        """Everything that is pulled: the sources, and behind them the base."""
        return (*self.sources, *([self.base] if self.base else []))


@dataclass(frozen=True)
class Setting:
    """One constant of a merge. name: of the flag, in YAML and in a lineage; within, field: where the settings hold it.

    choices: the values of a Literal; text and group: empty where the command line does not offer it.
    """

    name: str
    within: str
    field: str
    kind: type
    optional: bool
    choices: tuple[str, ...]
    text: str
    group: str
    metavar: str | None
    usual: str
    short: str | None
    switches: Mapping[str, str]
    recorded: bool

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def of(self, settings: MergeSettings) -> Any:
        """The value of it in some settings."""
        return getattr(getattr(settings, self.within) if self.within else settings, self.field)


def flat(kind: type, within: str = "") -> Iterator[Setting]:
    """The fields of the settings, of those inside them too, in the order of the flags of a card's command."""
    for one in fields(kind):
        if one.name == "search":
            yield from flat(GASettings, "search")
        elif one.name == "splits":
            yield from flat(SplitRequest, "splits")
        elif one.name == "last":
            yield from flat(LastMileSettings, "last")
        elif one.name != "sources":
            yield setting(one.name, one.type, one.metadata, within)


def setting(name: str, hint: Any, said_of_it: Mapping[str, Any], within: str) -> Setting:
    """A field as a setting. hint: a type, a Literal, or one of them or None."""
    choices = said_of_it.get("choices", get_args(hint) if get_origin(hint) is Literal else ())
    kinds = [str] if choices else [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    return Setting(
        name=said_of_it.get("name", name),
        within=within,
        field=name,
        kind=kinds[0],
        optional=NoneType in get_args(hint),
        choices=choices,
        text=said_of_it.get("text", ""),
        group=said_of_it.get("group", ""),
        metavar=said_of_it.get("metavar"),
        usual=said_of_it.get("usual", ""),
        short=said_of_it.get("short"),
        switches=said_of_it.get("switches", {}),
        recorded=said_of_it.get("recorded", True),
    )


SETTINGS: Final = {one.name: one for one in flat(MergeSettings)}
OFFERED: Final = {name: one for name, one in SETTINGS.items() if one.text}
SWITCHES: Final = {s: (one.name, value) for one in SETTINGS.values() for s, value in one.switches.items()}
KINDS: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a folder"}
CLASSES: Final[dict[type, type | tuple[type, ...]]] = {
    bool: bool,
    int: Integral,
    float: Real,
    str: (str, Path),
    Path: (str, Path),
}


def standard(preset: str) -> dict[str, Any]:
    """What each setting is where nobody names it."""
    settings = MergeSettings.of("one", "two", preset=preset, output=".")
    return {name: one.of(settings) for name, one in SETTINGS.items()}


def understood(named: Mapping[str, Any]) -> dict[str, Any]:
    """Named values by the names of the settings. Raises SettingsError for one that there is not, or is of another kind.

    None and a switch that is off (`bf16`) are left out.
    """
    found: dict[str, Any] = {}
    for name, value in named.items():
        key = name.replace("-", "_")
        if key not in OFFERED and key not in SWITCHES:
            raise SettingsError(unknown(name, [*OFFERED, *SWITCHES]))
        if key in SWITCHES:
            if value and found.get("precision", SWITCHES[key][1]) != SWITCHES[key][1]:
                raise SettingsError("--bf16 and --fp16 exclude each other: remove one.")
            key, value = (SWITCHES[key][0], SWITCHES[key][1] if value else None)
        if value is not None:
            found[key] = checked(OFFERED[key], value)
    return found


def unknown(name: str, names: list[str], what: str = "a setting") -> str:
    """The sentence for a name that there is not, with those that are near it."""
    near = get_close_matches(name.replace("-", "_"), names, 3)
    return f"{name} is not {what}{': did you mean ' + ' or '.join(near) + '?' if near else '.'}"


def checked(one: Setting, value: Any) -> Any:
    """A value as its field holds it. Raises SettingsError for one of another kind, or that is not a choice."""
    kind: Any = one.kind
    if one.choices:
        require(value in one.choices, one.flag.removeprefix("--"), f"one of {', '.join(one.choices)}", value)
        return value
    fits = isinstance(value, CLASSES[kind]) and (kind is bool or not isinstance(value, bool))
    require(fits, one.flag.removeprefix("--"), KINDS[kind], value)
    return kind(value)


def check_used(given: Iterable[str], settings: MergeSettings) -> None:
    """Raises SettingsError for a named flag that the method does not use. A control is a search of its own."""
    used = settings.facts.flags | (GENETIC - {"tree", "order", "genome"} if settings.control else frozenset())
    for name in given:
        if name in SOME_USE - used:
            raise SettingsError(f"--method {settings.method} does not use {SETTINGS[name].flag}: remove it.")


def fixed(search: GASettings) -> tuple[bool, ...]:
    """The constants of a search that only a preset sets."""
    return (search.anchors, search.redraw_parents, search.break_ties)


def default_folder(*sources: str | Path, parent: str = "merges") -> Path:
    """`merges/first+second`, of the sources' last names."""
    names = [Path(str(source).split("@")[0]).resolve().name for source in sources]
    more = [f"{len(names) - 3}-more"] if len(names) > 3 else []
    return Path(parent) / "+".join([*names[:3], *more])


def recorded(settings: MergeSettings) -> dict[str, Any]:
    """Every constant of a merge, without the places and the token of the machine that made it."""
    found = {one.name: one.of(settings) for one in SETTINGS.values() if one.recorded}
    for name in ("base", "scale", "density"):
        if name not in settings.facts.flags or found[name] is None:
            del found[name]
    if not settings.last.wanted:
        for name in ("distill", "distill_split", "fine_tune", "last_epochs", "last_lr"):
            found.pop(name)
    if settings.base:
        found["base"] = settings.base.rstrip("/").rsplit("/", 1)[-1]
    return found
