"""A small network's config and weights, untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hfmega.models.library import build
from hfmega.weights.checkpoint import Checkpoint
from support.specs import spec

CONFIG: dict[str, Any] = {
    "architecture": "resnet8_cifar",
    "num_classes": 3,
    "label_names": ["cat", "dog", "owl"],
}
SPEC = spec(**CONFIG)
State = dict[str, Tensor]


def checkpoint(name: str, folder: Path = Path("nowhere"), **changes: Any) -> Checkpoint:
    return Checkpoint(name, None, None, folder, "0" * 64, spec(**{**CONFIG, **changes}))


def state(seed: int = 1, **changes: Any) -> State:
    return build(spec(**{**CONFIG, **changes}), seed).state_dict()
