"""The verdict of a merge in words, and the names of models as a person reads them."""

from collections.abc import Sequence

from hfmega.report.lineage import FROM_BEST_SOURCE, SELF_TAUGHT, Control, Gain, Kind, Lineage, Reference
from hfmega.report.markdown import number, percent
from hfmega.search.recipe import uniform_average
from hfmega.settings import METHODS

RE_ESTIMATED = "BN re-estimated"


def verdict(lineage: Lineage) -> str:
    """What the merge gained on the test images, for the console: without a heading above it."""
    kept = [f"{title(lineage)}."] if lineage.held is not None else []
    return " ".join([*kept, below_title(lineage)])


def below_title(lineage: Lineage) -> str:
    """What the merge gained on the test images, over plain averaging too, and what to do; the leak if there is one."""
    said = (
        headline(lineage),
        advice(lineage),
        beside_average(lineage),
        credit(lineage),
        lineage.leak,
    )
    return " ".join(sentence for sentence in said if sentence)


def headline(lineage: Lineage) -> str:
    """The merge against the best source on the same images."""
    result, best = lineage.result, best_reference(lineage)
    if lineage.held is not None and is_itself(lineage) and not lineage.updates_bn:
        low, high = result.interval
        return (
            f"It is the best source on the test images too: {percent(result.accuracy)} "
            f"(95 % interval {percent(low, bare=True)} to {percent(high)}, {result.total:,} images)."
        )
    as_it_is = "the source as it is" if lineage.updates_bn else None
    opening = {
        "better": f"Better than {as_it_is or each(best)}",
        "worse": f"Worse than {as_it_is or its_best(best)}",
        "no difference shown": f"No difference shown to {as_it_is or its_best(best)}",
    }[result.verdict]
    return f"{opening}: {percent(result.accuracy)} against {percent(accuracy_of(best))} ({measured(lineage)})."


def measured(lineage: Lineage) -> str:
    """The gain in points with its interval, and on how many images."""
    result = lineage.result
    low, high = (points(value, 1, sign=False) for value in result.gain_interval)
    return f"{points(result.gain, 1)} points, 95 % interval {low} to {high}, {result.total:,} test images"


def title(lineage: Lineage) -> str:
    """What the result is, in a line."""
    names = [source.name for source in lineage.weighted]
    if lineage.updates_bn:
        return f"{names[0]} with re-estimated BatchNorm statistics"
    if lineage.held is not None:
        return f"No merge of {listed(tried(lineage))} beat {lineage.held}"
    if lineage.trained and lineage.last_mile is not None:
        taught = f"the ensemble of {len(lineage.sources)} checkpoints" if lineage.last_mile.distill else "labels"
        return f"{lineage.architecture}, taught by {taught}"
    if len(names) == 1:
        return f"{names[0]}, changed by the search"
    return f"{lineage.architecture}, merged from {len(names)} checkpoints"


def taught(lineage: Lineage) -> str | None:
    """Who taught the result after the merge, if anybody did."""
    if not lineage.trained or lineage.last_mile is None:
        return None
    return f"taught by {'the ensemble' if lineage.last_mile.distill else 'labels'}"


def row_name(lineage: Lineage) -> str:
    """What the result is called in tables and figures."""
    if lineage.updates_bn:
        return f"{lineage.sources[0].name}, {RE_ESTIMATED}"
    if lineage.held is None:
        return "this merge"
    return f"kept: {lineage.held}" + (f", {RE_ESTIMATED}" if lineage.recipe.calibrate else "")


def rival_name(lineage: Lineage, best: Reference) -> str:
    """What the verdict is over, as a row below the result."""
    if lineage.updates_bn:
        return f"{said(best)} as it is"
    return said(best) if best.kind == "average" else f"best source: {said(best)}"


def tried(lineage: Lineage) -> list[str]:
    """What the last merge could have been of: the sources as the user named them."""
    base = lineage.settings.get("base")
    leaves = [source.name for source in lineage.sources]
    return leaves[:-1] if base and len(leaves) > 2 else leaves


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names as a person says them; of many only the first."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def spoken(name: str, kind: Kind | str) -> str:
    """The name of a reference as a person reads it: "calibrated" means temperature scaling to most."""
    if kind in ("calibrated source", "ensemble") and name.endswith(", calibrated"):
        return f"{name.removesuffix(', calibrated')}, {RE_ESTIMATED}"
    if kind == "average" and name.endswith(", not calibrated"):
        return f"{name.removesuffix(', not calibrated')}, BN not re-estimated"
    return name


def said(reference: Reference) -> str:
    """The name of a reference as a person reads it."""
    return spoken(reference.name, reference.kind)


def best_reference(lineage: Lineage) -> Reference | None:
    """What the verdict is over. A lineage that was written by hand may name nothing that is there."""
    return next((r for r in lineage.references if r.name == lineage.result.best_reference), None)


def accuracy_of(best: Reference | None) -> float:
    return best.accuracy if best else float("nan")


def each(best: Reference | None) -> str:
    averaged = best is not None and best.kind == "average"  # of an older lineage
    return "each of its sources and their average" if averaged else "each of its sources"


def its_best(best: Reference | None) -> str:
    """The best source by name."""
    if best is None:
        return "the best source"
    return said(best) if best.kind == "average" else f"the best source, {said(best)}"


def is_itself(lineage: Lineage) -> bool:
    """Whether the result is the best source itself; older lineages gave it a p-value of 1 and an interval of 0."""
    result = lineage.result
    return result.p_value is None or (result.gain == 0 and tuple(result.gain_interval) == (0.0, 0.0))


