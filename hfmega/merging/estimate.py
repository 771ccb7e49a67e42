"""What a run would cost: images counted from its plan, timed by a short probe of its network on this machine."""

import math
import time
from dataclasses import dataclass
from typing import Final

import psutil
import torch

from hfmega import phases
from hfmega.data.dataset import describe
from hfmega.data.images import Split, batches
from hfmega.data.splits import SplitPlan
from hfmega.evaluation.network import Network, calibration_batch
from hfmega.evaluation.processes import processes
from hfmega.evaluation.race import most_images
from hfmega.hub import pull
from hfmega.merging.controls import EPOCHS, LEARNING_RATES
from hfmega.merging.last_mile import rates
from hfmega.merging.lesson import BATCH_SIZE, epochs_of, scheduled
from hfmega.merging.pairing import Node, plan
from hfmega.merging.prepare import choose_dataset, columns_of, looked_at, planned
from hfmega.models.fit import seconds_per_step
from hfmega.models.library import Spec, build, has_statistics, normalizer, parameters_of, sizes, state_of
from hfmega.phases import duration
from hfmega.search.recipe import Recipe
from hfmega.settings import MergeSettings
from hfmega.weights.sources import Sources

PROBE_SECONDS: Final = 3.0


@dataclass(frozen=True)
class Estimate:
    """The plan of a merge and its price. images: passes of one image through a network; bytes where it says so."""

    nodes: tuple[Node, ...]
    images: dict[str, int]
    evaluations: int
    images_seen: int
    images_per_second: float
    seconds: float
    last_mile_seconds: float
    peak_bytes: int
    download_bytes: int


def estimate(settings: MergeSettings) -> Estimate:
    """The cost of a merge without doing it: of a Hub source only its config is fetched.

    Earlier merges among the sources are counted as one source each.
    Raises HfmegaError where the merge would, as far as configs and the dataset's description tell.
    """
    previews = [pull.preview(source) for source in settings.pulled]
    checkpoints = [preview.checkpoint for preview in previews]
    dataset, download = describe(choose_dataset(settings, checkpoints), *columns_of(settings))
    rows = planned(dataset, checkpoints, settings)
    spec = checkpoints[0].spec
    statistics = has_statistics(spec)
    read = looked_at(rows, settings, statistics)
    price = cost(settings, len(checkpoints), rows, statistics)
    rate = evaluation_rate(spec) * processes().num_processes
    training = last_mile_seconds(settings, len(checkpoints), rows, spec, rate)
    names = [checkpoint.name for checkpoint in checkpoints]
    return Estimate(
        nodes=tuple(
            node
            for level in plan(names[: len(settings.sources)], settings.tree if settings.searches else "flat")
            for node in level
        ),
        images={purpose: len(r) for purpose, r in read.items()},
        evaluations=price.evaluations,
        images_seen=price.searching + price.showing,
        images_per_second=rate,
        seconds=(price.searching + price.showing) / rate + training,
        last_mile_seconds=training,
        peak_bytes=peak_bytes(spec, len(checkpoints), sum(map(len, read.values()))),
        download_bytes=download + sum(preview.download_bytes for preview in previews),
    )


@dataclass(frozen=True)
class Cost:
    """What a merge takes: evaluations of individuals by its searches, and images through a network, by purpose."""

    evaluations: int
    deciding: int
    breeding: int
    choosing: int
    showing: int

    @property
    def searching(self) -> int:
        """Until the winner of the last run-off is known."""
        return self.deciding + self.breeding + self.choosing


def cost(settings: MergeSettings, sources: int, rows: SplitPlan, statistics: bool) -> Cost:
    """statistics: whether the network has BatchNorm statistics."""
    size = {purpose: len(r) for purpose, r in rows.rows.items()}
    ga, merges = settings.search, 1 if settings.tree == "flat" else sources - 1
    evaluations = merges * (ga.population + (ga.population - 1) * (ga.generations - 1))
    if not settings.searches:
        evaluations = 2 * sources if settings.method == "greedy-soup" else 1
    calibration = size["calibration"] if statistics and settings.calibrate is not False else 0
    steering = size["distill" if settings.steered_unlabelled else "search"]
    breeding, deciding, choosing = evaluations * (steering + calibration), 0, 0
    if settings.searches and not settings.exact:
        rough = min(calibration, calibration_batch(processes().device))
        first = most_images(ga.population, 0, steering, calibration, rough, first=True)
        later = most_images(ga.population - 1, 1, steering, calibration, rough)
        breeding = merges * (first + (ga.generations - 1) * later)
    runs_off = size["confirm"] > 0 and settings.searches
    if settings.calibrate is None and statistics:
        deciding = (sources + 1) * (2 * size["search"] + calibration)
    elif runs_off:
        deciding = (sources + 1) * (size["search"] + calibration)
    if runs_off:  # an average and two finds of each search, and the sources, which are known on the search images
        found = 3 * merges
        choosing = ((2 if calibration else 1) * sources + found) * size["confirm"]
        choosing += (found - 1) * (size["search"] + calibration)
        choosing += sources * size["search"] if settings.calibrate and statistics else 0
    showing = (sources * (2 if statistics else 1) + 1 + merges) * size["test"]
    if statistics and not (calibration and deciding):
        showing += (sources + 1) * size["calibration"]
    if sources > 2:  # the greedy soup
        showing += sources * (size["search"] + calibration) + size["test"] + calibration
    return Cost(evaluations, deciding, breeding, choosing, showing)


