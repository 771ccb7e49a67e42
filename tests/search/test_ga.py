"""The genetic algorithm by ask and tell, with scores that are known functions of the recipe: no network is needed."""

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pytest

from hfmega.errors import HfmegaError
from hfmega.search.cma import CMAES
from hfmega.search.ga import MeGA
from hfmega.search.random import RandomSearch
from hfmega.search.recipe import Recipe, source_alone, uniform_average
from hfmega.settings import AUTHOR, PAPER, GASettings
from hfmega.settings import DEFAULT as PRESET

DEFAULT = replace(PRESET, patience=0)  # searches of a known length
FAILED = (0.0, math.inf)


def leaves(count: int, calibrate: bool = False) -> list[Recipe]:
    """What the first merges of a tree have for inputs: sources alone."""
    return [source_alone(k, count, calibrate) for k in range(count)]


class Told(NamedTuple):
    accuracy: float
    loss: float = 1.0
    total: int = 100
    exact: bool = True


def rugged(recipe: Recipe) -> Told:
    """A score with many peaks that every coefficient and every noise term moves."""
    mixed = sum(7919 * c for c in recipe.coefficients[1:]) + sum(term.seed % 997 * term.weight for term in recipe.noise)
    return Told(mixed % 1.0, 1.0 - mixed % 1.0)


def run(searcher: MeGA, score: Callable[[Recipe], Told] = rugged) -> list[tuple[Recipe, ...]]:
    """Search to the end; returns every population that was asked for."""
    populations = []
    while not searcher.done:
        populations.append(searcher.ask())
        searcher.tell([score(recipe) for recipe in populations[-1]])
    return populations


@pytest.mark.parametrize(
    ("constants", "sentence"),
    [
        ({"population": 1, "tournament": 1}, "--population must be at least 2, not 1."),
        ({"population": 0}, "--population must be at least 2, not 0."),
        ({"generations": 0}, "--generations must be at least 1, not 0."),
        ({"parents": 1}, "--parents must be at least 2, not 1."),
        ({"tournament": 21}, "--tournament must be between 1 and the population (20), not 21."),
        ({"tournament": 0}, "--tournament must be between 1 and the population (20), not 0."),
        ({"mutation_rate": -0.1}, "--mutation-rate must be between 0 and 1, not -0.1."),
        ({"mutation_rate": 1.1}, "--mutation-rate must be between 0 and 1, not 1.1."),
        ({"mutation_rate": math.nan}, "--mutation-rate must be between 0 and 1, not nan."),
        ({"mutation_sigma": -0.1}, "--mutation-sigma must be a number of at least 0, not -0.1."),
        ({"mutation_sigma": math.nan}, "--mutation-sigma must be a number of at least 0, not nan."),
        ({"mutation_sigma": math.inf}, "--mutation-sigma must be a number of at least 0, not inf."),
    ],
)
def test_constants_that_make_no_search_are_refused(constants: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HfmegaError) as refused:
        GASettings(**constants)
    assert str(refused.value) == sentence


def test_the_smallest_search_runs() -> None:
    settings = GASettings(population=2, generations=1, parents=2, tournament=1, mutation_rate=0.0, mutation_sigma=0.0)
    searcher = MeGA(leaves(2), settings, seed=1)
    assert len(run(searcher)) == 1
    assert searcher.best in searcher.population


def test_the_presets_hold_the_constants_of_the_paper() -> None:
    assert (PAPER.patience, AUTHOR.patience, PRESET.patience) == (0, 0, 5)
    for settings in (PAPER, AUTHOR, DEFAULT):
        assert (settings.population, settings.generations, settings.parents, settings.tournament) == (20, 20, 4, 3)
        assert settings.mutation_rate == 0.02
    assert (PAPER.mutation_sigma, AUTHOR.mutation_sigma, DEFAULT.mutation_sigma) == (0.1, 0.1, 0.01)
    assert (PAPER.mutation_unit, AUTHOR.mutation_unit, DEFAULT.mutation_unit) == ("element", "tensor", "element")


@pytest.mark.parametrize("sources", [2, 3, 8])
def test_the_first_population_lies_uniformly_on_the_simplex(sources: int) -> None:
    population = MeGA(leaves(sources), replace(PAPER, population=2000), seed=1).ask()
    coefficients = np.array([recipe.coefficients for recipe in population])
    assert coefficients.shape == (2000, sources)
    assert coefficients.min() >= 0
    assert np.abs(coefficients.sum(axis=1) - 1).max() < 1e-12
    variance = (sources - 1) / (sources**2 * (sources + 1))  # of a flat Dirichlet's component
    assert np.abs(coefficients.mean(axis=0) - 1 / sources).max() < 5 * (variance / 2000) ** 0.5
    assert coefficients.var(axis=0) == pytest.approx(variance, rel=0.15)
    assert all(recipe.noise == () for recipe in population)


