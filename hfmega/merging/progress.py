"""What of an unfinished run is on disk, and how it goes on."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal

import yaml
from accelerate.utils import broadcast_object_list
from pydantic import TypeAdapter, ValidationError

from hfmega.errors import HfmegaError
from hfmega.evaluation.evaluator import Evaluator, Score
from hfmega.folder import PHASE, SETTINGS, WORK, write_atomically
from hfmega.merging.pairing import Node
from hfmega.merging.prepare import Job
from hfmega.merging.run_off import Chosen
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.search import Generation, Searcher
from hfmega.settings import UPDATE_BN, configured


@dataclass(frozen=True)
class Merged:
    """One merge that is done. fitness: accuracy of its recipe on the search images."""

    name: str
    inputs: tuple[str, ...]
    chosen: Chosen
    fitness: float
    history: tuple[Generation, ...]


@dataclass
class Progress:
    """How far a run has come: the scores of each generation of each node, the nodes that are done, and their cost."""

    scores: dict[str, list[list[Score]]] = field(default_factory=dict)
    done: dict[str, Merged] = field(default_factory=dict)
    forward_passes: int = 0
    seconds: float = 0.0
    __pydantic_config__: ClassVar = lineage.NUMBERS


PROGRESS: Final = TypeAdapter(Progress)
Phase = Literal["statistics", "search", "controls", "last mile", "test"]


def begin(job: Job) -> None:
    """Write the settings into the work folder: whoever finds an unfinished merge can go on with it."""
    if job.evaluator.state.is_main_process and job.settings.method != UPDATE_BN:
        text = yaml.safe_dump(configured(job.settings), sort_keys=False, allow_unicode=True)
        write_atomically(job.settings.output / WORK / SETTINGS, text.encode())


def enter(phase: Phase, job: Job) -> None:
    """Note in the work folder what the run is doing now, for those who watch it."""
    if job.evaluator.state.is_main_process:
        settings, merges = job.settings, len(job.merged) - 1 if job.settings.tree == "pairs" else 1
        planned = {"generations": settings.search.generations, "merges": merges if settings.searches else 0}
        note = {"phase": phase, "since": time.time(), "fitness": settings.search.fitness, **planned}
        write_atomically(settings.output / WORK / PHASE, json.dumps(note).encode())


def resume(node: Node, searcher: Searcher, job: Job, progress: Progress, output: Output) -> None:
    """Bring a searcher to where the unfinished run stopped."""
    known = progress.scores.get(node.name, [])
    for scores in known:
        for recipe, score in zip(searcher.ask(), scores, strict=True):
            job.evaluator.remember(recipe, job.steering, score)
        searcher.tell(scores)
    if known and node.name not in progress.done:
        output.say(f"resuming {node.name} after generation {len(known)} of {searcher.generations}")


def save(progress: Progress, record: Path, evaluator: Evaluator) -> None:
    if evaluator.state.is_main_process:
        write_atomically(record, PROGRESS.dump_json(progress))


def saved_progress(record: Path, evaluator: Evaluator) -> Progress:
    """How far an unfinished run came, read by the main process and given to all.

    Raises HfmegaError for a damaged file.
    """
    known: list[Progress] = [Progress()]
    if evaluator.state.is_main_process and record.exists():
        try:
            known = [PROGRESS.validate_json(record.read_bytes())]
        except ValidationError as error:
            raise HfmegaError(f"{record} is damaged and cannot be resumed: start anew with --overwrite.") from error
    if evaluator.state.num_processes > 1:
        broadcast_object_list(known)
    return known[0]
