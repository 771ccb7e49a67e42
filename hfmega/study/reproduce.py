"""The paper's tables and figure as runs: sources trained, merged by each protocol, judged on the same test images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from hfmega import phases
from hfmega.data.dataset import DEFAULT_DATASET, Dataset, describe, open_dataset, rows_of
from hfmega.data.splits import plan_splits
from hfmega.errors import SettingsError
from hfmega.evaluation.checkpoint import evaluate_checkpoint
from hfmega.folder import WEIGHTS, other_settings
from hfmega.hub import pull
from hfmega.hub.client import exists
from hfmega.merging.estimate import cost, evaluation_rate
from hfmega.merging.merge import finished_merge, merge_all
from hfmega.models.library import Spec, has_statistics
from hfmega.output import Output
from hfmega.settings import PRESETS, MergeSettings
from hfmega.study import paper
from hfmega.study.results import Run
from hfmega.study.train import TrainSettings, make_record, scratch_spec, train, training_rate

Protocol = Literal["honest", "paper", "author"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("honest", "paper", "author")
PRESET: Final = {"honest": "default", "paper": "paper", "author": "author"}


@dataclass(frozen=True)
class ReproduceSettings:
    """What to reproduce, and how much of it. searches: their seeds are 0, 1, ...; sources: folders or Hub prefixes.

    Raises SettingsError for what makes no reproduction.
    """

    table: Literal["table1", "table2", "figure2"]
    output: Path
    networks: tuple[str, ...] = ()
    protocols: tuple[Protocol, ...] = PROTOCOLS
    seeds: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    dataset: str = DEFAULT_DATASET
    train_split: str = "train[10%:]"
    epochs: int = 50
    searches: int = 3
    population: int = 20
    generations: int = 20
    mutation_sigma: float | None = None
    fitness_images: int | None = None
    fine_tune_epochs: int = 10
    bf16: bool = False

    def __post_init__(self) -> None:
        if len(self.source_seeds) < 2:
            raise SettingsError("one source cannot be merged: name two or more seeds with --seeds.")
        if self.searches < 1 or self.fine_tune_epochs < 0:
            raise SettingsError("there must be at least one search, and no negative number of epochs.")

    @property
    def source_seeds(self) -> tuple[int, ...]:
        return self.seeds or paper.SEEDS[self.table]

    @property
    def architectures(self) -> tuple[str, ...]:
        return tuple(paper.ALIASES.get(name, name) for name in self.networks) or paper.NETWORKS[self.table]

    @property
    def kind(self) -> Literal["table1", "table2"]:
        """Whose merges these are: Figure 2 shows the searches of Table 1."""
        return "table2" if self.table == "table2" else "table1"

    def fine_tunes(self, protocol: Protocol) -> bool:
        """Whether the merges are fine-tuned: at the end of the author's eight-model program."""
        return protocol == "author" and self.kind == "table2" and self.fine_tune_epochs > 0


def reproduce(settings: ReproduceSettings, output: Output) -> list[Run]:
    """Train what is missing, merge what is missing, one run for each network and protocol; what is on disk is kept.

    Raises HfmegaError when a folder holds a run of other settings, and for anything that stops a training or a merge.
    """
    runs = []
    phases.plan({name: images for network in settings.architectures for name, images in left(settings, network).parts})
    for network in settings.architectures:
        sources = [source(settings, network, seed, output) for seed in settings.source_seeds]
        epochs = (pull.pull(sources[0]).record or {}).get("epochs")
        for protocol in settings.protocols:
            asked = searches(settings, network, protocol, sources)
            output.say(f"{settings.kind}, {network}, protocol {protocol}: {len(asked)} searches")
            made = merge_all(asked, output)
            run = Run(network, protocol, epochs, tuple(made), tuple(one.output for one in asked))
            runs.append(fine_tuned(settings, run, sources, output) if settings.fine_tunes(protocol) else run)
    return runs


def source(settings: ReproduceSettings, network: str, seed: int, output: Output) -> str:
    """A source by its folder or Hub id: the one that was given, else one that is trained here, or was before."""
    given, asked = given_source(settings, source_name(network, seed)), training(settings, network, seed)
    if given is None and not is_trained(asked):
        with phases.inside(str(asked.output)):
            train(asked, output)
    return given or str(asked.output)


def source_name(network: str, seed: int) -> str:
    """`resnet56-s44` for seed 44 of resnet56_cifar."""
    return f"{network.removesuffix('_cifar')}-s{seed}"


def given_source(settings: ReproduceSettings, name: str) -> str | None:
    """A trained source of `--sources`: a folder below one of them, or a Hub repository whose id begins with one."""
    for given in settings.sources:
        if Path(given).is_dir():
            if (Path(given) / name / WEIGHTS).is_file():
                return str(Path(given) / name)
        elif exists(repo_id := f"{given}{'' if '/' in given else '/'}{name}"):
            return repo_id
    return None


def training(settings: ReproduceSettings, network: str, seed: int) -> TrainSettings:
    """The paper's training of one source (section 4)."""
    return TrainSettings(
        network,
        settings.output / "sources" / source_name(network, seed),
        dataset=settings.dataset,
        train_split=settings.train_split,
        epochs=settings.epochs,
        seed=seed,
        image_size=paper.PIXELS,
        bf16=settings.bf16,
        update_bn=False,
    )


def is_trained(asked: TrainSettings) -> bool:
    """Whether a training was finished before. Raises HfmegaError when it was one of other settings."""
    if not (asked.output / WEIGHTS).is_file():
        return False
    record = pull.pull(str(asked.output)).record or {}
    if [record.get(k) for k in ("epochs", "batch_size", "seed")] != [asked.epochs, asked.batch_size, asked.seed]:
        raise other_settings(asked.output)
    return True


