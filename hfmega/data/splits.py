"""Which images do what: fitness, confirm, calibration and test share none, unless the leak is asked for by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import numpy as np

from hfmega.data.dataset import Dataset, Rows, evaluation_split, rows_of, spell
from hfmega.errors import HfmegaError
from hfmega.rng import permutation
from hfmega.settings import SplitRequest

CALIBRATION_IMAGES: Final = 1000
NONE: Final = np.empty(0, np.int64)
ASK_TEST: Final = "name the images of the report with --test-split"
AUGMENTED: Final = "BatchNorm is re-estimated on mirrored and shifted images, as the sources saw in training"


@dataclass(frozen=True)
class SplitPlan:
    """The chosen rows, how to spell them, and what the user should know about the choice.

    augmented: whether calibration images are mirrored and shifted at random, as those of every source's training were.
    """

    fitness: str
    calibration: str
    test: str
    search_rows: Rows
    confirm_rows: Rows
    calibration_rows: Rows
    test_rows: Rows
    distill: str
    distill_rows: Rows
    augmented: bool
    notes: tuple[str, ...]
    leak: str | None

    @property
    def rows(self) -> dict[str, Rows]:
        """Purpose to rows, some of them perhaps empty."""
        return {
            "search": self.search_rows,
            "confirm": self.confirm_rows,
            "calibration": self.calibration_rows,
            "test": self.test_rows,
            **({"distill": self.distill_rows} if len(self.distill_rows) else {}),
        }


def same_dataset(name: str, recorded: str) -> bool:
    """Whether a source's record speaks of this dataset: a folder stands for the Hub dataset of the same last name."""
    a_folder_is_meant = "/" not in name or "/" not in recorded
    return name == recorded or (a_folder_is_meant and name.rsplit("/", 1)[-1] == recorded.rsplit("/", 1)[-1])


def plan_splits(
    dataset: Dataset,
    records: Sequence[Mapping[str, Any] | None],
    request: SplitRequest,
    *,
    distills: bool = False,
    chooses: bool = True,
    tests: bool = True,
) -> SplitPlan:
    """Choose what the user left open: from the sources' training records, else as for foreign checkpoints.

    With records, fitness images are those that no source was trained on, calibration images those that all were, and
    the test split is whole. Foreign checkpoints may have seen all of `train`: half of the test split is fitness.
    The same request draws the same images always, so that searches with other seeds are compared on the same ones.
    What is chosen here never overlaps what the user named, unless that is asked for.
    distills: unlabelled images are wanted too; chooses: whether any image steers or chooses something; tests: whether
    there is a report.
    Raises HfmegaError for an empty split, or overlapping ones without `allow_leak`.
    """
    known = [r for r in records if r is not None and same_dataset(dataset.id, r["dataset"])]
    if len(known) < len(records):
        known = []
    named = _named(dataset, request)
    slice_, notes = _fitness(dataset, known, request, named) if chooses else (NONE, [])
    fitness = _draw(slice_, request.fitness_images or len(slice_), 0, "fitness")
    pool = _calibration_pool(dataset, known, request, slice_)
    if not request.calibration and not request.allow_leak and len(np.intersect1d(pool, named["test"])):
        drawn = _draw(pool, len(pool) if distills else CALIBRATION_IMAGES, 0, "calibration")
        pool = np.setdiff1d(pool, named["test"]) if len(np.intersect1d(drawn, named["test"])) else pool
    augmented = bool(known) and all(record.get("augment") for record in known)
    notes += [AUGMENTED] if augmented else []
    calibration = pool if request.calibration else _draw(pool, CALIBRATION_IMAGES, 0, "calibration")
    used = np.union1d(slice_, calibration)
    test = (
        _test(dataset, request, used if request.allow_leak else np.union1d(used, named["distill"])) if tests else NONE
    )
    unlabelled = _unlabelled(dataset, request, pool) if distills else NONE
    order = permutation(len(fitness), 0, "confirm")
    confirm = round(len(fitness) * request.confirm_share)
    if chooses and not 0 <= confirm < len(fitness):
        raise HfmegaError(f"a confirm share of {request.confirm_share} leaves no fitness images for the search.")
    return SplitPlan(
        fitness=spell(dataset, slice_),
        calibration=spell(dataset, pool),
        test=spell(dataset, test),
        search_rows=np.sort(fitness[order[confirm:]]),
        confirm_rows=np.sort(fitness[order[:confirm]]),
        calibration_rows=calibration,
        test_rows=test,
        distill=spell(dataset, unlabelled),
        distill_rows=unlabelled,
        augmented=augmented,
        notes=tuple(notes),
        leak=_leak(request, fitness, calibration, test, unlabelled),
    )