def advice(lineage: Lineage) -> str | None:
    """What to use. It follows the test images: where the run-off chose what is worse on them, it says so."""
    result, best = lineage.result, best_reference(lineage)
    if lineage.updates_bn:
        return f"Use {lineage.sources[0].name} as it is." if result.verdict == "worse" else None
    if result.verdict == "worse" and best is not None:
        use = f"use {said(best)}"
        if not lineage.candidates:
            return f"{use[0].upper()}{use[1:]} instead."
        return (
            f"The run-off and the test images disagree: the run-off, on {judged_on(lineage)} images, kept what is "
            f"worse here. More of them (--fitness-images) decide more surely; until then {use}."
        )
    if lineage.held is not None:
        how = f"with {RE_ESTIMATED.replace('BN', 'BatchNorm statistics')}" if lineage.recipe.calibrate else "as it is"
        return f"This folder holds {lineage.held} {how}."
    if is_average(lineage):
        return "It is the plain uniform average: the search added nothing to it." if searches(lineage) else None
    return None


def judged_on(lineage: Lineage) -> str:
    """On how many images the run-off decided."""
    return f"{max(candidate.images for candidate in lineage.candidates):,}"


def searches(lineage: Lineage) -> bool:
    method = lineage.settings.get("method", "mega")
    return isinstance(method, str) and method in METHODS and METHODS[method].searches


def is_average(lineage: Lineage) -> bool:
    average = uniform_average(len(lineage.sources), lineage.recipe.calibrate)
    return lineage.result.chosen == "average" or lineage.recipe == average


def beside_average(lineage: Lineage) -> str | None:
    """Whether the search was worth it: the gain over the better of uniform average and greedy soup."""
    over = lineage.result.over_average
    if over is None or lineage.held is not None:
        return None
    low, high = (points(value, 1, sign=False) for value in over.gain_interval)
    return f"Over plain averaging ({over.over}): {points(over.gain, 1)} points (95 % interval {low} to {high})."


def statistics(lineage: Lineage) -> str:
    """The numbers behind the verdict, in one line."""
    result = lineage.result
    low, high = result.interval
    best = best_reference(lineage)
    found = [
        f"Accuracy {number(result.accuracy)} (95 % interval {number(low)} to {number(high)}), mean loss "
        f"{number(result.loss)} nats."
    ]
    itself = lineage.held is not None and is_itself(lineage)
    if best is not None and result.p_value is not None and not itself:
        gain = Gain(
            said(best), result.gain, result.gain_interval, result.p_value, result.loss_gain, result.loss_gain_interval
        )
        found.append(compared(gain))
    if result.over_average is not None:
        found.append(compared(result.over_average))
    return " ".join(found)


def compared(gain: Gain) -> str:
    """One paired comparison."""
    low, high = (points(value) for value in gain.gain_interval)
    text = f"Over {gain.over}: {points(gain.gain)} points [{low}, {high}]"
    text += "" if gain.p_value is None else f", McNemar {probability(gain.p_value)}"
    if gain.loss_gain is not None and gain.loss_gain_interval is not None:
        start, end = gain.loss_gain_interval
        text += f", mean loss {-gain.loss_gain:+.4f} nats [{-end:+.4f}, {-start:+.4f}]"
    return f"{text}."


def credit(lineage: Lineage) -> str | None:
    """What the best source alone reaches with the same budget, if there were controls, and what is left of a gain."""
    controls = [control for control in lineage.controls if control.name not in (FROM_BEST_SOURCE, SELF_TAUGHT)]
    beside = beside_last_mile(lineage)
    if not controls:
        return beside
    reached = ", the ".join(f"{c.name} reaches {percent(c.accuracy)}" for c in controls)
    left = f"With the same images and budget, the {reached}."
    if lineage.result.verdict == "better" and all(c.remainder > 0 for c in controls):
        least = points(min(lineage.result.gain, *(c.remainder for c in controls)), 1)
        left += f" At least {least} points come from the other sources."
    return " ".join(filter(None, [beside, left]))


def beside_last_mile(lineage: Lineage) -> str | None:
    """What the same training gives without the other sources, and without the merge."""
    known = {control.name: control for control in lineage.controls}
    said = []
    if SELF_TAUGHT in known:
        one = known[SELF_TAUGHT]
        said.append(
            "Taught by its own answers instead of those of all sources, the same start reaches "
            f"{percent(one.accuracy)}: {remainder(one, 'the other sources')}."
        )
    if FROM_BEST_SOURCE in known:
        one = known[FROM_BEST_SOURCE]
        said.append(
            f"The same training from the best source, {one.source}, reaches {percent(one.accuracy)}: "
            f"{remainder(one, 'the merge before it')}."
        )
    return " ".join(said) or None


def remainder(control: Control, what: str) -> str:
    """What a merge has over a control, and what it owes that to."""
    if control.remainder_interval[0] > 0:
        return f"{points(control.remainder, 1)} points come from {what}"
    return f"no gain from {what} is shown"


def points(share: float, decimals: int = 2, sign: bool = True) -> str:
    """A difference of accuracies in points, with its sign and no negative zero."""
    return f"{round(100 * share, decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"


def probability(p: float) -> str:
    return f"p {small(p)}" if p < 0.0001 else f"p = {small(p)}"


def small(p: float) -> str:
    """A probability as a cell of a table."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
