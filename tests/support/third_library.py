"""A model library of its own, as anyone would add one: a linear classifier on the digits' own pixels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hfmega.models.library import CardFacts, Spec
from hfmega.models.preprocessing import Preprocessing

PACKAGES = ("torch",)


def read(document: Any, path: Path, where: str) -> Spec:
    images = Preprocessing((1, 8, 8), (0.0,), (1.0,), {})
    return Spec("third", "linear", document["third"], None, images, {}, None, document)


def build(spec: Spec, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, spec.classes)).eval()


def transform(spec: Spec) -> Callable[[Image.Image], Tensor]:
    return lambda image: torch.from_numpy(np.array(image.resize((8, 8))))[None]


def merged_config(spec: Spec, tag: str | None) -> dict[str, Any]:
    return dict(spec.config)


def stage(tensor: str) -> str:
    return tensor


def card_facts(spec: Spec) -> CardFacts:
    return CardFacts("third", (), registered=False)


def write(folder: Path, seed: int) -> Path:
    """An untrained network and its config."""
    from hfmega.weights.checkpoint import save_weights

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"third": 10}))
    made = read({"third": 10}, folder, "here")
    save_weights(build(made, seed).state_dict(), folder / "model.safetensors")
    return folder
