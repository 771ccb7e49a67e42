"""Which test images report.html shows: some that only the merge has right, and some that only its best source has."""

from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfmega.evaluation.answers import Answers
from hfmega.merging.prepare import Job
from hfmega.report.thumbnails import Disagreement, thumbnail
from hfmega.search.recipe import Recipe

SHOWN: Final = 24


def disagreeing(job: Job, said: Tensor, merged: Answers, rival: Recipe, best: Answers) -> list[Disagreement]:
    """Up to 24 test images that only one of the two has right, of both kinds in their proportion.

    said: the merge's log-probabilities, float32 [images, classes]; rival: the recipe of the best source.
    """
    rows = sample(np.flatnonzero(merged.correct & ~best.correct), np.flatnonzero(best.correct & ~merged.correct))
    if not len(rows):
        return []
    index = torch.from_numpy(rows)
    few = replace(job.test, images=job.test.images[index], labels=job.test.labels[index],
                  fingerprint=f"{job.test.fingerprint}, of which {rows.tolist()}")  # fmt: skip
    answered = job.evaluator.network.predict(rival, few).argmax(dim=1)
    names, mode = job.spec.labels or job.dataset.classes, job.spec.preprocessing.mode

    def name(output: Tensor) -> str:
        return str(names[int(output)] if int(output) < len(names) else int(output))

    found = zip(few.images, few.labels, said[index].argmax(dim=1), answered, strict=True)
    return [
        Disagreement(name(label), name(mine), name(its), thumbnail(pixels, mode)) for pixels, label, mine, its in found
    ]


def sample(won: NDArray[np.int64], lost: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most 24 rows of both in their proportion, at least one of each, evenly spread over the test images."""
    total = len(won) + len(lost)
    if total <= SHOWN:
        return np.concatenate([won, lost])
    share = min(max(round(SHOWN * len(won) / total), bool(len(won))), SHOWN - bool(len(lost)))
    return np.concatenate([spread(won, share), spread(lost, SHOWN - share)])


def spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)]
