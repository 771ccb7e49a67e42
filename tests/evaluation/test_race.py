"""Racing: paired comparisons on growing beginnings of the images; who stops keeps an estimate, who ends is exact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from support.specs import spec

from hfmega.data.dataset import Dataset, rows_of
from hfmega.data.images import Split, load_split, stratified
from hfmega.evaluation import race
from hfmega.evaluation.answers import Answers
from hfmega.evaluation.evaluator import Evaluator, Score
from hfmega.evaluation.network import Network
from hfmega.evaluation.race import SEATS, Race, most_images, rungs, seats, survivors
from hfmega.folder import WORK
from hfmega.hub.pull import pull
from hfmega.merging import tree
from hfmega.merging.prepare import prepare
from hfmega.models.library import Spec
from hfmega.output import Output
from hfmega.search.ga import MeGA
from hfmega.search.recipe import Recipe
from hfmega.settings import DEFAULT, PRESETS, MergeSettings, SplitRequest
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.sources import mix


def right(count: int, of: int = 300, first: int = 0) -> Answers:
    """Right on `count` images from the `first` one on."""
    correct = (np.arange(of) - first) % of < count
    return Answers(correct, np.where(correct, 0.1, 2.0))


def test_rungs_grow_by_three_and_small_ones_are_left_out() -> None:
    assert rungs(3000) == [333, 1000, 3000]
    assert rungs(900) == [300, 900]
    assert rungs(500) == [500]
    assert rungs(3000, halving=False) == [333, 3000]


def test_a_third_goes_on_and_a_taken_seat_is_one_less() -> None:
    assert [seats(n, 0) for n in (20, 7, 3, 1)] == [6, SEATS, SEATS, SEATS]
    assert [seats(20, taken) for taken in (1, 3, 9)] == [5, 3, 1]


def test_the_best_go_on_by_halving_in_their_order() -> None:
    seen = [right(count) for count in (100, 160, 150, 90, 155, 80, 70, 60, 50)]
    assert survivors(seen, 0, 600, Race(test=False)) == [1, 2, 4]


def test_equal_accuracies_are_ordered_by_loss() -> None:
    surer = replace(right(150), loss=np.full(300, 0.1))
    seen = [*[right(150)] * 3, *[surer] * 3, *[right(150)] * 3]
    assert survivors(seen, 0, 600, Race(test=False)) == [3, 4, 5]


def test_the_paired_test_stops_whom_chance_does_not_explain() -> None:
    """8 images to 1 against the last seat (p = 0.02) stop one; 6 to 2 (p = 0.14) do not."""
    seated = [right(200), right(200), right(200)]
    clearly = Answers(np.r_[np.zeros(8, bool), np.ones(192, bool), np.ones(1, bool), np.zeros(99, bool)], np.ones(300))
    hardly = Answers(np.r_[np.zeros(6, bool), np.ones(194, bool), np.ones(2, bool), np.zeros(98, bool)], np.ones(300))
    assert survivors([*seated, clearly, hardly], 0, 600, Race(halving=False)) == [0, 1, 2, 4]
    assert survivors([*seated, clearly, hardly], 0, 600, Race(halving=False, test=False)) == [0, 1, 2, 3, 4]


def test_the_test_errs_as_often_as_it_says() -> None:
    """Of two equal models, one is stopped on at most 5 % of 400 drawn sets of images."""
    draws = np.random.default_rng(0).random((400, 2, 300)) < 0.7
    stopped = sum(race.worse(*(Answers(c, np.ones(300)) for c in pair), 10_000, Race()) for pair in draws)
    assert 0.02 * 400 < stopped <= stats.binom.ppf(0.999, 400, 0.05)


def test_who_cannot_catch_up_stops_however_strict_the_test() -> None:
    strict = Race(halving=False, error_rate=0.0)
    assert survivors([right(90, 100)] * 3 + [right(20, 100), right(50, 100)], 0, 60, strict) == [0, 1, 2, 4]


def test_a_failed_candidate_stops() -> None:
    failed = Answers(np.zeros(300, bool), np.full(300, math.inf))
    assert survivors([failed, right(1), failed], 0, 600, Race()) == [1]
    assert survivors([failed], 0, 600, Race()) == []


def test_by_loss_the_lowest_goes_on() -> None:
    seen = [replace(right(100 + k), loss=np.full(300, 1.0 - (k % 5) / 10)) for k in range(9)]
    assert survivors(seen, 0, 600, Race(fitness="loss", test=False)) == [3, 4, 8]
    noisy = np.random.default_rng(1).normal(1.0, 0.2, (4, 300)) + np.array([[0.0], [0.0], [0.0], [0.1]])
    assert survivors([Answers(right(9).correct, row) for row in noisy], 0, 9, Race(halving=False, fitness="loss")) == [
        0,
        1,
        2,
    ]


def test_every_beginning_has_each_class_in_its_share(digits: Dataset) -> None:
    split = load_split(digits, rows_of(digits, "test"), config(), "test")
    ordered = stratified(split)
    assert ordered.fingerprint == split.fingerprint
    assert not torch.equal(ordered.labels, split.labels)
    share = split.labels.bincount() / len(split)
    for count in (55, 166, 500):
        assert ((ordered.labels[:count].bincount(minlength=10) - share * count).abs() <= 1).all()
    assert sorted(t.numpy().tobytes() for t in ordered.images) == sorted(t.numpy().tobytes() for t in split.images)
    assert torch.equal(stratified(split).images, ordered.images)


def config() -> Spec:
    return spec(pretrained_cfg={"input_size": [3, 8, 8]})


@pytest.fixture(scope="module")
def images(tiny_sources: tuple[Path, Path], digits: Dataset) -> Split:
    return stratified(load_split(digits, np.arange(900), pull(str(tiny_sources[0])).spec, "fitness"))


def new_evaluator(tiny_sources: tuple[Path, Path], digits: Dataset) -> Evaluator:
    sources = [pull(str(folder)) for folder in tiny_sources]
    calibration = load_split(digits, np.arange(900, 1100), sources[0].spec, "calibration")
    return Evaluator(Network(sources[0].spec, mix(sources, [load_weights(s) for s in sources]), calibration))


@pytest.mark.parametrize("calibrate", [False, True])
def test_who_ends_is_exact_and_who_stops_has_seen_a_beginning(
    tiny_sources: tuple[Path, Path], digits: Dataset, images: Split, calibrate: bool
) -> None:
    population = [Recipe((a / 11, 1 - a / 11), calibrate=calibrate) for a in range(12)]
    racing, exact = (new_evaluator(tiny_sources, digits) for _ in range(2))
    (raced,) = racing.race([population], images, Race(test=False))
    expected = exact.scores(population, images)
    ended = [k for k, score in enumerate(raced) if score.exact]
    assert len(ended) == 4  # a third of twelve
    assert all((raced[k].correct, raced[k].total) == (expected[k].correct, 900) for k in ended)
    assert all(raced[k].loss == pytest.approx(expected[k].loss, rel=1e-5) for k in ended)
    assert {score.total for score in raced if not score.exact} == {300}
    if not calibrate:  # with all calibration images, or a third of them, statistics are others
        first = Split("first", images.images[:300], images.labels[:300], "first")
        estimates = exact.scores(population, first)
        assert [s.correct for s in raced if not s.exact] == [
            e.correct for e, s in zip(estimates, raced, strict=True) if not s.exact
        ]
    assert racing.network.images_seen == most_images(12, 0, 900, 200 if calibrate else 0)
    assert racing.network.images_seen < exact.network.images_seen * (0.75 if calibrate else 0.6)


def test_an_exact_score_has_its_seat_and_is_not_computed_again(
    tiny_sources: tuple[Path, Path], digits: Dataset, images: Split
) -> None:
    evaluator = new_evaluator(tiny_sources, digits)
    population = [Recipe((a / 11, 1 - a / 11)) for a in range(12)]
    (known,) = evaluator.scores(population[:1], images)
    before = evaluator.network.images_seen
    (raced,) = evaluator.race([population], images, Race(test=False))
    assert raced[0] == known
    assert sum(score.exact for score in raced) == 4
    assert evaluator.network.images_seen - before == most_images(11, 1, 900)


def test_a_first_population_is_not_halved(tiny_sources: tuple[Path, Path], digits: Dataset, images: Split) -> None:
    """Whom the test does not stop after the first rung sees all images at once; `most_images` is that of nobody."""
    population = [Recipe((a / 11, 1 - a / 11)) for a in range(12)]
    evaluator, certain = (new_evaluator(tiny_sources, digits) for _ in range(2))
    (raced,) = evaluator.race([population], images, Race(halving=False))
    assert {score.total for score in raced} <= {300, 900}
    assert evaluator.network.images_seen == sum(score.total for score in raced)
    (all_exact,) = certain.race([population], images, Race(halving=False, test=False))
    assert all(score.exact for score in all_exact)
    assert certain.network.images_seen == most_images(12, 0, 900, halving=False) == 12 * 900
    ended = [k for k, score in enumerate(raced) if score.exact]
    assert max(range(12), key=lambda k: all_exact[k].correct) in ended
    assert tree.rules(True, "loss") == Race(halving=False, fitness="loss")
    assert tree.rules(False, "accuracy") == Race()


def test_an_estimate_is_not_taken_for_a_score(tiny_sources: tuple[Path, Path], digits: Dataset, images: Split) -> None:
    evaluator = new_evaluator(tiny_sources, digits)
    population = [Recipe((a / 11, 1 - a / 11)) for a in range(12)]
    (raced,) = evaluator.race([population], images, Race())
    stopped = next(k for k, score in enumerate(raced) if not score.exact)
    (score,) = evaluator.scores([population[stopped]], images)
    assert score.exact
    assert score.total == 900


def test_two_populations_race_each_for_itself(tiny_sources: tuple[Path, Path], digits: Dataset, images: Split) -> None:
    populations = [[Recipe((a / 9, b - a / 9)) for a in range(9)] for b in (1.0, 0.9)]
    together = new_evaluator(tiny_sources, digits).race(populations, images, Race())
    alone = [new_evaluator(tiny_sources, digits).race([p], images, Race())[0] for p in populations]
    assert together == alone


def test_who_came_further_is_before_who_stopped_and_only_the_exact_are_the_best() -> None:
    search = MeGA([Recipe((1.0, 0.0)), Recipe((0.0, 1.0))], replace(DEFAULT, population=4, tournament=4), seed=0)
    told = [
        Score(60, 100, 1.0),
        Score(9, 10, 0.1, exact=False),
        Score(0, 100, math.inf),
        Score(29, 30, 0.1, exact=False),
    ]
    ranks = [search._rank(score) for score in told]
    assert sorted(range(4), key=ranks.__getitem__) == [2, 1, 3, 0]
    first = search.ask()[0]
    search.tell(told)
    assert search.best == first
    assert search.history[0].best == 0.6
    assert search.history[0].failed == 1


def folder(place: Path, exact: bool) -> Path:
    """Of a run that has begun."""
    made = place / str(exact)
    (made / WORK).mkdir(parents=True)
    return made


def test_a_merge_races_unless_it_is_told_not_to(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    settings = MergeSettings(
        tuple(map(str, tiny_sources)), tmp_path, dataset="digits", calibrate=False,
        splits=SplitRequest(fitness="train[:900]", test="test[:50]", confirm_share=0.1),
        search=replace(DEFAULT, population=12, generations=3),
    )  # fmt: skip
    job = prepare(settings, Output(muted=True))
    passed = {}
    for exact in (False, True):
        before = job.evaluator.network.images_seen
        job.evaluator.forget(job.search)
        _, progress = tree.grow(
            replace(job, settings=replace(settings, exact=exact, output=folder(tmp_path, exact))), Output(muted=True)
        )
        passed[exact] = progress.forward_passes
        assert all(score.exact for scores in progress.scores["merge"] for score in scores) == exact
        assert job.evaluator.network.images_seen - before >= passed[exact]
    assert passed[True] == (12 + 11 + 11) * 810
    assert passed[False] < 0.7 * passed[True]
    assert {name: preset.exact for name, preset in PRESETS.items()} == {"default": False, "paper": True, "author": True}