def test_the_default_begins_with_the_average_and_the_sources() -> None:
    anchors = (uniform_average(3), *(source_alone(k, 3) for k in range(3)))
    assert MeGA(leaves(3), DEFAULT, seed=1).ask()[:4] == anchors
    assert len(MeGA(leaves(3), DEFAULT, seed=1).ask()) == 20
    assert not set(anchors) & set(MeGA(leaves(3), PAPER, seed=1).ask())
    assert not set(anchors) & set(MeGA(leaves(3), AUTHOR, seed=1).ask())


def test_a_population_smaller_than_its_anchors_keeps_its_size() -> None:
    searcher = MeGA(leaves(8), replace(DEFAULT, population=4), seed=1)
    assert {len(population) for population in run(searcher)} == {4}


@pytest.mark.parametrize("settings", [PAPER, AUTHOR, DEFAULT])
def test_the_population_keeps_its_size_and_the_search_its_length(settings: GASettings) -> None:
    searcher = MeGA(leaves(3), replace(settings, generations=7), seed=5)
    populations = run(searcher)
    assert [len(population) for population in populations] == [20] * 7
    assert len(searcher.history) == 7
    assert searcher.done
    assert searcher.population is populations[-1]  # no generation is bred that nobody will score


@pytest.mark.parametrize("fitness", ["accuracy", "loss"])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_a_generation_is_never_worse_than_the_one_before(fitness: str, seed: int) -> None:
    settings = replace(DEFAULT, fitness=fitness, tournament=1)  # tournament 1: without elitism the best would be lost
    searcher = MeGA(leaves(3), settings, seed)
    populations = run(searcher)
    best = [generation.best for generation in searcher.history]
    assert best == sorted(best, reverse=fitness == "loss")
    ever = max((recipe for population in populations for recipe in population), key=rugged)
    assert rugged(searcher.best) == rugged(ever)


def test_the_history_is_the_best_mean_and_spread_of_the_scores() -> None:
    searcher = MeGA(leaves(2), replace(PAPER, population=4, parents=2), seed=1)
    searcher.tell([Told(0.25), Told(0.5), Told(0.75), Told(0.5)])
    (generation,) = searcher.history
    assert (generation.best, generation.mean) == (0.75, 0.5)
    assert generation.spread == pytest.approx(0.125**0.5 / 2)


def distance(recipe: Recipe, target: tuple[float, ...]) -> float:
    return math.dist(recipe.coefficients, target)


def climb(settings: GASettings, target: tuple[float, ...], seed: int) -> MeGA:
    searcher = MeGA(leaves(len(target)), replace(settings, mutation_rate=0.0), seed)
    run(searcher, lambda recipe: Told(1 - distance(recipe, target)))
    return searcher


def random_best(target: tuple[float, ...], seed: int) -> float:
    """The best of as many random blends as the search scores."""
    blends = MeGA(leaves(len(target)), replace(PAPER, population=400), seed).ask()
    return min(distance(recipe, target) for recipe in blends)


@pytest.mark.parametrize(("target", "near", "far"), [((0.3, 0.7), 1e-4, 3e-4), ((0.2, 0.3, 0.5), 0.005, 0.015)])
def test_a_known_blend_is_found_better_than_by_as_many_random_ones(
    target: tuple[float, ...], near: float, far: float
) -> None:
    found = [distance(climb(AUTHOR, target, seed).best, target) for seed in range(8)]
    assert fmean(found) < near
    assert fmean(random_best(target, seed) for seed in range(8)) > far


@pytest.mark.parametrize("settings", [PAPER, AUTHOR, DEFAULT])
@pytest.mark.parametrize("target", [(0.3, 0.7), (0.2, 0.3, 0.5)])
def test_selection_draws_the_population_to_the_peak(settings: GASettings, target: tuple[float, ...]) -> None:
    def spread(tournament: int) -> float:
        searchers = [climb(replace(settings, tournament=tournament), target, seed) for seed in range(8)]
        return fmean(distance(recipe, target) for searcher in searchers for recipe in searcher.population)

    assert spread(tournament=3) < 0.05
    assert spread(tournament=1) > 0.07


