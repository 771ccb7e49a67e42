"""One measurement in a process of its own: what is asked as a JSON argument, what was found as one line of JSON."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import passes
import plain
import torch
import torch.distributed
import torch.multiprocessing
import torchga
from torch import nn
from torch.distributed import FileStore

from hfmega.data.images import Split, batches
from hfmega.evaluation.answers import Answers
from hfmega.evaluation.evaluator import Score
from hfmega.evaluation.race import rungs
from hfmega.folder import CONFIG, WEIGHTS
from hfmega.hub import pull
from hfmega.merging import tree
from hfmega.merging.pairing import Node
from hfmega.merging.prepare import Job, prepare
from hfmega.merging.progress import Progress, save
from hfmega.models.library import build, read
from hfmega.output import Output
from hfmega.rng import Draws
from hfmega.search.ga import MeGA
from hfmega.search.recipe import Recipe, uniform_average
from hfmega.settings import DEFAULT, MergeSettings, SplitRequest
from hfmega.weights.checkpoint import load_weights, save_weights

GATHERS: Final = 200


@dataclass(frozen=True)
class Ask:
    """What is to be measured. images: fitness images, before some of them are kept for the run-off.

    way: of searching. individuals: how many the bare forward passes are for. race: fields of `evaluation.race.Race`.
    architecture: measure untrained networks of it instead of the sources.
    """

    what: str
    sources: tuple[str, ...]
    dataset: str
    images: int
    population: int
    generations: int
    calibrate: bool = True
    seed: int = 0
    threads: int = 1
    way: str = "default"
    test: bool = False
    individuals: int = 0
    race: dict[str, Any] | None = None
    architecture: str | None = None
    repeat: int = 0


@dataclass(frozen=True)
class Found:
    """A search that was measured. images: that went through a network, those for calibration too.

    seconds: from the first ask to the last tell. peak_mb, start_mb: memory of the process at most while searching, and
    before. fitness, test: of the best individual, on all search and on all test images. shares: of the search images
    that the individuals of each population have seen.
    """

    seconds: float
    images: int
    individuals: int | None
    generations: int
    start_mb: float
    peak_mb: float
    fitness: float
    test: float | None
    shares: tuple[float, ...] = ()


def settings_of(ask: Ask, folder: Path) -> MergeSettings:
    """The merge that the searches of hfmega are a part of."""
    return MergeSettings(
        sources=ask.sources,
        output=folder,
        dataset=ask.dataset,
        splits=SplitRequest(fitness_images=ask.images),
        search=replace(DEFAULT, population=ask.population, generations=ask.generations, patience=0),
        calibrate=ask.calibrate,
        exact=ask.way != "default",
        seed=ask.seed,
    )


class Clock:
    """Seconds and memory of what runs inside `running`."""

    seconds = start_mb = peak_mb = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        with suppress(OSError):  # Linux: forget the peak of loading, which would hide that of a search
            Path("/proc/self/clear_refs").write_text("5")
        self.start_mb = peak_mb()
        started = time.perf_counter()
        yield
        finish()
        self.seconds = time.perf_counter() - started
        self.peak_mb = peak_mb()


def peak_mb() -> float:
    """The peak of this process. On Linux ru_maxrss may be that of its parent, so it is asked otherwise there."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def row(ask: Ask) -> dict[str, Any]:
    """A whole search in one of the ways; everything is loaded before, and a batch has warmed the network up."""
    with TemporaryDirectory() as folder:
        job = prepare(settings_of(ask, Path(folder) / "merge"), Output(muted=True))
        warm_up(job)
        ways = {"plain": baseline, "torchga": baseline, "bare": bare}
        return asdict(ways.get(ask.way, hfmega)(ask, job, Path(folder)))


def seeds(ask: Ask) -> dict[str, Any]:
    """The search of hfmega from as many seeds as `ask.seed`, one after another; each knows no scores of another."""
    with TemporaryDirectory() as folder:
        job = prepare(settings_of(ask, Path(folder) / "merge"), Output(muted=True))
        warm_up(job)
        searches = []
        for seed in range(ask.seed):
            job.evaluator.forget(job.search)
            searches.append(asdict(hfmega(ask, replace(job, settings=replace(job.settings, seed=seed)), Path(folder))))
        return {"searches": searches}


def warm_up(job: Job) -> None:
    model = job.evaluator.network.prepared(uniform_average(len(job.checkpoints)))
    with torch.inference_mode():
        model(normalized(job, job.search)[: job.evaluator.network.batch_size])


def normalized(job: Job, split: Split) -> torch.Tensor:
    """All images as the network takes them, on its device."""
    return job.evaluator.network.normalized(job.evaluator.network.resident(split)[0])


def searcher_of(job: Job) -> Any:
    inputs = [replace(member.recipe, calibrate=bool(job.settings.calibrate)) for member in job.merged]
    return tree.searcher_of(job, inputs, job.settings.seed)


