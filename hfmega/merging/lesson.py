"""What a last mile teaches: images, how they are shown, and what to answer about each as it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from hfmega.data.images import Split
from hfmega.evaluation.answers import answers
from hfmega.evaluation.network import Network
from hfmega.merging.controls import train
from hfmega.models.fit import Schedule
from hfmega.models.library import Spec
from hfmega.models.views import Views
from hfmega.output import Output
from hfmega.search.recipe import Recipe
from hfmega.weights.checkpoint import save_weights

BATCH_SIZE: Final = 128
IMAGES: Final = 45_000  # that a training sees, in whole epochs
EPOCHS: Final = 10  # at most
SYMMETRIC: Final = 0.05  # of accuracy: who loses more on mirrored images has classes with a left and a right

State = dict[str, Tensor]


@dataclass(frozen=True)
class Teacher:
    """Recipes whose mean probability is taught. kept: the beginning of the files that keep what they answered."""

    network: Network
    recipes: tuple[Recipe, ...]
    kept: Path

    def answers(self, images: Tensor, schedule: Schedule, epoch: int) -> Tensor:
        """The probabilities of each image as an epoch shows it, float32 [n, classes]; computed once, then kept."""
        file = self.kept.with_name(f"{self.kept.name}-{epoch}.safetensors")
        if file.exists():
            known: Tensor = load_file(file)["answers"]
            return known
        found = torch.zeros(len(images), self.network.classes)
        for recipe in self.recipes:
            said = self.network.answer(recipe, schedule.shows(images, epoch).parts(images))
            found += torch.cat(list(said)).exp() / len(self.recipes)
        save_weights({"answers": found}, file)
        return found


@dataclass(frozen=True)
class Lesson:
    """What is taught. images: uint8 [n, channels, height, width]; labels: int64 [n], of no meaning where their share is
    0; share: float32 [n], that of the label in what is to be answered; the rest is the teacher's.
    """

    images: Tensor
    labels: Tensor
    share: Tensor
    views: Views
    teacher: Teacher | None

    def schedule(self, epochs: int | None, rate: float, seed: int) -> Schedule:
        """How it is taught at a rate. epochs: see `epochs_of`."""
        return scheduled(epochs_of(epochs, len(self.images)), BATCH_SIZE, rate, seed, self.views)

    def targets(self, schedule: Schedule, epoch: int, classes: int) -> Tensor:
        """What to answer about each image as an epoch of a schedule shows it: float32 [n, classes]."""
        labels = torch.nn.functional.one_hot(self.labels, classes).float()
        if self.teacher is None:
            return labels
        return torch.lerp(self.teacher.answers(self.images, schedule, epoch), labels, self.share[:, None])

    def teach(self, spec: Spec, start: State, schedule: Schedule, state: Path, output: Output) -> State:
        """The weights of a start after a training. state: as `fit` takes it."""

        def targets(epoch: int) -> Tensor:
            return self.targets(schedule, epoch, spec.classes)

        return train(spec, start, self.images, targets, schedule, state, output)


def epochs_of(asked: int | None, images: int) -> int:
    """How often a lesson of so many images is taught: as asked, else so that IMAGES are shown, at most EPOCHS."""
    return asked or max(1, min(EPOCHS, round(IMAGES / images)))


def scheduled(epochs: int, batch_size: int, rate: float, seed: int, views: Views) -> Schedule:
    """How a last mile is trained."""
    return Schedule(epochs, batch_size, rate, seed, "cosine", views, compiled=False)


def views_of(flips: bool, shifts: bool) -> Views:
    """What is shown. flips: mirrored images are of the same classes; shifts: the sources' training showed crops."""
    return ("flips and crops" if shifts else "flips") if flips else "none"


def lesson_of(teacher: Teacher | None, unlabelled: Split | None, labelled: Split | None, views: Views) -> Lesson:
    """A lesson of unlabelled images, of labelled ones, or of both: then labels are half of the loss on the latter."""
    parts = [(split, share) for split, share in ((unlabelled, 0.0), (labelled, 0.5 if teacher else 1.0)) if split]
    return Lesson(
        torch.cat([split.images for split, _ in parts]),
        torch.cat([split.labels for split, _ in parts]),
        torch.cat([torch.full((len(split),), share) for split, share in parts]),
        views,
        teacher,
    )


def mirrored(split: Split) -> Split:
    return replace(split, images=split.images.flip(3), fingerprint=f"{split.fingerprint}, mirrored")


def symmetric(network: Network, teacher: Sequence[Recipe], labelled: Split) -> bool:
    """Tell whether mirrored images are of the same classes: the first teacher is about as right about them."""
    plain, turned = (
        answers(network.predict(teacher[0], view), view.labels).accuracy for view in (labelled, mirrored(labelled))
    )
    return turned >= plain - SYMMETRIC
