"""The settings of a merge, said once: flags, the YAML of --config, lineages and the command of a card follow from them.

A field's metadata is what the command line says of it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from hfmega.errors import SettingsError
from hfmega.settings.fields import require, said
from hfmega.settings.methods import GENETIC, METHODS, SOME_USE, UPDATE_BN, UPDATING, Facts, Method
from hfmega.settings.parts import DEFAULT, PRESETS, GASettings, LastMileSettings, SplitRequest
from hfmega.settings.words import separated, spelled


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
    labels_by_number: bool = said(
        "Take a label's number for the network's output, whatever the names of both say.", "Data", False
    )
    report_to: Literal["none", "trackio", "wandb", "tensorboard", "mlflow"] = said(
        "Follow the search with one of Accelerate's trackers.", "Output", "none", recorded=False
    )
    no_images: bool = said("Leave test images out of report.html.", "Output", False, recorded=False)
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
            "splits": {"confirm_share": known.confirm_share},
            "last": {},
        }
        for name, value in given.items():
            parts[SETTINGS[name].within][SETTINGS[name].field] = value
        named_sources = tuple(separated(sources))
        if isinstance(parts[""].get("base"), str):
            parts[""]["base"] = spelled(parts[""]["base"])
        settings = cls(
            sources=named_sources,
            output=Path(output) if output is not None else default_folder(*named_sources),
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
    def chooses(self) -> bool:
        """Whether images steer or choose anything."""
        return self.method != UPDATE_BN

    @property
    def unlabelled(self) -> bool:
        """Whether unlabelled images are taken: for the last mile, or named for the fitness."""
        return self.last.distill or self.steered_unlabelled

    @property
    def steered_unlabelled(self) -> bool:
        """Whether unlabelled images that were named steer the search, by the ensemble's answers."""
        return self.searches and self.search.fitness == "ensemble" and self.splits.distill is not None

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
    names = [Path(source.split("@")[0]).resolve().name for source in separated(sources)]
    more = [f"{len(names) - 3}-more"] if len(names) > 3 else []
    return Path(parent) / "+".join([*names[:3], *more])


def recorded(settings: MergeSettings) -> dict[str, Any]:
    """Every constant of a merge, without the places and the token of the machine that made it."""
    found = {one.name: one.of(settings) for one in SETTINGS.values() if one.recorded}
    for name in ("base", "scale", "density"):
        if name not in settings.facts.flags or found[name] is None:
            del found[name]
    if not settings.last.wanted:
        for name in ("distill", "fine_tune", "last_epochs", "last_lr"):
            found.pop(name)
    if not settings.unlabelled:
        found.pop("distill_split")
    if settings.base:
        found["base"] = settings.base.rstrip("/").rsplit("/", 1)[-1]
    return found


def configured(settings: MergeSettings) -> dict[str, Any]:
    """The settings as `--config` reads them: the sources, and by the names of their flags what the preset does not say.

    Folders are absolute, so that the merge can go on from anywhere; where it is written is not among them.
    """
    known = standard(settings.preset)
    found: dict[str, Any] = {"sources": [absolute(source) for source in settings.sources]}
    for name, one in OFFERED.items():
        value = one.of(settings)
        if name in ("output", "overwrite") or value is None or (name != "preset" and value == known[name]):
            continue
        if one.switches:
            found |= {switch: True for switch, meant in one.switches.items() if meant == value}
        elif name != "preset" or value != "default":
            found[name.replace("_", "-")] = absolute(value) if name in ("base", "dataset") else value
    return found


def absolute(source: str) -> str:
    """A folder by its whole path; a Hub id as it is."""
    return str(Path(source).resolve()) if Path(source).is_dir() else source
