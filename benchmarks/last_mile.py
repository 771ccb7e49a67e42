"""`make last-mile`: what a last mile gains under one choice after the other; writes cards/last-mile.

Each choice differs from a baseline in one thing. What is on disk is kept, so the same command goes on.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import torch
from families import EVENLY, KINDS, given
from torch import Tensor, nn

from hfmega.data.images import Split, as_in_training, load_split
from hfmega.evaluation.answers import Answers, compare, pool, tempered
from hfmega.evaluation.network import Network
from hfmega.folder import write_atomically
from hfmega.merging.controls import alone, best_source, judge, judge_tempered
from hfmega.merging.last_mile import weights_of
from hfmega.merging.lesson import BATCH_SIZE, Lesson, Teacher, lesson_of
from hfmega.merging.prepare import Job, prepare
from hfmega.models.fit import Schedule, fit
from hfmega.models.library import build, load_into, normalizer, state_of
from hfmega.models.views import Views
from hfmega.output import Output
from hfmega.report import card
from hfmega.search.recipe import Recipe, centroid, source_alone
from hfmega.settings import LastMileSettings, MergeSettings, SplitRequest

LEAST: Final = 0.003  # between start and ensemble: below it there is no way to go a share of
IMAGES: Final = 3_000  # that are held out: 60 % steer or teach, 40 % confirm


@dataclass(frozen=True)
class Choice:
    """How a last mile is done. start: `best source` or `average`, as the lower loss on search and confirm images is.

    teacher: the ensemble with re-estimated statistics or as it is, or the start alone. labels: what the images with
    labels are taught: nothing (they are left out), labels and the teacher's answers in equal parts, labels, or labels
    without any other image. epochs: of the unlabelled images, or as many steps over others. asked: what the teacher
    answers about: images as the student sees them, or as they are.
    """

    rate: float = 0.003
    epochs: float = 3
    start: Literal["winner", "best source", "average"] = "winner"
    teacher: Literal["ensemble", "ensemble, as it is", "itself"] = "ensemble"
    labels: Literal["none", "half", "whole", "alone"] = "none"
    augment: Literal["none", "flips", "flips and crops", "as in training"] = "as in training"
    temperature: float = 1.0
    seed: int = 0
    asked: Literal["as shown", "as it is"] = "as shown"


BASELINE: Final = Choice()
RATES: Final = (0.01, 0.003, 0.001, 0.0005, 0.0001)
CHOICES: Final[dict[str, dict[str, Any]]] = {
    "baseline": {},
    "taught by itself": {"teacher": "itself"},
    **{f"rate {rate:g}": {"rate": rate} for rate in RATES},
    "a third of the epochs": {},
    "twice the epochs": {},
    "teacher sees other views": {"asked": "as it is"},
    "from the best source": {"start": "best source"},
    "from the average": {"start": "average"},
    "teacher's statistics as they are": {"teacher": "ensemble, as it is"},
    "and labels, half of the loss": {"labels": "half"},
    "and labels, all of the loss": {"labels": "whole"},
    "labels alone": {"labels": "alone"},
    "labels alone, a third of the steps": {"labels": "alone"},
    "without flips": {"augment": "none"},
    "flips": {"augment": "flips"},
    "flips and crops": {"augment": "flips and crops"},
    "temperature 2": {"temperature": 2.0},
    "temperature 4": {"temperature": 4.0},
    "another seed": {"seed": 1},
    "a third seed": {"seed": 2},
}


@dataclass(frozen=True)
class Row:
    """One choice on one family. Accuracies are on test; gain, low, high: over the start, paired; share: of the way from
    the start to the ensemble. confirm_loss: what a choice would be made by, at the best temperature.
    """

    family: str
    choice: str
    start: str
    images: int
    confirm_loss: float
    test: float
    gain: float
    low: float
    high: float
    share: float | None


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature


@dataclass(frozen=True)
class Bench:
    """A family, ready to be taught. plain: calibration images as they are; starts: name to recipe; winner: the start
    of lower loss on the labelled images.
    """

    family: str
    job: Job
    plain: Split
    winner: str
    starts: dict[str, Recipe]
    kept: Path

    def views(self, choice: Choice) -> Views:
        """How images are shown, and those that BatchNorm statistics come from."""
        usual: Views = "flips and crops" if self.job.plan.augmented else "flips"
        return usual if choice.augment == "as in training" else choice.augment

    def teacher(self, choice: Choice) -> list[Recipe]:
        if choice.teacher == "itself":
            return [self.starts[self.winner]]
        count, way = (
            len(self.job.checkpoints),
            choice.teacher == "ensemble" and self.job.evaluator.network.can_calibrate,
        )
        return [source_alone(k, count, way) for k in range(count)]

    def lesson(self, choice: Choice) -> Lesson:
        """What is taught, at temperature 1."""
        job, views = self.job, self.views(choice)
        if choice.labels == "alone":
            return lesson_of(None, None, job.search, views)
        kept = self.kept / f"{self.family}-{choice.teacher}-{choice.labels}-{choice.asked}-{views}-{choice.seed}"
        teacher = Teacher(job.evaluator.network, tuple(self.teacher(choice)), kept)
        found = lesson_of(teacher, job.unlabelled, None if choice.labels == "none" else job.search, views)
        return replace(found, share=found.share.ceil()) if choice.labels == "whole" else found

    def targets(self, choice: Choice, schedule: Schedule, epoch: int) -> Tensor:
        """What to answer in an epoch, float32 [n, classes], at the temperature of the choice."""
        asked = schedule if choice.asked == "as shown" else replace(schedule, augment="none")
        softened = self.lesson(choice).targets(asked, epoch, self.job.spec.classes) ** (1 / choice.temperature)
        return softened / softened.sum(1, keepdim=True)


def bench_of(name: str, arguments: argparse.Namespace, output: Output) -> Bench:
    """Read the sources and the images of a family."""
    settings = MergeSettings(
        given(KINDS[name], arguments.sources, arguments.partial),
        arguments.output / "unused",
        dataset=arguments.dataset,
        splits=SplitRequest(
            fitness="train[:5000]",
            fitness_images=IMAGES,
            calibration="train[5000:6000]",
            distill=arguments.unlabelled,
        ),
        last=LastMileSettings(distill=True),
    )
    job = prepare(settings, output)
    assert job.unlabelled is not None
    few = job.unlabelled.images[:: -(-len(job.unlabelled) // arguments.images)]
    job = replace(job, unlabelled=Split("distill", few, torch.zeros(len(few), dtype=torch.int64), f"every {len(few)}"))
    ways = (False, True) if job.evaluator.network.can_calibrate else (False,)
    averages = [centroid([replace(member.recipe, calibrate=way) for member in job.merged]) for way in ways]
    average = min(averages, key=lambda recipe: labelled(job, recipe).mean_loss)
    starts = {"best source": best_source(job)[1], "average": average}
    winner = min(starts, key=lambda start: labelled(job, starts[start]).mean_loss)
    plain = load_split(job.dataset, job.plan.calibration_rows, job.spec, "calibration")
    return Bench(titled(name, arguments), job, plain, winner, starts, arguments.output / "answers")


def titled(family: str, arguments: argparse.Namespace) -> str:
    """The name of a family on the page: one may be there again, with other images."""
    return f"{family}, {arguments.called}" if arguments.called else family


def labelled(job: Job, recipe: Recipe) -> Answers:
    """What a recipe says of the search and confirm images, at its best temperature on each."""
    assert job.confirm is not None
    said = ((job.evaluator.log_probabilities(recipe, split), split.labels) for split in (job.search, job.confirm))
    return pool(*(tempered(answers, labels) for answers, labels in said))


def measured(bench: Bench, name: str, choice: Choice) -> Row:
    """Teach as a choice says; the statistics that are better on the confirm images are kept."""
    job, start = bench.job, bench.winner if choice.start == "winner" else choice.start
    confirm, test = job.confirm, job.test
    assert confirm is not None
    network, images = taught(bench, start, choice)
    ways = [Recipe((1.0,), calibrate=way) for way in ((False, True) if network.can_calibrate else (False,))]
    recipe = min(ways, key=lambda way: judge_tempered(network, way, confirm).mean_loss)
    (before,) = job.evaluator.answers([bench.starts[start]], test)
    after, top = judge(network, recipe, test), ensemble(bench)
    found = compare(after, before)
    return Row(
        family=bench.family,
        choice=name,
        start=start,
        images=images,
        confirm_loss=judge_tempered(network, recipe, confirm).mean_loss,
        test=after.accuracy,
        gain=found.gain,
        low=found.interval[0],
        high=found.interval[1],
        share=found.gain / (top - before.accuracy) if top - before.accuracy > LEAST else None,
    )


def taught(bench: Bench, start: str, choice: Choice) -> tuple[Network, int]:
    """The network after its lesson, and how many images were shown."""
    job, images = bench.job, bench.lesson(choice).images
    assert job.unlabelled is not None
    shown = choice.epochs * len(job.unlabelled) if choice.labels == "alone" else choice.epochs * len(images)
    epochs = max(1, round(shown / len(images)))
    views = bench.views(choice)
    schedule = Schedule(epochs, BATCH_SIZE, choice.rate, choice.seed, "cosine", views, compiled=False)
    model, device = build(job.spec), job.evaluator.state.device
    load_into(job.spec, model, weights_of(job, bench.starts[start]))
    student, normalize = Tempered(model.to(device), choice.temperature), normalizer(job.spec, device)
    with TemporaryDirectory() as scratch:
        targets = partial(bench.targets, choice, schedule)
        fit(student, images, targets, normalize, schedule, Path(scratch) / "state", Output(muted=True))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state_of(job.spec, model).items()}
    calibration = as_in_training(bench.plain) if views == "flips and crops" else bench.plain
    return Network(job.spec, alone(job.spec, state), calibration), epochs * len(images)


def ensemble(bench: Bench) -> float:
    """The accuracy of the better ensemble on test: with re-estimated statistics, or as it is."""
    found = [
        bench.job.evaluator.ensemble(bench.teacher(replace(BASELINE, teacher=which)), bench.job.test).accuracy
        for which in ("ensemble", "ensemble, as it is")
    ]
    return max(found)


def wanted(bench: Bench, arguments: argparse.Namespace) -> dict[str, Choice]:
    """The choices of a family; what is the baseline under another name is left out."""
    baseline = replace(BASELINE, rate=arguments.rate, epochs=arguments.epochs)
    factors = {"a third of the epochs": 1 / 3, "twice the epochs": 2, "labels alone, a third of the steps": 1 / 3}
    found = {name: replace(baseline, **change) for name, change in CHOICES.items()}
    found |= {name: replace(found[name], epochs=factor * arguments.epochs) for name, factor in factors.items()}
    same = (f"from the {bench.winner}", f"rate {arguments.rate:g}", bench.views(baseline))
    chosen = arguments.choices or list(found)
    return {name: choice for name, choice in found.items() if name not in same and name in chosen}


def references(bench: Bench) -> dict[str, Any]:
    """What a family has before any last mile."""
    job = bench.job
    splits = {"unlabelled": job.unlabelled, "labelled": job.search, "confirm": job.confirm, "test": job.test}
    return {
        "sources": [checkpoint.name for checkpoint in job.checkpoints],
        "winner": bench.winner,
        "ensemble": ensemble(bench),
        **{name: job.evaluator.answers([recipe], job.test)[0].accuracy for name, recipe in bench.starts.items()},
        **{name: len(split) for name, split in splits.items() if split is not None},
    }


def write(folder: Path, rows: Sequence[Row], known: dict[str, Any], note: str) -> None:
    """The table as CSV and JSON, and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"families": known, "rows": [asdict(row) for row in rows]}
    write_atomically(folder / "last-mile.json", (json.dumps(content, indent=2) + "\n").encode())
    with (folder / "last-mile.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    text = card.render("last_mile.md.jinja", families=known, rows=rows, note=note)
    (folder / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="folders with trained sources")
    parser.add_argument("--dataset", default="uoft-cs/cifar10")
    parser.add_argument("--families", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--unlabelled", default=EVENLY, help="slice of images that are taught without labels")
    parser.add_argument("--images", type=int, default=15_000, help="of these, evenly")
    parser.add_argument("--called", default="", help="what to add to the name of a family: it was run otherwise before")
    parser.add_argument("--epochs", type=float, default=BASELINE.epochs, help="of the baseline")
    parser.add_argument("--rate", type=float, default=BASELINE.rate, help="of the baseline")
    parser.add_argument("--choices", nargs="*", default=[], choices=list(CHOICES), help="only some of them")
    parser.add_argument("--partial", action="store_true", help="take the sources of a family that are there")
    parser.add_argument("--note", default="", help="a sentence of the page: what was run, and what was not")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/last-mile"))
    arguments = parser.parse_args()
    output, folder = Output(), arguments.output / "results"
    (arguments.output / "answers").mkdir(parents=True, exist_ok=True)
    file = folder / "last-mile.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"families": {}, "rows": []}
    known, rows = content["families"], [Row(**row) for row in content["rows"]]
    for family in arguments.families:
        bench = bench_of(family, arguments, output)
        known[bench.family] = references(bench) | {"rate": arguments.rate, "epochs": arguments.epochs}
        for name, choice in wanted(bench, arguments).items():
            if not any((row.family, row.choice) == (bench.family, name) for row in rows):
                rows.append(measured(bench, name, choice))
                output.say(f"{bench.family}, {name}: {rows[-1].test:.4f} ({100 * rows[-1].gain:+.2f})")
                write(folder, rows, known, arguments.note)
    write(folder, rows, known, arguments.note)


if __name__ == "__main__":
    main()
