"""`make families`: checkpoints that are trained to the end, and the picture that shows that they are; cards/families.

Three kinds: independent ResNet-8, branches of one trunk that saw a quarter of the images each, fine-tunes of one
pretrained network with one small rate on different thirds. Rates decay to zero, images are flipped and cropped. One
network of each kind is trained on with labels: it is done if that gives less than 0.3 points. Its BatchNorm statistics
are re-estimated on plain images too, and on images as its training showed them. What is on disk is kept, and a training
goes on after its last epoch.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import matplotlib.style

from hfmega.data.dataset import open_dataset, rows_of
from hfmega.data.images import as_in_training, load_split
from hfmega.errors import HfmegaError
from hfmega.evaluation.answers import Answers, answers, compare
from hfmega.evaluation.checkpoint import predict_checkpoint
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import processes
from hfmega.folder import WEIGHTS
from hfmega.hub import pull
from hfmega.output import Output
from hfmega.report import card, figures, style
from hfmega.study.train import UPDATED, TrainSettings, train
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.sources import mix

EVENLY: Final = "train[5000:8750]+train[16250:20000]+train[27500:31250]+train[38750:42500]"  # of each quarter as many
SEEDS: Final = (101, 102, 103, 104)
KINDS: Final = {
    "independent": tuple(f"r8-{seed}" for seed in SEEDS),
    "branches": tuple(f"branch-{k}" for k in range(4)),
    "fine-tunes": tuple(f"eff-{k}" for k in range(4)),
}
STEPS: Final = {
    "independent": (("r8-101-24", "r8-101"), ("r8-101", "more-101")),
    "branches": (("branch-0", "more-branch-0"),),
    "fine-tunes": (("eff-0-6", "eff-0-22"), ("eff-0-22", "eff-0"), ("eff-0", "more-eff-0")),
}  # a checkpoint, and what it is after more epochs
DONE: Final = 0.003  # more epochs give less
HELD_OUT: Final = 5_000
CALIBRATION: Final = 5_000  # images that BatchNorm statistics are re-estimated on
QUARTER: Final = 11_250


@dataclass(frozen=True)
class Plan:
    """How a checkpoint is trained: on rows of train, from scratch or from another one."""

    rows: tuple[int, int | None]
    epochs: int
    learning_rate: float
    seed: int
    init: str | None = None
    network: str = "resnet8_cifar"
    batch_size: int = 128

    @property
    def train_split(self) -> str:
        return f"train[{self.rows[0]}:{'' if self.rows[1] is None else self.rows[1]}]"


def quarter(k: int) -> tuple[int, int]:
    return HELD_OUT + k * QUARTER, HELD_OUT + (k + 1) * QUARTER


def window(k: int) -> tuple[int, int]:
    return HELD_OUT + k * 10_000, HELD_OUT + k * 10_000 + 15_000


ALL: Final = (HELD_OUT, None)
EFFNET: Final[dict[str, Any]] = {"network": "tf_efficientnet_lite0", "batch_size": 64}
PLANS: Final = {
    **{f"r8-{seed}-24": Plan(ALL, 24, 0.01, seed) for seed in SEEDS},
    **{f"r8-{seed}": Plan(ALL, 6, 0.003, 200 + seed, f"r8-{seed}-24") for seed in SEEDS},
    "trunk": Plan(ALL, 16, 0.01, 201),
    **{f"branch-{k}": Plan(quarter(k), 12, 0.003, 210 + k, "trunk") for k in range(4)},
    **{f"eff-{k}-6": Plan(window(k), 6, 0.0005, 400 + k, "effnet-trunk", **EFFNET) for k in range(4)},
    **{f"eff-{k}-22": Plan(window(k), 16, 0.0005, 410 + k, f"eff-{k}-6", **EFFNET) for k in range(4)},
    **{f"eff-{k}": Plan(window(k), 6, 0.0005, 303 + k, f"eff-{k}-22", **EFFNET) for k in range(4)},
    "more-101": Plan(ALL, 6, 0.003, 401, "r8-101"),
    "more-branch-0": Plan(quarter(0), 6, 0.003, 302, "branch-0"),
    "more-eff-0": Plan(window(0), 6, 0.0005, 307, "eff-0", **EFFNET),
}


@dataclass(frozen=True)
class More:
    """What more epochs with labels gave on test, with the paired 95 % interval."""

    kind: str
    checkpoint: str
    epochs: int
    more_epochs: int
    test: float
    test_after: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Statistics:
    """Accuracy on test with statistics of plain images, and of shown ones; gain, low, high: between them."""

    checkpoint: str
    plain: float
    shown: float
    gain: float
    low: float
    high: float


def given(names: Sequence[str], folders: Sequence[Path], partial: bool = False) -> tuple[str, ...]:
    """The folders of some sources. partial: those that are there suffice.

    Raises HfmegaError for one that is in none of the folders.
    """
    found = []
    for name in names:
        places = [folder / name for folder in folders if (folder / name / WEIGHTS).is_file()]
        if places:
            found.append(str(places[0]))
        elif not partial:
            raise HfmegaError(f"{name} is not in any folder of --sources: make families trains it.")
    return tuple(found)


def trained(name: str, arguments: argparse.Namespace, output: Output) -> str:
    """The folder of a checkpoint; one that is not given is trained, from the one that it starts from."""
    if there := given([name], (*arguments.sources, arguments.output), partial=True):
        return there[0]
    if name not in PLANS:
        raise HfmegaError(f"{name} is not in any folder of --sources, and cannot be trained here.")
    plan, folder = PLANS[name], arguments.output / name
    output.say(f"{name}: {plan.epochs} epochs of {plan.train_split}")
    settings = TrainSettings(
        plan.network,
        folder,
        dataset=arguments.dataset,
        train_split=plan.train_split,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        decay="cosine",
        augment=True,
        seed=plan.seed,
        init=plan.init and trained(plan.init, arguments, output),
    )
    train(settings, output)
    return str(folder)


def asked_again(kind: str, step: tuple[str, str], folders: Sequence[Path], dataset: str) -> More | None:
    """A checkpoint before and after more epochs; None where one of them is not there."""
    there = given(step, folders, partial=True)
    if len(there) < 2:
        return None
    first, second = (on_test(folder, dataset) for folder in there)
    found, (before, after) = compare(second, first), step
    epochs = (epochs_of(before), PLANS[after].epochs)
    return More(kind, before, *epochs, first.accuracy, second.accuracy, found.gain, *found.interval)


def epochs_of(name: str) -> int:
    """The epochs of a checkpoint on its images, with those of the one that it goes on from."""
    plan = PLANS[name]
    earlier = plan.init if plan.init in PLANS and PLANS[plan.init].rows == plan.rows else None
    return plan.epochs + (epochs_of(earlier) if earlier else 0)


def shown(names: Sequence[str]) -> list[str]:
    """The checkpoints of the page, with all that they were trained from, in the order of PLANS."""
    wanted = set(names)
    for name in reversed(PLANS):  # a start is planned before what is trained from it
        if name in wanted:
            wanted |= {PLANS[name].init or name}
    return [name for name in PLANS if name in wanted]


def on_test(folder: str, dataset: str) -> Answers:
    """What a checkpoint says of all test images."""
    checkpoint, opened = pull.pull(folder), open_dataset(dataset)
    split = load_split(opened, rows_of(opened, "test"), checkpoint.spec, "test")
    return answers(predict_checkpoint(checkpoint, split, processes().device), split.labels)


def re_estimated(folder: str, dataset: str) -> Statistics:
    """A checkpoint on test with statistics of plain images, and of the same images as its training showed them."""
    checkpoint, opened = pull.pull(folder), open_dataset(dataset)
    rows = rows_of(opened, (checkpoint.record or {})["train_split"])[:CALIBRATION]
    test = load_split(opened, rows_of(opened, "test"), checkpoint.spec, "test")
    plain = load_split(opened, rows, checkpoint.spec, "calibration")
    sources = mix([checkpoint], [load_weights(checkpoint)], processes().device)
    first, second = (
        answers(Network(checkpoint.spec, sources, images).predict(UPDATED, test), test.labels)
        for images in (plain, as_in_training(plain))
    )
    found = compare(second, first)
    return Statistics(Path(folder).name, first.accuracy, second.accuracy, found.gain, *found.interval)


def draw(rows: Sequence[More], path: Path) -> None:
    """What more epochs gave in each kind, beside the line that says when a network is done."""
    height = 0.35 * len(rows) + 1.1
    with matplotlib.style.context("default"):
        figure = style.sheet(style.WIDTH, height)
        axes = figure.add_axes((0.36, 0.6 / height, 0.57, 0.35 * len(rows) / height))
        for y, row in enumerate(rows):
            colour, marker = style.LOOKS["merged"]
            name = f"{row.kind}: {row.checkpoint}, {row.epochs} epochs, and {row.more_epochs} more"
            style.write(axes, -0.02, y, name, ha="right", fontsize=8, transform=axes.get_yaxis_transform())
            axes.plot((100 * row.low, 100 * row.high), (y, y), color=colour, linewidth=1.6)
            axes.plot([100 * row.gain], [y], marker, color=colour, markersize=5)
        axes.axvline(0, color=style.FAINT, linewidth=0.8)
        axes.axvline(100 * DONE, color=style.LOOKS["calibrated source"][0], linewidth=1, linestyle="--")
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        figures.plain(axes)
        axes.set_xlabel(
            "points on 10,000 test images, with 95 % intervals; dashed: done", fontsize=8, color=style.FAINT
        )
        style.save(figure, path)


def write(rows: Sequence[More], sources: dict[str, float], statistics: Sequence[Statistics], folder: Path) -> None:
    """The page, its picture and its numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(rows, folder / "done.png")
    content = {"sources": sources, "more": [asdict(row) for row in rows]}
    content["statistics"] = [asdict(row) for row in statistics]
    (folder / "families.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with (folder / "done.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [f.name for f in fields(More)])
        table.writeheader()
        table.writerows(asdict(row) for row in rows)
    shown = {"rows": rows, "sources": sources, "statistics": statistics, "images": CALIBRATION}
    text = card.render("families.md.jinja", **shown, plans=PLANS, kinds=KINDS, done=DONE)
    (folder / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="folders with trained sources")
    parser.add_argument("--dataset", default="uoft-cs/cifar10")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--report-only", action="store_true", help="train nothing: the page of what is there")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/families"))
    arguments = parser.parse_args()
    output, folders = Output(), (*arguments.sources, arguments.output)
    steps = [(kind, step) for kind in arguments.kinds for step in STEPS[kind]]
    names = list(dict.fromkeys(n for kind in arguments.kinds for n in (*KINDS[kind], *sum(STEPS[kind], ()))))
    for name in names if not arguments.report_only else ():
        trained(name, arguments, output)
    rows = [row for kind, step in steps if (row := asked_again(kind, step, folders, arguments.dataset))]
    sources = {Path(s).name: on_test(s, arguments.dataset).accuracy for s in given(shown(names), folders, True)}
    firsts = given([KINDS[kind][0] for kind in arguments.kinds], folders, partial=True)
    statistics = [re_estimated(folder, arguments.dataset) for folder in firsts]
    write(rows, sources, statistics, arguments.output / "results")
    for row in rows:
        output.say(f"{row.kind}: {row.more_epochs} more epochs give {100 * row.gain:+.2f} points on test")


if __name__ == "__main__":
    main()