def hfmega(ask: Ask, job: Job, folder: Path) -> Found:
    """The search of `hfmega merge`, with its state written after every generation."""
    evaluator, searcher, clock = job.evaluator, searcher_of(job), Clock()
    node, names = Node("merge", (), ()), [member.name for member in job.merged]
    node, progress = replace(node, inputs=tuple(names), below=tuple(names)), Progress()
    before = evaluator.network.images_seen
    with raced_by(ask.race or {}), clock.running():
        tree.search({node: searcher}, job, progress, folder / "progress.json", Output(muted=True))
    images, calibration = evaluator.network.images_seen - before, calibration_images(job)
    return Found(
        clock.seconds,
        images,
        images // (len(job.search) + calibration) if job.settings.exact else None,  # a race stops within an individual
        len(searcher.history),
        clock.start_mb,
        clock.peak_mb,
        evaluator.scores([searcher.best], job.search)[0].accuracy,
        evaluator.scores([searcher.best], job.test)[0].accuracy if ask.test else None,
        tuple(fmean(score.total for score in scores) / len(job.search) for scores in progress.scores[node.name]),
    )


@contextmanager
def raced_by(fields: dict[str, Any]) -> Iterator[None]:
    """With some of the rules of the race replaced: no user varies them, so they are no setting."""
    usual = tree.rules
    tree.rules = lambda *about: replace(usual(*about), **fields)
    yield
    tree.rules = usual


def calibration_images(job: Job) -> int:
    return len(job.calibration) if job.settings.calibrate and job.calibration else 0


def baseline(ask: Ask, job: Job, _: Path) -> Found:
    """Plain PyTorch or PyGAD, on the first population of hfmega's search, as state dicts."""
    states = [load_weights(checkpoint) for checkpoint in job.checkpoints]
    model = build(job.spec).to(job.evaluator.state.device)
    fitness = plain.Fitness(model, loader(job, job.search), calibration_loader(job))
    population = [plain.blend(states[0], states[1], r.coefficients[0]) for r in searcher_of(job).population]
    known = {name for name, _ in model.named_parameters()}
    search, clock = job.settings.search, Clock()
    if ask.way == "plain":

        def run() -> tuple[plain.State, float, int]:
            return plain.search(population, fitness, known, search, ask.seed)
    else:
        run = torchga.search(model, population, fitness, known, search, ask.seed)
    with torch.no_grad():
        model(next(iter(fitness.search))[0].to(job.evaluator.state.device))
    with clock.running():
        best, value, generations = run()
    images, individuals = fitness.images, fitness.individuals
    test = fitness.accuracy(best, loader(job, job.test)) if ask.test else None
    return Found(clock.seconds, images, individuals, generations, clock.start_mb, clock.peak_mb, value, test)


def loader(job: Job, split: Split) -> torch.utils.data.DataLoader:
    return plain.loader(normalized(job, split).contiguous().cpu(), split.labels)


def calibration_loader(job: Job) -> torch.utils.data.DataLoader | None:
    return loader(job, job.calibration) if job.settings.calibrate and job.calibration else None


