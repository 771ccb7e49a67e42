"""Which checkpoints can be merged, and what is written to and read from safetensors."""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.untrained import CONFIG, SPEC, State, checkpoint, state

from hfmega.errors import HfmegaError
from hfmega.models.compare import CLASSES, NETWORK, PIXELS
from hfmega.models.library import build
from hfmega.search.recipe import Recipe, source_alone
from hfmega.weights.checkpoint import Checkpoint, load_weights, save_weights
from hfmega.weights.mergeable import check_mergeable
from hfmega.weights.sources import mix, rebuild

PETS = "['cat', 'dog', 'owl']"


def without(name: str) -> Callable[[State], State]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def refusal(*sources: tuple[Checkpoint, State]) -> str:
    with pytest.raises(HfmegaError) as refused:
        check_mergeable([c for c, _ in sources], [s for _, s in sources])
    return str(refused.value)


def test_equal_checkpoints_can_be_merged() -> None:
    check_mergeable([checkpoint("ann/a"), checkpoint("bob/b"), checkpoint("cyd/c")], [state(1), state(2), state(3)])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "resnet20_cifar"}, f"architecture (resnet20_cifar and resnet8_cifar): {NETWORK}"),
        ({"num_classes": 100}, f"number of classes (100 and 3): {CLASSES}"),
        ({"label_names": ["dog", "cat", "owl"]}, f"label order (['dog', 'cat', 'owl'] and {PETS}): {CLASSES}"),
        ({"label_names": ["cat", "dog", "eel"]}, f"labels (['cat', 'dog', 'eel'] and {PETS}): {CLASSES}"),
        ({"pretrained_cfg": {"mean": [0.5] * 3}}, f"mean ((0.5, 0.5, 0.5) and (0.485, 0.456, 0.406)): {PIXELS}"),
        ({"pretrained_cfg": {"std": [0.5] * 3}}, f"std ((0.5, 0.5, 0.5) and (0.229, 0.224, 0.225)): {PIXELS}"),
    ],
)
def test_another_kind_of_network_is_refused(changes: dict[str, Any], sentence: str) -> None:
    second = checkpoint("bob/b", **changes), state(2, **changes)
    assert refusal((checkpoint("ann/a"), state(1)), second) == f"bob/b and ann/a differ in {sentence}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("fc.bias"), "bob/b lacks the tensor fc.bias that ann/a has (1 missing)."),
        (lambda s: {**s, "ema.decay": torch.ones(1)}, "bob/b has the tensor ema.decay that ann/a has not (1 more)."),
        (
            lambda s: {**s, "fc.weight": torch.zeros(3, 65)},
            "bob/b has fc.weight of shape (3, 65), ann/a of shape (3, 64).",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(change: Callable[[State], State], sentence: str) -> None:
    assert refusal((checkpoint("ann/a"), state(1)), (checkpoint("bob/b"), change(state(2)))) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("conv1.bias"), "ann/a lacks the tensor conv1.bias that timm's resnet8_cifar has (1 missing)."),
        (lambda s: {**s, "x": torch.ones(1)}, "ann/a has the tensor x that timm's resnet8_cifar has not (1 more)."),
        (
            lambda s: {**s, "fc.bias": torch.zeros(4)},
            "ann/a has fc.bias of shape (4,), timm's resnet8_cifar of shape (3,).",
        ),
    ],
)
def test_tensors_that_are_not_the_network_s_are_refused(change: Callable[[State], State], sentence: str) -> None:
    assert refusal((checkpoint("ann/a"), change(state(1))), (checkpoint("bob/b"), change(state(2)))) == sentence


def saved(folder: Path, tensors: State) -> Checkpoint:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return checkpoint("ann/a", folder)


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    loaded = load_weights(saved(tmp_path, state(1)))
    assert loaded.keys() == state(1).keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state(1).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    broken = state(1)
    broken["layer2.0.bn1.running_var"][3] = value
    with pytest.raises(HfmegaError) as refused:
        load_weights(saved(tmp_path, broken))
    assert str(refused.value) == "ann/a: model.safetensors: the tensor layer2.0.bn1.running_var has NaN or Inf."


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_a_broken_file_is_refused(tmp_path: Path, damage: str) -> None:
    source = saved(tmp_path, state(1))
    content = source.weights.read_bytes()
    broken = {"truncated": content[:-100], "text": b"version https://git-lfs.github.com/spec/v1\n", "empty": b""}
    source.weights.unlink()
    if damage != "missing":
        source.weights.write_bytes(broken[damage])
    with pytest.raises(HfmegaError, match=r"^ann/a: model\.safetensors cannot be read: "):
        load_weights(source)


def test_noise_may_touch_what_the_network_calls_parameters() -> None:
    sources = mix([checkpoint("ann/a"), checkpoint("bob/b")], [state(1), state(2)])
    parameters = {slot.name for slot in sources.layout.slots if slot.parameter}
    assert parameters == {name for name, _ in build(SPEC).named_parameters()}
    assert sources.layout.size == 79_050 - 7 * 65  # seven classes fewer than ten


def test_a_source_is_rebuilt_bit_for_bit() -> None:
    sources = mix([checkpoint("ann/a"), checkpoint("bob/b")], [state(1), state(2)])
    rebuilt = rebuild(sources, source_alone(1, 2), {})
    assert rebuilt.keys() == state(2).keys()
    assert all(torch.equal(tensor, state(2)[name]) for name, tensor in rebuilt.items())


def test_statistics_replace_those_of_the_recipe_in_the_saved_dtype() -> None:
    halves = [{n: t.half() if t.is_floating_point() else t for n, t in state(seed).items()} for seed in (1, 2)]
    sources = mix([checkpoint("ann/a"), checkpoint("bob/b")], halves)
    rebuilt = rebuild(sources, Recipe((0.5, 0.5)), {"bn1.running_mean": torch.full((16,), 0.1)})
    assert rebuilt["bn1.running_mean"].dtype == torch.float16
    assert rebuilt["bn1.running_mean"].tolist() == [torch.tensor(0.1).half().item()] * 16
    assert rebuilt["bn1.running_var"].tolist() == [1.0] * 16


def test_the_hash_of_saved_weights_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = save_weights(state(1), path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert all(torch.equal(tensor, state(1)[name]) for name, tensor in load_file(path).items())


def test_saved_weights_say_that_they_are_pytorch_s(tmp_path: Path) -> None:
    save_weights(state(1), tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_bytes_do_not_depend_on_the_order_of_the_tensors(tmp_path: Path) -> None:
    forward, backward = state(1), dict(reversed(state(1).items()))
    assert save_weights(forward, tmp_path / "a") == save_weights(backward, tmp_path / "b")


@pytest.mark.skipif(os.name == "nt", reason="file modes are those of POSIX")
def test_saved_weights_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_weights(state(1), tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o644


def test_a_checkpoint_s_weights_lie_in_its_folder(tmp_path: Path) -> None:
    assert replace(checkpoint("ann/a"), folder=tmp_path).weights == tmp_path / "model.safetensors"
