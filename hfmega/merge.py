"""The main job: several checkpoints in, one honest and replayable checkpoint out."""

import hashlib
import json
import platform
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from pydantic import TypeAdapter

from hfmega import HfmegaError, __version__, card, hub, lineage, run
from hfmega.choose import (
    AVERAGE,
    CENTROID,
    SEARCH,
    Chosen,
    calibration_pays,
    ensembles,
    judge,
    reference,
    rivals,
    run_off,
)
from hfmega.compare import answers
from hfmega.data import DEFAULT_DATASET, Dataset, Split, label_order, load_split, open_dataset
from hfmega.evaluate import Evaluator, Score, predict_checkpoint, processes
from hfmega.hub import Checkpoint
from hfmega.lineage import DataEntry, Lineage, NodeEntry, Reference, SourceEntry, SplitEntry
from hfmega.output import Output
from hfmega.recipe import Recipe
from hfmega.search import Searcher
from hfmega.search.ga import MeGA
from hfmega.settings import MergeSettings, recorded
from hfmega.splits import SplitPlan, plan_splits
from hfmega.weights import check_mergeable, load_weights, mix, rebuild, save_weights


@dataclass
class Progress:
    """How far a search has come: the scores of each generation, and what they cost. Written after every generation."""

    scores: list[list[Score]] = field(default_factory=list)
    forward_passes: int = 0
    seconds: float = 0.0
    __pydantic_config__: ClassVar = lineage.NUMBERS


PROGRESS: Final = TypeAdapter(Progress)


@dataclass(frozen=True)
class Job:
    """A merge that has passed every check: sources on this disk, images in memory, a network on the device."""

    settings: MergeSettings
    checkpoints: tuple[Checkpoint, ...]
    dataset: Dataset
    plan: SplitPlan
    search: Split
    confirm: Split | None
    calibration: Split | None
    test: Split
    evaluator: Evaluator
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [checkpoint.name for checkpoint in self.checkpoints]

    @property
    def splits(self) -> dict[str, Split]:
        """Purpose to images, of those that there are."""
        every = {"search": self.search, "confirm": self.confirm, "calibration": self.calibration, "test": self.test}
        return {purpose: split for purpose, split in every.items() if split is not None}

    @property
    def fingerprint(self) -> str:
        """What an unfinished run must share with this one to be its beginning."""
        identity = [
            recorded(self.settings),
            [c.sha256 for c in self.checkpoints],
            {p: s.fingerprint for p, s in self.splits.items()},
        ]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def merge(settings: MergeSettings, output: Output) -> Lineage | None:
    """Pull, check, search, choose, write, report. Returns the lineage in the main process, None in the others.

    Raises HfmegaError for anything that stands in the way; an interrupted search resumes when called again.
    """
    run.check_output(settings.output, hub.LINEAGE, settings.overwrite)
    job = prepare(settings, output)
    main = job.evaluator.state.is_main_process
    with run.open_run(settings.output, job.fingerprint, settings.overwrite) if main else nullcontext():
        calibrate = settings.calibrate
        if calibrate is None:
            calibrate = calibration_pays(job.evaluator, len(job.names), job.search)
            output.say(
                f"BatchNorm statistics: {'re-estimated inside the fitness' if calibrate else 'kept as they are'}"
            )
        searcher = MeGA(len(job.names), settings.search, settings.seed, calibrate)
        progress = search(searcher, job, output)
        chosen = run_off(searcher, job.evaluator, job.names, job.search, job.confirm)
        output.say(f"chosen: {chosen.name}; now the test images ({job.plan.test}, {len(job.test):,}) are read, once")
        return report(job, searcher, chosen, progress)


