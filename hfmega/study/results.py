"""The results of a reproduction, beside what the paper prints: tables as Markdown, CSV and JSON, Figure 2, cards."""

import csv
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

import matplotlib.style
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

from hfmega.evaluation.answers import wilson
from hfmega.folder import PUBLISHED, WEIGHTS
from hfmega.report import card, markdown
from hfmega.report.figures import heading, plain
from hfmega.report.lineage import Lineage
from hfmega.report.markdown import number
from hfmega.report.style import FAINT, LOOKS, RULE, save, sheet
from hfmega.report.wording import points
from hfmega.study.paper import FIGURE2, TABLES

RESULTS: Final = "results"
BRIEF: Final = {"network", "protocol", "best source", "best source, BN re-estimated", "merged", "gain"} | {
    "first generation",
    "last generation",
}


@dataclass(frozen=True)
class Run:
    """One network under one protocol. merges: the lineage of each search seed; folders: where they lie.

    fine_tuned: test accuracy of each merge after the author's fine-tuning; source_fine_tuned: of the best source.
    """

    network: str
    protocol: str
    epochs: int | None
    merges: tuple[Lineage, ...]
    folders: tuple[Path, ...]
    fine_tuned: tuple[float, ...] = ()
    source_fine_tuned: float | None = None


@dataclass(frozen=True)
class Row:
    """A line of Table 1 or 2. Accuracies are on test; those of merges are means over the searches.

    low, high: 95 % interval of `merged`, Wilson's, as if the mean were one model's: it covers the test images only.
    better: in how many of the searches the verdict was `better`; gain: over the best source.
    """

    network: str
    protocol: str
    seeds: tuple[int | None, ...]
    epochs: int | None
    paper_best_source: float | None
    paper_merged: float | None
    best_source: float
    best_source_calibrated: float | None
    uniform_average: float
    ensemble: float
    merged: float
    deviation: float | None
    low: float
    high: float
    gain: float
    searches: int
    better: int
    fine_tuned: float | None
    fine_tuned_deviation: float | None
    source_fine_tuned: float | None
    fitness_images: int
    test_images: int
    leaks: str


@dataclass(frozen=True)
class Curve:
    """A line of Figure 2: the best fitness of the first and the last generation, means over the searches."""

    network: str
    protocol: str
    paper_first: float | None
    paper_last: float | None
    first: float
    last: float
    last_deviation: float | None
    generations: int
    searches: int
    fitness_images: int


def row(run: Run, table: str) -> Row:
    """The line of a run."""
    first, printed = run.merges[0], TABLES[table].get(run.network)
    total = first.result.total
    accuracies = [made.result.accuracy for made in run.merges]
    best = best_of(first)
    low, high = wilson(round(fmean(accuracies) * total), total)
    return Row(
        network=run.network,
        protocol=run.protocol,
        seeds=tuple(entry.seed for entry in first.sources),
        epochs=run.epochs,
        paper_best_source=max(printed.sources) if printed else None,
        paper_merged=printed.merged if printed else None,
        best_source=best["source"],
        best_source_calibrated=best.get("calibrated source"),
        uniform_average=max(r.accuracy for r in first.references if r.name.startswith("uniform average")),
        ensemble=best["ensemble"],
        merged=fmean(accuracies),
        deviation=deviation(accuracies),
        low=low,
        high=high,
        gain=fmean(made.result.gain for made in run.merges),
        searches=len(run.merges),
        better=sum(made.result.verdict == "better" for made in run.merges),
        fine_tuned=fmean(run.fine_tuned) if run.fine_tuned else None,
        fine_tuned_deviation=deviation(run.fine_tuned),
        source_fine_tuned=run.source_fine_tuned,
        fitness_images=steered(first),
        test_images=total,
        leaks="test images steered the search" if first.leak else "",
    )


def curve(run: Run) -> Curve:
    """The line of a run in the table below Figure 2."""
    first, last = FIGURE2.get(run.network, (None, None))
    ends = [(made.nodes[-1].history[0].best, made.nodes[-1].history[-1].best) for made in run.merges]
    return Curve(
        network=run.network,
        protocol=run.protocol,
        paper_first=first,
        paper_last=last,
        first=fmean(start for start, _ in ends),
        last=fmean(end for _, end in ends),
        last_deviation=deviation([end for _, end in ends]),
        generations=len(run.merges[0].nodes[-1].history),
        searches=len(run.merges),
        fitness_images=run.merges[0].data.splits["search"].images,
    )


def rows_of(table: str, runs: Sequence[Run]) -> list[Row] | list[Curve]:
    """The lines of a table, or of the one below the figure."""
    return [curve(run) for run in runs] if table == "figure2" else [row(run, table) for run in runs]


def best_of(made: Lineage) -> dict[str, float]:
    """The highest test accuracy of each kind of reference."""
    worst_first = sorted(made.references, key=lambda reference: reference.accuracy)
    return {reference.kind: reference.accuracy for reference in worst_first}


