"""BatchNorm statistics as exact averages over batches that know nothing of each other.

A BatchNorm in training mode normalises by the statistics of the batch at hand. So each batch says the same wherever it
is computed, and several processes may share the batches of one network.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hfmega.models.library import batch_norms


class Statistics:
    """The running means and variances of a network as one vector: float32 [floats]."""

    def __init__(self, model: nn.Module) -> None:
        self._norms = batch_norms(model)
        self._tensors = [t for norm in self._norms for t in (norm.running_mean, norm.running_var) if t is not None]

    def __len__(self) -> int:
        return len(self._tensors)

    @contextmanager
    def of_the_batch(self, wanted: bool = True) -> Iterator[None]:
        """BatchNorm uses the statistics of each batch, if wanted; `moments` are then those of the newest batch."""
        for norm in self._norms if wanted else ():
            norm.train()
            norm.momentum = 1.0  # nothing of earlier batches is kept
        try:
            yield
        finally:
            for norm in self._norms:
                norm.eval()

    def moments(self) -> Tensor:
        """A copy of the present ones."""
        return torch.cat(self._tensors)

    def write(self, values: Tensor) -> None:
        """Let these be the present ones. values: float32 [floats], on any device."""
        for tensor, part in zip(self._tensors, values.split([len(t) for t in self._tensors]), strict=True):
            tensor.copy_(part)

    def clear(self) -> None:
        """Forget the present ones: what is not finite would spoil even a next batch that keeps nothing of them."""
        for tensor in self._tensors:
            tensor.zero_()


def average(moments: Tensor, parts: Sequence[range]) -> Tensor:
    """The mean over batches, each image with the same weight. moments: float32 [batches, floats]; parts: the batches.

    Summed in float64 and rounded once: float32 [floats].
    """
    images = torch.tensor([len(part) for part in parts], dtype=torch.float64)
    return ((images[:, None] * moments.double()).sum(0) / images.sum()).float()
