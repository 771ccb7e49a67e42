"""What the best source gains alone from the images that a merge was chosen on: only the rest comes from the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from torch import Tensor

from hfmega import phases
from hfmega.data.images import Split
from hfmega.evaluation.answers import Answers, answers, tempered
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import processes
from hfmega.merging.prepare import Job
from hfmega.merging.run_off import found_by, run_off
from hfmega.merging.tree import scores_of, searcher_of
from hfmega.models.fit import Schedule, Targets, fit
from hfmega.models.library import Spec, build, load_into, normalizer, outline, parameters_of, state_of
from hfmega.output import Output
from hfmega.search.recipe import Recipe
from hfmega.settings import Method
from hfmega.weights.sources import Sources, rebuild

SEARCH_ALONE: Final = "search over the best source alone"
FINE_TUNING: Final = "fine-tuning of the best source"
EPOCHS: Final = 10  # at most; never more images through the network than the merge's search took
BATCH_SIZE: Final = 64
LEARNING_RATES: Final = (0.001, 0.0001)  # young networks need the first, fine-tuned ones the second


@dataclass(frozen=True)
class Tried:
    """A control: its source and the accuracy that had on test before, what it says of the test images, what it cost."""

    name: str
    source: str
    start: float
    answers: Answers
    forward_passes: int


def controls(job: Job, searches: int, forward_passes: int, output: Output) -> list[Tried]:
    """Both controls, judged on test, with the budget of the merge: so many searches, so many images.

    The best source is the one with the lowest mean loss on all fitness images, calibrated or not.
    """
    phases.begin("controls")
    name, best = best_source(job)
    output.say(f"controls: what {name} gains alone")
    found = [search_alone(job, name, best, searches)]
    if job.evaluator.state.is_main_process:
        found += fine_tuned(job, found[0], best, forward_passes)
    return found


def best_source(job: Job) -> tuple[str, Recipe]:
    """The source, calibrated or not, with the lowest mean loss on the fitness images."""
    ways = (False, True) if job.evaluator.network.can_calibrate else (False,)
    recipes = [(member.name, replace(member.recipe, calibrate=way)) for member in job.merged for way in ways]
    losses = [0.0] * len(recipes)
    for split in filter(None, (job.search, job.confirm)):
        scores = job.evaluator.scores([recipe for _, recipe in recipes], split)
        losses = [loss + score.loss * score.total for loss, score in zip(losses, scores, strict=True)]
    return recipes[min(range(len(recipes)), key=losses.__getitem__)]


def search_alone(job: Job, name: str, best: Recipe, searches: int) -> Tried:
    """The search over one source, with the generations of all searches: mutations, or learned coefficients.

    Methods that have neither are controlled by the genetic algorithm.
    """
    settings = replace(job.settings.search, generations=job.settings.search.generations * searches)
    method: Method = "learned" if job.settings.method == "learned" else "mega"
    alike = replace(job, settings=replace(job.settings, method=method, search=settings))
    searcher, seen = searcher_of(alike, [best], job.settings.seed), job.evaluator.network.images_seen
    while not searcher.done:
        searcher.tell(scores_of([searcher.ask()], alike, first=not searcher.history)[0])
    cost = job.evaluator.network.images_seen - seen
    chosen = run_off(found_by(searcher), job.evaluator, {name: best}, job.search, job.confirm)
    before, judged = job.evaluator.answers([best, chosen.recipe], job.test)
    return Tried(SEARCH_ALONE, name, before.accuracy, judged, cost)


def fine_tuned(job: Job, first: Tried, best: Recipe, forward_passes: int) -> list[Tried]:
    """The best source after Adam on the search images: at each rate, calibrated again or not, or as it was.

    The one with the lowest mean loss on the confirm images stands, each at its best temperature.
    """
    epochs = min(EPOCHS, forward_passes // (len(LEARNING_RATES) * len(job.search)))
    if epochs == 0:
        return []
    start = rebuild(job.evaluator.network.sources, best, job.evaluator.network.statistics(best))
    tried = []
    for rate in LEARNING_RATES:
        network = Network(job.spec, alone(job.spec, fine_tune(job, start, epochs, rate)), job.calibration)
        ways = (False, True) if network.can_calibrate else (False,)
        tried += [(network, Recipe((1.0,), calibrate=way)) for way in ways]
    if job.confirm:
        tried.append((Network(job.spec, alone(job.spec, start), calibration=None), Recipe((1.0,))))
    network, recipe = knows_most(tried, job.confirm or job.search)
    judged, cost = judge(network, recipe, job.test), len(LEARNING_RATES) * epochs * len(job.search)
    return [Tried(FINE_TUNING, first.source, first.start, judged, cost)]


def knows_most(tried: Sequence[tuple[Network, Recipe]], split: Split) -> tuple[Network, Recipe]:
    """The network, with or without statistics of its own, that has the lowest mean loss at its best temperature."""
    return min(tried, key=lambda pair: judge_tempered(pair[0], pair[1], split).mean_loss)


def fine_tune(job: Job, start: dict[str, Tensor], epochs: int, rate: float) -> dict[str, Tensor]:
    """Train on the labels of the search images at a constant rate."""
    schedule = Schedule(epochs, BATCH_SIZE, rate, job.settings.seed, compiled=False)
    with TemporaryDirectory() as scratch:
        state, quiet = Path(scratch) / "state", Output(muted=True)
        return train(job.spec, start, job.search.images, job.search.labels, schedule, state, quiet)


def train(
    spec: Spec,
    start: dict[str, Tensor],
    images: Tensor,
    targets: Targets,
    schedule: Schedule,
    state: Path,
    output: Output,
) -> dict[str, Tensor]:
    """Train a network from some weights on this process's device; images, targets, state: as `fit` takes them.

    It computes in float32, and what comes out has the types of the start.
    """
    device = processes().device
    model = build(spec)
    load_into(spec, model, start)
    fit(model.to(device), images, targets, normalizer(spec, device), schedule, state, output)
    after = {name: tensor.detach().cpu().contiguous() for name, tensor in state_of(spec, model).items()}
    return {**start, **{name: t.to(start[name].dtype) if name in start else t for name, t in after.items()}}


def alone(spec: Spec, state: dict[str, Tensor]) -> Sources:
    """A state dict as the only source, on this process's device."""
    return Sources([state], parameters_of(spec, outline(spec)), processes().device)


def judge(network: Network, recipe: Recipe, split: Split) -> Answers:
    """What a recipe says of a split, in this process alone."""
    return answers(network.predict(recipe, split), split.labels)


def judge_tempered(network: Network, recipe: Recipe, split: Split) -> Answers:
    """The same at its best temperature: training changes how sure a network is, and that alone is no gain."""
    return tempered(network.predict(recipe, split), split.labels)
