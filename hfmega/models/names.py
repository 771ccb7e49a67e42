"""The tensors of a network by the names of its checkpoint, which may be others than its own."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, TypeVar

from safetensors import SafetensorError, safe_open

from hfmega.folder import INDEX, WEIGHTS

T = TypeVar("T")
CONTAINERS: Final = ("stages", "blocks", "layers", "features")  # whose children are the stages of timm's networks
ELEMENTS: Final = 2**40  # of a tensor


@dataclass(frozen=True)
class Names:
    """What a checkpoint calls the tensors of a network. own: name in the file to the network's own; empty where they
    are the same. surplus: the tensors of the file that the network leaves aside.
    """

    own: Mapping[str, str] = field(default_factory=dict)
    surplus: frozenset[str] = frozenset()

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """The network's own name to that in the file."""
        return {name: key for key, name in self.own.items()}

    def key(self, name: str) -> str:
        """What the file calls a tensor of the network; what only the network has keeps its name."""
        return self.keys.get(name, name)

    def in_file(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Tensors by the names of the checkpoint, of those by the network's."""
        return {self.key(name): tensor for name, tensor in tensors.items()}

    def in_network(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Tensors by the names of the network, of those by the checkpoint's, without the surplus ones."""
        return {self.own.get(key, key): tensor for key, tensor in tensors.items() if key not in self.surplus}

    def brought(self, tensors: Mapping[str, T], first: "Names", known: Mapping[str, T]) -> dict[str, T]:
        """Tensors of this checkpoint by the names of a first one.

        known: the tensors of the first one, whose surplus ones stand in where this checkpoint lacks them.
        """
        if self == first:
            return dict(tensors)
        surplus = {key: tensors.get(key, known[key]) for key in first.surplus if key in known}
        return first.in_file(self.in_network(tensors)) | surplus


def in_container(tensor: str) -> str:
    """The stage of a tensor of timm's networks: its first part, and the second one below a container of stages."""
    first, *rest = tensor.split(".")
    return ".".join([first, *(rest[:1] if first in CONTAINERS else [])])


def to_first_number(tensor: str) -> str:
    """The stage of a tensor of a network that lies below a prefix: its name up to the first number, else the module.

    `vit.encoder.layer.3` of a vision transformer's fourth block, `resnet.encoder.stages.1` of a ResNet's second stage.
    """
    parts = tensor.split(".")
    first = next((k for k, part in enumerate(parts) if part.isdigit()), None)
    return tensor.rpartition(".")[0] if first is None else ".".join(parts[: first + 1])


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape, of the headers of the weights in a folder; none where there are none that can be read.

    Whoever reads the weights says what is wrong with them.
    """
    found: dict[str, tuple[int, ...]] = {}
    try:
        named = [WEIGHTS] if (folder / WEIGHTS).is_file() else json.loads((folder / INDEX).read_bytes())["weight_map"]
        for name in sorted(set(named if isinstance(named, list) else named.values())):
            with safe_open(folder / Path(name).name, "pt") as file:
                found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}
    return found if all(math.prod(shape) < ELEMENTS for shape in found.values()) else {}
