"""The last mile: a short training after the merge, from the winner of the run-off.

Two lessons, alone or together, in one loop with one loss: the answers of the sources' ensemble on unlabelled images
(Hinton et al. 2015, arXiv 1503.02531, temperature 1), and the labels of the images that steered the search. What comes
out replaces its start only if it wins on labelled images that it has not seen (`unseen`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from hfmega import phases
from hfmega.data.images import Split, stratified
from hfmega.evaluation.answers import Answers, clearly_lower_loss
from hfmega.evaluation.network import Network
from hfmega.folder import WORK
from hfmega.merging.controls import Tried, alone, best_source, judge, judge_tempered
from hfmega.merging.lesson import Lesson, State, Teacher, lesson_of, scheduled, symmetric, views_of
from hfmega.merging.prepare import Job
from hfmega.merging.run_off import Chosen
from hfmega.merging.teacher import teacher_of
from hfmega.models.fit import Schedule
from hfmega.output import Output
from hfmega.report.lineage import FROM_BEST_SOURCE, SELF_TAUGHT, LastMile
from hfmega.search.recipe import Recipe
from hfmega.settings import LastMileSettings
from hfmega.weights.sources import rebuild

RATES: Final = (0.003, 0.0005)  # young networks need the first, fine-tuned ones the second


@dataclass(frozen=True)
class Student:
    """A network after its lesson, at the rate, and with re-estimated statistics or not, that won on unseen images."""

    network: Network
    recipe: Recipe
    rate: float

    def judged(self, split: Split) -> Answers:
        """What it says of a split."""
        return judge(self.network, self.recipe, split)

    def known(self, split: Split) -> Answers:
        """The same at its best temperature."""
        return judge_tempered(self.network, self.recipe, split)

    def knows_more_than(self, other: "Student", split: Split) -> bool:
        """Whether its loss is clearly lower, each at its best temperature."""
        return clearly_lower_loss(self.known(split), other.known(split))

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
    phases.begin("last mile")
    teacher, (best_name, best) = teacher_of(job), best_source(job)
    if not job.evaluator.state.is_main_process:
        return None
    judging = unseen(job)
    work, start = job.settings.output / WORK, weights_of(job, chosen.recipe)
    learned = lesson(job, teacher, work / "teacher")
    views = {"none": "", "flips": ", mirrored too", "flips and crops": ", mirrored and shifted"}[learned.views]
    output.say(f"last mile: from {chosen.name}, on {len(learned.images):,} images{views}")
    student = taught(job, start, learned, "merge", output)
    before = Student(Network(job.spec, alone(job.spec, start), calibration=None), Recipe((1.0,)), rate=0.0)
    stands = student.knows_more_than(before, judging)
    on_test = before.judged(job.test)
    shown = "better than its start" if stands else "not shown to be better than its start, which stands"
    output.say(f"last mile: {shown} ({len(judging):,} labelled images that it has not seen)")
    controls = []
    if best != chosen.recipe:
        first = taught(job, weights_of(job, best), learned, "best-source", output)
        accuracy = judge(job.evaluator.network, best, job.test).accuracy
        controls.append(Tried(FROM_BEST_SOURCE, best_name, accuracy, first.judged(job.test), cost(job, learned)))
    if job.settings.last.distill:
        own = lesson(job, [chosen.recipe], work / "self")
        itself = taught(job, start, own, "self", output)
        controls.append(Tried(SELF_TAUGHT, chosen.name, on_test.accuracy, itself.judged(job.test), cost(job, own)))
    record = recorded_mile(job, chosen, teacher, learned, student, on_test.accuracy, stands)
    return Mile(record, student.state if stands else None, tuple(controls))


def unseen(job: Job) -> Split:
    """The labelled images that no student is taught: those to confirm with, and without `--fine-tune` the search's too.

    The latter may flatter a start that was searched on them, and no student.
    """
    assert job.confirm is not None
    if job.settings.last.fine_tune:
        return job.confirm
    parts = (job.search, job.confirm)
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return replace(job.confirm, images=images, labels=labels, fingerprint=" ".join(p.fingerprint for p in parts))


def weights_of(job: Job, recipe: Recipe) -> State:
    """The weights of a recipe, with its statistics."""
    network = job.evaluator.network
    return rebuild(network.sources, recipe, network.statistics(recipe))


def cost(job: Job, learned: Lesson) -> int:
    """Images through the network: a training step costs three forward passes."""
    return 3 * sum(scheduled_for(job, learned, rate).epochs * len(learned.images) for rate in rates(job.settings.last))


def scheduled_for(job: Job, learned: Lesson, rate: float) -> Schedule:
    """How a lesson is taught at a rate, as the settings say."""
    return learned.schedule(job.settings.last.epochs, rate, job.settings.seed)


def rates(last: LastMileSettings) -> tuple[float, ...]:
    """The learning rates that are tried."""
    return RATES if last.learning_rate is None else (last.learning_rate,)


def lesson(job: Job, recipes: Sequence[Recipe], kept: Path) -> Lesson:
    """Put together what is taught. kept: the beginning of the files of the teacher's answers."""
    network, last = job.evaluator.network, job.settings.last
    views = views_of(symmetric(network, recipes, job.search), job.plan.augmented)
    teacher = Teacher(network, tuple(recipes), kept) if last.distill else None
    return lesson_of(teacher, job.unlabelled if last.distill else None, job.search if last.fine_tune else None, views)


def taught(job: Job, start: State, learned: Lesson, name: str, output: Output) -> Student:
    """Train from a start at each rate; the student that knows most of the unseen images is the answer."""
    students, judging = [], unseen(job)
    for rate in rates(job.settings.last):
        state = job.settings.output / WORK / f"last-mile-{name}-{rate}.pt"
        after = learned.teach(job.spec, start, scheduled_for(job, learned, rate), state, output)
        network = Network(job.spec, alone(job.spec, after), job.calibration)
        ways = (False, True) if network.can_calibrate else (False,)
        students += [Student(network, Recipe((1.0,), calibrate=way), rate) for way in ways]
    return min(students, key=lambda student: student.known(judging).mean_loss)


def again(
    mile: LastMile, network: Network, start: State, splits: Mapping[str, Split], calibration: Split | None, place: Path
) -> Student:
    """The training of a record, from its start, at the rate that was chosen. network: of the sources.

    splits: purpose to images, as a lineage names them; place: an empty folder.
    """
    labelled = stratified(splits["search"]) if mile.fine_tune else None
    teacher = Teacher(network, mile.teacher, place / "teacher") if mile.distill else None
    learned = lesson_of(teacher, splits.get("distill"), labelled, views_of(mile.mirrored, mile.shifted))
    schedule = scheduled(mile.epochs, mile.batch_size, mile.learning_rate, mile.seed, learned.views)
    after, spec = learned.teach(network.spec, start, schedule, place / "state.pt", Output(muted=True)), network.spec
    recipe = Recipe((1.0,), calibrate=mile.calibrated)
    return Student(Network(spec, alone(spec, after), calibration), recipe, mile.learning_rate)


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
    last, schedule = job.settings.last, scheduled_for(job, learned, student.rate)
    return LastMile(
        distill=last.distill,
        fine_tune=last.fine_tune,
        start=chosen.name,
        teacher=tuple(teacher) if last.distill else (),
        images=len(learned.images),
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        learning_rate=student.rate,
        mirrored=learned.views != "none",
        shifted=learned.views == "flips and crops",
        calibrated=student.recipe.calibrate,
        seed=schedule.seed,
        accuracy_of_start=accuracy,
        stands=stands,
        judged=len(unseen(job)),
    )
