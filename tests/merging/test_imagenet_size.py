"""Photographs of 224 pixels in an image folder, and a network of timm's that takes them: through the main job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import run
from support.specs import spec

from hfmega.models.library import build
from hfmega.weights.checkpoint import save_weights

CLASSES = ("beetle", "canoe", "lighthouse", "meadow", "teapot")
CONFIG = {
    "architecture": "test_efficientnet",
    "num_classes": len(CLASSES),
    "label_names": list(CLASSES),
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
    },
}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """60 JPEG files, 40 to learn from and 20 to test on, in a folder for each class."""
    noise = np.random.default_rng(0)
    for number in range(60):
        split, label = ("train", "test")[number % 3 == 2], number // 3 % len(CLASSES)
        folder = tmp_path / "photographs" / split / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (224, 224, 3) if number % 2 else (224, 300, 3)  # as tall, and wider than tall
        pixels = noise.integers(0, 120, shape) + 25 * label
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg")
    return tmp_path / "photographs"


def test_photographs_of_224_pixels_in_an_image_folder_are_merged_on(photographs: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = tmp_path / f"s{seed}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        save_weights(build(spec(**CONFIG), seed).state_dict(), folder / "model.safetensors")
    flags = ("--dataset", photographs, "--fitness-split", "train[:20]", "--population", 4, "--generations", 2, "--json")
    made = run("merge", tmp_path / "s1", tmp_path / "s2", *flags, "-o", tmp_path / "out").json
    lineage = json.loads((tmp_path / "out/lineage.json").read_text())
    images = {purpose: split["images"] for purpose, split in lineage["data"]["splits"].items()}
    assert sum(images.values()) == 60
    assert images["test"] == lineage["result"]["total"] == 20
    assert len(lineage["nodes"][-1]["history"]) == 2
    assert {r["kind"] for r in made["references"]} >= {"source", "average", "ensemble"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["pretrained_cfg"]["input_size"], config["label_names"]) == ([3, 224, 224], list(CLASSES))
    assert made["forward_passes"] > 0
