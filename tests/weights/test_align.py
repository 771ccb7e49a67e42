"""Permutation spaces, matching, and merges of aligned sources."""

import json
from pathlib import Path

import pytest
import torch
from support.commands import run
from support.specs import spec
from torch import Tensor

from hfmega.errors import HfmegaError
from hfmega.folder import RECIPE
from hfmega.hub.pull import pull
from hfmega.models.graph.trace import spaces_of
from hfmega.models.library import Spec, build
from hfmega.weights import align
from hfmega.weights.checkpoint import load_weights, save_weights
from hfmega.weights.permute import permute, random_permutations
from hfmega.weights.relation import relate

# How many spaces each network has, and the share of its numbers that they move.
NETWORKS = {
    "resnet20_cifar": (12, 1.0),
    "densenet121": (120, 1.0),
    "legacy_xception": (28, 1.0),
    "resnet18": (12, 1.0),
    "convnext_atto": (16, 1.0),
    "mobilenetv3_small_050": (26, 1.0),
    "vit_tiny_patch16_224": (25, 1.0),
}


def large(name: str) -> object:
    """A network as a parameter; those that take seconds are of the slower tier."""
    slow = name in ("densenet121", "legacy_xception", "mobilenetv3_small_050")
    return pytest.param(name, marks=pytest.mark.system) if slow else name


def config_of(network: str) -> Spec:
    return spec(network)


def weights_of(network: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, biases and statistics: no two channels of a network are alike."""
    model = build(config_of(network), seed)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator) if tensor.dim() == 1 else tensor
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("network", [large(name) for name in NETWORKS])
def test_a_permuted_network_computes_the_same(network: str) -> None:
    config, state = config_of(network), weights_of(network)
    spaces = spaces_of(config)
    turned = permute(state, spaces, random_permutations(spaces, 1))
    images = torch.randn(2, *config.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    model = build(config).eval()
    with torch.inference_mode():
        model.load_state_dict(state)
        before = model(images)
        model.load_state_dict(turned)
        after = model(images)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    count, share = NETWORKS[network]
    touched = {axis.tensor for space in spaces.spaces for axis in space.axes}
    moved = sum(state[name].numel() for name in touched) / sum(tensor.numel() for tensor in state.values())
    assert (len(spaces.spaces), round(moved, 2)) == (count, share)
    changed = [name for name in touched if not torch.equal(state[name], turned[name])]
    assert len(changed) > 0.9 * len(touched)


def test_what_cannot_be_permuted_is_said_in_a_sentence() -> None:
    notes = spaces_of(config_of("test_vit")).notes
    assert any(note.startswith("7 layers (add, ...) cannot be permuted (") for note in notes), notes
    assert all(note.endswith(" channels stay where they are.") for note in notes)
    assert len(notes) <= 3
    assert spaces_of(config_of("resnet20_cifar")).notes == ()


@pytest.mark.parametrize(
    "network", [large(name) for name in ("resnet20_cifar", "densenet121", "mobilenetv3_small_050", "convnext_atto")]
)
def test_matching_weights_undoes_a_permutation(network: str) -> None:
    state, spaces = weights_of(network), spaces_of(config_of(network))
    turned = permute(state, spaces, random_permutations(spaces, 7))
    back = permute(turned, spaces, align.match_weights(state, turned, spaces))
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_matching_activations_undoes_a_permutation() -> None:
    config, state = config_of("resnet20_cifar"), weights_of("resnet20_cifar")
    spaces = spaces_of(config)
    turned = permute(state, spaces, random_permutations(spaces, 7))
    images = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    back = permute(turned, spaces, align.match_activations(config, state, turned, spaces, images))
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_matched_network_is_nearer(shared_checkpoints: Path) -> None:
    first, second = (pull(str(shared_checkpoints / f"resnet8-s{seed}")) for seed in (44, 45))
    states = [load_weights(first), load_weights(second)]
    turned = align.apply(first.spec, states, align.align("weights", first.spec, states, None).permutations)
    before, after = relate(*states), relate(*turned)
    assert before.relation == "independent"
    assert before.cosine < 0.05 < 0.1 < after.cosine
    assert sum(layer.distance for layer in after.layers) < sum(layer.distance for layer in before.layers)


def test_matching_the_same_pair_again_gives_the_same() -> None:
    states = [weights_of("resnet8_cifar", seed) for seed in (0, 1)]
    first, again = (align.align("weights", config_of("resnet8_cifar"), states, None).tensors for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    ("orders", "sentence"),
    [
        ({"nowhere": torch.arange(3)}, "the network has no channels called nowhere that could be permuted."),
        ({"conv1.weight": torch.arange(3)}, "the permutation of conv1.weight is not one of 16 channels."),
        ({"conv1.weight": torch.zeros(16).long()}, "the permutation of conv1.weight is not one of 16 channels."),
    ],
)
def test_what_is_no_permutation_is_refused(orders: dict[str, Tensor], sentence: str) -> None:
    spaces = spaces_of(config_of("resnet8_cifar"))
    with pytest.raises(HfmegaError, match=sentence):
        permute(weights_of("resnet8_cifar"), spaces, orders)


def test_a_foreign_file_of_permutations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / RECIPE
    save_weights({"permutation/5/conv1.weight": torch.arange(16)}, path)
    with pytest.raises(HfmegaError, match="which is no permutation of one of 2 sources"):
        align.read(path, 2)
    path.write_bytes(b"no header")
    with pytest.raises(HfmegaError, match="cannot be read"):
        align.read(path, 2)


@pytest.fixture(scope="module")
def permuted_copy(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of the tiny sources with its channels in another order."""
    source = pull(str(tiny_sources[0]))
    folder = tmp_path_factory.mktemp("permuted") / "copy"
    folder.mkdir()
    (folder / "config.json").write_text((source.folder / "config.json").read_text())
    spaces = spaces_of(source.spec)
    save_weights(permute(load_weights(source), spaces, random_permutations(spaces, 3)), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_a_merge_with_its_permuted_copy_gives_back_the_source(
    tiny_sources: tuple[Path, Path], permuted_copy: Path, tmp_path: Path, method: str
) -> None:
    merge = ["merge", tiny_sources[0], permuted_copy, "--dataset", "digits", "--population", 3, "--generations", 2]
    merge += ["--mutation-sigma", 0, "--calibrate", "--preset", "paper", "--fitness-split", "train[:300]"]
    found = run(*merge, "--align", method, "-o", tmp_path / "merged", "--json").json
    accuracy = {reference["name"]: reference["accuracy"] for reference in found["references"]}
    source = accuracy[f"{tiny_sources[0].name}, calibrated"]
    assert source > 0.5
    assert abs(found["accuracy"] - source) <= 1 / 500
    assert abs(accuracy["uniform average"] - source) <= 1 / 500
    replayed = run("replay", tmp_path / "merged", "--json")
    assert replayed.json == {"sha256": found["sha256"], "expected": found["sha256"], "equal": True}
    assert json.loads((tmp_path / "merged" / "lineage.json").read_text())["settings"]["align"] == method
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"permuted to match the first one's, by {method};" in card
    assert f"--align {method}" in card
    (tmp_path / "merged" / RECIPE).unlink()
    assert "cannot be read" in run("replay", tmp_path / "merged").complaint
