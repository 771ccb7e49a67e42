"""Who wins, judged by prepared answers: what a search flatters is not what stands."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from support.sure import IMAGES, images, sure
from torch import Tensor

from hfmega.data.images import Split
from hfmega.evaluation.answers import Answers, answers, compare
from hfmega.evaluation.evaluator import Score
from hfmega.merging.judge import Rival, ensembles, judge, reference, rivals
from hfmega.merging.run_off import Chosen, calibration_pays, found_by, plain_recipes, run_off
from hfmega.search import Generation
from hfmega.search.recipe import Recipe, centroid, source_alone, uniform_average

AVERAGE, ANN, BOB = uniform_average(2), source_alone(0, 2), source_alone(1, 2)
MEMBERS = {"ann": ANN, "bob": BOB}
FOUND, OTHER, EARLIER = Recipe((0.8, 0.2)), Recipe((0.6, 0.4)), Recipe((0.3, 0.7))
CENTROID = centroid([FOUND, OTHER])


SEARCH, CONFIRM = images("search"), images("confirm")


def log_probabilities(loss: float, spread: float = 0.02) -> Tensor:
    """Two-class answers with this mean loss on the first class, which varies a little from image to image."""
    truth = -(loss + spread * torch.linspace(-1, 1, IMAGES))
    return torch.stack([truth, torch.log1p(-truth.exp())], dim=1)


@dataclass
class Prepared:
    """An evaluator that knows each recipe's loss on each split."""

    losses: dict[Recipe, tuple[float, float]]
    can_calibrate: bool = True
    spreads: dict[Recipe, float] = field(default_factory=dict)

    @property
    def network(self) -> Any:
        return self

    def answers(self, recipes: Sequence[Recipe], images: Split) -> list[Answers]:
        return [answers(self.predict(recipe, images), images.labels) for recipe in recipes]

    def ensemble(self, recipes: Sequence[Recipe], images: Split) -> Answers:
        together = torch.stack([self.predict(recipe, images).exp() for recipe in recipes]).mean(dim=0)
        return answers(together.log(), images.labels)

    def predict(self, recipe: Recipe, images: Split) -> Tensor:
        at = ["search", "confirm"].index(images.name)
        return log_probabilities(self.losses[recipe][at], self.spreads.get(recipe, 0.02))

    def scores(self, recipes: Sequence[Recipe], images: Split) -> list[Score]:
        return [Score(0, IMAGES, self.losses[recipe][0]) for recipe in recipes if images is SEARCH]


@dataclass
class Searched:
    """A search that has ended."""

    best: Recipe = FOUND
    population: tuple[Recipe, ...] = (FOUND, OTHER)
    history: list[Generation] = field(default_factory=list)
    done: bool = True

    def ask(self) -> tuple[Recipe, ...]:
        return self.population

    def tell(self, scores: list[Any]) -> None:
        raise AssertionError(f"the search is over, and was told {scores}")


def run(
    losses: dict[Recipe, tuple[float, float]],
    confirm: Split | None = CONFIRM,
    inputs: Mapping[str, Recipe] = MappingProxyType({}),
    **changes: Any,
) -> Chosen:
    evaluator: Any = Prepared(losses)
    return run_off(inputs | found_by(Searched(**changes)), evaluator, MEMBERS, SEARCH, confirm)


# Mean loss on the search images and on the confirm images.
PLAIN = {AVERAGE: (0.50, 0.50), ANN: (0.60, 0.60), BOB: (0.70, 0.70)}


def test_what_the_search_flattered_does_not_win_when_it_is_no_better_on_confirm() -> None:
    chosen = run({**PLAIN, FOUND: (0.10, 0.50), CENTROID: (0.10, 0.51)})
    assert (chosen.name, chosen.recipe) == ("average", AVERAGE)


def test_the_search_wins_when_it_is_clearly_better_on_confirm() -> None:
    chosen = run({**PLAIN, FOUND: (0.10, 0.45), CENTROID: (0.10, 0.51)})
    assert (chosen.name, chosen.recipe) == ("search", FOUND)


def test_the_centroid_wins_when_it_is_the_better_of_both() -> None:
    chosen = run({**PLAIN, FOUND: (0.10, 0.45), CENTROID: (0.20, 0.44)})
    assert (chosen.name, chosen.recipe) == ("centroid", CENTROID)


