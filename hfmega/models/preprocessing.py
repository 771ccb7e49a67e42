"""The images that a network takes: their size, and how they are scaled from uint8."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """The size, mean and standard deviation of a network's images, of pixels from 0 to 1.

    input_size: channels, height, width; resize: how the library scales and crops an image to it, in its own words.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Mapping[str, Any]

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """The mode of PIL's images."""
        return "L" if self.input_size[0] == 1 else "RGB"

    def normalizer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """From images as `Split` holds them to a network's input, float32."""
        mean = torch.tensor(self.mean, device=device).view(1, -1, 1, 1) * 255
        std = torch.tensor(self.std, device=device).view(1, -1, 1, 1) * 255
        return lambda images: ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)

    def noise(self, count: int) -> Tensor:
        """Images of noise, always the same: uint8 [count, channels, height, width]."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (count, *self.input_size), dtype=torch.uint8, generator=generator)
