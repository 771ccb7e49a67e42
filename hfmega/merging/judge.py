"""What a merge is shown against: sources, averages, ensembles; and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from hfmega.data.images import Split
from hfmega.evaluation.answers import Answers, compare, compare_losses
from hfmega.evaluation.evaluator import Evaluator
from hfmega.merging.run_off import SOUP, Chosen, soup_members
from hfmega.report.lineage import ClassEntry, Gain, Kind, Reference, Result
from hfmega.search.recipe import Recipe, centroid, source_alone

OF_SOURCES: Final = ("source", "calibrated source")


@dataclass(frozen=True)
class Rival:
    """A single model that the merge is shown against. members: what a greedy soup is the mean of."""

    name: str
    kind: Kind
    recipe: Recipe
    members: tuple[str, ...] = ()


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


def soup(members: Mapping[str, Recipe], calibrate: bool, evaluator: Evaluator, images: Split) -> list[Rival]:
    """The greedy soup of three sources or more; of two it is one of them, or their average.

    members: what the user named; calibrate: whether the soup was cooked with re-estimated statistics.
    """
    if len(members) < 3:
        return []
    taken = soup_members([replace(r, calibrate=calibrate) for r in members.values()], evaluator, images)
    return [
        soup_of({name: members[name] for name in (list(members)[k] for k in taken)}, evaluator.network.can_calibrate)
    ]


def soup_of(taken: Mapping[str, Recipe], calibrate: bool) -> Rival:
    """A greedy soup as it is shown."""
    mean = centroid([replace(recipe, calibrate=calibrate) for recipe in taken.values()])
    return Rival(SOUP, "average", mean, tuple(taken))


def ensembles(evaluator: Evaluator, leaves: int, split: Split) -> list[tuple[str, Answers]]:
    """The mean probability of all leaves as they are, and of all leaves calibrated."""
    ways = {"ensemble": False, "ensemble, calibrated": True} if evaluator.network.can_calibrate else {"ensemble": False}
    return [
        (name, evaluator.ensemble([source_alone(k, leaves, calibrate) for k in range(leaves)], split))
        for name, calibrate in ways.items()
    ]


def reference(name: str, kind: Kind, judged: Answers, members: tuple[str, ...] = ()) -> Reference:
    """A row of the comparison table."""
    return Reference(name, kind, judged.accuracy, judged.interval, judged.mean_loss, members)


def judge(
    sha256: str,
    chosen: Chosen,
    merged: Answers,
    single: Sequence[Rival],
    judged: Sequence[Answers],
    trained: bool = False,
) -> Result:
    """The merged model against the best source, as it is or with BN re-estimated, and against plain averaging.

    trained: a last mile replaced the weights of the recipe, so that the result is none of the rivals.
    """
    recipe = None if trained else chosen.recipe
    best, best_answers = best_of(single, judged)
    over_source = gain_over(best, best_answers, recipe, merged)
    return Result(
        sha256=sha256,
        accuracy=merged.accuracy,
        interval=merged.interval,
        loss=merged.mean_loss,
        correct=int(merged.correct.sum()),
        total=len(merged.correct),
        chosen=chosen.name,
        best_reference=best.name,
        gain=over_source.gain,
        gain_interval=over_source.gain_interval,
        p_value=over_source.p_value,
        verdict=compare(merged, best_answers).verdict if over_source.p_value is not None else "no difference shown",
        loss_gain=over_source.loss_gain,
        loss_gain_interval=over_source.loss_gain_interval,
        over_average=over_average(recipe, merged, single, judged),
    )


def best_of(single: Sequence[Rival], judged: Sequence[Answers]) -> tuple[Rival, Answers]:
    """The source, as it is or with BN re-estimated, that is best on these images."""
    sources = [(r, a) for r, a in zip(single, judged, strict=True) if r.kind in OF_SOURCES]
    return max(sources, key=lambda pair: pair[1].accuracy)


def over_average(
    recipe: Recipe | None, merged: Answers, single: Sequence[Rival], judged: Sequence[Answers]
) -> Gain | None:
    """The gain over the better of uniform average and greedy soup; None if the merge is one of them, or without any."""
    averages = [(r, a) for r, a in zip(single, judged, strict=True) if r.kind == "average"]
    if not averages or (recipe is not None and any(same_blend(recipe, rival.recipe) for rival, _ in averages)):
        return None
    best, answers = max(averages, key=lambda pair: pair[1].accuracy)
    return gain_over(best, answers, recipe, merged)


def same_blend(first: Recipe, second: Recipe) -> bool:
    """Whether two recipes differ at most in their BatchNorm statistics."""
    return replace(first, calibrate=False) == replace(second, calibrate=False)


def gain_over(rival: Rival, answers: Answers, recipe: Recipe | None, merged: Answers) -> Gain:
    """The gain over one model; none, and no p-value, over itself."""
    if rival.recipe == recipe:
        return Gain(rival.name, 0.0, (0.0, 0.0), None, 0.0, (0.0, 0.0))
    difference, losses = compare(merged, answers), compare_losses(merged, answers)
    loss_gain, loss_interval = losses or (None, None)
    return Gain(rival.name, difference.gain, difference.interval, difference.p_value, loss_gain, loss_interval)


def by_class(names: Sequence[str], labels: Tensor, merged: Answers, best: Answers) -> tuple[ClassEntry, ...]:
    """Accuracy of the merge and of the best source in each class that has test images. labels: int64 [images]."""
    of = labels.numpy()
    return tuple(
        ClassEntry(
            str(names[c] if c < len(names) else c),
            int((of == c).sum()),
            float(merged.correct[of == c].mean()),
            float(best.correct[of == c].mean()),
        )
        for c in labels.unique().tolist()
    )