def prepare(settings: MergeSettings, output: Output) -> Job:
    """Everything before the search: pull the sources, check that they can be merged, choose and decode the images."""
    state = processes()
    checkpoints = pull_all(settings, output, state)
    states = [load_weights(checkpoint) for checkpoint in checkpoints]
    check_mergeable(checkpoints, states)
    config = checkpoints[0].config
    with state.main_process_first():
        dataset = open_dataset(
            choose_dataset(settings, checkpoints), settings.image_column, settings.label_column, settings.token
        )
    plan = plan_splits(dataset, [c.record for c in checkpoints], settings.splits, settings.seed)
    rows = {
        "search": plan.search_rows,
        "confirm": plan.confirm_rows,
        "calibration": plan.calibration_rows,
        "test": plan.test_rows,
    }
    splits = {purpose: load_split(dataset, r, config, purpose) for purpose, r in rows.items() if len(r)}
    _, label_note = label_order(dataset.classes, config.get("label_names"))
    notes = (*plan.notes, *([label_note] if label_note else []))
    for note in (*notes, *([plan.leak] if plan.leak else [])):
        output.say(note)
    output.say(f"{', '.join(f'{len(split):,} {purpose}' for purpose, split in splits.items())} images")
    output.say(
        f"processes: {state.num_processes}, device: {state.device.type}, threads: {torch.get_num_threads()} each"
    )
    evaluator = Evaluator(config, mix(checkpoints, states, state.device), splits.get("calibration"))
    output.detail(f"{evaluator.sources.layout.size:,} floats in each source, batches of {evaluator.batch_size} images")
    if settings.calibrate and not evaluator.can_calibrate:
        raise HfmegaError(
            "there are no BatchNorm statistics to re-estimate, or no images to do it with: --no-calibrate."
        )
    return Job(
        settings,
        tuple(checkpoints),
        dataset,
        plan,
        splits["search"],
        splits.get("confirm"),
        splits.get("calibration"),
        splits["test"],
        evaluator,
        notes,
    )


def pull_all(settings: MergeSettings, output: Output, state: PartialState) -> list[Checkpoint]:
    """The sources on this disk, each once, each with a name of its own."""
    if len(settings.sources) < 2:
        raise HfmegaError("one source cannot be merged: name two or more.")
    checkpoints: dict[str, Checkpoint] = {}
    taken = {AVERAGE, SEARCH, CENTROID}
    for source in settings.sources:
        output.say(f"pulling {source}")
        with state.main_process_first():
            found = hub.pull(source, settings.token)
        if found.sha256 in (c.sha256 for c in checkpoints.values()):
            raise HfmegaError(f"{source} has the same weights as an earlier source: name each source once.")
        if found.name in taken | checkpoints.keys():
            found = replace(found, name=f"{found.name}-{found.sha256[:6]}")
        checkpoints[found.name] = found
    return list(checkpoints.values())


def choose_dataset(settings: MergeSettings, checkpoints: list[Checkpoint]) -> str:
    """The dataset that the user named, else the one that the sources' records agree on, else CIFAR-10."""
    recorded_sets = {c.record["dataset"] for c in checkpoints if c.record}
    if settings.dataset:
        return settings.dataset
    if len(recorded_sets) > 1:
        raise HfmegaError(
            f"the sources were trained on {' and '.join(sorted(recorded_sets))}: name one with --dataset."
        )
    return recorded_sets.pop() if recorded_sets else DEFAULT_DATASET


def search(searcher: Searcher, job: Job, output: Output) -> Progress:
    """Ask, evaluate, tell, record, until done. Scores on disk are told again instead of computed again."""
    evaluator, settings = job.evaluator, job.settings.search
    record = job.settings.output / run.WORK / "progress.json"
    progress = saved_progress(record, evaluator.state)
    for known in progress.scores:
        for recipe, score in zip(searcher.ask(), known, strict=True):
            evaluator.remember(recipe, job.search, score)
        searcher.tell(known)
    if progress.scores:
        output.say(f"resuming after generation {len(progress.scores)} of {settings.generations}")
    with output.progress("first generation", settings.generations * settings.population) as bar:
        bar.advance(len(progress.scores) * settings.population)
        while not searcher.done:
            before, started = evaluator.images_seen, time.monotonic()
            scores = evaluator.scores(searcher.ask(), job.search, bar.advance)
            searcher.tell(scores)
            images, seconds = evaluator.images_seen - before, time.monotonic() - started
            progress.scores.append(scores)
            progress.forward_passes += images
            progress.seconds += seconds
            if evaluator.state.is_main_process:
                run.write_atomically(record, PROGRESS.dump_json(progress))
            newest = searcher.history[-1]
            bar.line(
                f"generation {len(progress.scores)}/{settings.generations}: best {newest.best:.4f}, "
                f"mean {newest.mean:.4f}, {images / seconds:,.0f} images/s"
            )
    return progress


def saved_progress(record: Path, state: PartialState) -> Progress:
    """How far an unfinished run came, read by the main process and given to all."""
    known: list[Progress] = [Progress()]
    if state.is_main_process and record.exists():
        known = [PROGRESS.validate_json(record.read_bytes())]
    if state.num_processes > 1:
        broadcast_object_list(known)
    return known[0]


