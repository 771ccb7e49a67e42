"""`make quality`: every method on every family of checkpoints, on the same images; writes cards/quality.

Sources that are not given with --sources are trained, but for those of `make families`. What is on disk is kept, so the
same command goes on. The page shows a picture for each kind of family; every number is in quality.csv and quality.json.
"""

import argparse
import csv
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, Literal

import matplotlib.style
from families import KINDS
from matplotlib.axes import Axes

from hfmega.data.dataset import open_dataset, rows_of
from hfmega.data.images import load_split
from hfmega.errors import HfmegaError
from hfmega.evaluation.answers import Answers, answers, compare
from hfmega.evaluation.checkpoint import predict_checkpoint
from hfmega.evaluation.processes import processes
from hfmega.folder import LINEAGE, WEIGHTS
from hfmega.hub import pull
from hfmega.merging.merge import merge_all
from hfmega.output import Output
from hfmega.report import card, figures, markdown, style, wording
from hfmega.report.lineage import FROM_BEST_SOURCE, SELF_TAUGHT, Lineage
from hfmega.settings import DEFAULT, METHODS, LastMileSettings, MergeSettings, SplitRequest
from hfmega.study.results import best_of
from hfmega.study.train import TrainSettings, train

SEEDS: Final = 3
DEFAULT_ROW: Final = "mega"
SEARCH: Final = replace(DEFAULT, population=8, generations=5)
IMAGES: Final = 3000
CALIBRATION_START: Final = 5000  # row of train: what lies before is held out
UNLABELLED: Final = "train[5000:]"  # for the last mile: all images that sources were trained on
FAR: Final = 8.0  # points below the best source: what lies there is an arrow at the edge of the picture
LEAST: Final = 0.003  # between best source and ensemble: below it there is no way to go a share of


@dataclass(frozen=True)
class Ask:
    """A row that needs a search, and in what it differs from `hfmega merge --method METHOD`.

    aligned: independent sources are aligned by activations. calibration: so many images. last: what a last mile is
    taught by.
    """

    method: str
    genome: str = "model"
    fitness: str = "accuracy"
    aligned: bool = False
    based: bool = False
    control: bool = False
    confirm_share: float = 0.4
    calibration: int = 500
    last: tuple[Literal["distill", "fine_tune"], ...] = ()


SEARCHED: Final = {
    DEFAULT_ROW: Ask("mega", control=True),
    "mega, aligned": Ask("mega", aligned=True, control=True),
    **{name: Ask(name) for name, facts in METHODS.items() if facts.searches and name != "mega"},
    "learned, by channel": Ask("learned", genome="channel", aligned=True, control=True),
}
# What steers a search, and what follows it. The controls of the default have the same images and budget.
FITNESSES: Final = {
    "mega, by loss": Ask("mega", fitness="loss"),
    "mega, by ensemble": Ask("mega", fitness="ensemble"),
    "learned, by ensemble": Ask("learned", fitness="ensemble"),
}
MILES: Final = {
    "mega, --distill": Ask("mega", last=("distill",)),
    "mega, --fine-tune": Ask("mega", last=("fine_tune",)),
    "mega, --distill --fine-tune": Ask("mega", last=("distill", "fine_tune")),
}
BASED: Final = tuple(name for name, facts in METHODS.items() if facts.base == "needed")
OUTSIDE: Final = {
    f"{method}, with base": Ask(method, based=True)
    for method, facts in METHODS.items()
    if facts.base == "one more input"
}
# What keeps a search from fooling itself, one change at a time; not on every family.
VARIED: Final = {
    "mega, no run-off": Ask("mega", confirm_share=0.0),
    "mega, confirm 20 %": Ask("mega", confirm_share=0.2),
    "mega, confirm 60 %": Ask("mega", confirm_share=0.6),
    "mega, by channel": Ask("mega", genome="channel"),
    "mega, 100 calibration images": Ask("mega", calibration=100),
    "mega, 2000 calibration images": Ask("mega", calibration=2000),
}
EVERY: Final = SEARCHED | FITNESSES | MILES | OUTSIDE | VARIED


@dataclass(frozen=True)
class Branch:
    """How a source is trained: from another one, or from scratch."""

    epochs: int
    seed: int
    learning_rate: float = 0.01
    init: str | None = None


