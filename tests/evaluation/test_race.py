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
from hfmega.data.images import Split, batches, load_split, stratified
from hfmega.evaluation import race
from hfmega.evaluation.answers import Answers
from hfmega.evaluation.evaluator import Evaluator, Score, score_of
from hfmega.evaluation.network import Network
from hfmega.evaluation.precision import rough_precision
from hfmega.evaluation.race import SEATS, Race, most_images, rungs, seats, survivors
from hfmega.evaluation.statistics import average
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


def losing(mean: float, of: int = 300, spread: float = 0.5, seed: int = 0) -> Answers:
    """Losses around a mean; a seed gives the same images the same difficulty."""
    loss = mean + spread * (np.random.default_rng(seed).random(of) - 0.5)
    return Answers(loss < 1, loss)


def test_rungs_grow_by_three_and_small_ones_are_left_out() -> None:
    assert rungs(3000) == [333, 1000]
    assert rungs(900) == [300]
    assert rungs(500) == []


def test_a_third_goes_on_and_a_taken_seat_is_one_less() -> None:
    assert [seats(n, 0) for n in (20, 7, 3, 1)] == [6, SEATS, SEATS, SEATS]
    assert [seats(20, taken) for taken in (1, 3, 9)] == [5, 3, 1]


def test_the_lowest_losses_go_on_by_halving_in_their_order() -> None:
    seen = [losing(mean) for mean in (1.9, 1.1, 1.2, 1.8, 1.15, 2.0, 2.1, 2.2, 2.3)]
    assert survivors(seen, 0, Race(test=False)) == [1, 2, 4]
    assert survivors(seen, 2, Race(test=False)) == [1]  # two seats are taken


def test_the_paired_test_stops_whom_chance_does_not_explain() -> None:
    """The same images are as hard for all, so that a small difference on each of them is seen."""
    seated = [losing(1.0), losing(1.0)]
    clearly, hardly = losing(1.001), losing(1.01, seed=1)  # on images of other difficulty the error is 0.012
    assert survivors([*seated, clearly, hardly], 0, Race(halving=False)) == [0, 1, 3]
    assert survivors([*seated, clearly, hardly], 0, Race(halving=False, test=False)) == [0, 1, 2, 3]


def test_the_test_errs_as_often_as_it_says() -> None:
    """Of two equal models, one is stopped on at most 5 % of 400 drawn sets of images."""
    losses = np.random.default_rng(0).exponential(size=(400, 2, 300))
    stopped = sum(race.worse(*(Answers(row < 1, row) for row in pair), Race()) for pair in losses)
    assert 0.02 * 400 < stopped <= stats.binom.ppf(0.999, 400, 0.05)


def test_a_failed_candidate_stops() -> None:
    failed = Answers(np.zeros(300, bool), np.full(300, math.inf))
    assert survivors([failed, losing(1.0), failed], 0, Race()) == [1]
    assert survivors([failed], 0, Race()) == []


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
def test_who_ends_is_scored_exactly_and_who_stops_has_seen_a_beginning(
    tiny_sources: tuple[Path, Path], digits: Dataset, images: Split, calibrate: bool
) -> None:
    population = [Recipe((a / 11, 1 - a / 11), calibrate=calibrate) for a in range(12)]
    racing, exact = (new_evaluator(tiny_sources, digits) for _ in range(2))
    (raced,) = racing.race([population], images, Race(test=False))
    expected = exact.scores(population, images)
    ended = [k for k, score in enumerate(raced) if score.exact]
    assert len(ended) == 4  # a third of twelve
    assert [raced[k] for k in ended] == [expected[k] for k in ended]
    assert {score.total for score in raced if not score.exact} == {300}
    assert racing.network.images_seen == most_images(12, 0, 900, *((200, 100) if calibrate else (0, 0)))
    assert racing.network.images_seen < exact.network.images_seen * 0.75


def rough_evaluator(tiny_sources: tuple[Path, Path], digits: Dataset, rough: torch.dtype) -> Evaluator:
    """On a device that computes estimates in a type."""
    evaluator = new_evaluator(tiny_sources, digits)
    evaluator.network._rough = rough
    return evaluator


def test_what_only_ranks_is_computed_in_half_precision_with_a_part_of_the_calibration_images(
    tiny_sources: tuple[Path, Path], digits: Dataset, images: Split
) -> None:
    population = [Recipe((a / 11, 1 - a / 11), calibrate=True) for a in range(12)]
    half, whole = (rough_evaluator(tiny_sources, digits, kind) for kind in (torch.bfloat16, torch.float32))
    (rough,), (fine,) = (evaluator.race([population], images, Race()) for evaluator in (half, whole))
    estimates = [k for k in range(12) if not rough[k].exact and not fine[k].exact]
    assert len(estimates) > 6
    assert all(rough[k].loss != fine[k].loss for k in estimates)
    assert all(rough[k].loss == pytest.approx(fine[k].loss, rel=0.05) for k in estimates)
    ended = [k for k in range(12) if rough[k].exact and fine[k].exact]
    assert ended
    assert all(rough[k] == fine[k] for k in ended)
    few = whole.network.calibration_parts(rough=True)
    assert few == [range(100)]  # the first of two batches
    first = Split("first", images.images[:300], images.labels[:300], "first")
    whole.network.load(population[estimates[0]], average(whole.network.moments(population[estimates[0]], few), few))
    assert score_of(whole.network.look(first, batches(range(300), 32)), exact=False) == fine[estimates[0]]


def test_an_estimate_is_scored_in_half_precision_without_statistics_too(
    tiny_sources: tuple[Path, Path], digits: Dataset, images: Split
) -> None:
    network, parts = rough_evaluator(tiny_sources, digits, torch.bfloat16).network, batches(range(300), 32)
    network.load(Recipe((0.5, 0.5)))
    rough, fine = network.estimate(images, parts), network.look(images, parts)
    assert rough.mean_loss != fine.mean_loss
    assert rough.mean_loss == pytest.approx(fine.mean_loss, rel=0.05)


def test_a_device_without_instructions_for_it_estimates_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, found in (({"avx512_f": True, "avx512_bf16": False}, "float32"), ({"amx_bf16": True}, "bfloat16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        assert rough_precision("float32", torch.device("cpu")) == found
        assert rough_precision("float16", torch.device("cpu")) == "float16"  # as asked for


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


def test_after_its_first_rung_a_first_population_is_not_halved(
    tiny_sources: tuple[Path, Path], digits: Dataset, images: Split
) -> None:
    """Whom the test does not stop goes on; `most_images` is that of nobody stopped."""
    population = [Recipe((a / 11, 1 - a / 11)) for a in range(12)]
    evaluator, certain = (new_evaluator(tiny_sources, digits) for _ in range(2))
    (raced,) = evaluator.race([population], images, Race(first=True))
    ended = [k for k, score in enumerate(raced) if score.exact]
    assert evaluator.network.images_seen == 12 * 300 + len(ended) * 900
    (all_exact,) = certain.race([population], images, Race(first=True, test=False))
    assert all(score.exact for score in all_exact)
    assert certain.network.images_seen == most_images(12, 0, 900, first=True) == 12 * (300 + 900)
    assert max(range(12), key=lambda k: all_exact[k].correct) in ended
    assert [Race(first=True).halves(rung) for rung in (0, 1)] == [False, True]
    assert [Race(first=True, halving=False).halves(rung) for rung in (0, 1)] == [False, False]
    assert tree.rules(first=True) == Race(first=True)
    assert tree.rules(first=False) == Race()


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