def _named(dataset: Dataset, request: SplitRequest) -> dict[str, Rows]:
    """Purpose to the rows that the user named for it."""
    asked = {"fitness": request.fitness, "calibration": request.calibration, "test": request.test}
    return {p: rows_of(dataset, s) if s else NONE for p, s in {**asked, "distill": request.distill}.items()}


def _fitness(
    dataset: Dataset, known: Sequence[Mapping[str, Any]], request: SplitRequest, named: Mapping[str, Rows]
) -> tuple[Rows, list[str]]:
    if request.fitness:
        return np.unique(named["fitness"]), []
    taken = NONE if request.allow_leak else reduce(np.union1d, named.values())
    shared = np.setdiff1d(_shared(dataset, known, "held_out_split"), taken)
    if len(shared):
        return shared, []
    split = evaluation_split(dataset, _ask(request))
    why = "the sources share no held-out images" if known else "the sources have no training record for this dataset"
    for slice_ in (f"{split}[:50%]", split):
        rows = rows_of(dataset, slice_)
        free = np.setdiff1d(rows, taken)
        if slice_ == split and not request.test:
            free = free[: len(free) // 2]
        if len(free):
            rest = "" if request.test else f", the rest of {split} for the report"
            what = slice_ if len(free) == len(rows) else f"what is left of {slice_}"
            return free, [f"{why}: {what} is used for fitness{rest}."]
    raise HfmegaError(f"the named images leave none of {split} to steer the search: name some with --fitness-split.")


def _ask(request: SplitRequest) -> str:
    """What to name where the dataset has no split of its own for reports."""
    fitness, test = ("the images that steer the search with --fitness-split", "those of the report with --test-split")
    if request.test:
        return f"name {fitness} (those of the report are named)"
    return f"name {fitness} and {test}, e.g. train[:50%] and train[50%:]"


def _calibration_pool(
    dataset: Dataset, known: Sequence[Mapping[str, Any]], request: SplitRequest, fitness: Rows
) -> Rows:
    if request.calibration:
        return np.unique(rows_of(dataset, request.calibration))
    trained = _shared(dataset, known, "train_split")
    if len(trained) == 0 and "train" in dataset.lengths:
        trained = rows_of(dataset, "train")
    return np.setdiff1d(trained, fitness)


def _unlabelled(dataset: Dataset, request: SplitRequest, pool: Rows) -> Rows:
    rows = np.unique(rows_of(dataset, request.distill)) if request.distill else pool
    if len(rows) == 0:
        raise HfmegaError("--distill needs images that neither steer the search nor test it: name --distill-split.")
    return rows


def _test(dataset: Dataset, request: SplitRequest, used: Rows) -> Rows:
    if request.test:
        return np.unique(rows_of(dataset, request.test))
    rest = np.setdiff1d(rows_of(dataset, evaluation_split(dataset, ASK_TEST)), used)
    if len(rest) == 0:
        raise HfmegaError("fitness and calibration take every test image: name fewer of them, or another --test-split.")
    return rest


def _shared(dataset: Dataset, known: Sequence[Mapping[str, Any]], key: str) -> Rows:
    """The rows that this entry of every record names."""
    parts = [rows_of(dataset, record[key]) for record in known if record.get(key)]
    return reduce(np.intersect1d, parts) if parts and len(parts) == len(known) else NONE


def _draw(rows: Rows, count: int, *key: object) -> Rows:
    return np.sort(rows[permutation(len(rows), *key)[:count]])


def _leak(request: SplitRequest, fitness: Rows, calibration: Rows, test: Rows, unlabelled: Rows) -> str | None:
    """The sentence that says which images are in two splits; an error unless the user asked for it by name."""
    pairs = [("fitness", fitness, "test", test), ("fitness", fitness, "calibration", calibration)]
    pairs += [("calibration", calibration, "test", test)]
    pairs += [("distill", unlabelled, "test", test), ("fitness", fitness, "distill", unlabelled)]
    for first, some, second, others in pairs:
        shared = len(np.intersect1d(some, others))
        if shared and not request.allow_leak:
            raise HfmegaError(
                f"{shared} images are in both the {first} and the {second} split: name others, or --allow-leak."
            )
        if shared:
            steered = (
                "the test set steered the search" if {first, second} == {"fitness", "test"} else "the splits overlap"
            )
            return f"LEAK, as asked: {steered} ({shared} images are in both the {first} and the {second} split)."
    return None
