"""The verdict of a merge in words."""

from dataclasses import replace

from hfmega.report.lineage import Lineage
from hfmega.report.markdown import number, short
from hfmega.search.recipe import source_alone, uniform_average


def verdict(lineage: Lineage) -> str:
    """What the merge gained on the test images, what won the run-off if no search did, and the leak if there is one."""
    result, test = lineage.result, lineage.data.splits["test"]
    gain, low, high = (points(value) for value in (result.gain, *result.gain_interval))
    shown = (
        f"{result.verdict}: {number(result.accuracy)} on {short(test.slice)} ({result.total:,} images, "
        f"95 % interval {number(result.interval[0])} to {number(result.interval[1])}), {gain} points [{low}, {high}] "
        f"over the best single model ({result.best_reference}), McNemar {probability(result.p_value)}."
    )
    said = (shown, credit(lineage), without_search(lineage), lineage.leak)
    return " ".join(sentence for sentence in said if sentence)


def credit(lineage: Lineage) -> str | None:
    """How much of the gain comes from the other sources, if there were controls."""
    if not lineage.controls:
        return None
    alone = lineage.controls[0]
    reached = "; ".join(f"{c.name}: {number(c.accuracy)} ({points(c.remainder)} left)" for c in lineage.controls)
    return (
        f"Of the gain of {points(lineage.result.accuracy - alone.start)} points over {alone.source}, "
        f"{points(alone.remainder)} come from the other sources ({reached})."
    )


def points(share: float) -> str:
    """A difference of accuracies in points, with its sign and no negative zero."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"


def probability(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def without_search(lineage: Lineage) -> str | None:
    """The sentence for a result that needed no search: a source, or the uniform average."""
    source = held_source(lineage)
    if source is not None:
        how = "with re-estimated BatchNorm statistics" if lineage.recipe.calibrate else "as it is"
        why = (
            "No merge was shown to be better than a source in the run-off"
            if lineage.candidates
            else "The search ended on a source itself"
        )
        return f"{why}: this folder holds the source {source}, {how}; use that source."
    average = uniform_average(len(lineage.sources), lineage.recipe.calibrate)
    if lineage.result.chosen != "average" and lineage.recipe != average:
        return None
    if not lineage.candidates:
        return "The search ended on the plain uniform average."
    kinds = {reference.name: reference.kind for reference in lineage.references}
    averaged = kinds.get(lineage.result.best_reference) == "average"
    over = "the average with other BatchNorm statistics" if averaged else "the best source"
    return f"The plain uniform average won the run-off: the search added nothing to it, so the gain is over {over}."


def held_source(lineage: Lineage) -> str | None:
    """The name of the source that the result is, if its recipe is that of one source or of one earlier merge alone."""
    count, calibrate = len(lineage.sources), lineage.recipe.calibrate
    known = {source.name: source_alone(k, count, calibrate) for k, source in enumerate(lineage.sources)}
    known |= {node.name: replace(node.recipe, calibrate=calibrate) for node in lineage.nodes if not node.history}
    return next((name for name, recipe in known.items() if recipe == lineage.recipe), None)
