"""`make quality`: every method on every family of checkpoints, on the same images; writes cards/quality.

The sources that are not given with --sources are trained. What is on disk is kept, so the same command goes on.
"""

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

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
from hfmega.report import card, markdown, wording
from hfmega.report.lineage import Lineage
from hfmega.report.wording import probability
from hfmega.settings import DEFAULT, METHODS, MergeSettings, SplitRequest
from hfmega.study.results import best_of
from hfmega.study.train import TrainSettings, train

SEEDS: Final = 3
DEFAULT_ROW: Final = "mega"
SEARCH: Final = replace(DEFAULT, population=8, generations=5)
IMAGES: Final = 3000
CALIBRATION_START: Final = 5000  # row of train: what lies before is held out


@dataclass(frozen=True)
class Ask:
    """A row that needs a search, and in what it differs from `hfmega merge --method METHOD`.

    aligned: independent sources are aligned by activations. calibration: so many images.
    """

    method: str
    genome: str = "model"
    fitness: str = "accuracy"
    aligned: bool = False
    based: bool = False
    control: bool = False
    confirm_share: float = 0.4
    calibration: int = 500


SEARCHED: Final = {
    DEFAULT_ROW: Ask("mega", control=True),
    "mega, aligned": Ask("mega", aligned=True, control=True),
    **{name: Ask(name) for name, facts in METHODS.items() if facts.searches and name != "mega"},
    "learned, by channel": Ask("learned", genome="channel", aligned=True, control=True),
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
    "mega, by loss": Ask("mega", fitness="loss"),
    "mega, by channel": Ask("mega", genome="channel"),
    "mega, 100 calibration images": Ask("mega", calibration=100),
    "mega, 2000 calibration images": Ask("mega", calibration=2000),
}
EVERY: Final = SEARCHED | OUTSIDE | VARIED


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
)


@dataclass(frozen=True)
class Row:
    """One method on one family. Accuracies are on test, but for `fitness`; means over the search seeds.

    gain, low, high, p_value: of the median search, over the best single model; ahead, ahead_low, ahead_high: what the
    median search of the default has over this method, image by image.
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


def methods_of(family: Family) -> list[str]:
    """The default first; independent sources also aligned, and several ways outside the hull where there is a base."""
    searched = [row for row in SEARCHED if family.kind == "independent" or row != "mega, aligned"]
    pair = ["slerp"] if len(family.sources) == 2 else []
    outside = list(OUTSIDE) if family.base else []
    based = BASED if family.base else ()
    varied = list(VARIED) if family.varied else []
    seen = [name for name, facts in METHODS.items() if facts.images]
    return [*searched, *outside, "greedy-soup", "average", *pair, *seen, *based, *varied]


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
            ),
            tree=family.tree,  # type: ignore[arg-type]
            method=how.method,  # type: ignore[arg-type]
            base=base and places[base],
            scale=scale,
            align="activations" if how.aligned and family.kind == "independent" else "none",
            search=replace(SEARCH, genome=how.genome, fitness=how.fitness),  # type: ignore[arg-type]
            control=how.control,
            seed=seed,
        )
        for seed in range(SEEDS if method in EVERY or "dare" in method else 1)
    ]


def available(name: str, arguments: argparse.Namespace, output: Output) -> str:
    """The folder of a source; one that is not given is trained. Raises HfmegaError for one that cannot be."""
    for folder in (*arguments.sources, arguments.output / "sources"):
        if (folder / name / WEIGHTS).is_file():
            return str(folder / name)
    if name not in BRANCHES:
        raise HfmegaError(f"{name} is not in any folder of --sources, and cannot be trained here.")
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
        on_disk = {m: all((one.output / LINEAGE).is_file() for one in several) for m, several in wanted.items()}
        wanted = {method: several for method, several in wanted.items() if on_disk[method]}
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
        for name in ("search", "fine-tuning")
    }
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
    )


def cells(r: Row) -> list[str]:
    """A line of the table."""
    points, number = wording.points, markdown.number
    spread = f" ± {r.deviation:.4f}" if r.deviation is not None else ""
    ahead = "" if r.method == DEFAULT_ROW else f"{points(r.ahead)} ({points(r.ahead_low)} to {points(r.ahead_high)})"
    return [
        "**mega (default)**" if r.method == DEFAULT_ROW else r.method,
        number(r.fitness),
        f"{number(r.test)}{spread}",
        points(r.over_source),
        points(r.over_calibrated),
        f"{points(r.gain)} ({points(r.low)} to {points(r.high)})",
        probability(r.p_value),
        number(r.search_alone),
        number(r.fine_tuning),
        ahead,
        f"{r.forward_passes:,}",
        f"{r.seconds:.0f}",
    ]


COLUMNS: Final = (
    "method", "fitness", "test", "over best source", "over best calibrated", "gain over best single model", "p",
    "control: search alone", "control: fine-tuning", "default is ahead by", "forward passes", "seconds",
)  # fmt: skip


def holds(r: Row) -> bool:
    """Whether the default is not shown to be worse than this method."""
    return r.ahead >= 0 or r.ahead_high >= 0


def write(families: dict[str, dict[str, Any]], folder: Path) -> Path:
    """The page and the numbers behind it. families: name to its rows, references and an example of its lineage."""
    folder.mkdir(parents=True, exist_ok=True)
    static = [r for f in families.values() for r in f["rows"] if r.method not in EVERY]
    text = card.render(
        "quality.md.jinja",
        families=families,
        columns=COLUMNS,
        cells=cells,
        settings=SEARCH,
        images=IMAGES,
        calibration=f"train[{CALIBRATION_START}:{CALIBRATION_START + Ask('').calibration}]",
        searches=SEEDS,
        compared=len(static),
        lost=[r for r in static if not holds(r)],
        ahead=sum(r.ahead_low > 0 for r in static),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    numbers = [asdict(r) for f in families.values() for r in f["rows"]]
    (folder / "quality.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return folder / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="folders with trained sources")
    parser.add_argument("--dataset", default="uoft-cs/cifar10")
    parser.add_argument("--families", nargs="*", default=[f.name for f in FAMILIES], help="only some of them")
    parser.add_argument("--methods", nargs="*", default=[], help="only some of the rows, the default among them")
    parser.add_argument("--finished", action="store_true", help="only rows whose merges are all on disk")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    output, found = Output(), dict[str, dict[str, Any]]()
    for family in (f for f in FAMILIES if f.name in arguments.families):
        try:
            rows = list(family_rows(family, arguments, output))
        except HfmegaError as error:
            output.say(f"{family.name} is left out: {error}")
            continue
        example = arguments.output / "merges" / family.name / "mega-0"
        shutil.copyfile(example / LINEAGE, (arguments.output / f"{family.name}.lineage.json"))
        made = merge_all(asked(family, DEFAULT_ROW, {n: n for n in family.sources}, arguments)[:1], output)[0]
        found[family.name] = {"family": family, "rows": rows, "references": best_of(made), "made": made}
        page = write(found, arguments.output / "results")
        output.say(f"{page}: {len(found)} families")


if __name__ == "__main__":
    main()
