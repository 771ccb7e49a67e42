"""Paired comparisons against numbers worked out by hand or with scipy's own tests."""

import numpy as np
import pytest
import torch
from scipy import stats

from hfmega.evaluation.answers import (
    Answers,
    Comparison,
    answers,
    clearly_lower_loss,
    compare,
    pool,
    tempered,
    wilson,
)


def judged(correct: list[int] | np.ndarray, loss: list[float] | np.ndarray | None = None) -> Answers:
    right = np.asarray(correct, bool)
    return Answers(right, np.zeros(len(right)) if loss is None else np.asarray(loss, float))


def pair(both: int, wins: int, losses: int, neither: int) -> tuple[Answers, Answers]:
    """A model and a reference with this 2x2 table."""
    model = [1] * both + [1] * wins + [0] * losses + [0] * neither
    reference = [1] * both + [0] * wins + [1] * losses + [0] * neither
    return judged(model), judged(reference)


def test_mcnemar_s_exact_p_value_of_a_worked_example() -> None:
    found = compare(*pair(both=70, wins=12, losses=3, neither=15))
    assert found.gain == pytest.approx(0.09)
    assert found.p_value == pytest.approx(2 * sum([1, 15, 105, 455]) / 2**15)  # binomials of 15 over 0 to 3
    assert found.p_value == pytest.approx(0.03515625)
    assert found.verdict == "better"


def test_the_interval_of_the_gain_is_student_s_on_paired_differences() -> None:
    model, reference = pair(both=70, wins=12, losses=3, neither=15)
    difference = model.correct.astype(float) - reference.correct
    half = stats.t.ppf(0.975, 99) * difference.std(ddof=1) / 10
    assert compare(model, reference).interval == pytest.approx((0.09 - half, 0.09 + half))


def test_against_a_teacher_the_loss_is_the_divergence_and_right_is_what_it_finds_most_probable() -> None:
    teacher = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])
    said = torch.tensor([[0.25, 0.25, 0.5], [0.9, 0.1, 0.0]]).log()
    found = answers(said.nan_to_num(neginf=-50.0), teacher)
    assert found.loss == pytest.approx([np.log(2), 0.0], abs=1e-7)  # sum of p log(p / q), by hand
    assert found.correct.tolist() == [False, True]
    assert answers(said, teacher).loss[1] == np.inf  # an answer that is not finite, as against labels


@pytest.mark.parametrize(
    ("wins", "losses", "verdict"),
    [
        (6, 0, "better"),
        (0, 6, "worse"),
        (5, 0, "no difference shown"),  # p = 2 / 32 = 0.0625
        (20, 19, "no difference shown"),
        (300, 200, "better"),
        (200, 300, "worse"),
    ],
)
def test_the_verdict_in_words(wins: int, losses: int, verdict: str) -> None:
    assert compare(*pair(500, wins, losses, 100)).verdict == verdict


def test_a_p_value_of_exactly_five_percent_shows_nothing() -> None:
    assert Comparison(0.1, (0.0, 0.2), 0.05).verdict == "no difference shown"
    assert Comparison(0.1, (0.0, 0.2), 0.0499).verdict == "better"


def test_identical_answers_gain_nothing() -> None:
    model = judged([1, 0, 1, 1])
    assert compare(model, model) == Comparison(0.0, (0.0, 0.0), 1.0)


def test_answers_that_differ_on_every_image() -> None:
    assert compare(judged([1] * 10), judged([0] * 10)) == Comparison(1.0, (1.0, 1.0), 2 / 1024)
    assert compare(judged([0] * 10), judged([1] * 10)).verdict == "worse"


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (7600, 10_000, 0.751530, 0.768270)],
)
def test_wilson_intervals(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-6)


def test_answers_are_accuracy_loss_and_interval() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]])
    found = answers(probabilities.log(), torch.tensor([0, 1, 0, 2]))
    assert found.correct.tolist() == [True, True, False, True]
    assert found.loss == pytest.approx(-np.log([0.5, 0.8, 0.3, 0.6]), abs=1e-6)
    assert found.loss.dtype == np.float64
    assert found.accuracy == 0.75
    assert found.mean_loss == pytest.approx(-np.log(0.5 * 0.8 * 0.3 * 0.6) / 4)
    assert found.interval == wilson(3, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_wrong(value: float) -> None:
    found = answers(torch.tensor([[value, value], [value, -1.0], [-0.1, -3.0]]), torch.tensor([0, 0, 0]))
    assert found.correct.tolist() == [False, False, True]
    assert found.loss.tolist()[:2] == [float("inf")] * 2


def test_pooled_answers_are_those_of_both_splits() -> None:
    together = pool(judged([1, 0], [0.5, 1.5]), judged([1], [4.0]))
    assert together.correct.tolist() == [True, False, True]
    assert together.mean_loss == 2.0


@pytest.mark.parametrize(("standard_errors", "clearly"), [(1.05, True), (0.95, False), (0.0, False), (-2.0, False)])
def test_a_clearly_lower_loss_is_lower_by_more_than_one_standard_error(standard_errors: float, clearly: bool) -> None:
    noise = np.random.RandomState(1).randn(400)
    noise = (noise - noise.mean()) / stats.sem(noise)  # of mean 0 and standard error 1
    standing = judged([1] * 400, np.random.RandomState(2).rand(400) * 50)
    challenger = judged([1] * 400, standing.loss - noise - standard_errors)
    assert clearly_lower_loss(challenger, standing) is clearly


def test_the_same_loss_is_not_clearly_lower() -> None:
    standing = judged([1, 1, 1], [0.1, 0.2, 0.3])
    assert not clearly_lower_loss(standing, standing)


def test_a_failed_challenger_is_never_clearly_lower() -> None:
    standing = judged([1, 1, 1], [0.1, 0.2, 0.3])
    assert not clearly_lower_loss(judged([1, 1, 0], [0.0, 0.0, float("inf")]), standing)


def test_a_failed_standing_loses_to_a_challenger_that_has_not_failed() -> None:
    failed = judged([0, 1, 1], [float("inf"), 0.1, 0.1])
    assert clearly_lower_loss(judged([1, 1, 1], [0.1, 0.2, 0.3]), failed)
    assert not clearly_lower_loss(failed, failed)


@pytest.mark.parametrize("margin", [0.5, 1.4, 9.0])
def test_the_tempered_loss_is_what_a_network_knows_and_not_how_sure_it_is(margin: float) -> None:
    logits = torch.tensor([margin] * 80 + [-margin] * 20)
    said = torch.stack([logits, torch.zeros(100)], dim=1).log_softmax(dim=1)
    labels = torch.zeros(100, dtype=torch.int64)
    found = tempered(said, labels)
    assert found.mean_loss == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2), abs=1e-3)
    assert found.accuracy == pytest.approx(0.8)
    assert tempered(said, torch.eye(2)[labels]).mean_loss == pytest.approx(found.mean_loss)
    assert tempered(torch.full((3, 2), torch.nan), labels[:3]).mean_loss == np.inf
