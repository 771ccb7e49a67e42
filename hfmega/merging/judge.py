"""What a merge is shown against: sources, averages, ensembles; and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hfmega.data.images import Split
from hfmega.evaluation.answers import Answers, compare
from hfmega.evaluation.evaluator import Evaluator
from hfmega.merging.run_off import Chosen
from hfmega.report.lineage import Kind, Reference, Result
from hfmega.search.recipe import Recipe, source_alone


@dataclass(frozen=True)
class Rival:
    """A single model that the merge is shown against."""

    name: str
    kind: Kind
    recipe: Recipe


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
    ways = {"ensemble": False, "ensemble, calibrated": True} if evaluator.network.can_calibrate else {"ensemble": False}
    return [
        (name, evaluator.ensemble([source_alone(k, leaves, calibrate) for k in range(leaves)], split))
        for name, calibrate in ways.items()
    ]


def reference(name: str, kind: Kind, judged: Answers) -> Reference:
    """A row of the comparison table."""
    return Reference(name, kind, judged.accuracy, judged.interval, judged.mean_loss)


def judge(
    sha256: str,
    chosen: Chosen,
    merged: Answers,
    single: Sequence[Rival],
    judged: Sequence[Answers],
    trained: bool = False,
) -> Result:
    """The merged model against the best reference that is one model.

    A merge that is the uniform average itself is not compared with itself. A merge that is a source (calibrated or
    not) gains nothing over the sources, and the verdict says so.
    """
    itself = None if trained else chosen.recipe
    others = [(r, a) for r, a in zip(single, judged, strict=True) if r.kind != "average" or r.recipe != itself]
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
