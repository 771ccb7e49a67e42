"""Image classifiers of transformers behind the boundary: names, answers, pixels, refusals. 20 seconds, most of them the
import of that library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from support.families import FAMILIES, write

from hfmega.models import library
from hfmega.weights.checkpoint import Checkpoint, from_folder, load_weights

SIZES = [(32, 32), (48, 36), (35, 61), (101, 99)]  # width, height


def images() -> list[Image.Image]:
    """Noise, which every resize and every crop changes."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in SIZES]


def network(checkpoint: Checkpoint) -> torch.nn.Module:
    model = library.build(checkpoint.spec)
    library.load_into(checkpoint.spec, model, load_weights(checkpoint))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_are_those_of_the_official_pipeline(family: str, tmp_path: Path) -> None:
    import transformers

    checkpoint = from_folder(write(family, tmp_path))
    official: Any = transformers.pipeline("image-classification", model=str(tmp_path))
    model, pixels = network(checkpoint), library.transform(checkpoint.spec)
    normalize = library.normalizer(checkpoint.spec, torch.device("cpu"))
    assert checkpoint.spec.labels == tuple(map(str, range(10)))
    with torch.inference_mode():
        for image in images():
            expected = official.preprocess(image)
            seen = normalize(pixels(image)[None])
            assert (seen - expected["pixel_values"]).abs().max() < 1e-5
            assert (model(seen) - official.model(**expected).logits).abs().max() < 1e-5


def test_names_are_those_of_the_file(tmp_path: Path) -> None:
    checkpoint = from_folder(write("vit", tmp_path))
    state = load_weights(checkpoint)
    assert library.sizes(checkpoint.spec) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    model = network(checkpoint)
    assert library.state_of(checkpoint.spec, model).keys() == state.keys()
    assert sum(not name.endswith(key) for key, name in checkpoint.spec.names.own.items()) > 20  # or this tests nothing
    for name, tensor in library.parameters_of(checkpoint.spec, model).items():
        assert torch.equal(tensor, state[name])
