"""Who wins, and against whom it is shown: calibration, the run-off, the references, the verdict.

A search flatters its own winner. Whatever was chosen on some images is judged on others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hfmega.compare import Answers, clearly_lower_loss, compare, pool
from hfmega.data import Split
from hfmega.evaluate import Evaluator
from hfmega.lineage import Candidate, Kind, Reference, Result
from hfmega.recipe import Recipe, centroid, source_alone
from hfmega.search import Searcher

AVERAGE: Final = "average"
SEARCH: Final = "search"
CENTROID: Final = "centroid"
SOUP: Final = "greedy soup"


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


def calibration_pays(evaluator: Evaluator, members: Mapping[str, Recipe], split: Split) -> bool:
    """Whether re-estimated statistics lower the lowest mean loss among the sources and their average.

    Worth 4 to 13 points on sources whose running statistics lag, and a loss on some fine-tunes: both are tried.
    """
    if not evaluator.can_calibrate:
        return False

    def lowest(calibrate: bool) -> float:
        recipes = list(plain_recipes(members, calibrate).values())
        return min(score.loss for score in evaluator.scores(recipes, split))

    return lowest(True) < lowest(False)


def plain_recipes(members: Mapping[str, Recipe], calibrate: bool) -> dict[str, Recipe]:
    """What no search of this run chose: the uniform average of the sources, and each source."""
    sources = {name: replace(recipe, calibrate=calibrate) for name, recipe in members.items()}
    return {AVERAGE: centroid(list(sources.values())), **sources}


def run_off(
    found: Mapping[str, Recipe],
    evaluator: Evaluator,
    members: Mapping[str, Recipe],
    search: Split,
    confirm: Split | None,
) -> Chosen:
    """Choose between what was found on the search images and what needed none.

    found: the search's best (`SEARCH`), the centroid of its last population, inputs of earlier searches, a greedy soup.
    The sources (members: those below this merge, with and without calibration) and their uniform average were chosen
    by nobody: the lowest mean loss on all search and confirm images stands. What was found replaces it only with a
    mean loss on the confirm images that is lower by more than one standard error of the paired difference.
    Without confirm images the search's best is the answer (presets `paper` and `author`).
    """
    best = found[SEARCH]
    if confirm is None:
        return Chosen(SEARCH, best)
    plain = plain_recipes(members, best.calibrate)
    if best.calibrate:
        plain |= {f"{name}, as it is": replace(recipe, calibrate=False) for name, recipe in members.items()}
    challenging: dict[str, Recipe] = {}
    for name, recipe in found.items():
        if recipe not in plain.values() and recipe not in challenging.values():
            challenging[name] = recipe
    recipes = [*plain.values(), *challenging.values()]
    on_search = dict(zip(recipes, evaluator.answers(recipes, search), strict=True))
    on_confirm = dict(zip(recipes, evaluator.answers(recipes, confirm), strict=True))
    everything = {name: pool(on_search[recipe], on_confirm[recipe]) for name, recipe in plain.items()}
    standing = min(everything, key=lambda name: everything[name].mean_loss)
    challengers = {name: on_confirm[recipe] for name, recipe in challenging.items()}
    better = [n for n, a in challengers.items() if clearly_lower_loss(a, on_confirm[plain[standing]])]
    winner = min(better, key=lambda name: challengers[name].mean_loss, default=standing)
    challengers = {f"{standing}, confirm images only": on_confirm[plain[standing]], **challengers}
    candidates = [_candidate(name, judged) for name, judged in (everything | challengers).items()]
    return Chosen(winner, (plain | challenging)[winner], tuple(candidates))


def found_by(searcher: Searcher) -> dict[str, Recipe]:
    """What a search offers to the run-off."""
    return {SEARCH: searcher.best, CENTROID: centroid(searcher.population)}


def greedy_soup(members: Sequence[Recipe], evaluator: Evaluator, images: Split) -> Recipe:
    """From the most accurate source on, each is taken in if the average is then not less accurate.

    (Wortsman et al. 2022, arXiv 2203.05482, recipe 1.) Equal accuracies are ordered by mean loss.
    """
    scores = evaluator.scores(members, images)
    order = sorted(range(len(members)), key=lambda k: (-scores[k].accuracy, scores[k].loss))
    taken, best = [members[order[0]]], scores[order[0]].accuracy
    for k in order[1:]:
        (score,) = evaluator.scores([centroid([*taken, members[k]])], images)
        if score.accuracy >= best:
            taken, best = [*taken, members[k]], score.accuracy
    return centroid(taken)


def _candidate(name: str, judged: Answers) -> Candidate:
    return Candidate(name, len(judged.correct), judged.accuracy, judged.mean_loss)


def rivals(sources: Mapping[str, Recipe], average: Recipe, calibrate: bool, can_calibrate: bool) -> list[Rival]:
    """Each source, each source calibrated, and the uniform average both ways if the merge goes without calibration.

    sources: every leaf, and every source that is itself a merge, as it is; average: that of what the user named.
    """
    single = [Rival(name, "source", replace(recipe, calibrate=False)) for name, recipe in sources.items()]
    if can_calibrate:
        single += [
            Rival(f"{name}, calibrated", "calibrated source", replace(recipe, calibrate=True))
            for name, recipe in sources.items()
        ]
    single.append(Rival("uniform average", "average", replace(average, calibrate=can_calibrate)))
    if can_calibrate and not calibrate:
        single.append(Rival("uniform average, not calibrated", "average", replace(average, calibrate=False)))
    return single


def ensembles(evaluator: Evaluator, leaves: int, split: Split) -> list[tuple[str, Answers]]:
    """The mean probability of all leaves as they are, and of all leaves calibrated."""
    ways = {"ensemble": False, "ensemble, calibrated": True} if evaluator.can_calibrate else {"ensemble": False}
    return [
        (name, evaluator.ensemble([source_alone(k, leaves, calibrate) for k in range(leaves)], split))
        for name, calibrate in ways.items()
    ]


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