@dataclass(frozen=True)
class Family:
    """Sources that are merged together. base: what they started from; tree: as for `hfmega merge`.

    varied: whether the default is also tried with other settings.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    base: str | None = None
    tree: str = "pairs"
    varied: bool = False


EIGHT: Final = tuple(f"resnet8-s{seed}" for seed in range(44, 52))
TRUNK: Final = "resnet8-s44"
BRANCHES: Final = {
    **{name: Branch(8, seed) for seed, name in enumerate(EIGHT, 44)},
    **{f"resnet20-s{seed}": Branch(3, seed) for seed in (44, 45)},
    **{f"{TRUNK}-b{seed}": Branch(4, seed, init=TRUNK) for seed in (61, 62, 63, 64)},
    f"{TRUNK}-b71": Branch(1, 71, init=TRUNK),
    f"{TRUNK}-b72": Branch(2, 72, 0.001, TRUNK),
    f"{TRUNK}-b73": Branch(1, 73, 0.3, TRUNK),  # ruined on purpose: thirty times the learning rate
    **{f"resnet20-s44-b{seed}": Branch(2, seed, init="resnet20-s44") for seed in (61, 62)},
}
FAMILIES: Final = (
    Family("trunk-pair", "one trunk", ("resnet8-s44-b61", "resnet8-s44-b62"), TRUNK, varied=True),
    Family("trunk-four", "one trunk", tuple(f"resnet8-s44-b{k}" for k in (61, 62, 63, 64)), TRUNK),
    Family("unequal-pair", "unequal merit", ("resnet8-s44-b61", "resnet8-s44-b71"), TRUNK),
    Family("unequal-four", "unequal merit", tuple(f"resnet8-s44-b{k}" for k in (61, 71, 72, 73)), TRUNK, varied=True),
    Family("independent-44-45", "independent", EIGHT[:2], varied=True),
    Family("independent-46-47", "independent", EIGHT[2:4]),
    Family("independent-48-49", "independent", EIGHT[4:6]),
    Family("independent-50-51", "independent", EIGHT[6:]),
    Family("resnet20-trunk-pair", "one trunk", ("resnet20-s44-b61", "resnet20-s44-b62"), "resnet20-s44"),
    Family("resnet20-independent", "independent", ("resnet20-s44", "resnet20-s45")),
    Family("tree-of-8", "independent", EIGHT),
    Family(
        "effnet-fine-tunes",
        "one pretrained start",
        ("effnet-ft1", "effnet-ft2", "effnet-ft4"),
        "effnet-trunk",
        tree="flat",
    ),
    Family("done-independent", "independent", KINDS["independent"]),
    Family("done-branches", "one trunk", KINDS["branches"], "trunk"),
    Family(
        "done-fine-tunes",
        "one pretrained start",
        KINDS["fine-tunes"],
        "effnet-trunk",
        tree="flat",
    ),
)


@dataclass(frozen=True)
class Row:
    """One method on one family. Accuracies are on test, but for `fitness`; means over the search seeds.

    gain, low, high, p_value: of the median search, over the best single model; ahead, ahead_low, ahead_high: what the
    median search of the default has over this method, image by image. The next four are controls: the best source
    alone after the same search, fine-tuned, and after the same last mile; the start of the last mile, taught by itself.
    remainder: what the median search has over the best control. start: before the last mile. note: how it was measured.
    """

    family: str
    kind: str
    method: str
    searches: int
    fitness: float
    test: float
    deviation: float | None
    over_source: float
    over_calibrated: float
    gain: float
    low: float
    high: float
    p_value: float
    forward_passes: int
    seconds: float
    ahead: float
    ahead_low: float
    ahead_high: float
    search_alone: float | None = None
    fine_tuning: float | None = None
    same_mile: float | None = None
    self_taught: float | None = None
    remainder: float | None = None
    remainder_low: float | None = None
    remainder_high: float | None = None
    start: float | None = None
    note: str = ""


def methods_of(family: Family) -> list[str]:
    """The default first; independent sources also aligned, and several ways outside the hull where there is a base."""
    searched = [row for row in SEARCHED if family.kind == "independent" or row != "mega, aligned"]
    pair = ["slerp"] if len(family.sources) == 2 else []
    outside = list(OUTSIDE) if family.base else []
    based = BASED if family.base else ()
    varied = list(VARIED) if family.varied else []
    seen = [name for name, facts in METHODS.items() if facts.images]
    return [*searched, *FITNESSES, *MILES, *outside, "greedy-soup", "average", *pair, *seen, *based, *varied]


def asked(family: Family, method: str, places: dict[str, str], arguments: argparse.Namespace) -> list[MergeSettings]:
    """The merges of one row."""
    count, how = len(family.sources), EVERY.get(method, Ask(method))
    base = family.base if how.based or method in BASED else None
    # The sum of task vectors is scaled to a step of 1.3 beyond their mean (task arithmetic) or to their mean (DARE).
    scale = {"task-arithmetic": 1.3 / count, "dare-linear": 1 / count}.get(method, 1.0)
    name = method.replace(", ", "-").replace(" ", "-").replace("%", "percent")
    return [
        MergeSettings(
            sources=tuple(places[name] for name in family.sources),
            output=arguments.output / "merges" / family.name / f"{name}-{seed}",
            dataset=arguments.dataset,
            splits=SplitRequest(
                fitness_images=IMAGES,
                calibration=f"train[{CALIBRATION_START}:{CALIBRATION_START + how.calibration}]",
                confirm_share=how.confirm_share,
                distill=UNLABELLED if "distill" in how.last else None,
            ),
            last=last_mile_of(how, arguments),
            tree=family.tree,  # type: ignore[arg-type]
            method=how.method,  # type: ignore[arg-type]
            base=base and places[base],
            scale=scale,
            align="activations" if how.aligned and family.kind == "independent" else "none",
            search=replace(SEARCH, genome=how.genome, fitness=how.fitness),  # type: ignore[arg-type]
            control=how.control,
            seed=seed,
        )
        for seed in range(arguments.seeds if (method in EVERY and not how.last) or "dare" in method else 1)
    ]


def last_mile_of(how: Ask, arguments: argparse.Namespace) -> LastMileSettings:
    """What a row does after its search."""
    if not how.last:
        return LastMileSettings()
    lessons: dict[str, bool] = dict.fromkeys(how.last, True)
    return LastMileSettings(**lessons, epochs=arguments.last_epochs, learning_rate=arguments.last_lr)


def available(name: str, arguments: argparse.Namespace, output: Output) -> str:
    """The folder of a source; one that is not given is trained. Raises HfmegaError for one that cannot be."""
    for folder in (*arguments.sources, arguments.output / "sources"):
        if (folder / name / WEIGHTS).is_file():
            return str(folder / name)
    if name not in BRANCHES:
        raise HfmegaError(f"{name} is not in any folder of --sources: make families trains it.")
    how, folder = BRANCHES[name], arguments.output / "sources" / name
    train(
        TrainSettings(
            f"{name.split('-')[0]}_cifar",
            folder,
            dataset=arguments.dataset,
            epochs=how.epochs,
            learning_rate=how.learning_rate,
            seed=how.seed,
            init=how.init and available(how.init, arguments, output),
            image_size=32,
            update_bn=False,
        ),
        output,
    )
    return str(folder)


def family_rows(family: Family, arguments: argparse.Namespace, output: Output) -> Iterator[Row]:
    """Merge by every method, and compare image by image."""
    names = (*family.sources, *([family.base] if family.base else []))
    places = {name: available(name, arguments, output) for name in names}
    methods = [method for method in methods_of(family) if method in (arguments.methods or methods_of(family))]
    wanted = {method: asked(family, method, places, arguments) for method in dict.fromkeys([DEFAULT_ROW, *methods])}
    if arguments.finished:
        wanted = {m: [one for one in several if (one.output / LINEAGE).is_file()] for m, several in wanted.items()}
        wanted = {method: several for method, several in wanted.items() if several}
    alike = defaultdict[tuple[Any, ...], list[MergeSettings]](list)  # one after the other: these are prepared once
    for one in (one for several in wanted.values() for one in several):
        alike[one.base, one.align, one.splits].append(one)
    for several in alike.values():
        merge_all(several, output)
    made = {method: merge_all(several, output) for method, several in wanted.items()}
    folders = {method: [one.output for one in several] for method, several in wanted.items()}
    medians = {method: median(merges) for method, merges in made.items()}
    test = made[DEFAULT_ROW][0].data.splits["test"].slice
    default = test_answers(folders[DEFAULT_ROW][medians[DEFAULT_ROW]], arguments.dataset, test)
    for method, merges in made.items():
        other = test_answers(folders[method][medians[method]], arguments.dataset, test)
        yield row(family, method, merges, medians[method], compare(default, other))


def median(merges: Sequence[Lineage]) -> int:
    """The place of the middle one by test accuracy, so that an interval is neither that of luck nor of misfortune."""
    order = sorted(range(len(merges)), key=lambda k: merges[k].result.accuracy)
    return order[(len(order) - 1) // 2]


@cache
def test_answers(folder: Path, dataset: str, test: str) -> Answers:
    """What a merged model says of the test images. test: their slice."""
    checkpoint, opened = pull.pull(str(folder)), open_dataset(dataset)
    split = load_split(opened, rows_of(opened, test), checkpoint.spec, "test")
    return answers(predict_checkpoint(checkpoint, split, processes().device), split.labels)


def row(family: Family, method: str, merges: Sequence[Lineage], middle: int, ahead: Any) -> Row:
    accuracies, result = [made.result.accuracy for made in merges], merges[middle].result
    best = best_of(merges[0])
    alone = {
        name: [c.accuracy for made in merges for c in made.controls if c.name.startswith(name)]
        for name in ("search", "fine-tuning", FROM_BEST_SOURCE, SELF_TAUGHT)
    }
    best_control = max(merges[middle].controls, key=lambda control: control.accuracy, default=None)
    mile = merges[middle].last_mile
    return Row(
        family=family.name,
        kind=family.kind,
        method=method,
        searches=len(merges),
        fitness=fmean(made.nodes[-1].fitness for made in merges),
        test=fmean(accuracies),
        deviation=stdev(accuracies) if len(accuracies) > 1 else None,
        over_source=fmean(accuracies) - best["source"],
        over_calibrated=fmean(accuracies) - best.get("calibrated source", best["source"]),
        gain=result.gain,
        low=result.gain_interval[0],
        high=result.gain_interval[1],
        p_value=result.p_value,
        forward_passes=round(fmean(made.forward_passes for made in merges)),
        seconds=round(fmean(made.seconds for made in merges), 1),
        ahead=ahead.gain,
        ahead_low=ahead.interval[0],
        ahead_high=ahead.interval[1],
        search_alone=fmean(alone["search"]) if alone["search"] else None,
        fine_tuning=fmean(alone["fine-tuning"]) if alone["fine-tuning"] else None,
        same_mile=fmean(alone[FROM_BEST_SOURCE]) if alone[FROM_BEST_SOURCE] else None,
        self_taught=fmean(alone[SELF_TAUGHT]) if alone[SELF_TAUGHT] else None,
        remainder=best_control.remainder if best_control else None,
        remainder_low=best_control.remainder_interval[0] if best_control else None,
        remainder_high=best_control.remainder_interval[1] if best_control else None,
        start=mile.accuracy_of_start if mile else None,
    )


def holds(r: Row) -> bool:
    """Whether the default is not shown to be worse than this method."""
    return r.ahead >= 0 or r.ahead_high >= 0


def known_of(made: Lineage) -> dict[str, Any]:
    """What a family has before any merge: its best source (as it is or with BN re-estimated), average, ensemble."""
    best = best_of(made)
    sources = max(best["source"], best.get("calibrated source", 0.0))
    return {"best": sources, "average": best["average"], "ensemble": best["ensemble"], "made": made}


def controls_of(rows: Sequence[Row]) -> dict[str, float]:
    """The best source alone, with the budget of a row: after the default's search, and after each last mile."""
    found = {r.method: r for r in rows}
    default = found.get(DEFAULT_ROW)
    known = {"best source alone: search": default and default.search_alone}
    known["best source alone: fine-tuned"] = default and default.fine_tuning
    for mile in (mile for mile in MILES if mile in found):
        flags = mile.removeprefix(f"{DEFAULT_ROW}, ")
        known |= {
            f"best source alone: {flags}": found[mile].same_mile,
            f"self-taught: {flags}": found[mile].self_taught,
        }
    return {name: accuracy for name, accuracy in known.items() if accuracy is not None}