def searches(
    settings: ReproduceSettings, network: str, protocol: Protocol, sources: Sequence[str]
) -> list[MergeSettings]:
    """The merges of one row. The author's eight-model program scores its population on the test set."""
    preset, leaky = PRESET[protocol], protocol == "author" and settings.kind == "table2"
    place = settings.output / "merges" / settings.kind / f"{network}-{protocol}"
    return [
        MergeSettings.of(
            *sources,
            preset=preset,
            output=place / f"search-{seed}",
            dataset=settings.dataset,
            fitness_split="test" if leaky else None,
            fitness_images=settings.fitness_images,
            test_split="test" if leaky else None,
            allow_leak=leaky,
            population=settings.population,
            generations=settings.generations,
            tournament=min(PRESETS[preset].search.tournament, settings.population),
            mutation_sigma=None if protocol == "honest" else settings.mutation_sigma,
            seed=seed,
        )
        for seed in range(settings.searches)
    ]


def fine_tuned(settings: ReproduceSettings, run: Run, sources: Sequence[str], output: Output) -> Run:
    """The end of the author's eight-model program: epochs on the whole train split; and the same for the best source.

    The best source is the one with the highest test accuracy, as the author's table would have it.
    """
    accuracies = [entry.accuracy for entry in run.merges[0].sources]
    best = sources[accuracies.index(max(accuracies))]
    alone = fine_tune(settings, run.network, best, "source", 0, output)
    merged = [fine_tune(settings, run.network, str(f), f.name, seed, output) for seed, f in enumerate(run.folders)]
    return replace(run, fine_tuned=tuple(merged), source_fine_tuned=alone)


def fine_tune(settings: ReproduceSettings, network: str, start: str, name: str, seed: int, output: Output) -> float:
    """The test accuracy of a checkpoint after the author's fine-tuning (Adam 0.01, batches of 128)."""
    asked = replace(
        training(settings, network, seed),
        output=settings.output / "fine-tuned" / network / name,
        init=start,
        train_split="train",
        epochs=settings.fine_tune_epochs,
        batch_size=paper.FINE_TUNING_BATCH,
    )
    if not is_trained(asked):
        with phases.inside(str(asked.output)):
            train(asked, output)
    dataset = open_dataset(settings.dataset)
    return evaluate_checkpoint(pull.pull(str(asked.output)), dataset, "test").accuracy


@dataclass(frozen=True)
class Hours:
    """What a network under all protocols would still cost on this machine, in seconds."""

    network: str
    training: float
    merging: float
    fine_tuning: float

    @property
    def total(self) -> float:
        return self.training + self.merging + self.fine_tuning


@dataclass(frozen=True)
class Left:
    """What is not on disk yet of a network's runs: folder to images, those of a training once for each epoch.

    tuned: images of fine-tuning, likewise.
    """

    trained: dict[str, int]
    merged: dict[str, int]
    tuned: int

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Folder to passes of images, but for fine-tuning."""
        return [(name, float(phases.TRAINING * n)) for name, n in self.trained.items()] + [
            (name, float(n)) for name, n in self.merged.items()
        ]


def left(settings: ReproduceSettings, network: str) -> Left:
    """Count what is left to do for a network under all protocols."""
    dataset, _ = describe(settings.dataset)
    wanted = [training(settings, network, seed) for seed in settings.source_seeds]
    names = [source_name(network, seed) for seed in settings.source_seeds]
    given = [given_source(settings, name) for name in names]
    missing = [asked for asked, place in zip(wanted, given, strict=True) if not place and not is_trained(asked)]
    record, statistics = make_record(wanted[0], dataset), has_statistics(scratch_of(wanted[0], dataset))
    images, everything = len(rows_of(dataset, settings.train_split)), len(rows_of(dataset, "train"))
    merged, tuned = {}, 0
    for protocol in settings.protocols:
        asked = searches(settings, network, protocol, names)
        todo = [one for one in asked if finished_merge(one) is None]
        for one in todo:
            price = cost(one, len(names), plan_splits(dataset, [record] * len(names), one.splits), statistics)
            shown = price.showing if one == todo[0] else 0  # the others know what the references say
            merged[str(one.output)] = price.searching + shown
        if settings.fine_tunes(protocol):
            tuned += (len(asked) + 1) * settings.fine_tune_epochs * everything
    return Left({str(asked.output): asked.epochs * images for asked in missing}, merged, tuned)


def estimate(settings: ReproduceSettings) -> list[Hours]:
    """The time that is left, from images counted and short probes of each network; nothing is trained or merged."""
    dataset, _ = describe(settings.dataset)
    found = []
    for network in settings.architectures:
        wanted, todo = training(settings, network, settings.source_seeds[0]), left(settings, network)
        spec = scratch_of(wanted, dataset)
        trained, rate = sum(todo.trained.values()), evaluation_rate(spec)
        slow = training_rate(spec, wanted) if trained or todo.tuned else 1.0
        found.append(Hours(network, trained / slow, sum(todo.merged.values()) / rate, todo.tuned / slow))
    return found


def scratch_of(asked: TrainSettings, dataset: Dataset) -> Spec:
    """The network of a training."""
    return scratch_spec(asked, len(dataset.classes) or 10)


def hour_rows(hours: Sequence[Hours]) -> tuple[list[str], list[list[str]]]:
    """The table that `--dry-run` prints."""
    columns = ["network", "training", "merging", "fine-tuning", "hours"]
    return columns, [
        [h.network, *(f"{seconds / 3600:.2f}" for seconds in (h.training, h.merging, h.fine_tuning, h.total))]
        for h in hours
    ]