def ahead(settings: MergeSettings, sources: int, rows: SplitPlan, statistics: bool) -> dict[str, float]:
    """The phases of a merge, each with the images that it will pass through networks."""
    price, size = cost(settings, sources, rows, statistics), {purpose: len(r) for purpose, r in rows.rows.items()}
    found = {"each source": price.deciding, "search": price.breeding, "run-off": price.choosing}
    if settings.control:
        tuned = min(price.searching, len(LEARNING_RATES) * EPOCHS * size["search"])
        found["controls"] = price.searching + phases.TRAINING * tuned
    shown, passed = last_mile_images(settings, sources, rows)
    found["last mile"] = phases.TRAINING * shown + passed
    return {name: float(images) for name, images in {**found, "test": price.showing}.items() if images}


def last_mile_seconds(settings: MergeSettings, sources: int, rows: SplitPlan, spec: Spec, rate: float) -> float:
    """How long the last mile and its controls take at most. rate: images per second without training."""
    shown, passed = last_mile_images(settings, sources, rows)
    return shown / training_rate(spec) + passed / rate if shown else 0.0


def last_mile_images(settings: MergeSettings, sources: int, rows: SplitPlan) -> tuple[int, int]:
    """How many images the last mile and its controls train on, and how many they pass without training, at most."""
    last, size = settings.last, {purpose: len(r) for purpose, r in rows.rows.items()}
    if not last.wanted:
        return 0, 0
    lesson = (size["distill"] if last.distill else 0) + (size["search"] if last.fine_tune else 0)
    trainings = (2 if last.distill else 1) + 1  # from the merge, from the best source, taught by itself
    shown = trainings * len(rates(last)) * lesson * epochs_of(last.epochs, lesson)
    answered = (sources + 1) * lesson * epochs_of(last.epochs, lesson) if last.distill else 0
    unseen = size["confirm"] + (0 if last.fine_tune else size["search"])
    judged = trainings * len(rates(last)) * 2 * (unseen + size["calibration"]) + trainings * size["test"]
    return shown, answered + judged


def training_rate(spec: Spec) -> float:
    """Images per second of a last mile on this process's device, measured on random images."""
    model = build(spec).to(processes().device).to(memory_format=torch.channels_last)
    images = normalizer(spec, processes().device)(spec.preprocessing.noise(BATCH_SIZE).to(processes().device))
    return BATCH_SIZE / seconds_per_step(model, images, scheduled(1, BATCH_SIZE, 1e-3, 0, "none"), PROBE_SECONDS)


def evaluation_rate(spec: Spec) -> float:
    """Images per second through the network on this process's device, measured on random images."""
    model = build(spec)
    sources = Sources([state_of(spec, model)], parameters_of(spec, model), processes().device)
    network = Network(spec, sources, calibration=None)
    images = spec.preprocessing.noise(4 * network.batch_size)
    split = Split("probe", images, torch.zeros(len(images), dtype=torch.int64), "probe")
    times = [seconds_of(network, split)][1:]  # the first one is slower
    while sum(times) < PROBE_SECONDS:
        times.append(seconds_of(network, split))
    return len(times) * len(split) / sum(times)


def seconds_of(network: Network, split: Split) -> float:
    """Seconds to materialize the only source and to look at a split."""
    started = time.perf_counter()
    network.load(Recipe((1.0,)))
    network.look(split, batches(range(len(split)), network.batch_size))
    return time.perf_counter() - started


def peak_bytes(spec: Spec, sources: int, images: int) -> int:
    """Memory of this process after the probe, plus the sources, plus the images of all splits."""
    floats = sum(math.prod(shape) for shape in sizes(spec).values())
    image = math.prod(spec.preprocessing.input_size)
    return int(psutil.Process().memory_info().rss + 4 * floats * (sources + 3) + images * image)


def described(found: Estimate) -> tuple[list[str], list[list[str]]]:
    """The rows of the table that `--dry-run` prints."""
    rows = [[node.name, " + ".join(node.inputs)] for node in found.nodes]
    rows += [[f"{purpose} images", f"{count:,}"] for purpose, count in found.images.items() if count]
    rows += [
        ["evaluations", f"{found.evaluations:,}"],
        ["images through the network", f"{found.images_seen:,}"],
        ["images per second (probe)", f"{found.images_per_second:,.0f}"],
        ["estimated time", duration(found.seconds)],
        *([["of it the last mile", duration(found.last_mile_seconds)]] if found.last_mile_seconds else []),
        ["peak memory", f"{found.peak_bytes / 1e9:.1f} GB"],
        ["to download", f"{found.download_bytes / 1e6:,.1f} MB"],
    ]
    return ["plan", "value"], rows
