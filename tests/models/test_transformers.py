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

from support.families import FAMILIES, SIDE, write

from hfmega.models import library
from hfmega.models.trace import spaces_of
from hfmega.weights import align
from hfmega.weights.checkpoint import Checkpoint, from_folder, load_weights
from hfmega.weights.permute import permute, random_permutations

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


# How many spaces a family has, and the share of its numbers that they move: of a vision transformer one for each MLP,
# one for the heads of each attention, and the residual stream. SigLIP's text side and unused head stay.
SPACES = {
    "vit": (5, 1.0),
    "swin": (6, 1.0),
    "dinov2": (5, 1.0),
    "beit": (3, 0.97),
    "siglip": (5, 0.76),
    "resnet": (5, 1.0),
}


@pytest.mark.parametrize("family", SPACES)
def test_permuted_networks_compute_the_same(family: str, tmp_path: Path) -> None:
    checkpoint = from_folder(write(family, tmp_path))
    draw = torch.Generator().manual_seed(0)
    state = {
        n: t + 0.1 * torch.rand(t.shape, generator=draw) * (t.dim() == 1) for n, t in load_weights(checkpoint).items()
    }
    spaces, model = spaces_of(checkpoint.spec), library.build(checkpoint.spec).double()
    turned = permute(state, spaces, random_permutations(spaces, 1))
    seen = torch.randn(2, *checkpoint.spec.preprocessing.input_size, generator=draw, dtype=torch.float64)
    found = []
    with torch.inference_mode():
        for tensors in (state, turned):
            library.load_into(checkpoint.spec, model, tensors)
            found.append(model(seen))
    assert (found[0] - found[1]).abs().max() < 1e-12 * found[0].abs().max()
    touched = {axis.tensor for space in spaces.spaces for axis in space.axes}
    share = sum(state[name].numel() for name in touched) / sum(tensor.numel() for tensor in state.values())
    assert (len(spaces.spaces), round(share, 2)) == SPACES[family]
    assert sum(not torch.equal(state[name], turned[name]) for name in touched) > 0.9 * len(touched)
    back = permute(turned, spaces, align.match_weights(state, turned, spaces))
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_matching_activations_undoes_a_permutation_of_heads(tmp_path: Path) -> None:
    checkpoint = from_folder(write("vit", tmp_path))
    state, spaces = load_weights(checkpoint), spaces_of(checkpoint.spec)
    heads = [space for space in spaces.spaces if any(axis.width == 8 for axis in space.axes)]
    assert [space.size for space in heads] == [3, 3]
    turned = permute(state, spaces, random_permutations(spaces, 2))
    seen = torch.randn(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    orders = align.match_activations(checkpoint.spec, state, turned, spaces, seen)
    back = permute(turned, spaces, orders)
    assert all(torch.equal(back[name], state[name]) for name in state)
