"""Who wins on images that no search saw: calibration, the run-off, the greedy soup.

A search flatters its own winner. Whatever was chosen on some images is judged on others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hfmega.data.images import Split
from hfmega.evaluation.answers import Answers, clearly_lower_loss, pool, tempered
from hfmega.evaluation.evaluator import Evaluator
from hfmega.report.lineage import Candidate
from hfmega.search import Searcher
from hfmega.search.recipe import Recipe, centroid

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


def calibration_pays(evaluator: Evaluator, members: Mapping[str, Recipe], split: Split) -> bool:
    """Whether re-estimated statistics lower the lowest loss among the sources and their average.

    Each is judged at its best temperature: statistics change how sure a network is, and that alone is no reason.
    Worth 4 to 13 points on sources whose running statistics lag, and a loss on some fine-tunes: both are tried. The
    search and its run-off know these recipes afterwards.
    """
    if not evaluator.network.can_calibrate:
        return False

    def lowest(calibrate: bool) -> float:
        recipes = plain_recipes(members, calibrate).values()
        return min(tempered(evaluator.log_probabilities(recipe, split), split.labels).mean_loss for recipe in recipes)

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
    """The mean of the members that are worth having together."""
    return centroid([members[k] for k in soup_members(members, evaluator, images)])


def soup_members(members: Sequence[Recipe], evaluator: Evaluator, images: Split) -> list[int]:
    """From the most accurate source on, each is taken in if the average is then not less accurate.

    (Wortsman et al. 2022, arXiv 2203.05482, recipe 1.) Equal accuracies are ordered by mean loss.
    """
    scores = evaluator.scores(members, images)
    order = sorted(range(len(members)), key=lambda k: (-scores[k].accuracy, scores[k].loss))
    taken, best = [order[0]], scores[order[0]].accuracy
    for k in order[1:]:
        (score,) = evaluator.scores([centroid([members[i] for i in (*taken, k)])], images)
        if score.accuracy >= best:
            taken, best = [*taken, k], score.accuracy
    return taken


def _candidate(name: str, judged: Answers) -> Candidate:
    return Candidate(name, len(judged.correct), judged.accuracy, judged.mean_loss)
