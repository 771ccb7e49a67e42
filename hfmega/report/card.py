"""Model cards: what a lineage says, in words, tables and figures that the Hub shows.

Names, notes and licenses come from outside: the templates write them only through the filter `inert`.
"""

from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hfmega import __version__
from hfmega.evaluation.checkpoint import Evaluation
from hfmega.folder import CARD, write_atomically
from hfmega.models.library import Spec, card_facts
from hfmega.report.command import command
from hfmega.report.lineage import Lineage, Reference, Result
from hfmega.report.markdown import code, inert, number, short
from hfmega.report.metadata import merge_metadata, source_metadata
from hfmega.report.wording import verdict
from hfmega.settings import METHODS

TEMPLATES: Final = Path(__file__).parent / "templates"
FIGURES: Final = "figures"


def write(lineage: Lineage, spec: Spec, folder: Path) -> None:
    """Draw the figures and write the model card of a merge into its folder. spec: of the merged model."""
    from hfmega.report import figures

    figures.draw(lineage, folder / FIGURES)
    write_atomically(folder / CARD, text(lineage, spec).encode())


def text(lineage: Lineage, spec: Spec) -> str:
    """The model card of a merge, of nothing but its lineage and its spec."""
    from hfmega.report import figures

    metadata = merge_metadata(lineage, card_facts(spec))
    return render(
        "merge.md.jinja",
        metadata=metadata.to_yaml(),
        lineage=lineage,
        classes=spec.classes,
        verdict=verdict(lineage),
        command=command(lineage),
        comparison=comparison_rows(lineage),
        license=metadata.license,
        searched=figures.searched(lineage),
        methods=METHODS,
        statistics=any(reference.kind == "calibrated source" for reference in lineage.references),
        **loading(spec),
    )


def write_source_card(spec: Spec, held_out: Evaluation | None, folder: Path) -> None:
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


def loading(spec: Spec) -> dict[str, Any]:
    """What the example of loading depends on: whether hfmega must be imported, and the mode of the images."""
    return {"registered": card_facts(spec).registered, "mode": spec.preprocessing.mode}


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
    environment.filters.update(inert=inert, code=code, number=number, count="{:,}".format, short=short)
    return environment


def comparison_rows(lineage: Lineage) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the comparison on the test images: the merged model first, then every reference."""
    models: list[tuple[str, Reference | Result]] = [("merged", lineage.result)]
    models += [(reference.name, reference) for reference in lineage.references]
    rows = [
        [name, number(m.accuracy), f"{number(m.interval[0])} to {number(m.interval[1])}", number(m.loss)]
        for name, m in models
    ]
    return ["model", "accuracy", "95 % interval", "loss"], rows
