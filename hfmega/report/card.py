"""Model cards: what a lineage says, in words, tables and figures that the Hub shows.

Names, notes and licenses come from outside: the templates write them only through the filter `inert`.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hfmega import __version__
from hfmega.folder import CARD, CONFIG, EVAL_RESULTS, write_atomically
from hfmega.models.library import Spec, card_facts
from hfmega.phases import duration
from hfmega.report import folding, wording
from hfmega.report.command import command, configuration
from hfmega.report.folding import Folded
from hfmega.report.lineage import ClassEntry, Lineage, Reference, Result
from hfmega.report.markdown import block, code, inert, number, percent, short
from hfmega.report.metadata import eval_results, merge_metadata, source_metadata

if TYPE_CHECKING:  # importing it imports datasets and timm
    from hfmega.evaluation.checkpoint import Evaluation

TEMPLATES: Final = Path(__file__).parent / "templates"
FIGURES: Final = "figures"
# Where a card that is not published loads its weights from, and what stands before the id of one that is.
HERE: Final = {"timm": "local-dir:.", "transformers": "."}
THERE: Final = {"timm": "hf-hub:", "transformers": ""}
CLASSES: Final = 40  # rows of the table of classes


def write(lineage: Lineage, spec: Spec, folder: Path) -> None:
    """Draw the figures and write the model card of a merge into its folder. spec: of the merged model."""
    from hfmega.report import figures

    figures.draw(lineage, folder / FIGURES)
    write_text(lineage, spec, folder)


def write_text(lineage: Lineage, spec: Spec, folder: Path) -> None:
    """Write the card without its figures, and the evaluation result where the dataset is on the Hub."""
    write_atomically(folder / CARD, text(lineage, spec).encode())
    found, path = eval_results(lineage), folder / EVAL_RESULTS
    if found is not None:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, found.encode())


def text(lineage: Lineage, spec: Spec) -> str:
    """The model card of a merge, of nothing but its lineage and its spec."""
    from hfmega.report import figures

    metadata = merge_metadata(lineage, card_facts(spec))
    classes, hidden = shown_classes(lineage.result.per_class)
    return render(
        "merge.md.jinja",
        metadata=metadata.to_yaml(),
        lineage=lineage,
        outputs=spec.classes,
        title=wording.title(lineage),
        verdict=wording.below_title(lineage),
        statistics=wording.statistics(lineage),
        command=command(lineage),
        configuration=configuration(lineage),
        top=top_rows(lineage),
        comparison=comparison_rows(lineage),
        many=len(lineage.sources) > folding.MOST,
        candidates=folding.candidates(lineage),
        license=metadata.license,
        searched=figures.searched(lineage),
        searches=wording.searches(lineage),
        norms=any(reference.kind == "calibrated source" for reference in lineage.references),
        local=[source.name for source in lineage.sources if source.repo_id is None],
        weighted=lineage.weighted,
        classes=classes,
        hidden=hidden,
        **loading(spec, lineage.repo_id),
    )


def shown_classes(entries: Sequence[ClassEntry]) -> tuple[list[ClassEntry], int]:
    """The classes for the table, and how many are left out: of very many those that differ most."""
    if len(entries) <= CLASSES:
        return list(entries), 0
    ranked = sorted(entries, key=lambda entry: -abs(entry.accuracy - entry.best_source))
    return ranked[:CLASSES], len(entries) - CLASSES


def write_source_card(spec: Spec, held_out: "Evaluation | None", folder: Path) -> None:
    """Write the model card of a checkpoint that hfmega trained; `held_out` is None when no images were held out."""
    metadata = source_metadata(spec, held_out)
    text = render(
        "source.md.jinja",
        metadata=metadata.to_yaml(),
        architecture=spec.architecture,
        record=spec.record,
        held_out=held_out,
        version=__version__,
        **loading(spec),
    )
    write_atomically(folder / CARD, text.encode())


def loading(spec: Spec, repo_id: str | None = None) -> dict[str, Any]:
    """What the example of loading depends on: where the weights are, what must be imported, the mode of the images."""
    facts = card_facts(spec)
    place = HERE[facts.snippet] if repo_id is None else f"{THERE[facts.snippet]}{repo_id}"
    return {
        "registered": facts.registered,
        "snippet": facts.snippet,
        "preparation": next(iter(spec.beside), CONFIG),
        "mode": spec.preprocessing.mode,
        "place": place,
        "repo_id": repo_id,
    }


def published_as(repo_id: str, card: str) -> str:
    """A card that no lineage makes again, with the id of its repository in the example of loading."""
    for way, here in HERE.items():
        card = card.replace(f'="{here}"', f'="{THERE[way]}{repo_id}"').replace(
            f'("{here}"', f'("{THERE[way]}{repo_id}"'
        )
    card = card.replace("USER/NAME", repo_id)
    return card.replace(f"\nReplace `{repo_id}` by the name of this repository.\n", "")


def render(template: str, **values: Any) -> str:
    """A card from its template. A value that is missing is an error, not an empty place."""
    return templates(TEMPLATES).get_template(template).render(**values)


@cache
def templates(folder: Path) -> Environment:
    """The templates in a folder, each compiled once in a process."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # cards are Markdown; `inert` escapes
    )
    environment.filters.update(inert=inert, code=code, block=block, number=number, percent=percent, short=short)
    environment.filters.update(count="{:,}".format, listed=wording.listed, duration=duration, small=wording.small)
    return environment


def comparison_rows(lineage: Lineage) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the comparison on the test images: the merged model first, then the references."""
    models: list[tuple[str, Reference | Result | Folded]] = [(wording.row_name(lineage), lineage.result)]
    models += [(wording.spoken(one.name, one.kind), one) for one in folding.shown(lineage.references)]
    rows = [
        [m.name, f"{number(m.lowest)} to {number(m.highest)}", "", ""]
        if isinstance(m, Folded)
        else [name, number(m.accuracy), f"{number(m.interval[0])} to {number(m.interval[1])}", number(m.loss)]
        for name, m in models
    ]
    return ["model", "accuracy", "95 % interval", "loss"], rows


def top_rows(lineage: Lineage) -> list[tuple[str, Reference | Result]]:
    """What a visitor sees first: the merge, the best source, the better ensemble."""
    rows: list[tuple[str, Reference | Result]] = [(wording.row_name(lineage), lineage.result)]
    best = wording.best_reference(lineage)
    if best is not None and (lineage.updates_bn or lineage.held is None or not wording.is_itself(lineage)):
        rows.append((wording.rival_name(lineage, best), best))
    together = [reference for reference in lineage.references if reference.kind == "ensemble"]
    if together:
        better = max(together, key=lambda reference: reference.accuracy)
        rows.append((f"{wording.said(better)}, {len(lineage.sources)} times the cost", better))
    return rows