def report(job: Job, searcher: Searcher, chosen: Chosen, progress: Progress) -> Lineage | None:
    """Read the test images once, for the merged model and all that it is shown against; write folder, card, lineage."""
    evaluator, folder = job.evaluator, job.settings.output
    single = rivals(job.names, chosen.recipe.calibrate, evaluator.can_calibrate)
    predictions = evaluator.predictions([rival.recipe for rival in single], job.test)
    fitness = evaluator.scores([chosen.recipe], job.search)[0].accuracy
    if not evaluator.state.is_main_process:
        return None
    sha256 = write_model(folder, job, chosen.recipe)
    # Judged from the folder, by the same steps as `hfmega evaluate`.
    merged = answers(predict_checkpoint(hub.pull(str(folder)), job.test, evaluator.state.device), job.test.labels)
    judged = [answers(p, job.test.labels) for p in predictions]
    references = [reference(rival.name, rival.kind, a) for rival, a in zip(single, judged, strict=True)]
    for name, prediction in ensembles(single, predictions):
        references.append(reference(name, "ensemble", answers(prediction, job.test.labels)))
    result = judge(sha256, chosen, merged, single, judged)
    made = Lineage(
        format_version=lineage.FORMAT_VERSION,
        hfmega_version=__version__,
        architecture=job.checkpoints[0].config["architecture"],
        sources=tuple(source_entry(checkpoint, references) for checkpoint in job.checkpoints),
        nodes=(NodeEntry("merge", tuple(job.names), chosen.recipe, fitness, result.accuracy, tuple(searcher.history)),),
        recipe=chosen.recipe,
        settings={**recorded(job.settings), "calibrate": searcher.best.calibrate},
        data=data_entry(job),
        environment=environment(evaluator.state),
        references=tuple(references),
        candidates=chosen.candidates,
        result=result,
        notes=job.notes,
        leak=job.plan.leak,
        forward_passes=progress.forward_passes,
        seconds=round(progress.seconds, 1),
    )
    lineage.write_places(folder, job.checkpoints, job.settings.dataset)
    card.write(made, job.checkpoints[0].config, folder)
    lineage.write(made, folder / hub.LINEAGE)
    run.finish(folder)
    return made


def write_model(folder: Path, job: Job, recipe: Recipe) -> str:
    """Weights, statistics and config of the merged model; returns the sha256 of the weights."""
    evaluator = job.evaluator
    statistics = evaluator.statistics(recipe)
    if statistics:
        save_weights(statistics, folder / hub.STATISTICS)
    config = {key: value for key, value in job.checkpoints[0].config.items() if key != "hfmega"}
    config["pretrained_cfg"] = {**config["pretrained_cfg"], "tag": "merged"}
    (folder / hub.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return save_weights(rebuild(evaluator.sources, recipe, statistics), folder / hub.WEIGHTS)


def source_entry(checkpoint: Checkpoint, references: list[Reference]) -> SourceEntry:
    accuracy = {r.kind: r.accuracy for r in references if r.name.removesuffix(", calibrated") == checkpoint.name}
    return SourceEntry(
        name=checkpoint.name,
        repo_id=checkpoint.repo_id,
        path=None if checkpoint.repo_id else checkpoint.folder.name,
        revision=checkpoint.revision,
        sha256=checkpoint.sha256,
        seed=(checkpoint.record or {}).get("seed"),
        license=checkpoint.license,
        accuracy=accuracy["source"],
        calibrated_accuracy=accuracy.get("calibrated source"),
    )


def data_entry(job: Job) -> DataEntry:
    spelled = {
        "search": job.plan.fitness,
        "confirm": job.plan.fitness,
        "calibration": job.plan.calibration,
        "test": job.plan.test,
    }
    splits = {p: SplitEntry(spelled[p], len(s), s.fingerprint) for p, s in job.splits.items()}
    return DataEntry(job.dataset.id, job.dataset.revision, splits)


def environment(state: PartialState) -> dict[str, Any]:
    """Versions, device, processes and threads: what the last bits of a forward pass may depend on."""
    packages = ("torch", "timm", "numpy", "safetensors", "huggingface_hub", "datasets", "accelerate")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": state.device.type,
        "num_processes": state.num_processes,
        "threads": torch.get_num_threads(),
    }
