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


@dataclass(frozen=True)
class SplitPlan:
    """The chosen rows, how to spell them, and what the user should know about the choice."""

    fitness: str
    calibration: str
    test: str
    search_rows: Rows
    confirm_rows: Rows
    calibration_rows: Rows
    test_rows: Rows
    distill: str
    distill_rows: Rows
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
) -> SplitPlan:
    """Choose what the user left open: from the sources' training records, else as for foreign checkpoints.

    With records, fitness images are those that no source was trained on, calibration images those that all were, and
    the test split is whole. Foreign checkpoints may have seen all of `train`: half of the test split is fitness.
    The same request draws the same images always, so that searches with other seeds are compared on the same ones.
    distills: unlabelled images are wanted too; chooses: whether any image steers or chooses something.
    Raises HfmegaError for an empty split, or overlapping ones without `allow_leak`.
    """
    known = [r for r in records if r is not None and same_dataset(dataset.id, r["dataset"])]
    if len(known) < len(records):
        known = []
    slice_, notes = _fitness(dataset, known, request) if chooses else (np.empty(0, np.int64), [])
    fitness = _draw(slice_, request.fitness_images or len(slice_), 0, "fitness")
    pool = _calibration_pool(dataset, known, request, slice_)
    calibration = pool if request.calibration else _draw(pool, CALIBRATION_IMAGES, 0, "calibration")
    test = _test(dataset, request, np.union1d(slice_, calibration))
    unlabelled = _unlabelled(dataset, request, pool) if distills else np.empty(0, np.int64)
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
        notes=tuple(notes),
        leak=_leak(request, fitness, calibration, test, unlabelled),
    )


def _fitness(dataset: Dataset, known: Sequence[Mapping[str, Any]], request: SplitRequest) -> tuple[Rows, list[str]]:
    if request.fitness:
        return np.unique(rows_of(dataset, request.fitness)), []
    shared = _shared(dataset, known, "held_out_split")
    if len(shared):
        return shared, []
    split = evaluation_split(dataset)
    why = "the sources share no held-out images" if known else "the sources have no training record for this dataset"
    note = f"{why}: {split}[:50%] is used for fitness, the rest of {split} for the report."
    return rows_of(dataset, f"{split}[:50%]"), [note]


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
    rest = np.setdiff1d(rows_of(dataset, evaluation_split(dataset)), used)
    if len(rest) == 0:
        raise HfmegaError("fitness and calibration take every test image: name fewer of them, or another --test-split.")
    return rest


def _shared(dataset: Dataset, known: Sequence[Mapping[str, Any]], key: str) -> Rows:
    """The rows that this entry of every record names."""
    parts = [rows_of(dataset, record[key]) for record in known if record.get(key)]
    return reduce(np.intersect1d, parts) if parts and len(parts) == len(known) else np.empty(0, np.int64)


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