@pytest.mark.parametrize(("lower_by", "winner"), [(1.1, "search"), (0.9, "average")])
def test_better_means_by_more_than_one_standard_error(lower_by: float, winner: str) -> None:
    spread = np.linspace(-1, 1, IMAGES) * (0.12 - 0.02)  # of the paired difference, as the two are prepared
    standard_error = spread.std(ddof=1) / IMAGES**0.5
    evaluator: Any = Prepared(
        {**PLAIN, FOUND: (0.1, 0.50 - lower_by * standard_error), CENTROID: (0.9, 0.9)}, spreads={FOUND: 0.12}
    )
    assert run_off(found_by(Searched()), evaluator, MEMBERS, SEARCH, CONFIRM).name == winner


def test_the_lowest_loss_on_all_images_stands_among_what_no_search_chose() -> None:
    found = {FOUND: (0.1, 0.9), CENTROID: (0.1, 0.9)}
    assert run({AVERAGE: (0.50, 0.50), ANN: (0.40, 0.55), BOB: (0.9, 0.9), **found}).name == "ann"
    assert run({AVERAGE: (0.50, 0.50), ANN: (0.50, 0.55), BOB: (0.51, 0.48), **found}).recipe == BOB


def test_a_challenger_has_to_beat_what_stands_and_not_the_average_alone() -> None:
    losses = {AVERAGE: (0.6, 0.6), ANN: (0.5, 0.5), BOB: (0.7, 0.7), FOUND: (0.1, 0.55), CENTROID: (0.1, 0.55)}
    assert run(losses).name == "ann"


def test_a_challenger_and_what_stands_meet_on_the_confirm_images_alone() -> None:
    plain = {AVERAGE: (0.40, 0.60), ANN: (0.9, 0.9), BOB: (0.9, 0.9), CENTROID: (0.9, 0.9)}
    assert run({**plain, FOUND: (0.50, 0.50)}).name == "search"
    assert run({**plain, AVERAGE: (0.60, 0.40), FOUND: (0.50, 0.50)}).name == "average"


def test_without_confirm_images_the_best_of_the_search_is_the_answer() -> None:
    assert run({}, confirm=None) == Chosen("search", FOUND)


def test_every_candidate_is_recorded_with_the_images_it_was_judged_on() -> None:
    chosen = run({**PLAIN, FOUND: (0.10, 0.45), CENTROID: (0.20, 0.55)})
    recorded = {candidate.name: candidate for candidate in chosen.candidates}
    assert {name: c.images for name, c in recorded.items() if "confirm" not in name} == {
        "average": 200,
        "ann": 200,
        "bob": 200,
        "search": 100,
        "centroid": 100,
    }
    assert recorded["average"].loss == pytest.approx(0.50, abs=1e-6)
    assert recorded["search"].loss == pytest.approx(0.45, abs=1e-6)


def test_a_search_that_found_an_anchor_is_not_judged_twice() -> None:
    chosen = run({**PLAIN, CENTROID: (0.9, 0.9)}, best=AVERAGE)
    assert chosen.name == "average"
    assert "search" not in [candidate.name for candidate in chosen.candidates]


NODE = {"merge-1": EARLIER}


def test_an_input_that_an_earlier_search_found_wins_when_it_is_clearly_better_on_confirm() -> None:
    chosen = run({**PLAIN, FOUND: (0.1, 0.46), CENTROID: (0.1, 0.47), EARLIER: (0.1, 0.45)}, inputs=NODE)
    assert (chosen.name, chosen.recipe) == ("merge-1", EARLIER)


def test_an_input_that_an_earlier_search_found_does_not_stand_by_the_search_images() -> None:
    """Those steered the earlier search too: it is a challenger, judged on the confirm images alone."""
    chosen = run({**PLAIN, FOUND: (0.1, 0.6), CENTROID: (0.1, 0.6), EARLIER: (0.1, 0.50)}, inputs=NODE)
    assert chosen.name == "average"
    assert {c.name: c.images for c in chosen.candidates if c.name == "merge-1"} == {"merge-1": 100}


def test_an_input_that_is_a_source_is_not_judged_twice() -> None:
    chosen = run({**PLAIN, FOUND: (0.1, 0.6), CENTROID: (0.1, 0.6)}, inputs={"merge-1": ANN})
    names = [candidate.name for candidate in chosen.candidates]
    assert names == ["average", "ann", "bob", "average, confirm images only", "search", "centroid"]


