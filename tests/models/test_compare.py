"""Networks are compared as they are built, and configs read as other writers write them. 3 seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.specs import spec

from hfmega.errors import HfmegaError
from hfmega.models import library
from hfmega.models.compare import compare, named
from hfmega.models.library import Spec
from hfmega.models.portrait import difference

BASE: dict[str, Any] = {"architecture": "test_resnet", "num_classes": 3}
PETS = ["cat", "dog", "owl"]
WHO = ("ann/a", "bob/b")


def read(folder: Path, **changes: Any) -> Spec:
    (folder / "config.json").write_text(json.dumps({**BASE, **changes}))
    return library.read(folder / "config.json", "here")


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"label_names": PETS}, PETS),
        ({"labels": PETS}, PETS),
        ({"label_names": None, "labels": PETS}, PETS),
        ({"label_names": {"0": "cat", "2": "owl", "1": "dog"}}, PETS),
        ({"label_names": {"cat": 0, "owl": 2, "dog": 1}}, PETS),
        ({"id2label": {"0": "cat", "1": "dog", "2": "owl"}}, PETS),
        ({"label2id": {"owl": 2, "cat": 0, "dog": 1}}, PETS),
        ({"label_names": [0, 1, 2]}, ["0", "1", "2"]),
        ({"label_names": {"0": "cat", "2": "owl"}}, ["cat", "output 1", "owl"]),
        ({"pretrained_cfg": {"label_names": PETS}}, PETS),
        ({"pretrained_cfg": {"labels": PETS}}, PETS),
        ({"label_names": PETS, "pretrained_cfg": {"label_names": ["x"]}}, PETS),
        ({"label_names": []}, None),
        ({"label_names": None}, None),
    ],
)
def test_names_of_classes_are_found_wherever_they_are(
    tmp_path: Path, changes: dict[str, Any], labels: list[str] | None
) -> None:
    assert read(tmp_path, **changes).labels == (None if labels is None else tuple(labels))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": None},
        {"model_args": {}},
        {"model_args": {"in_chans": None, "global_pool": None}},
        {"pretrained_cfg": None},
        {"pretrained_cfg": {"num_classes": 0}},
        {"pretrained_cfg": {"num_classes": None, "mean": None}},
        {"model_args": {"num_classes": 3, "in_chans": 3, "global_pool": "avg"}},
        {"model_args": {"drop_rate": 0.2, "drop_path_rate": 0.1}},
        {"architecture": "test_resnet.r160_in1k"},
        {"num_features": 80, "global_pool": "avg", "pool_size": [5, 5]},
        {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"], "model_args": None},
    ],
)
def test_configs_of_other_writers_say_the_same_network(tmp_path: Path, changes: dict[str, Any]) -> None:
    found, base = read(tmp_path, **changes), read(tmp_path / ".." / tmp_path.name)
    assert difference(base, found) is None
    assert compare(base, found, WHO) == []


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ({}, {"architecture": "test_efficientnet"}, "architecture (test_efficientnet and test_resnet): "),
        ({}, {"num_classes": 4}, "number of classes (4 and 3): only checkpoints with the same classes"),
        ({}, {"model_args": {"global_pool": "max"}}, "how they are built, global_pool.pool_type (max and avg): only"),
        ({}, {"model_args": {"output_stride": 8}}, "how they are built, "),
        ({"label_names": PETS}, {"label_names": PETS[::-1]}, "label order (['owl', 'dog', 'cat'] and "),
        ({"label_names": PETS}, {"label_names": ["a", "b", "c"]}, "labels (['a', 'b', 'c'] and "),
        ({}, {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}, "mean ((0.5, 0.5, 0.5) and "),
        ({}, {"pretrained_cfg": {"std": [1.0, 1.0, 1.0]}}, "std ((1.0, 1.0, 1.0) and "),
    ],
)
def test_what_stops_a_merge_is_named_as_itself(first: dict[str, Any], second: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HfmegaError) as refused:
        compare(spec(**{**BASE, **first}), spec(**{**BASE, **second}), WHO)
    assert str(refused.value).startswith(f"bob/b and ann/a differ in {sentence}")


TAKEN = "that of ann/a is taken."


@pytest.mark.parametrize(
    ("first", "second", "note"),
    [
        ({}, {"pretrained_cfg": {"crop_pct": 0.9}}, f"crop_pct (0.9 and 0.875): {TAKEN}"),
        ({}, {"pretrained_cfg": {"interpolation": "bilinear"}}, f"interpolation (bilinear and bicubic): {TAKEN}"),
        ({}, {"pretrained_cfg": {"crop_mode": "squash"}}, f"crop_mode (squash and center): {TAKEN}"),
        ({}, {"pretrained_cfg": {"input_size": [3, 96, 96]}}, f"image size ((96, 96) and (224, 224)): {TAKEN}"),
        ({}, {"pretrained_cfg": {"mean": [0.4851, 0.4559, 0.406]}}, None),
        ({"label_names": PETS}, {"label_names": ["Cat", "DOG", " owl"]}, None),
        ({"label_names": PETS}, {}, "bob/b does not name its classes: those of ann/a are taken."),
        ({}, {"label_names": PETS}, "ann/a does not name its classes: those of bob/b are taken."),
        (
            {"label_names": ["LABEL_0", "LABEL_1", "LABEL_2"]},
            {"label_names": PETS},
            "ann/a does not name its classes: those of bob/b are taken.",
        ),
    ],
)
def test_what_is_harmless_is_taken_from_the_first_with_a_note(
    first: dict[str, Any], second: dict[str, Any], note: str | None
) -> None:
    specs = [spec(**{**BASE, **first}), spec(**{**BASE, **second})]
    (*found,) = compare(*specs, WHO)
    assert [line.removeprefix("bob/b and ann/a differ in ") for line in found] == ([] if note is None else [note])
    if note and "name" in note:
        assert named(specs).labels == tuple(PETS)
        assert list(named(specs).config["label_names"]) == PETS


@pytest.mark.parametrize(
    ("arguments", "pretrained", "size", "mean"),
    [
        ({"in_chans": 1}, {"input_size": [3, 32, 32], "mean": [0.2, 0.4, 0.6], "std": [0.5] * 3}, (1, 32, 32), (0.4,)),
        ({"in_chans": 3}, {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.5]}, (3, 32, 32), (0.5,) * 3),
        ({}, {"input_size": [1, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}, (1, 32, 32), (0.5,)),
        ({}, {"input_size": [3, 32, 32], "mean": 0.5, "std": 0.5}, (3, 32, 32), (0.5,) * 3),
        ({}, {"input_size": 48}, (3, 48, 48), (0.485, 0.456, 0.406)),
        ({"in_chans": 1}, {"input_size": None}, (1, 224, 224), (0.449,)),
        ({"in_chans": None}, {"input_size": [3, 32, 32]}, (3, 32, 32), (0.485, 0.456, 0.406)),
    ],
)
def test_images_are_those_that_the_network_takes(
    tmp_path: Path,
    arguments: dict[str, Any],
    pretrained: dict[str, Any],
    size: tuple[int, ...],
    mean: tuple[float, ...],
) -> None:
    found = read(tmp_path, model_args=arguments, pretrained_cfg=pretrained).preprocessing
    assert found.input_size == size
    assert found.mean == pytest.approx(mean)


@pytest.mark.parametrize(
    ("network", "fixed", "side"),
    [("vit_tiny_patch16_224", True, 32), ("vit_tiny_patch16_224", False, 32), ("test_vit", True, 224)],
)
def test_a_network_of_one_size_is_asked_for_its_size(tmp_path: Path, network: str, fixed: bool, side: int) -> None:
    """As timm decides: a network that takes any size keeps what `pretrained_cfg` recommends."""
    cfg = {"input_size": [3, 224, 224], "fixed_input_size": fixed}
    found = read(tmp_path, architecture=network, model_args={"img_size": 32}, pretrained_cfg=cfg)
    assert found.preprocessing.input_size == (3, side, side)