@pytest.mark.parametrize("fitness", ["accuracy", "loss"])
@pytest.mark.parametrize("settings", [PAPER, DEFAULT])
def test_a_failed_candidate_is_never_the_best(settings: GASettings, fitness: str) -> None:
    searcher = MeGA(leaves(2), replace(settings, fitness=fitness), seed=1)
    last = searcher.ask()[-1]
    searcher.tell([Told(*FAILED)] * 19 + [Told(0.1, 9.0)])
    assert searcher.best == last
    assert searcher.ask()[0] == last
    assert all(math.isfinite(value) for value in vars(searcher.history[0]).values())


def test_a_failed_candidate_is_no_parent_where_there_is_another() -> None:
    searcher = MeGA(leaves(2), replace(PAPER, population=4, tournament=4, mutation_rate=0.0), seed=1)
    survivor = searcher.ask()[2]
    searcher.tell([Told(*FAILED), Told(*FAILED), Told(0.1), Told(*FAILED)])
    assert [child.coefficients[0] for child in searcher.ask()] == pytest.approx([survivor.coefficients[0]] * 4)


@pytest.mark.parametrize("fitness", ["accuracy", "loss"])
def test_failed_candidates_are_counted(fitness: str) -> None:
    searcher = MeGA(leaves(2), replace(DEFAULT, fitness=fitness), seed=1)
    searcher.tell([Told(*FAILED), Told(0.0, math.nan), *[Told(0.0, 9.0)] * 18])
    searcher.tell([Told(0.5)] * 20)
    assert [generation.failed for generation in searcher.history] == [2, 0]


@pytest.mark.parametrize("told", [Told(0.5), Told(*FAILED), Told(0.0, math.nan)], ids=["equal", "failed", "NaN"])
@pytest.mark.parametrize("searcher", [MeGA, RandomSearch, CMAES])
@pytest.mark.parametrize("settings", [PAPER, DEFAULT, AUTHOR, replace(DEFAULT, fitness="loss")])
def test_a_population_of_equal_scores_still_ends(settings: GASettings, searcher: type[MeGA], told: Told) -> None:
    found = searcher(leaves(3), settings, seed=1)
    populations = run(found, lambda _: told)
    assert len(populations) == len(found.history) == 20
    assert found.best in populations[0]
    assert all(math.isfinite(c) for recipe in populations[-1] for c in recipe.coefficients)


def test_a_loss_that_is_not_a_number_is_never_the_best() -> None:
    searcher = MeGA(leaves(2), replace(DEFAULT, fitness="loss"), seed=1)
    second = searcher.ask()[1]
    searcher.tell([Told(0.0, math.nan), Told(0.5, 1.0), *[Told(0.5, 2.0)] * 18])
    assert searcher.best == second


def test_the_default_breaks_ties_by_loss_and_the_paper_does_not() -> None:
    scores = [Told(0.5, 1.0 + index) for index in range(19)] + [Told(0.5, 0.5)]
    best = {}
    for name, settings in (("paper", PAPER), ("default", DEFAULT)):
        searcher = MeGA(leaves(2), settings, seed=1)
        population = searcher.ask()
        searcher.tell(scores)
        best[name] = population.index(searcher.best)
    assert best == {"paper": 0, "default": 19}


def test_the_loss_as_fitness_ignores_accuracy() -> None:
    searcher = MeGA(leaves(2), replace(PAPER, fitness="loss"), seed=1)
    population = searcher.ask()
    searcher.tell([Told(0.9, 2.0)] * 7 + [Told(0.1, 1.0)] + [Told(0.9, 2.0)] * 12)
    assert searcher.best == population[7]
    assert searcher.history[0].best == 1.0


def lines_crossed(settings: GASettings) -> int:
    """How many dimensions the first children span: one when all have the same two parents."""
    searcher = MeGA(leaves(8), replace(settings, parents=2, mutation_rate=0.0), seed=3)
    searcher.tell([rugged(recipe) for recipe in searcher.ask()])
    children = np.array([recipe.coefficients for recipe in searcher.ask()[1:]])
    return int(np.linalg.matrix_rank(children[1:] - children[0], tol=1e-9))


def test_the_author_draws_parents_anew_for_every_child_and_the_paper_once_a_generation() -> None:
    assert lines_crossed(PAPER) == 1
    assert lines_crossed(AUTHOR) == 7


