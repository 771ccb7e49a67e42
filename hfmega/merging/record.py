"""What a finished job becomes: folder, weights, lineage, card."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hfmega import __version__, phases
from hfmega.evaluation.answers import Answers, answers, compare
from hfmega.evaluation.checkpoint import predict_checkpoint
from hfmega.folder import CONFIG, LINEAGE, RECIPE, STATISTICS, WEIGHTS, finish, write_atomically
from hfmega.hub import pull
from hfmega.merging import controls
from hfmega.merging.disagreements import disagreeing
from hfmega.merging.judge import best_of, by_class, ensembles, judge, reference, rivals, soup
from hfmega.merging.last_mile import Mile
from hfmega.merging.prepare import Job
from hfmega.merging.progress import Merged, Progress
from hfmega.merging.replay import write_places
from hfmega.models.library import merged_config, packages, with_record
from hfmega.models.library import read as read_spec
from hfmega.output import FLAVOR
from hfmega.report import card, lineage, page, thumbnails
from hfmega.report.lineage import Control, DataEntry, Lineage, NodeEntry, Reference, SourceEntry, SplitEntry
from hfmega.search.recipe import Recipe, centroid, source_alone
from hfmega.settings import UPDATE_BN, recorded
from hfmega.weights.checkpoint import Checkpoint, save_weights
from hfmega.weights.sources import rebuild


def report(
    job: Job, tree: list[Merged], progress: Progress, tried: list[controls.Tried], mile: Mile | None
) -> Lineage | None:
    """Read the test images once, for the merged model and all that it is shown against; write folder, card, lineage."""
    phases.begin("test")
    evaluator, folder, chosen = job.evaluator, job.settings.output, tree[-1].chosen
    leaves = {c.name: source_alone(k, len(job.checkpoints)) for k, c in enumerate(job.checkpoints)}
    earlier = {member.name: member.recipe for member in job.members if member.inputs}
    average = centroid([member.recipe for member in job.merged])
    single = rivals(leaves | earlier, average, chosen.recipe.calibrate, evaluator.network.can_calibrate)
    named = {member.name: member.recipe for member in job.merged}
    single += soup(named, bool(job.settings.calibrate), evaluator, job.search)
    updates = job.settings.method == UPDATE_BN  # it is shown against its source as it is, and not against itself
    single = [rival for rival in single if rival.kind == "source" or not updates]
    together = [] if updates else ensembles(evaluator, len(leaves), job.test)
    judged = evaluator.answers([rival.recipe for rival in single], job.test)
    nodes = evaluator.answers([*earlier.values(), *(merged.chosen.recipe for merged in tree[:-1])], job.test)
    fitness = [score.accuracy for score in evaluator.scores(list(earlier.values()), job.search)]
    if not evaluator.state.is_main_process:
        return None
    before = [
        NodeEntry(m.name, m.inputs, m.recipe, share, a.accuracy, ())
        for m, share, a in zip((m for m in job.members if m.inputs), fitness, nodes[: len(earlier)], strict=True)
    ]
    sha256 = write_model(
        folder, job, chosen.recipe, {n.name: n.recipe for n in before} | {n.name: n.chosen.recipe for n in tree}
    )
    trained = mile.state if mile else None
    start_sha256, sha256 = sha256, save_weights(trained, folder / WEIGHTS) if trained else sha256
    # Judged from the folder, by the same steps as `hfmega evaluate`.
    said = predict_checkpoint(pull.pull(str(folder)), job.test, evaluator.state.device)
    merged = answers(said, job.test.labels)
    references = [reference(rival.name, rival.kind, a, rival.members) for rival, a in zip(single, judged, strict=True)]
    references += [reference(name, "ensemble", a) for name, a in together]
    result = judge(sha256, chosen, merged, single, judged, trained is not None)
    rival, best = best_of(single, judged)
    per_class = by_class(job.test.names, job.test.labels, merged, best)
    disagreements = (int((merged.correct & ~best.correct).sum()), int((best.correct & ~merged.correct).sum()))
    if not job.settings.no_images:
        thumbnails.write(disagreeing(job, said, merged, rival.recipe, best), folder)
    last = mile.record.accuracy_of_start if mile else merged.accuracy  # a node is its recipe, not what it was taught
    accuracies = [*(a.accuracy for a in nodes[len(earlier) :]), last]
    made = Lineage(
        format_version=lineage.FORMAT_VERSION,
        hfmega_version=__version__,
        architecture=job.spec.architecture,
        sources=tuple(source_entry(checkpoint, references) for checkpoint in job.checkpoints),
        nodes=(*before, *(node_entry(node, a) for node, a in zip(tree, accuracies, strict=True))),
        recipe=chosen.recipe,
        settings=recorded(job.settings),
        data=data_entry(job),
        environment=environment(job),
        references=tuple(references),
        candidates=chosen.candidates,
        result=replace(result, per_class=per_class, disagreements=disagreements),
        controls=tuple(control_entry(t, merged) for t in [*tried, *(mile.controls if mile else ())]),
        last_mile=replace(mile.record, start_sha256=start_sha256) if mile else None,
        notes=(*job.notes, *failures(tree)),
        leak=job.plan.leak,
        forward_passes=progress.forward_passes,
        seconds=round(progress.seconds, 1),
        parameters=sum(slot.stop - slot.start for slot in evaluator.network.sources.layout.slots if slot.parameter),
        card=lineage.CARD_VERSION,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    made = replace(made, result=replace(made.result, is_source=made.held))
    phases.begin("report")
    write_places(folder, job.checkpoints, job.settings.dataset)
    card.write(made, read_spec(folder / CONFIG, str(folder)), folder)
    page.write(made, folder, images=not job.settings.no_images)
    lineage.write(made, folder / LINEAGE)
    finish(folder)
    return made


def failures(tree: Sequence[Merged]) -> list[str]:
    """What to say of candidates that scored nothing, if there were any."""
    count = sum(generation.failed for merged in tree for generation in merged.history)
    note = f"Candidates of the search that had NaN or Inf in weights or answers, and scored zero: {count:,}."
    return [note] if count else []


def control_entry(tried: controls.Tried, merged: Answers) -> Control:
    """A control beside the merge: what it gained, and what the merge has over it."""
    rest = compare(merged, tried.answers)
    return Control(
        name=tried.name,
        source=tried.source,
        accuracy=tried.answers.accuracy,
        interval=tried.answers.interval,
        start=tried.start,
        gain=tried.answers.accuracy - tried.start,
        remainder=rest.gain,
        remainder_interval=rest.interval,
        p_value=rest.p_value,
        forward_passes=tried.forward_passes,
    )


def node_entry(merged: Merged, accuracy: float) -> NodeEntry:
    recipe, chosen = merged.chosen.recipe, merged.chosen.name
    return NodeEntry(merged.name, merged.inputs, recipe, merged.fitness, accuracy, merged.history, chosen)


def write_model(folder: Path, job: Job, recipe: Recipe, nodes: Mapping[str, Recipe]) -> str:
    """Weights, statistics, permutations, offsets and config of the merged model; returns the sha256 of the weights."""
    network = job.evaluator.network
    statistics = network.statistics(recipe)
    if statistics:
        save_weights(statistics, folder / STATISTICS)
    evidence = {f"{lineage.EVIDENCE}/{key}": tensor for key, tensor in network.sources.evidence.items()}
    beside = {**job.alignment.tensors, **(evidence if recipe.static else {}), **lineage.offset_tensors(recipe, nodes)}
    if beside:
        save_weights(beside, folder / RECIPE)
    blended = sum(coefficient != 0 for coefficient in recipe.coefficients) > 1
    config = merged_config(job.spec, "merged" if blended else None)
    record = job.spec.record
    if record and job.settings.method == UPDATE_BN and job.settings.splits.calibration is None:
        config = with_record(config, {**record, "update_bn": True})  # no image was seen that was held out
    for name, content in {CONFIG: config, **job.spec.beside}.items():
        write_atomically(folder / name, f"{json.dumps(content, indent=2)}\n".encode())
    return save_weights(rebuild(network.sources, recipe, statistics), folder / WEIGHTS)


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
        "distill": job.plan.distill,
        "test": job.plan.test,
    }
    splits = {p: SplitEntry(spelled[p], len(s), s.fingerprint) for p, s in job.splits.items()}
    return DataEntry(job.dataset.id, job.dataset.revision, splits)


def environment(job: Job) -> dict[str, Any]:
    """Versions, device, processes and threads: what the last bits of a forward pass may depend on.

    ranks: what the estimates of a race were computed in; flavor: of the job of the Hub that made the merge. Neither is
    there for a merge without one.
    """
    state, library, raced = job.evaluator.state, packages(job.spec), job.settings.searches and not job.settings.exact
    recorded_packages = ("torch", *library, "numpy", "safetensors", "huggingface_hub", "datasets", "accelerate")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in recorded_packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": state.device.type,
        "num_processes": state.num_processes,
        "threads": torch.get_num_threads(),
        **({"ranks": job.evaluator.network.rough} if raced else {}),
        **({"flavor": os.environ[FLAVOR]} if FLAVOR in os.environ else {}),
    }