def bare(ask: Ask, job: Job, _: Path) -> Found:
    """The forward passes of as many individuals and nothing else. Its accuracies are those of the sources' average."""
    evaluator, clock = job.evaluator, Clock()
    average = uniform_average(len(job.checkpoints), bool(job.settings.calibrate))
    model = evaluator.network.prepared(average)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if evaluator.network.folded:
        evaluator.network.folded.update()
    folded = evaluator.network.folded.network if evaluator.network.folded else model
    size = evaluator.network.calibration_batch
    search = normalized(job, job.search).split(evaluator.network.batch_size)
    calibration: tuple[torch.Tensor, ...] = ()
    if job.settings.calibrate and job.calibration:
        calibration = normalized(job, job.calibration).tensor_split(-(-len(job.calibration) // size))
    images = 0
    with torch.inference_mode(), clock.running():
        for _ in range(ask.individuals):
            for norm in norms if calibration else ():
                norm.train()
            for x in calibration:
                model(x)
                images += len(x)
            for norm in norms if calibration else ():
                norm.eval()
            for x in search:
                folded(x)
                images += len(x)
    return Found(
        clock.seconds,
        images,
        ask.individuals,
        ask.generations,
        clock.start_mb,
        clock.peak_mb,
        evaluator.scores([average], job.search)[0].accuracy,
        evaluator.scores([average], job.test)[0].accuracy if ask.test else None,
    )


def steps(ask: Ask) -> dict[str, Any]:
    """What the steps of one individual cost late in a search that was told made-up scores."""
    with TemporaryDirectory() as folder:
        sources = untrained(ask, Path(folder)) if ask.architecture else ask.sources
        job = prepare(settings_of(replace(ask, sources=sources), Path(folder) / "merge"), Output(muted=True))
        warm_up(job)
        materializing, deciding, recipe = late(job, ask.seed, Path(folder) / "progress.json")
        evaluator, calibration = job.evaluator, calibration_images(job)
        calibrating = timed(lambda: evaluator.network.prepared(recipe))
        whole = timed(lambda: (evaluator.forget(job.search), evaluator.scores([recipe], job.search)))
        images = len(job.search) + calibration
        return {
            "floats": evaluator.network.sources.layout.size,
            "noise_terms": len(recipe.noise),
            "materializing": materializing,
            "deciding": deciding,
            "calibrating": max(calibrating - 2 * materializing, 0.0) if calibration else 0.0,
            "scoring": whole - calibrating,
            "evaluation": whole,
            "images": images,
            "search_images": len(job.search),
            "calibration_images": calibration,
            "images_per_second": images / whole,
            "rough": evaluator.network.rough,
            **rough_steps(job, recipe, materializing),
            "calibration_batch": evaluator.network.calibration_batch,
            "batch": evaluator.network.batch_size,
        }


def rough_steps(job: Job, recipe: Recipe, materializing: float) -> dict[str, float]:
    """Seconds of what only ranks: statistics of one calibration image, and all search images."""
    network, parts = job.evaluator.network, batches(range(len(job.search)), job.evaluator.network.batch_size)
    few = network.calibration_parts(rough=True)
    calibrating = timed(lambda: network.moments(recipe, few, rough=True)) - materializing if few else 0.0
    network.load(recipe)
    return {
        "rough_calibrating": calibrating / max(sum(map(len, few)), 1),
        "rough_scoring": timed(lambda: network.estimate(job.search, parts)),
    }


def late(job: Job, seed: int, record: Path) -> tuple[float, float, Recipe]:
    """Late in a search: seconds to materialize an individual, and to decide and record a generation (medians).

    And an individual of the last one. Each before is materialized too, so that the cache of noise is as in a search.
    """
    evaluator, searcher, draws = job.evaluator, searcher_of(job), Draws(seed, "made-up scores")
    assert isinstance(searcher, MeGA)
    flat = torch.empty(evaluator.network.sources.layout.size, device=evaluator.network.sources.device)
    progress, deciding = Progress(scores={"merge": []}), list[float]()
    while True:
        population = searcher.ask()
        seconds = [timed(lambda r=r: evaluator.network.sources.materialize(r, flat), 1) for r in population]
        if len(searcher.history) == searcher.generations - 1:
            return median(seconds), median(deciding), max(population, key=lambda r: len(r.noise))
        scores = [Score(int(draws.below(1000)), 1000, draws.uniform()) for _ in population]
        progress.scores["merge"].append(scores)
        started = time.perf_counter()
        searcher.tell(scores)
        searcher.ask()
        save(progress, record, evaluator)
        deciding.append(time.perf_counter() - started)


def finish() -> None:
    """Wait for a GPU to do what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        finish()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def untrained(ask: Ask, folder: Path) -> tuple[str, ...]:
    """Two checkpoints of an architecture, with the preprocessing of the sources and weights that were only drawn."""
    first = pull.pull(ask.sources[0]).spec.config
    config = {key: value for key, value in first.items() if key != "hfmega"} | {"architecture": ask.architecture}
    places = [folder / f"{ask.architecture}-{seed}" for seed in (1, 2)]
    for seed, place in enumerate(places, 1):
        place.mkdir()
        (place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        save_weights(build(read(place / CONFIG, str(place)), seed).state_dict(), place / WEIGHTS)
    return tuple(map(str, places))


def ways(ask: Ask) -> dict[str, Any]:
    """Images per second of ways to pass them through a network."""
    with TemporaryDirectory() as folder:
        return passes.rates(prepare(settings_of(ask, Path(folder) / "merge"), Output(muted=True)))


def gather(ask: Ask) -> dict[str, Any]:
    """Seconds in which two processes tell each other what a population says of a first rung of the images."""
    with TemporaryDirectory() as folder:
        context = torch.multiprocessing.spawn(_gather, (folder, ask.population, ask.images), nprocs=2, join=False)
        while not context.join():
            pass
        return {"gather": float((Path(folder) / "seconds").read_text())}


def _gather(rank: int, folder: str, population: int, images: int) -> None:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, store=FileStore(f"{folder}/store", 2))
    seen = [*rungs(images), images][0]
    mine = [(k, Answers(np.zeros(seen, bool), np.zeros(seen))) for k in range(rank, population, 2)]
    everyone: list[Any] = [None, None]
    seconds = timed(lambda: torch.distributed.all_gather_object(everyone, (mine, 1000)), GATHERS)
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(seconds))
    torch.distributed.destroy_process_group()


MEASURES: Final = {"row": row, "seeds": seeds, "steps": steps, "ways": ways, "gather": gather}


def measure(ask: Ask) -> dict[str, Any]:
    return MEASURES[ask.what](ask)


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    print(json.dumps(measure(Ask(**{**asked, "sources": tuple(asked["sources"])}))))


if __name__ == "__main__":
    main()