@pytest.mark.parametrize(("settings", "unit"), [(PAPER, "element"), (AUTHOR, "tensor"), (DEFAULT, "element")])
def test_every_child_has_exactly_one_noise_term_of_its_own(settings: GASettings, unit: str) -> None:
    populations = run(MeGA(leaves(2), settings, seed=9))
    seen: set[int] = set()
    for generation, population in enumerate(populations):
        fresh = [[term for term in recipe.noise if term.seed not in seen] for recipe in population]
        elite = {0} if generation else set(range(20))
        assert [len(terms) for terms in fresh] == [int(index not in elite) for index in range(20)]
        terms = [term for child in fresh for term in child]
        assert {(t.unit, t.rate, t.sigma, t.weight) for t in terms} <= {(unit, 0.02, settings.mutation_sigma, 1.0)}
        assert len({term.seed for term in terms}) == len(terms)
        seen |= {term.seed for term in terms}
    assert len(seen) == 19 * 19
    assert max(seen) < 2**53  # exact in every JSON reader


@pytest.mark.parametrize("changes", [{"mutation_rate": 0.0}, {"mutation_sigma": 0.0}])
def test_without_mutation_there_is_no_noise_term(changes: dict[str, float]) -> None:
    populations = run(MeGA(leaves(2), replace(PAPER, **changes), seed=9))
    assert all(recipe.noise == () for population in populations for recipe in population)


def test_blends_stay_on_the_simplex() -> None:
    last = run(MeGA(leaves(3), DEFAULT, seed=2))[-1]
    assert all(min(recipe.coefficients) >= 0 for recipe in last)
    assert [sum(recipe.coefficients) for recipe in last] == pytest.approx([1.0] * 20)


def test_calibration_stays_with_every_individual() -> None:
    assert all(
        recipe.calibrate for population in run(MeGA(leaves(2, calibrate=True), DEFAULT, 1)) for recipe in population
    )


@pytest.mark.parametrize("settings", [PAPER, AUTHOR, DEFAULT])
def test_telling_a_new_searcher_the_same_scores_resumes_the_search_exactly(settings: GASettings) -> None:
    whole, resumed = MeGA(leaves(3), settings, seed=4), MeGA(leaves(3), settings, seed=4)
    scores = []
    for _ in range(6):
        scores.append([rugged(recipe) for recipe in whole.ask()])
        whole.tell(scores[-1])
    for known in scores:
        resumed.tell(known)
    assert resumed.population == whole.population
    assert (resumed.best, resumed.history) == (whole.best, whole.history)
    assert run(resumed) == run(whole)


@pytest.mark.parametrize("settings", [PAPER, AUTHOR, DEFAULT])
def test_another_seed_is_another_search(settings: GASettings) -> None:
    one, other = run(MeGA(leaves(2), settings, seed=1)), run(MeGA(leaves(2), settings, seed=2))
    random = slice(3, None) if settings.anchors else slice(None)
    assert not set(one[0][random]) & set(other[0][random])
    assert not set(one[-1]) & set(other[-1])


def test_there_is_no_best_before_the_first_scores() -> None:
    with pytest.raises(HfmegaError, match="no population has been scored yet"):
        _ = MeGA(leaves(2), PAPER, seed=1).best


@pytest.mark.parametrize("searcher", [MeGA, CMAES, RandomSearch])
def test_a_search_stops_when_its_fitness_has_not_risen_for_as_long_as_its_patience(searcher: type[MeGA]) -> None:
    flat = searcher(leaves(2), replace(DEFAULT, patience=3), 1)
    assert len(run(flat, lambda _: Told(0.5))) == 4  # the first one is the best, and three bring nothing
    tireless = searcher(leaves(2), replace(DEFAULT, patience=0), 1)
    assert len(run(tireless, lambda _: Told(0.5))) == DEFAULT.generations


def test_a_higher_fitness_renews_the_patience() -> None:
    told = iter([0.1, 0.1, 0.2, 0.2, 0.2, 0.9])
    searcher = MeGA(leaves(2), replace(PAPER, population=2, tournament=1, patience=2), 1)
    while not searcher.done:
        accuracy = next(told)
        searcher.tell([Told(accuracy), Told(accuracy)])
    assert [generation.best for generation in searcher.history] == [0.1, 0.1, 0.2, 0.2, 0.2]


def test_a_lower_loss_at_the_same_accuracy_does_not_renew_it() -> None:
    losses = iter(range(100, 0, -1))
    searcher = MeGA(leaves(2), replace(DEFAULT, patience=3), 1)
    assert len(run(searcher, lambda _: Told(0.5, next(losses) / 100) if searcher.history else Told(0.5))) == 4


def test_patience_only_cuts_a_search_short() -> None:
    """The populations up to there are those of a search without it, so that resuming and replaying stay exact."""
    patient, tireless = (MeGA(leaves(3), replace(DEFAULT, patience=p), 4) for p in (2, 0))
    short, whole = run(patient), run(tireless)
    assert len(short) < len(whole)
    assert short == whole[: len(short)]
