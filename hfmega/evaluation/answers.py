"""What two models' answers on the same images say: intervals, paired differences, a verdict in words."""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Verdict = Literal["better", "no difference shown", "worse"]
SIGNIFICANCE: Final = 0.05


@dataclass(frozen=True)
class Answers:
    """One model's answers on a split. correct: bool [images]; loss: float64 [images], cross-entropy in nats."""

    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def mean_loss(self) -> float:
        return float(self.loss.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy (Wilson 1927)."""
        return wilson(int(self.correct.sum()), len(self.correct))


@dataclass(frozen=True)
class Comparison:
    """One model against another on the same images: gain in accuracy, its 95 % interval, McNemar's exact p-value."""

    gain: float
    interval: tuple[float, float]
    p_value: float

    @property
    def verdict(self) -> Verdict:
        if self.p_value >= SIGNIFICANCE:
            return "no difference shown"
        return "better" if self.gain > 0 else "worse"


def answers(log_probabilities: Tensor, labels: Tensor) -> Answers:
    """log_probabilities: float32 [images, classes]; labels: int64 [images]. An answer that is not finite is wrong.

    Where labels are a teacher's probabilities, float32 [images, classes], the loss is the Kullback-Leibler divergence
    from them, and right is what the teacher finds most probable.
    """
    finite = log_probabilities.isfinite().all(dim=1)
    if labels.dim() == 2:
        wanted = labels.double()
        loss = (torch.xlogy(wanted, wanted) - wanted * log_probabilities.double()).sum(dim=1)
        labels = labels.argmax(dim=1)
    else:
        loss = -log_probabilities.gather(1, labels[:, None])[:, 0].double()
    correct = (log_probabilities.argmax(dim=1) == labels) & finite
    return Answers(correct.cpu().numpy(), loss.where(finite, float("inf")).cpu().numpy())


def tempered(log_probabilities: Tensor, labels: Tensor) -> Answers:
    """The answers at the temperature between 1/8 and 8 with the lowest mean loss (Guo et al. 2017, arXiv 1706.04599).

    Their loss says what a network knows apart from how sure it is of it. Arguments as in `answers`.
    """
    from scipy import optimize  # half a second of CPU

    def at(log_temperature: float) -> Answers:
        return answers((log_probabilities / math.exp(log_temperature)).log_softmax(dim=1), labels)

    if not log_probabilities.isfinite().all():
        return answers(log_probabilities, labels)
    ends = (-math.log(8), math.log(8))
    best = optimize.minimize_scalar(lambda t: at(t).mean_loss, bounds=ends, method="bounded", options={"xatol": 0.01})
    return at(float(best.x))


def pool(*parts: Answers) -> Answers:
    """The answers on several splits as on one."""
    return Answers(np.concatenate([part.correct for part in parts]), np.concatenate([part.loss for part in parts]))


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927)."""
    from scipy import stats  # half a second of CPU

    interval = stats.binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def compare(model: Answers, reference: Answers) -> Comparison:
    """McNemar's exact test on the images where the two differ; the interval is Student's on the paired differences."""
    from scipy import stats  # half a second of CPU

    difference = model.correct.astype(np.int64) - reference.correct
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    gain = float(difference.mean())
    if wins + losses == 0:
        return Comparison(0.0, (0.0, 0.0), 1.0)
    if np.ptp(difference) == 0:  # every single image differs: no spread to estimate an interval from
        return Comparison(gain, (gain, gain), float(stats.binomtest(wins, wins + losses).pvalue))
    interval = stats.ttest_1samp(difference, 0).confidence_interval()
    return Comparison(
        gain, (float(interval.low), float(interval.high)), float(stats.binomtest(wins, wins + losses).pvalue)
    )


def compare_losses(model: Answers, reference: Answers) -> tuple[float, tuple[float, float]] | None:
    """How much lower the model's mean loss is (nats), with Student's 95 % interval on the paired differences.

    None where a loss is not finite.
    """
    from scipy import stats  # half a second of CPU

    difference = reference.loss - model.loss
    if not np.isfinite(difference).all():
        return None
    gain = float(difference.mean())
    if len(difference) < 2 or np.ptp(difference) == 0:
        return gain, (gain, gain)
    interval = stats.ttest_1samp(difference, 0).confidence_interval()
    return gain, (float(interval.low), float(interval.high))


def clearly_lower_loss(challenger: Answers, standing: Answers) -> bool:
    """Whether the challenger's mean loss is lower by more than one standard error of the paired difference."""
    from scipy import stats  # half a second of CPU

    if not np.isfinite(challenger.mean_loss):
        return False
    if not np.isfinite(standing.mean_loss):
        return True
    difference = standing.loss - challenger.loss
    return bool(difference.mean() > stats.sem(difference))
