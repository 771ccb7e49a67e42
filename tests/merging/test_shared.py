"""Real checkpoints on real images, where they lie beside the repository: the figures that were measured before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.places import CARDS

from hfmega.data.dataset import open_dataset
from hfmega.evaluation.checkpoint import evaluate_checkpoint
from hfmega.hub import pull
from hfmega.merging.merge import merge
from hfmega.merging.replay import replay
from hfmega.output import Output
from hfmega.settings import PRESETS, MergeSettings, SplitRequest

QUIET = Output(muted=True)


@pytest.mark.parametrize(("seed", "accuracy"), [(44, 0.622), (46, 0.700), (48, 0.635)])
def test_a_source_has_the_accuracy_that_was_measured_elsewhere(
    seed: int, accuracy: float, shared_cifar: Path, shared_checkpoints: Path
) -> None:
    checkpoint = pull.pull(str(shared_checkpoints / f"resnet8-s{seed}"))
    found = evaluate_checkpoint(checkpoint, open_dataset(str(shared_cifar)), "test")
    assert found.total == 10_000
    assert found.accuracy == pytest.approx(accuracy, abs=0.001)


@pytest.mark.system
def test_recorded_sources_are_merged_on_images_that_neither_was_trained_on(
    shared_cifar: Path, shared_checkpoints: Path, tmp_path: Path
) -> None:
    sources = tuple(str(shared_checkpoints / f"resnet8-s{seed}") for seed in (44, 45))
    settings = MergeSettings(
        sources,
        tmp_path / "out",
        dataset=str(shared_cifar),
        splits=SplitRequest(test="test[:1000]"),
        search=replace(PRESETS["default"].search, population=4, generations=2),
    )
    made = merge(settings, QUIET)
    assert made is not None
    splits = {purpose: (split.slice, split.images) for purpose, split in made.data.splits.items()}
    assert splits["search"] == ("train[:5000]", 3000)
    assert splits["confirm"] == ("train[:5000]", 2000)
    assert splits["calibration"] == ("train[5000:]", 1000)
    accuracy = {reference.name: reference.accuracy for reference in made.references}
    assert made.recipe.calibrate  # the running statistics of these sources lag: worth over five points
    assert accuracy["resnet8-s44, calibrated"] > accuracy["resnet8-s44"] + 0.05
    assert accuracy["uniform average"] < 0.3  # independent networks do not average
    assert made.result.accuracy > accuracy["resnet8-s45"] + 0.05
    assert replay(str(tmp_path / "out")).equal


@pytest.mark.parametrize("name", ["resnet8-s44-s45", "effnet-ft1-ft2", "resnet8-distilled"])
def test_a_published_card_replays_to_its_hash(name: str, shared_checkpoints: Path) -> None:
    assert replay(str(CARDS / name), shared_checkpoints).equal


@pytest.mark.system
def test_foreign_checkpoints_keep_their_own_preprocessing_and_statistics(
    shared_cifar: Path, shared_checkpoints: Path, tmp_path: Path
) -> None:
    sources = tuple(str(shared_checkpoints / f"effnet-ft{number}") for number in (1, 2))
    settings = MergeSettings(
        sources,
        tmp_path / "out",
        dataset=str(shared_cifar),
        splits=SplitRequest(fitness="train[:300]", test="test[:500]"),
        search=replace(PRESETS["default"].search, population=4, generations=2),
    )
    made = merge(settings, QUIET)
    assert made is not None
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    assert made.references[0].accuracy > 0.6
    assert made.data.splits["calibration"].slice == "train[300:]"
    found = evaluate_checkpoint(pull.pull(str(tmp_path / "out")), open_dataset(str(shared_cifar)), "test[:500]")
    assert found.correct == made.result.correct
    assert replay(str(tmp_path / "out")).equal
