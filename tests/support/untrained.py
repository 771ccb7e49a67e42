"""A small network's config and weights, untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hfmega.models.timm_library import build
from hfmega.weights.checkpoint import Checkpoint

CONFIG: dict[str, Any] = {
    "architecture": "resnet8_cifar",
    "num_classes": 3,
    "label_names": ["cat", "dog", "owl"],
}
State = dict[str, Tensor]


def checkpoint(name: str, folder: Path = Path("nowhere"), **changes: Any) -> Checkpoint:
    return Checkpoint(name, None, None, folder, "0" * 64, {**CONFIG, **changes})


def state(seed: int = 1, **changes: Any) -> State:
    return build({**CONFIG, **changes}, seed).state_dict()
