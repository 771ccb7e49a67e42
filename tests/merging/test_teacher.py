"""The ensemble of the sources as the fitness of a search. 6 seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hfmega.merging import tree
from hfmega.merging.merge import merge
from hfmega.merging.prepare import Job, prepare
from hfmega.merging.teacher import answered, teacher_of
from hfmega.merging.tree import decided, scores_of
from hfmega.output import Output
from hfmega.report.lineage import Lineage
from hfmega.search.recipe import Recipe, source_alone
from hfmega.settings import DEFAULT, MergeSettings, SplitRequest

SPLITS = SplitRequest(fitness="train[:300]", calibration="train[900:]")
SEARCH = replace(DEFAULT, population=4, generations=2, fitness="ensemble")
QUIET = Output(muted=True)


def asked(sources: tuple[Path, ...], output: Path, **changes: Any) -> MergeSettings:
    settings = MergeSettings(tuple(map(str, sources)), output, dataset="digits", splits=SPLITS, search=SEARCH)
    return replace(settings, **changes)


def run(sources: tuple[Path, ...], output: Path, **changes: Any) -> Lineage:
    made = merge(asked(sources, output, **changes), QUIET)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def job(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    return decided(prepare(asked(tiny_sources, tmp_path_factory.mktemp("t") / "out"), QUIET), QUIET)


def test_the_steering_images_are_answered_by_the_mean_probability_of_the_sources(job: Job) -> None:
    network = job.evaluator.network
    ways = {r.calibrate for r in teacher_of(job)}
    mean = torch.stack([network.predict(r, job.search).exp() for r in teacher_of(job)]).mean(0)
    assert len(ways) == 1
    assert torch.allclose(job.steering.labels, mean, atol=1e-6)
    assert torch.equal(job.steering.images, job.search.images)


def test_a_score_is_the_mean_divergence_from_the_ensemble(job: Job) -> None:
    recipe = Recipe((0.7, 0.3), calibrate=True)
    wanted, said = job.steering.labels, job.evaluator.network.predict(recipe, job.search)
    ((score,),) = scores_of([[recipe]], replace(job, settings=replace(job.settings, exact=True)), first=True)
    assert score.loss == pytest.approx(float(torch.nn.functional.kl_div(said, wanted, reduction="batchmean")), rel=1e-4)
    assert score.correct == int((said.argmax(1) == wanted.argmax(1)).sum())


def test_labels_are_not_looked_at(job: Job) -> None:
    """The answers are the same where every label is another one; which ensemble teaches was decided with them."""
    teacher = teacher_of(job)
    other = replace(job.search, labels=(job.search.labels + 1) % 10)
    probabilities = job.evaluator.together(teacher, other).exp()
    assert torch.equal(probabilities, job.steering.labels)


def test_named_unlabelled_images_steer_the_search(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    splits = replace(SPLITS, distill="train[900:1000]")
    prepared = prepare(asked(tiny_sources, tmp_path / "out", splits=splits), QUIET)
    steering = answered(prepared)
    assert prepared.unlabelled is not None
    assert len(steering) == 100
    assert sorted(steering.images.sum((1, 2, 3)).tolist()) == sorted(prepared.unlabelled.images.sum((1, 2, 3)).tolist())
    made = run(tiny_sources, tmp_path / "out", splits=splits)
    assert (made.data.splits["distill"].images, made.settings["distill_split"]) == (100, "train[900:1000]")
    assert made.last_mile is None


@pytest.mark.parametrize(("method", "genome"), [("mega", "layer"), ("cmaes", "model"), ("learned", "channel")])
def test_every_search_can_come_near_to_the_ensemble(
    tiny_sources: tuple[Path, Path], job: Job, tmp_path: Path, method: Any, genome: Any
) -> None:
    """In nats; a population of four of CMA-ES, which does not begin with the sources, may stay behind the best one."""
    made = run(tiny_sources, tmp_path / "out", method=method, search=replace(SEARCH, genome=genome), seed=1)
    sources = job.evaluator.scores([source_alone(k, 2, calibrate=True) for k in range(2)], job.steering)
    assert made.settings["fitness"] == "ensemble"
    assert 0 < min(g.best for g in made.nodes[-1].history) <= max(score.loss for score in sources)


def test_a_killed_search_resumes_to_the_same_recipe(
    tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_sources, tmp_path / "whole")
    calls = []

    def killed(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scores_of(*arguments, **named)

    monkeypatch.setattr(tree, "scores_of", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_sources, tmp_path / "out")
    made = run(tiny_sources, tmp_path / "out")
    assert len(calls) == 3
    assert (made.recipe, made.nodes, made.result.sha256) == (whole.recipe, whole.nodes, whole.result.sha256)


def test_the_best_source_is_controlled_by_the_same_fitness(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    made = run(tiny_sources, tmp_path / "out", control=True)
    assert made.controls[0].name.startswith("search over the best source")
    assert made.controls[0].gain == pytest.approx(made.controls[0].accuracy - made.controls[0].start)
