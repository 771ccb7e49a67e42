"""The last mile: a short training after the merge, from the winner of the run-off.

Two lessons, alone or together, in one loop with one loss: the answers of the sources' ensemble on unlabelled images
(Hinton et al. 2015, arXiv 1503.02531, temperature 1), and the labels of the images that steered the search. What comes
out replaces its start only if it wins on the confirm images, which neither lesson has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from hfmega.data.images import Split
from hfmega.evaluation.answers import Answers, answers, clearly_lower_loss
from hfmega.evaluation.network import Network
from hfmega.folder import WORK
from hfmega.merging.controls import Tried, alone, best_source, judge, train
from hfmega.merging.prepare import Job
from hfmega.merging.run_off import Chosen
from hfmega.merging.teacher import teacher_of
from hfmega.models.fit import Schedule
from hfmega.output import Output
from hfmega.report.lineage import FROM_BEST_SOURCE, SELF_TAUGHT, LastMile
from hfmega.search.recipe import Recipe
from hfmega.weights.checkpoint import save_weights
from hfmega.weights.sources import rebuild

RATES: Final = (0.003, 0.0005)  # young networks need the first, fine-tuned ones the second
BATCH_SIZE: Final = 128
IMAGES: Final = 45_000  # that a training sees, in whole epochs
EPOCHS: Final = 10  # at most
SYMMETRIC: Final = 0.05  # of accuracy: who loses more on mirrored images has classes with a left and a right

State = dict[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """What is taught. images: uint8 [n, channels, height, width]; targets: float32 [n, 2, classes], the probabilities
    of each image as it is and mirrored; flips: whether mirrored images are shown.
    """

    images: Tensor
    targets: Tensor
    flips: bool

    def schedule(self, job: Job, rate: float) -> Schedule:
        """How it is taught at a rate."""
        epochs = job.settings.last.epochs or max(1, min(EPOCHS, round(IMAGES / len(self.images))))
        schedule = Schedule(epochs, BATCH_SIZE, rate, job.settings.seed, "cosine", compiled=False)
        return replace(schedule, augment="flips") if self.flips else schedule


@dataclass(frozen=True)
class Student:
    """A network after its lesson, at the rate, and with re-estimated statistics or not, that won on confirm."""

    network: Network
    recipe: Recipe
    rate: float

    def judged(self, split: Split) -> Answers:
        """What it says of a split."""
        return judge(self.network, self.recipe, split)

    @property
    def state(self) -> State:
        """Its weights, with the statistics that it is judged with."""
        return rebuild(self.network.sources, self.recipe, self.network.statistics(self.recipe))


@dataclass(frozen=True)
class Mile:
    """What came of it. state: the weights that replace those of the start; None where the start stands."""

    record: LastMile
    state: State | None
    controls: tuple[Tried, ...]


def last_mile(job: Job, chosen: Chosen, output: Output) -> Mile | None:
    """Train from the winner of the run-off; None if that is not asked for, and in all processes but the main one.

    The same command resumes it after the last epoch. The main process trains; the others wait for it.
    """
    if not job.settings.last.wanted:
        return None
    teacher, (best_name, best) = teacher_of(job), best_source(job)
    if not job.evaluator.state.is_main_process:
        return None
    assert job.confirm is not None
    work, start = job.settings.output / WORK, weights_of(job, chosen.recipe)
    learned = lesson(job, teacher, work / "teacher.safetensors")
    views = ", mirrored too" if learned.flips else ""
    output.say(f"last mile: from {chosen.name}, on {len(learned.images):,} images{views}")
    student = taught(job, start, learned, "merge", output)
    before = Network(job.spec, alone(job, start), calibration=None)
    on_confirm, on_test = (judge(before, Recipe((1.0,)), split) for split in (job.confirm, job.test))
    stands = clearly_lower_loss(student.judged(job.confirm), on_confirm)
    shown = "better than its start" if stands else "not shown to be better than its start, which stands"
    output.say(f"last mile: {shown} ({len(job.confirm):,} confirm images)")
    controls = []
    if best != chosen.recipe:
        first = taught(job, weights_of(job, best), learned, "best-source", output)
        known = judge(job.evaluator.network, best, job.test)
        controls.append(Tried(FROM_BEST_SOURCE, best_name, known.accuracy, first.judged(job.test), cost(job, learned)))
    if job.settings.last.distill:
        own = lesson(job, [chosen.recipe], work / "self.safetensors")
        itself = taught(job, start, own, "self", output)
        controls.append(Tried(SELF_TAUGHT, chosen.name, on_test.accuracy, itself.judged(job.test), cost(job, own)))
    record = recorded_mile(job, chosen, teacher, learned, student, on_test.accuracy, stands)
    return Mile(record, student.state if stands else None, tuple(controls))


def weights_of(job: Job, recipe: Recipe) -> State:
    """The weights of a recipe, with its statistics."""
    network = job.evaluator.network
    return rebuild(network.sources, recipe, network.statistics(recipe))


def cost(job: Job, learned: Lesson) -> int:
    """Images through the network: a training step costs three forward passes."""
    return 3 * sum(learned.schedule(job, rate).epochs * len(learned.images) for rate in rates(job))


def rates(job: Job) -> tuple[float, ...]:
    """The learning rates that are tried."""
    asked = job.settings.last.learning_rate
    return RATES if asked is None else (asked,)


def lesson(job: Job, teacher: Sequence[Recipe], kept: Path) -> Lesson:
    """Put the images and what to answer together. kept: the file of the teacher's answers, which are computed once."""
    last, classes = job.settings.last, job.spec.classes
    images, targets = [], []
    if last.distill:
        assert job.unlabelled is not None
        images.append(job.unlabelled.images)
        targets.append(known_answers(job, teacher, job.unlabelled, kept))
    if last.fine_tune:
        labels = torch.nn.functional.one_hot(job.search.labels, classes).float()[:, None].expand(-1, 2, -1)
        if last.distill:  # half of the loss each
            labels = (labels + answers_of(job, teacher, job.search)) / 2
        images.append(job.search.images)
        targets.append(labels)
    return Lesson(torch.cat(images), torch.cat(targets), symmetric(job, teacher))


