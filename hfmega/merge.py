"""The main job: several checkpoints in, one honest and replayable checkpoint out."""

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hfmega import __version__, card, control, hub, lineage, run, static
from hfmega.choose import ensembles, judge, reference, rivals
from hfmega.compare import Answers, answers, compare
from hfmega.evaluate import predict_checkpoint
from hfmega.hub import Checkpoint
from hfmega.job import Job, prepare
from hfmega.lineage import Control, DataEntry, Lineage, NodeEntry, Reference, SourceEntry, SplitEntry
from hfmega.output import Output
from hfmega.recipe import Recipe, centroid, source_alone
from hfmega.settings import MergeSettings, recorded
from hfmega.tree import Merged, Progress, decided, grow
from hfmega.weights import rebuild, save_weights


def merge(settings: MergeSettings, output: Output) -> Lineage | None:
    """Pull, check, search, choose, write, report. Returns the lineage in the main process, None in the others.

    Raises HfmegaError for anything that stands in the way; an interrupted search resumes when called again.
    """
    run.check_output(settings.output, hub.LINEAGE, settings.overwrite)
    return carry_out(prepare(settings, output), output)


def merge_all(asked: Sequence[MergeSettings], output: Output) -> list[Lineage]:
    """Several merges of the same sources on the same images, which are read once; those on disk are kept.

    Raises HfmegaError for a folder with a merge of other settings.
    """
    job, found = None, []
    for one in asked:
        made = finished_merge(one)
        if made is None:
            output.say(f"merging into {one.output}")
            job = replace(job, settings=one) if job else prepare(one, output)
            job.evaluator.forget(job.search)  # or it would cost nothing to score what an earlier merge had scored
            made = carry_out(job, output)
        if made is not None:  # only the main process has it
            found.append(made)
    return found


def finished_merge(asked: MergeSettings) -> Lineage | None:
    """A merge that was done before. Raises HfmegaError when it was one of other settings."""
    if not (asked.output / hub.LINEAGE).is_file():
        return None
    made = lineage.read(asked.output / hub.LINEAGE)
    wanted = {**recorded(asked), "calibrate": made.settings.get("calibrate")}
    if made.settings != wanted or len(made.sources) != len(asked.pulled):
        raise run.other_settings(asked.output)
    return made


def carry_out(job: Job, output: Output) -> Lineage | None:
    """A prepared merge: grow the tree, then read the test images and write the folder."""
    settings, main = job.settings, job.evaluator.state.is_main_process
    with run.open_run(settings.output, job.fingerprint, settings.overwrite) if main else nullcontext():
        job = decided(job, output)
        tree, progress = (grow if settings.searches else static.carry)(job, output)
        for note in failures(tree):
            output.say(note)
        output.say(
            f"chosen: {tree[-1].chosen.name}; now the test images ({job.plan.test}, {len(job.test):,}) are read, once"
        )
        tried = control.controls(job, len(tree), progress.forward_passes, output) if settings.control else []
        return report(job, tree, progress, tried)


def report(job: Job, tree: list[Merged], progress: Progress, tried: list[control.Tried]) -> Lineage | None:
    """Read the test images once, for the merged model and all that it is shown against; write folder, card, lineage."""
    evaluator, folder, chosen = job.evaluator, job.settings.output, tree[-1].chosen
    leaves = {c.name: source_alone(k, len(job.checkpoints)) for k, c in enumerate(job.checkpoints)}
    earlier = {member.name: member.recipe for member in job.members if member.inputs}
    average = centroid([member.recipe for member in job.merged])
    single = rivals(leaves | earlier, average, chosen.recipe.calibrate, evaluator.can_calibrate)
    together = ensembles(evaluator, len(leaves), job.test)
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
    # Judged from the folder, by the same steps as `hfmega evaluate`.
    merged = answers(predict_checkpoint(hub.pull(str(folder)), job.test, evaluator.state.device), job.test.labels)
    references = [reference(rival.name, rival.kind, a) for rival, a in zip(single, judged, strict=True)]
    references += [reference(name, "ensemble", a) for name, a in together]
    result = judge(sha256, chosen, merged, single, judged)
    accuracies = [*(a.accuracy for a in nodes[len(earlier) :]), merged.accuracy]
    made = Lineage(
        format_version=lineage.FORMAT_VERSION,
        hfmega_version=__version__,
        architecture=job.checkpoints[0].config["architecture"],
        sources=tuple(source_entry(checkpoint, references) for checkpoint in job.checkpoints),
        nodes=(*before, *(node_entry(node, a) for node, a in zip(tree, accuracies, strict=True))),
        recipe=chosen.recipe,
        settings=recorded(job.settings),
        data=data_entry(job),
        environment=environment(evaluator.state),
        references=tuple(references),
        candidates=chosen.candidates,
        result=result,
        controls=tuple(control_entry(t, merged) for t in tried),
        notes=(*job.notes, *failures(tree)),
        leak=job.plan.leak,
        forward_passes=progress.forward_passes,
        seconds=round(progress.seconds, 1),
    )
    lineage.write_places(folder, job.checkpoints, job.settings.dataset)
    card.write(made, job.checkpoints[0].config, folder)
    lineage.write(made, folder / hub.LINEAGE)
    run.finish(folder)
    return made


def failures(tree: Sequence[Merged]) -> list[str]:
    """What to say of candidates that scored nothing, if there were any."""
    count = sum(generation.failed for merged in tree for generation in merged.history)
    note = f"Candidates of the search that had NaN or Inf in weights or answers, and scored zero: {count:,}."
    return [note] if count else []


def control_entry(tried: control.Tried, merged: Answers) -> Control:
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
    evaluator = job.evaluator
    statistics = evaluator.statistics(recipe)
    if statistics:
        save_weights(statistics, folder / hub.STATISTICS)
    evidence = {f"{lineage.EVIDENCE}/{key}": tensor for key, tensor in evaluator.sources.evidence.items()}
    beside = {**job.alignment.tensors, **(evidence if recipe.static else {}), **lineage.offset_tensors(recipe, nodes)}
    if beside:
        save_weights(beside, folder / hub.RECIPE)
    config = {key: value for key, value in job.checkpoints[0].config.items() if key != "hfmega"}
    config["pretrained_cfg"] = {**config["pretrained_cfg"], "tag": "merged"}
    run.write_atomically(folder / hub.CONFIG, f"{json.dumps(config, indent=2)}\n".encode())
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
