"""Who wins, and against whom it is shown: calibration, the run-off, the references, the verdict.

A search flatters its own winner. Whatever was chosen on some images is judged on others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from hfmega.compare import Answers, answers, clearly_lower_loss, compare, pool
from hfmega.data import Split
from hfmega.evaluate import Evaluator
from hfmega.lineage import Candidate, Kind, Reference, Result
from hfmega.recipe import Recipe, centroid, source_alone, uniform_average
from hfmega.search import Searcher

AVERAGE: Final = "average"
SEARCH: Final = "search"
CENTROID: Final = "centroid"


@dataclass(frozen=True)
class Chosen:
    """The winner of the run-off, and everything that stood in it."""

    name: str
    recipe: Recipe
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Rival:
    """A single model that the merge is shown against."""

    name: str
    kind: Kind
    recipe: Recipe


def calibration_pays(evaluator: Evaluator, sources: int, split: Split) -> bool:
    """Whether re-estimated statistics lower the lowest mean loss among the sources and their average.

    Worth 4 to 13 points on sources whose running statistics lag, and a loss on some fine-tunes: both are tried.
    """
    if not evaluator.can_calibrate:
        return False

    def lowest(calibrate: bool) -> float:
        return min(score.loss for score in evaluator.scores(plain_recipes(sources, calibrate), split))

    return lowest(True) < lowest(False)


def plain_recipes(sources: int, calibrate: bool) -> list[Recipe]:
    """What no search chose: the uniform average and each source."""
    return [uniform_average(sources, calibrate), *(source_alone(k, sources, calibrate) for k in range(sources))]


def run_off(
    searcher: Searcher, evaluator: Evaluator, names: Sequence[str], search: Split, confirm: Split | None
) -> Chosen:
    """Choose between what the search found and what needed no search.

    The uniform average and the sources (with and without calibration) were chosen by nobody: the lowest mean loss on
    all search and confirm images stands. The search's best, or the centroid of its last population, replaces it only
    with a mean loss on the confirm images that is lower by more than one standard error of the paired difference.
    Without confirm images the search's best is the answer (presets `paper` and `author`).
    """
    if confirm is None:
        return Chosen(SEARCH, searcher.best)
    calibrate = searcher.best.calibrate
    plain = dict(zip([AVERAGE, *names], plain_recipes(len(names), calibrate), strict=True))
    if calibrate:
        plain |= {f"{name}, as it is": source_alone(k, len(names)) for k, name in enumerate(names)}
    found = {SEARCH: searcher.best, CENTROID: centroid(searcher.population)}
    found = {name: recipe for name, recipe in found.items() if recipe not in plain.values()}
    recipes = [*plain.values(), *found.values()]
    on_search = _answers(evaluator, recipes, search)
    on_confirm = _answers(evaluator, recipes, confirm)
    everything = {name: pool(on_search[recipe], on_confirm[recipe]) for name, recipe in plain.items()}
    standing = min(everything, key=lambda name: everything[name].mean_loss)
    challengers = {name: on_confirm[recipe] for name, recipe in found.items()}
    better = [n for n, a in challengers.items() if clearly_lower_loss(a, on_confirm[plain[standing]])]
    winner = min(better, key=lambda name: challengers[name].mean_loss, default=standing)
    challengers = {f"{standing}, confirm images only": on_confirm[plain[standing]], **challengers}
    candidates = [_candidate(name, judged) for name, judged in (everything | challengers).items()]
    return Chosen(winner, (plain | found)[winner], tuple(candidates))


def _answers(evaluator: Evaluator, recipes: Sequence[Recipe], split: Split) -> dict[Recipe, Answers]:
    predictions = evaluator.predictions(recipes, split)
    return {recipe: answers(p, split.labels) for recipe, p in zip(recipes, predictions, strict=True)}


def _candidate(name: str, judged: Answers) -> Candidate:
    return Candidate(name, len(judged.correct), judged.accuracy, judged.mean_loss)


def rivals(names: Sequence[str], calibrate: bool, can_calibrate: bool) -> list[Rival]:
    """Each source, each source calibrated, and the uniform average both ways if the merge goes without calibration."""
    count = len(names)
    single = [Rival(name, "source", source_alone(k, count)) for k, name in enumerate(names)]
    if can_calibrate:
        single += [
            Rival(f"{n}, calibrated", "calibrated source", source_alone(k, count, True)) for k, n in enumerate(names)
        ]
    single.append(Rival("uniform average", "average", uniform_average(count, can_calibrate)))
    if can_calibrate and not calibrate:
        single.append(Rival("uniform average, not calibrated", "average", uniform_average(count)))
    return single


def ensembles(single: Sequence[Rival], predictions: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """The mean probability of all sources as they are, and of all sources calibrated: log-probabilities each."""
    found = []
    for kind, name in (("source", "ensemble"), ("calibrated source", "ensemble, calibrated")):
        members = [p for rival, p in zip(single, predictions, strict=True) if rival.kind == kind]
        if members:
            found.append((name, torch.stack(members).logsumexp(dim=0) - math.log(len(members))))
    return found


def reference(name: str, kind: Kind, judged: Answers) -> Reference:
    """A row of the comparison table."""
    return Reference(name, kind, judged.accuracy, judged.interval, judged.mean_loss)


def judge(sha256: str, chosen: Chosen, merged: Answers, single: Sequence[Rival], judged: Sequence[Answers]) -> Result:
    """The merged model against the best reference that is one model.

    A merge that is the uniform average itself is not compared with itself. A merge that is a source (calibrated or
    not) gains nothing over the sources, and the verdict says so.
    """
    others = [(r, a) for r, a in zip(single, judged, strict=True) if r.kind != "average" or r.recipe != chosen.recipe]
    best, best_answers = max(others, key=lambda pair: pair[1].accuracy)
    difference = compare(merged, best_answers)
    return Result(
        sha256=sha256,
        accuracy=merged.accuracy,
        interval=merged.interval,
        loss=merged.mean_loss,
        correct=int(merged.correct.sum()),
        total=len(merged.correct),
        chosen=chosen.name,
        best_reference=best.name,
        gain=difference.gain,
        gain_interval=difference.interval,
        p_value=difference.p_value,
        verdict=difference.verdict,
    )