def draw(families: Sequence[dict[str, Any]], path: Path) -> None:
    """The rows of each family of a kind: the gain over its best source in points, with 95 % intervals."""
    heights = [len(f["rows"]) + len(controls_of(f["rows"])) for f in families]
    height = sum(0.2 * h + 0.95 for h in heights) + 0.3
    with matplotlib.style.context("default"):
        figure = style.sheet(style.WIDTH, height)
        top = height - 0.2
        for found, lines in zip(families, heights, strict=True):
            box = (2.55 / style.WIDTH, (top - 0.35 - 0.2 * lines) / height, 4.75 / style.WIDTH, 0.2 * lines / height)
            panel(figure.add_axes(box), found)
            top -= 0.2 * lines + 0.95
        style.save(figure, path)


def panel(axes: Axes, found: dict[str, Any]) -> None:
    """A line for each row and each control. What lies far below the rest is an arrow at the edge."""
    rows: list[Row] = sorted(found["rows"], key=lambda r: r.gain)
    best = found["best"]
    shown = {f"{r.method}": (100 * r.gain, 100 * r.low, 100 * r.high) for r in rows}
    alone = {name: 100 * (accuracy - best) for name, accuracy in controls_of(rows).items()}
    ceiling = 100 * (found["ensemble"] - best) if found.get("ensemble") else None
    kept = [v for v in (*(g for g, _, _ in shown.values()), *alone.values(), ceiling or 0.0) if v > -FAR]
    low = min(0.0, *kept, *(lo for g, lo, _ in shown.values() if g > -FAR)) - 0.1
    high = max(0.0, *kept, *(hi for _, _, hi in shown.values())) + 0.1
    axes.axvline(0, color=style.LOOKS["calibrated source"][0], linewidth=1)
    if ceiling is not None:
        axes.axvline(ceiling, color=style.LOOKS["ensemble"][0], linewidth=1, linestyle="--")
    for y, (name, gain) in enumerate(alone.items()):
        mark(axes, y, name, (gain, gain, gain), "source", low)
    for y, (name, interval) in enumerate(shown.items(), len(alone)):
        kind = "merged" if name in EVERY else "average"
        mark(axes, y, name, interval, kind, low)
    axes.set_xlim(low, high)
    axes.set_ylim(-0.7, len(shown) + len(alone) - 0.3)
    axes.set_yticks([])
    axes.grid(axis="x", color=style.RULE, linewidth=0.6)
    figures.plain(axes)
    figures.heading(axes, f"{found['family'].name}: points over the best source ({best:.4f})")