def test_a_calibrated_run_off_has_the_sources_as_they_are_too() -> None:
    def calibrated(recipe: Recipe) -> Recipe:
        return Recipe(recipe.coefficients, recipe.noise, calibrate=True)

    losses = {calibrated(recipe): loss for recipe, loss in PLAIN.items()}
    losses |= {ANN: (0.3, 0.3), BOB: (0.4, 0.4), calibrated(FOUND): (0.1, 0.5), calibrated(CENTROID): (0.1, 0.5)}
    chosen = run(losses, best=calibrated(FOUND), population=(calibrated(FOUND), calibrated(OTHER)))
    assert (chosen.name, chosen.recipe) == ("ann, as it is", ANN)
    assert chosen.recipe.calibrate is False


@dataclass
class Asked:
    """An evaluator that knows what each recipe says."""

    said: dict[Recipe, Tensor]
    can_calibrate: bool = True

    @property
    def network(self) -> Any:
        return self

    def log_probabilities(self, recipe: Recipe, _: Split) -> Tensor:
        return self.said[recipe]


@pytest.mark.parametrize(
    ("calibrated", "plain", "pays"),
    [
        (((60, 1.0), (90, 1.0), (60, 1.0)), ((60, 1.0), (80, 1.0), (60, 1.0)), True),
        (((60, 1.0), (80, 1.0), (60, 1.0)), ((60, 1.0), (90, 1.0), (60, 1.0)), False),
        (((90, 6.0), (60, 1.0), (60, 1.0)), ((80, 1.4), (60, 1.0), (60, 1.0)), True),  # right more often, but too sure
        (((80, 1.4), (60, 1.0), (60, 1.0)), ((90, 6.0), (60, 1.0), (60, 1.0)), False),
        (((80, 1.0),) * 3, ((80, 1.0),) * 3, False),
        (((80, float("nan")),) * 3, ((60, 1.0),) * 3, False),
    ],
)
def test_calibration_pays_when_it_lowers_the_lowest_loss_however_sure_a_network_is(
    calibrated: tuple[tuple[int, float], ...], plain: tuple[tuple[int, float], ...], pays: bool
) -> None:
    said = {
        recipe: sure(right * IMAGES // 100, margin)
        for calibrate, found in ((True, calibrated), (False, plain))
        for recipe, (right, margin) in zip(plain_recipes(MEMBERS, calibrate).values(), found, strict=True)
    }
    evaluator: Any = Asked(said)
    assert calibration_pays(evaluator, MEMBERS, SEARCH) is pays


def test_calibration_does_not_pay_where_there_is_none() -> None:
    evaluator: Any = Asked({}, can_calibrate=False)
    assert not calibration_pays(evaluator, MEMBERS, SEARCH)


def test_what_no_search_chose_is_the_average_and_every_source() -> None:
    assert plain_recipes(MEMBERS, False) == {"average": AVERAGE, "ann": ANN, "bob": BOB}
    assert [recipe.calibrate for recipe in plain_recipes(MEMBERS, True).values()] == [True, True, True]


def test_the_average_is_that_of_the_sources_below_and_not_of_all() -> None:
    below = {"ann": source_alone(0, 4), "cid": source_alone(2, 4)}
    assert plain_recipes(below, False)["average"] == Recipe((0.5, 0.0, 0.5, 0.0))


def listed(found: Sequence[Rival]) -> list[tuple[str, str, bool]]:
    return [(rival.name, rival.kind, rival.recipe.calibrate) for rival in found]


def test_a_merge_is_shown_against_sources_calibrated_sources_and_the_average() -> None:
    sources = [("ann", "source", False), ("bob", "source", False)]
    calibrated = [("ann, calibrated", "calibrated source", True), ("bob, calibrated", "calibrated source", True)]
    average = [("uniform average", "average", True)]
    both = [*average, ("uniform average, not calibrated", "average", False)]
    assert listed(rivals(MEMBERS, AVERAGE, calibrate=True, can_calibrate=True)) == sources + calibrated + average
    assert listed(rivals(MEMBERS, AVERAGE, calibrate=False, can_calibrate=True)) == sources + calibrated + both
    assert listed(rivals(MEMBERS, AVERAGE, calibrate=False, can_calibrate=False)) == [
        *sources,
        ("uniform average", "average", False),
    ]


def test_the_average_among_the_rivals_is_the_one_given() -> None:
    of_named = Recipe((0.25, 0.25, 0.5))  # of a merge of two sources, and a third source
    found = rivals({"ann": source_alone(0, 3)}, of_named, calibrate=False, can_calibrate=True)
    assert [rival.recipe for rival in found if rival.kind == "average"] == [replace(of_named, calibrate=True), of_named]


def test_the_ensembles_are_of_all_leaves_as_they_are_and_of_all_leaves_calibrated() -> None:
    calibrated = [source_alone(k, 2, calibrate=True) for k in range(2)]
    losses = {ANN: (0.6, 9.0), BOB: (0.8, 9.0), calibrated[0]: (0.2, 9.0), calibrated[1]: (0.3, 9.0)}
    evaluator: Any = Prepared(losses, spreads=dict.fromkeys(losses, 0.0))
    found = {name: judged.mean_loss for name, judged in ensembles(evaluator, 2, SEARCH)}
    assert found == {
        "ensemble": pytest.approx(-math.log((math.exp(-0.6) + math.exp(-0.8)) / 2), abs=1e-6),
        "ensemble, calibrated": pytest.approx(-math.log((math.exp(-0.2) + math.exp(-0.3)) / 2), abs=1e-6),
    }


def test_without_calibration_there_is_one_ensemble() -> None:
    evaluator: Any = Prepared(PLAIN, can_calibrate=False)
    assert [name for name, _ in ensembles(evaluator, 2, SEARCH)] == ["ensemble"]


def of_accuracy(correct: int) -> Answers:
    """Answers of which the first `correct` are right."""
    return Answers(np.arange(IMAGES) < correct, np.full(IMAGES, 1 - correct / IMAGES))


def judged(chosen: Chosen, merged: int, correct_of: Callable[[Rival], int]) -> Any:
    single = rivals(MEMBERS, AVERAGE, chosen.recipe.calibrate, can_calibrate=False)
    return judge("0" * 64, chosen, of_accuracy(merged), single, [of_accuracy(correct_of(rival)) for rival in single])


def test_the_merge_is_compared_with_the_best_single_model() -> None:
    accuracies = {"ann": 60, "bob": 70, "uniform average": 65}
    result = judged(Chosen("search", FOUND), 90, lambda rival: accuracies[rival.name])
    assert (result.chosen, result.best_reference, result.verdict) == ("search", "bob", "better")
    assert (result.correct, result.total, result.accuracy) == (90, 100, 0.9)
    assert result.gain == pytest.approx(0.2)
    assert result.p_value == pytest.approx(2 / 2**20)
    expected = compare(of_accuracy(90), of_accuracy(70))
    assert (result.gain_interval, result.p_value) == (expected.interval, expected.p_value)
    assert result.sha256 == "0" * 64


def test_two_gains_one_over_the_best_source_one_over_the_average() -> None:
    accuracies = {"ann": 60, "bob": 70, "uniform average": 95}
    result = judged(Chosen("search", FOUND), 80, lambda rival: accuracies[rival.name])
    assert (result.best_reference, result.verdict) == ("bob", "better")
    assert (result.over_average.over, result.over_average.gain) == ("uniform average", pytest.approx(-0.15))
    assert result.loss_gain == pytest.approx(0.1)


def test_a_merge_that_is_the_average_is_not_compared_with_itself() -> None:
    accuracies = {"ann": 60, "bob": 70, "uniform average": 95}
    result = judged(Chosen("average", AVERAGE), 95, lambda rival: accuracies[rival.name])
    assert (result.best_reference, result.verdict, result.over_average) == ("bob", "better", None)
    assert result.gain == pytest.approx(0.25)


def test_a_merge_that_is_a_source_gains_nothing_over_it() -> None:
    accuracies = {"ann": 60, "bob": 70, "uniform average": 65}
    result = judged(Chosen("bob", BOB), 70, lambda rival: accuracies[rival.name])
    assert (result.best_reference, result.gain, result.p_value) == ("bob", 0.0, None)
    assert result.verdict == "no difference shown"


def test_a_row_of_the_table_holds_accuracy_interval_and_loss() -> None:
    row = reference("ann", "source", of_accuracy(80))
    assert (row.name, row.kind, row.accuracy, row.loss) == ("ann", "source", 0.8, pytest.approx(0.2))
    assert row.interval == of_accuracy(80).interval
