"""The main job: several checkpoints in, one honest and replayable checkpoint out."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

from hfmega import phases
from hfmega.errors import step
from hfmega.folder import LINEAGE, check_output, open_run, other_settings
from hfmega.merging import controls, direct
from hfmega.merging.estimate import ahead
from hfmega.merging.last_mile import last_mile
from hfmega.merging.prepare import Job, prepare
from hfmega.merging.progress import begin, enter
from hfmega.merging.record import failures, report
from hfmega.merging.trackers import check, tracked
from hfmega.merging.tree import decided, grow
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.report.lineage import Lineage
from hfmega.settings import EARLIER, MergeSettings, recorded

WRITING: Final = 4.0  # seconds for weights, figures and card


def merge(settings: MergeSettings, output: Output) -> Lineage | None:
    """Pull, check, search, choose, write, report. Returns the lineage in the main process, None in the others.

    Raises HfmegaError for anything that stands in the way; an interrupted search resumes when called again.
    """
    check_output(settings.output, LINEAGE, settings.overwrite)
    check(settings.report_to)
    with step(f"merging {' and '.join(settings.sources)}"):
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
            with phases.inside(str(one.output)):
                job = replace(job, settings=one) if job else prepare(one, output)
                for split in filter(None, (job.search, job.unlabelled)):
                    job.evaluator.forget(split)  # or it would cost nothing to score what an earlier merge had scored
                made = carry_out(job, output)
        if made is not None:  # only the main process has it
            found.append(made)
    return found


def finished_merge(asked: MergeSettings) -> Lineage | None:
    """A merge that was done before. Raises HfmegaError when it was one of other settings."""
    if not (asked.output / LINEAGE).is_file():
        return None
    made = lineage.read(asked.output / LINEAGE)
    wanted = {**recorded(asked), "calibrate": made.settings.get("calibrate")}
    earlier = {"patience": EARLIER["patience"] if asked.searches else wanted["patience"], "labels_by_number": False}
    if earlier | made.settings != wanted or len(made.sources) != len(asked.pulled):
        raise other_settings(asked.output)
    return made


def carry_out(job: Job, output: Output) -> Lineage | None:
    """A prepared merge: grow the tree, then read the test images and write the folder."""
    settings, main = job.settings, job.evaluator.state.is_main_process
    statistics = job.evaluator.network.can_calibrate
    phases.plan(ahead(settings, len(job.checkpoints), job.plan, statistics), {"report": WRITING})
    run = open_run(settings.output, job.fingerprint, settings.overwrite) if main else nullcontext()
    with run, tracked(settings, main, output) as tracker:
        job = replace(job, tracker=tracker)
        begin(job)
        enter("statistics", job)
        job = decided(job, output)
        enter("search", job)
        tree, progress = (grow if settings.searches else direct.carry)(job, output)
        for note in failures(tree):
            output.say(note)
        output.say(
            f"chosen: {tree[-1].chosen.name}; now the test images ({job.plan.test}, {len(job.test):,}) are read, once"
        )
        if settings.control:
            enter("controls", job)
        tried = controls.controls(job, len(tree), progress.forward_passes, output) if settings.control else []
        if settings.last.wanted:
            enter("last mile", job)
        mile = last_mile(job, tree[-1].chosen, output)
        enter("test", job)
        made = report(job, tree, progress, tried, mile)
        tracker.result(made)
        return made