def mark(axes: Axes, y: int, name: str, interval: tuple[float, float, float], kind: str, low: float) -> None:
    """One line of a panel: name, dot, interval, number."""
    gain, start, stop = interval
    colour, marker = style.LOOKS[kind]
    style.write(axes, -0.015, y, name, ha="right", fontsize=7.5, transform=axes.get_yaxis_transform())
    style.write(axes, 1.01, y, f"{gain:+.2f}", fontsize=7.5, color=colour, transform=axes.get_yaxis_transform())
    if gain < low:
        axes.plot([0.01], [y], "<", color=colour, markersize=5, transform=axes.get_yaxis_transform(), clip_on=False)
        return
    axes.plot((start, stop), (y, y), color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot(
        [gain], [y], marker, color=colour, markersize=4.5, markerfacecolor=style.PAGE if kind == "source" else colour
    )


def way_to_ensemble(found: dict[str, Any], r: Row) -> str:
    """How much of the distance from the best source to the ensemble a row goes, where there is any."""
    distance = found["ensemble"] - found["best"]
    return f"{(r.test - found['best']) / distance:.0%}" if distance > LEAST else "-"


def fitness_rows(families: dict[str, dict[str, Any]]) -> list[list[str]]:
    """What steered the search, beside greedy soup: test accuracies and the searches' standard deviation."""
    names = (DEFAULT_ROW, "mega, by loss", "mega, by ensemble", "learned", "learned, by ensemble", "greedy-soup")
    lines = []
    for family, found in families.items():
        rows = {r.method: r for r in found["rows"]}
        cells = [rows.get(name) for name in names]
        spread = [f" ± {r.deviation:.4f}" if r and r.deviation is not None else "" for r in cells]
        lines.append([family, *(f"{r.test:.4f}{s}" if r else "-" for r, s in zip(cells, spread, strict=True))])
    return [["family", *names], *lines]


def mile_rows(families: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Every last mile: what it gained, and what the controls did."""
    yield ["family", "last mile", "start", "test", "over best source", "way to the ensemble", "from the best source",
           "self-taught", "over the best control"]  # fmt: skip
    for family, found in families.items():
        for r in (r for r in found["rows"] if r.method in MILES):
            points, number = wording.points, markdown.number
            rest = "-" if r.remainder is None else f"{points(r.remainder)} ({points(r.remainder_low or 0)} to {points(r.remainder_high or 0)})"  # fmt: skip  # noqa: E501
            yield [family, f"`{r.method.removeprefix(f'{DEFAULT_ROW}, ')}`", number(r.start), number(r.test),
                   f"{points(r.gain)} ({points(r.low)} to {points(r.high)})", way_to_ensemble(found, r),
                   number(r.same_mile), number(r.self_taught), rest]  # fmt: skip


def write(families: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> Path:
    """The page, its pictures, and the numbers behind them. families: name to its rows and what it had before."""
    folder: Path = arguments.output / "results"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [r for f in families.values() for r in f["rows"]]
    kinds = list(dict.fromkeys(f["family"].kind for f in families.values()))
    for kind in kinds:
        draw([f for f in families.values() if f["family"].kind == kind], folder / picture(kind))
    static = [r for r in rows if r.method not in EVERY]
    text = card.render(
        "quality.md.jinja",
        families=families,
        kinds={kind: picture(kind) for kind in kinds},
        fitness=fitness_rows(families),
        miles=list(mile_rows(families)),
        settings=SEARCH,
        images=IMAGES,
        calibration=f"train[{CALIBRATION_START}:{CALIBRATION_START + Ask('').calibration}]",
        unlabelled=UNLABELLED,
        searches=arguments.seeds,
        compared=len(static),
        lost=[r for r in static if not holds(r)],
        ahead=sum(r.ahead_low > 0 for r in static),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    numbers = [asdict(r) for r in rows]
    (folder / "quality.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    with (folder / "quality.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [f.name for f in fields(Row)])
        table.writeheader()
        table.writerows(numbers)
    return folder / "README.md"


def picture(kind: str) -> str:
    return f"{kind.replace(' ', '-')}.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="folders with trained sources")
    parser.add_argument("--dataset", default="uoft-cs/cifar10")
    parser.add_argument("--families", nargs="*", default=[f.name for f in FAMILIES], help="only some of them")
    parser.add_argument("--methods", nargs="*", default=[], help="only some of the rows, the default among them")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches of a row")
    parser.add_argument("--last-epochs", type=int, help="of every last mile")
    parser.add_argument("--last-lr", type=float, help="of every last mile")
    parser.add_argument("--partial", action="store_true", help="merge what there is of a family")
    parser.add_argument("--finished", action="store_true", help="only merges that are on disk")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    output, found = Output(), dict[str, dict[str, Any]]()
    for family in (f for f in FAMILIES if f.name in arguments.families):
        family = present(family, arguments) if arguments.partial else family
        try:
            rows = list(family_rows(family, arguments, output))
        except HfmegaError as error:
            output.say(f"{family.name} is left out: {error}")
            continue
        example = arguments.output / "merges" / family.name / "mega-0"
        shutil.copyfile(example / LINEAGE, (arguments.output / f"{family.name}.lineage.json"))
        made = merge_all(asked(family, DEFAULT_ROW, {n: n for n in family.sources}, arguments)[:1], output)[0]
        found[family.name] = {"family": family, "rows": rows} | known_of(made)
        page = write(found, arguments)
        output.say(f"{page}: {len(found)} families")


def present(family: Family, arguments: argparse.Namespace) -> Family:
    """The family of the sources that are there, or can be trained."""
    there = [n for n in family.sources if n in BRANCHES or any((f / n / WEIGHTS).is_file() for f in arguments.sources)]
    return replace(family, sources=tuple(there))


if __name__ == "__main__":
    main()