def known_answers(job: Job, teacher: Sequence[Recipe], split: Split, kept: Path) -> Tensor:
    """The answers of a teacher, from the work folder where an interrupted run left them."""
    if kept.exists():
        answered: Tensor = load_file(kept)["answers"]
        return answered
    found = answers_of(job, teacher, split)
    save_weights({"answers": found}, kept)
    return found


def answers_of(job: Job, teacher: Sequence[Recipe], split: Split) -> Tensor:
    """The mean probability of several recipes for each image as it is and mirrored: float32 [n, 2, classes]."""
    views = [split, mirrored(split)]
    network = job.evaluator.network
    means = [sum(network.predict(recipe, view).exp() for recipe in teacher) / len(teacher) for view in views]
    return torch.stack([torch.as_tensor(mean) for mean in means], dim=1)


def mirrored(split: Split) -> Split:
    return replace(split, images=split.images.flip(3), fingerprint=f"{split.fingerprint}, mirrored")


def symmetric(job: Job, teacher: Sequence[Recipe]) -> bool:
    """Tell whether mirrored images are of the same classes: the first teacher is about as right about them."""
    network = job.evaluator.network
    plain, turned = (
        answers(network.predict(teacher[0], view), view.labels).accuracy for view in (job.search, mirrored(job.search))
    )
    return turned >= plain - SYMMETRIC


def taught(job: Job, start: State, learned: Lesson, name: str, output: Output) -> Student:
    """Train from a start at each rate; the student with the lowest mean loss on the confirm images is the answer."""
    assert job.confirm is not None
    students = []
    for rate in rates(job):
        state = job.settings.output / WORK / f"last-mile-{name}-{rate}.pt"
        after = train(job, start, learned.images, learned.targets, learned.schedule(job, rate), state, output)
        network = Network(job.spec, alone(job, after), job.calibration)
        ways = (False, True) if network.can_calibrate else (False,)
        students += [Student(network, Recipe((1.0,), calibrate=way), rate) for way in ways]
    return min(students, key=lambda student: student.judged(job.confirm).mean_loss)  # type: ignore[arg-type]


def recorded_mile(
    job: Job,
    chosen: Chosen,
    teacher: Sequence[Recipe],
    learned: Lesson,
    student: Student,
    accuracy: float,
    stands: bool,
) -> LastMile:
    """What a lineage says of it."""
    last, schedule = job.settings.last, learned.schedule(job, student.rate)
    return LastMile(
        distill=last.distill,
        fine_tune=last.fine_tune,
        start=chosen.name,
        teacher=tuple(teacher) if last.distill else (),
        images=len(learned.images),
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        learning_rate=student.rate,
        mirrored=learned.flips,
        calibrated=student.recipe.calibrate,
        seed=schedule.seed,
        accuracy_of_start=accuracy,
        stands=stands,
    )
