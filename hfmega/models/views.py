"""How a training shows images: as they are, mirrored, or mirrored and shifted.

What an epoch shows is drawn before it begins, so that a teacher can be asked about what its student will see.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hfmega.rng import philox

Views = Literal["none", "flips", "flips and crops"]
PADDING: Final = 8  # a crop is shifted by at most an eighth of a side, as 4 of CIFAR-10's 32 pixels
AT_ONCE: Final = 1000  # images that are shown together


@dataclass(frozen=True)
class Drawn:
    """How each of n images is shown. mirrored: bool [n]; down, right: int64 [n], where its crop begins."""

    views: Views
    mirrored: Tensor
    down: Tensor
    right: Tensor

    def shown(self, images: Tensor, rows: Tensor | slice) -> Tensor:
        """The images of some rows, uint8 [m, channels, height, width], as they are shown."""
        part = images[rows]
        if self.views == "none":
            return part
        turn = self.mirrored[rows].to(part.device)
        part = torch.where(turn[:, None, None, None], part.flip(3), part)
        if self.views == "flips":
            return part
        return cropped(part, self.down[rows].to(part.device), self.right[rows].to(part.device))

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """All images as they are shown, some at a time."""
        for start in range(0, len(images), AT_ONCE):
            yield self.shown(images, slice(start, start + AT_ONCE))


def draw(shape: Sequence[int], views: Views, *key: object) -> Drawn:
    """How images of a shape [n, channels, height, width] are shown: the same on every machine for the same key."""
    count, _, height, width = shape
    raw = philox(*key, "views").random_raw(3 * count).reshape(3, count)
    return Drawn(views, torch.from_numpy(raw[0] >> np.uint64(63) == 1), below(raw[1], height), below(raw[2], width))


def below(raw: NDArray[np.uint64], side: int) -> Tensor:
    """Raw integers as where a crop may begin, 0 to twice the padding, each as often: int64 [n]."""
    return torch.from_numpy((raw >> np.uint64(32)) * np.uint64(2 * (side // PADDING) + 1) >> np.uint64(32)).long()


def cropped(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images padded with zeros by an eighth of their sides, and cut to their size again from `down` and `right` on."""
    count, _, height, width = images.shape
    high, wide = height // PADDING, width // PADDING
    padded = nn.functional.pad(images, (wide, wide, high, high))
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device) + right[:, None]
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
