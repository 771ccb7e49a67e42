"""Static merge methods, each as one function on the tensors of one name; formulas as mergekit publishes them.

Tensors are float32 of one shape. `deltas` are task vectors: model minus base (Ilharco et al. 2023, arXiv 2212.04089).
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from hfmega.rng import philox, raw_words

FLOOR: Final = 1e-10  # of Fisher information: where all are nothing, the plain mean
RIDGE: Final = 1e-6  # of a Gram matrix, so that inputs that never vary leave it solvable
PARALLEL: Final = 0.9995  # beyond this cosine two tensors are interpolated on the straight line


def slerp(first: Tensor, second: Tensor, share: float = 0.5) -> Tensor:
    """Along the great circle from first (share 0) to second (share 1) (Shoemake 1985, section 3.3)."""
    norms = float(first.double().norm() * second.double().norm())
    cosine = float((first.double() * second.double()).sum()) / norms if norms else 1.0
    if abs(cosine) > PARALLEL:
        return first * (1.0 - share) + second * share
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    weights = (torch.sin((1.0 - share) * angle) / torch.sin(angle), torch.sin(share * angle) / torch.sin(angle))
    return first * float(weights[0]) + second * float(weights[1])


def trim(delta: Tensor, density: float) -> Tensor:
    """The int(density * n) entries of largest magnitude, the rest zero; of equal ones the first (TIES, section 4.2)."""
    kept = torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)
    order = delta.abs().flatten().argsort(descending=True, stable=True)
    kept[order[: max(1, int(density * delta.numel()))]] = True
    return delta * kept.view_as(delta)


def elected(deltas: Tensor) -> Tensor:
    """bool [models, ...]: where a model agrees with the sign of the sum over all models (TIES, section 4.2)."""
    majority = (deltas.sum(0) >= 0).float() * 2 - 1
    return deltas.sign() == majority


def ties(base: Tensor, deltas: Sequence[Tensor], density: float, scale: float) -> Tensor:
    """Trim, elect signs, and the mean of those that agree (TIES; Yadav et al. 2023, arXiv 2306.01708)."""
    trimmed = torch.stack([trim(delta, density) for delta in deltas])
    agree = elected(trimmed)
    return base + scale * (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)


def drop(delta: Tensor, density: float, key: Sequence[object]) -> Tensor:
    """Keep each entry with probability `density`, divided by it (DARE; Yu et al. 2024, arXiv 2311.03099).

    key: of the generator that draws, so that a replay draws the same.
    """
    lots = raw_words(philox(*key), delta.numel(), "<u4")
    kept = torch.from_numpy(lots < round(density * 2**32)).to(delta.device)
    return delta * kept.view_as(delta) / density


def dare(
    base: Tensor, deltas: Sequence[Tensor], density: float, scale: float, key: Sequence[object], elect: bool
) -> Tensor:
    """base + scale * sum of the dropped task vectors; `elect` sums only those that agree with the elected sign."""
    dropped = torch.stack([drop(delta, density, [*key, model]) for model, delta in enumerate(deltas)])
    return base + scale * (dropped * elected(dropped) if elect else dropped).sum(0)


def fisher(models: Sequence[Tensor], information: Sequence[Tensor]) -> Tensor:
    """The mean weighted by the Fisher information of each weight (Matena and Raffel 2022, arXiv 2111.09832, eq. 4)."""
    weights = [part + FLOOR for part in information]
    total = sum((w * model for w, model in zip(weights, models, strict=True)), torch.zeros_like(models[0]))
    return total / torch.stack(weights).sum(0)


def regmean(models: Sequence[Tensor], grams: Sequence[Tensor], shrink: float = 0.9) -> Tensor:
    """The layer whose outputs are nearest to those of all models (RegMean; Jin et al. 2023, arXiv 2212.09849, eq. 2).

    models: float32 [out, ...]; grams: float32 [in, in] of their inputs, whose off-diagonals are shrunk (section 3.3).
    Solved without pivots by rank-one steps, whose bits do not depend on a library: the matrix is positive definite.
    """
    first = models[0].flatten(1)
    size = first.shape[1]
    left, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, len(first), dtype=torch.float64)
    for model, gram in zip(models, grams, strict=True):
        shrunk = gram.double().cpu() * shrink
        shrunk.diagonal().add_(gram.double().cpu().diagonal() * (1.0 - shrink) + RIDGE)
        weights = model.flatten(1).double().cpu()
        left = left + shrunk
        for k in range(size):
            right = right + torch.outer(shrunk[:, k], weights[:, k])
    for k in range(size):
        factor = left[:, k] / left[k, k]
        factor[k] = 0.0
        right = right - torch.outer(factor, right[k])
        left = left - torch.outer(factor, left[k])
    solved: Tensor = (right / left.diagonal()[:, None]).T.float()
    return solved.reshape(models[0].shape).to(models[0].device)
