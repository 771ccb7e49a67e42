"""report.html: a merge as one page that needs nothing outside itself, of nothing but its lineage.

Names come from outside: the templates escape every value, and what a screen does not show is spelled.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hfmega.errors import printable
from hfmega.folder import CONFIG, LINEAGE, REPORT, write_atomically
from hfmega.hub.pull import pull_merge
from hfmega.models.library import Spec
from hfmega.models.library import read as read_spec
from hfmega.phases import duration
from hfmega.report import card, charts, folding, thumbnails, wording
from hfmega.report.card import loading, shown_classes, top_rows
from hfmega.report.command import command, configuration
from hfmega.report.lineage import Lineage, NodeEntry, read
from hfmega.report.markdown import number, percent, short
from hfmega.report.thumbnails import Disagreement
from hfmega.report.tree_figure import inputs_of

TEMPLATES: Final = card.TEMPLATES / "page"
IMAGES: Final = re.compile(r'<section id="images">.*?</section>\n', re.DOTALL)


def report_of(merge: str, target: Path | None, images: bool = True) -> Path:
    """Make the report of a merge (folder or Hub id) from its lineage; returns its path.

    target: where; by default `report.html` in the folder, or `NAME-report.html` here for a merge on the Hub.
    Raises HfmegaError when there is no merge, or it cannot be read.
    """
    folder = pull_merge(merge)
    here = None if Path(merge).is_dir() else Path(f"{merge.split('@')[0].rpartition('/')[2]}-{REPORT}")
    return write(read(folder / LINEAGE), folder, images, target or here)


def write_again(lineage: Lineage, folder: Path) -> None:
    """Bring the report in a folder up to its lineage, with test images if it had any; without a report do nothing."""
    path = folder / REPORT
    if path.is_file():
        write(lineage, folder, images=bool(IMAGES.search(path.read_text(encoding="utf-8", errors="replace"))))


def write(lineage: Lineage, folder: Path, images: bool = True, target: Path | None = None) -> Path:
    """Write the report of a merge; returns its path. folder: of the merge; target: where, if not into its folder.

    images: show the test images that the merge kept beside it, if it kept any.
    Raises HfmegaError when the config or the images beside the lineage cannot be read.
    """
    shown = thumbnails.read(folder) if images else ()
    path = target or folder / REPORT
    write_atomically(path, text(lineage, read_spec(folder / CONFIG, str(folder)), shown).encode())
    return path


def text(lineage: Lineage, spec: Spec, shown: Sequence[Disagreement] = ()) -> str:
    """The page. spec: of the merged model; shown: test images on which merge and best source disagree."""
    classes, hidden = shown_classes(lineage.result.per_class)
    return (
        templates()
        .get_template("page.html.jinja")
        .render(
            lineage=lineage,
            result=lineage.result,
            outputs=spec.classes,
            title=wording.title(lineage),
            verdict=wording.below_title(lineage),
            statistics=wording.statistics(lineage),
            top=top_rows(lineage),
            comparison=charts.comparison(lineage),
            candidates=folding.candidates(lineage),
            searches=charts.searches(lineage),
            fitness="mean loss" if lineage.settings.get("fitness") == "loss" else "accuracy",
            tree=charts.tree(lineage),
            panels=[(node, inputs_named(lineage, node), terms(lineage, node)) for node in lineage.nodes],
            classes=classes,
            hidden=hidden,
            rival="the source as it is" if lineage.updates_bn else "best source",
            images=shown,
            command=command(lineage),
            configuration=None if lineage.updates_bn else configuration(lineage),
            **loading(spec, lineage.repo_id),
        )
    )


def inputs_named(lineage: Lineage, node: NodeEntry) -> list[tuple[str, str]]:
    """The inputs of a merge: the name of each, and the panel that says more of it."""
    numbers = {one.name: k for k, one in enumerate(lineage.nodes)}
    return [
        (lineage.sources[m].name, f"source-{m}") if isinstance(m, int) else (m, f"merge-{numbers[m]}")
        for m in inputs_of(lineage, node)
    ]


def terms(lineage: Lineage, node: NodeEntry) -> list[tuple[float, str]]:
    """The coefficients of a merge that are not 0, each with the source that it is of."""
    shares = zip(node.recipe.coefficients, lineage.sources, strict=True)
    return [(share, source.name) for share, source in shares if share]


def without_images(page: str) -> str:
    """A report without the part that shows test images."""
    return IMAGES.sub("", page)


@cache
def templates() -> Environment:
    """The parts of the page, each compiled once in a process. A missing value is an error, not an empty place."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=True,
        finalize=shown_as_it_is,
    )
    environment.filters.update(number=number, percent=percent, short=short, count="{:,}".format, points=wording.points)
    environment.filters.update(listed=wording.listed, duration=duration, model=wording.spoken)
    return environment


def shown_as_it_is(value: Any) -> Any:
    """A value of a template with what no screen shows, or what turns a line around, spelled."""
    return printable(value) if type(value) is str else value
