"""What a last mile teaches: images, what to answer about each, and how they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from hfmega.data.images import Split
from hfmega.evaluation.answers import answers
from hfmega.evaluation.network import Network
from hfmega.models.fit import Schedule, Views
from hfmega.search.recipe import Recipe

BATCH_SIZE: Final = 128
IMAGES: Final = 45_000  # that a training sees, in whole epochs
EPOCHS: Final = 10  # at most
SYMMETRIC: Final = 0.05  # of accuracy: who loses more on mirrored images has classes with a left and a right


@dataclass(frozen=True)
class Lesson:
    """What is taught. images: uint8 [n, channels, height, width]; targets: float32 [n, 2, classes], the probabilities
    of each image as it is and mirrored; views: how images are shown.
    """

    images: Tensor
    targets: Tensor
    views: Views

    def schedule(self, epochs: int | None, rate: float, seed: int) -> Schedule:
        """How it is taught at a rate. epochs: see `epochs_of`."""
        return scheduled(epochs_of(epochs, len(self.images)), BATCH_SIZE, rate, seed, self.views)


def epochs_of(asked: int | None, images: int) -> int:
    """How often a lesson of so many images is taught: as asked, else so that IMAGES are shown, at most EPOCHS."""
    return asked or max(1, min(EPOCHS, round(IMAGES / images)))


def scheduled(epochs: int, batch_size: int, rate: float, seed: int, views: Views) -> Schedule:
    """How a last mile is trained."""
    return Schedule(epochs, batch_size, rate, seed, "cosine", views, compiled=False)


def views_of(flips: bool, shifts: bool) -> Views:
    """What is shown. flips: mirrored images are of the same classes; shifts: the sources' training showed crops."""
    return ("flips and crops" if shifts else "flips") if flips else "none"


@dataclass(frozen=True)
class Taught:
    """Unlabelled images, and what the teacher says of each as it is and mirrored: float32 [n, 2, classes]."""

    images: Tensor
    answers: Tensor


def lesson_of(
    network: Network, teacher: Sequence[Recipe], unlabelled: Taught | None, labelled: Split | None, views: Views
) -> Lesson:
    """A lesson of unlabelled images, of labelled ones, or of both: then labels are half of the loss on the latter."""
    images, targets = [], []
    if unlabelled is not None:
        images.append(unlabelled.images)
        targets.append(unlabelled.answers)
    if labelled is not None:
        labels = torch.nn.functional.one_hot(labelled.labels, network.classes).float()[:, None].expand(-1, 2, -1)
        if unlabelled is not None:
            labels = (labels + answers_of(network, teacher, labelled)) / 2
        images.append(labelled.images)
        targets.append(labels)
    return Lesson(torch.cat(images), torch.cat(targets), views)


def answers_of(network: Network, teacher: Sequence[Recipe], split: Split) -> Tensor:
    """The mean probability of several recipes for each image as it is and mirrored: float32 [n, 2, classes]."""
    sides = [split, mirrored(split)]
    means = [sum(network.predict(recipe, side).exp() for recipe in teacher) / len(teacher) for side in sides]
    return torch.stack([torch.as_tensor(mean) for mean in means], dim=1)


def mirrored(split: Split) -> Split:
    return replace(split, images=split.images.flip(3), fingerprint=f"{split.fingerprint}, mirrored")


def symmetric(network: Network, teacher: Sequence[Recipe], labelled: Split) -> bool:
    """Tell whether mirrored images are of the same classes: the first teacher is about as right about them."""
    plain, turned = (
        answers(network.predict(teacher[0], view), view.labels).accuracy for view in (labelled, mirrored(labelled))
    )
    return turned >= plain - SYMMETRIC
