"""The float tensors of a state dict as one flat vector, and the groups of it that share coefficients."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfmega.errors import SourceError
from hfmega.models.names import in_container
from hfmega.settings import Genome

SAVED_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Slot:
    """Where a float tensor of the state dict lies in the flat vector: elements [start, stop)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    stop: int
    parameter: bool

    @property
    def is_variance(self) -> bool:
        return self.name.endswith("running_var")


@dataclass(frozen=True)
class Layout:
    """The float tensors of a state dict as one flat vector, sorted by name."""

    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """Number of floats."""
        return self.slots[-1].stop if self.slots else 0

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """flat: float32 [size] -> tensor name to a view of it in the tensor's own shape."""
        return {slot.name: flat[slot.start : slot.stop].view(slot.shape) for slot in self.slots}


def layout_of(state: Mapping[str, Tensor], parameters: Collection[str]) -> Layout:
    """The layout of a state dict; `parameters` are the tensor names that noise may touch.

    Raises SourceError for a float type other than float32, float16 and bfloat16.
    """
    slots, start = [], 0
    for name in sorted(state):
        tensor = state[name]
        if not tensor.is_floating_point():
            continue
        if tensor.dtype not in SAVED_DTYPES:
            raise SourceError(f"the tensor {name} is {tensor.dtype}: only float32, float16 and bfloat16 can be merged.")
        stop = start + tensor.numel()
        slots.append(Slot(name, tuple(tensor.shape), tensor.dtype, start, stop, name in parameters))
        start = stop
    return Layout(tuple(slots))


def flatten(state: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """The float tensors of a state dict as float32 [layout.size]."""
    return torch.cat([state[slot.name].reshape(-1).float() for slot in layout.slots])


@dataclass(frozen=True)
class Segments:
    """Which parts of the flat vector share coefficients. owners: int64 [segments], the group of each of the
    consecutive segments; sizes: int64 [segments], their lengths; count: the number of groups.
    """

    owners: NDArray[np.int64]
    sizes: NDArray[np.int64]
    count: int


def groups_of(layout: Layout, genome: Genome, stage: Callable[[str], str] = in_container) -> Segments:
    """The groups of a genome, in the order of the flat vector. A channel is one output channel of one tensor.

    The statistics of a BatchNorm go with its weight. stage: from a tensor to its stage, as `models.names` has them.
    """
    names = {slot.name for slot in layout.slots}
    numbers: dict[tuple[str, int], int] = {}
    owners, sizes = [], []
    for slot in layout.slots:
        module = slot.name.rpartition(".")[0]
        owner = f"{module}.weight" if not slot.parameter and f"{module}.weight" in names else slot.name
        parts = slot.shape[0] if genome == "channel" and slot.shape else 1
        for part in range(parts):
            owners.append(numbers.setdefault((group_name(owner, genome, stage), part), len(numbers)))
            sizes.append((slot.stop - slot.start) // parts)
    return Segments(np.array(owners, np.int64), np.array(sizes, np.int64), len(numbers))


def group_name(tensor: str, genome: Genome, stage: Callable[[str], str]) -> str:
    """What the group of a tensor is called: `layer1` is a stage, `layer1.0.conv1` a layer."""
    if genome == "model":
        return ""
    if genome == "stage":
        return stage(tensor)
    return tensor.rpartition(".")[0] if genome == "layer" else tensor