def steered(made: Lineage) -> int:
    """How many images decided anything in a merge: search and confirm."""
    return sum(made.data.splits[purpose].images for purpose in ("search", "confirm") if purpose in made.data.splits)


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample of at least two."""
    return stdev(values) if len(values) > 1 else None


def write(table: str, runs: Sequence[Run], output: Path) -> Path:
    """Write `results/` of a reproduction: the table, the figure, a card of each row; returns the page."""
    folder = output / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(table, runs)
    if table == "figure2":
        draw_best_fitness({(r.network, r.protocol): r.merges for r in runs}, folder / "figure2.png")
    else:
        for run in runs:
            copy_card(run.folders[0], folder / "cards" / f"{table}-{run.network}-{run.protocol}")
    fields = [asdict(r) for r in rows]
    (folder / f"{table}.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    with (folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(fields[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in f.items()} for f in fields
        )
    page = folder / f"{table}.md"
    columns, cells = spoken(rows)
    text = card.render(
        "results.md.jinja",
        table=table,
        columns=columns,
        cells=cells,
        first=runs[0].merges[0],
        fine_tuned=any(r.fine_tuned for r in runs),
        sigma=next((r.merges[0].settings["mutation_sigma"] for r in runs if r.protocol != "honest"), None),
    )
    page.write_text(text, encoding="utf-8")
    return page


def spoken(rows: Sequence[Row] | Sequence[Curve], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Column names and cells of a table; a column that is empty in every row is left out. brief: for a terminal."""
    cells = [row_cells(r) if isinstance(r, Row) else curve_cells(r) for r in rows]
    columns = [name for name in cells[0] if any(line[name] != "-" for line in cells)]
    columns = [name for name in columns if name in BRIEF] if brief else columns
    return columns, [[line[name] for name in columns] for line in cells]


def row_cells(r: Row) -> dict[str, str]:
    number = markdown.number
    return {
        "network": r.network,
        "protocol": r.protocol,
        "source seeds": ", ".join(map(str, r.seeds)),
        "epochs": str(r.epochs or "-"),
        "paper: best source": number(r.paper_best_source),
        "paper: merged": number(r.paper_merged),
        "best source": number(r.best_source),
        "best source, BN re-estimated": number(r.best_source_calibrated),
        "uniform average": number(r.uniform_average),
        "ensemble": number(r.ensemble),
        "merged": with_deviation(r.merged, r.deviation),
        "95 % interval": f"{number(r.low)} to {number(r.high)}",
        "gain": f"{points(r.gain)} points",
        "better": f"{r.better} of {r.searches}",
        "merged, fine-tuned": with_deviation(r.fine_tuned, r.fine_tuned_deviation),
        "best source, fine-tuned": number(r.source_fine_tuned),
        "fitness images": f"{r.fitness_images:,}",
        "leak": r.leaks or "-",
    }


def curve_cells(c: Curve) -> dict[str, str]:
    number = markdown.number
    return {
        "network": c.network,
        "protocol": c.protocol,
        "paper: first": number(c.paper_first),
        "paper: last": number(c.paper_last),
        "first generation": number(c.first),
        "last generation": with_deviation(c.last, c.last_deviation),
        "generations": str(c.generations),
        "searches": str(c.searches),
        "fitness images": f"{c.fitness_images:,}",
    }


def with_deviation(value: float | None, spread: float | None) -> str:
    return number(value) + ("" if value is None or spread is None else f" ± {spread:.4f}")


def copy_card(merge: Path, target: Path) -> None:
    """The published files of a merge without its weights, which `hfmega replay` makes again."""
    shutil.rmtree(target, ignore_errors=True)
    for pattern in PUBLISHED:
        for path in merge.glob(pattern):
            if path.name != WEIGHTS:
                copied = target / path.relative_to(merge)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copied)


def draw_best_fitness(runs: Mapping[tuple[str, str], Sequence[Lineage]], path: Path) -> None:
    """The paper's Figure 2: a panel for each (network, protocol), a line for each search, the paper's ends dashed."""
    columns = min(3, len(runs))
    rows = math.ceil(len(runs) / columns)
    height = 2.9 * rows
    with matplotlib.style.context("default"):
        figure = sheet(3.4 * columns, height)
        for position, ((network, protocol), searches) in enumerate(runs.items()):
            axes = figure.add_subplot(rows, columns, position + 1)
            heading(axes, f"{network}, {protocol}")
            for made in searches:
                best = [generation.best for generation in made.nodes[-1].history]
                axes.plot(range(1, len(best) + 1), best, color=LOOKS["merged"][0], marker="o", markersize=3, alpha=0.8)
            for printed in FIGURE2.get(network, ()):
                axes.axhline(printed, color=FAINT, linestyle="--", linewidth=1)
            axes.set_xlabel("generation", fontsize=9, color=FAINT)
            axes.set_ylabel("best fitness", fontsize=9, color=FAINT)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%.4f"))
            axes.grid(color=RULE, linewidth=0.6)
            plain(axes)
        figure.subplots_adjust(
            0.62 / columns / 3.4 * 1.15, 0.55 / height, 0.98, 1 - 0.45 / height, wspace=0.35, hspace=0.5
        )
        save(figure, path)
