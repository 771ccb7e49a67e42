"""A merge of many sources on one page: the best of a kind are shown, the others in a line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from hfmega.report.lineage import Candidate, Kind, Lineage, Reference

MOST: Final = 8  # of a kind, and of all else: as many are shown one by one
BEST: Final = 5  # of more
KINDS: Final[dict[Kind, str]] = {"source": "", "calibrated source": ", BN re-estimated"}


@dataclass(frozen=True)
class Folded:
    """The references that are left out of a table, in a line. lowest, highest: of their accuracies."""

    name: str
    kind: Kind
    lowest: float
    highest: float


def shown(references: Sequence[Reference]) -> list[Reference | Folded]:
    """The references in their order; of many sources the best, and behind them a line for the others."""
    found: list[Reference | Folded] = []
    for kind in dict.fromkeys(reference.kind for reference in references):
        of_kind = [reference for reference in references if reference.kind == kind]
        if kind not in KINDS or len(of_kind) <= MOST:
            found += of_kind
            continue
        ranked = sorted(of_kind, key=lambda reference: -reference.accuracy)
        best, others = ranked[:BEST], [reference.accuracy for reference in ranked[BEST:]]
        found += [reference for reference in of_kind if reference in best]
        found.append(Folded(f"{len(others)} more sources{KINDS[kind]}", kind, min(others), max(others)))
    return found


def one_by_one(references: Sequence[Reference]) -> tuple[list[Reference], str]:
    """The references that a picture shows, and what it says of the others."""
    rows = shown(references)
    left = [row for row in rows if isinstance(row, Folded)]
    hidden = ", ".join(f"{row.name}: {row.lowest:.4f} to {row.highest:.4f}" for row in left)
    return [row for row in rows if isinstance(row, Reference)], hidden


def candidates(lineage: Lineage) -> tuple[list[Candidate], str]:
    """The rows of the run-off, and what is said of those that are left out.

    Of many candidates that were compared on all images the best are shown, and whoever was kept.
    """
    most = max((candidate.images for candidate in lineage.candidates), default=0)
    plain = [candidate for candidate in lineage.candidates if candidate.images == most]
    if len(plain) <= 2 * MOST:
        return list(lineage.candidates), ""
    best = sorted(plain, key=lambda candidate: candidate.loss)[:BEST]
    kept = [c for c in plain if c in best or c.name == lineage.result.chosen]
    losses = [c.loss for c in plain if c not in kept]
    rows = [c for c in lineage.candidates if c in kept or c.images < most]
    return rows, f"{len(losses)} more, compared on all images: mean loss {min(losses):.4f} to {max(losses):.4f}."


def pruned(lineage: Lineage) -> tuple[Lineage, str]:
    """A lineage of many sources as its last merge of those with the largest coefficients, and a word on the others."""
    coefficients = lineage.recipe.coefficients
    if len(coefficients) <= 2 * MOST:
        return lineage, ""
    ranked = sorted(range(len(coefficients)), key=lambda k: (-abs(coefficients[k]), -lineage.sources[k].accuracy))
    kept, left = sorted(ranked[:MOST]), [coefficients[k] for k in ranked[MOST:]]
    recipe = replace(lineage.recipe, coefficients=tuple(coefficients[k] for k in kept), genome="model", offsets=())
    sources = tuple(lineage.sources[k] for k in kept)
    last = replace(lineage.nodes[-1], inputs=tuple(source.name for source in sources), recipe=recipe, chosen="")
    merges = f", over {len(lineage.nodes)} merges" if len(lineage.nodes) > 1 else ""
    share = f"each \u00d7 {min(left):.4f} to {max(left):.4f}" if any(left) else "left out"
    said = f"and {len(left)} more sources, {share}{merges}"
    return replace(lineage, sources=sources, nodes=(last,), recipe=recipe), said
