"""Dry runs: what they count, and that they leave nothing behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.commands import run
from support.specs import spec

from hfmega.data.splits import plan_splits
from hfmega.errors import HfmegaError
from hfmega.merging import estimate
from hfmega.merging.merge import carry_out
from hfmega.merging.prepare import prepare
from hfmega.output import Output
from hfmega.settings import PRESETS, LastMileSettings, MergeSettings, SplitRequest


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "PROBE_SECONDS", 0.05)


def settings(sources: tuple[Path, ...], output: Path) -> MergeSettings:
    return MergeSettings(
        tuple(map(str, sources)),
        output,
        dataset="digits",
        splits=SplitRequest(fitness="train[:300]", test="test[:300]"),
        search=replace(PRESETS["default"].search, population=6, generations=4),
    )


@pytest.mark.parametrize("calibrate", [None, False])
def test_the_images_counted_are_those_that_the_merge_passes(
    tiny_sources: tuple[Path, Path], tmp_path: Path, calibrate: bool | None
) -> None:
    asked = replace(settings(tiny_sources, tmp_path / "out"), calibrate=calibrate)
    job = prepare(asked, Output(muted=True))
    price = estimate.cost(
        asked, 2, plan_splits(job.dataset, [c.record for c in job.checkpoints], asked.splits), statistics=True
    )
    assert price.evaluations == 6 + 3 * 5
    carry_out(job, Output(muted=True))
    counted = price.searching + price.showing
    assert counted / 1.2 < job.evaluator.network.images_seen < counted * 1.2


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("merge", *tiny_sources, "--dataset", "digits", "--fitness-split", "train[:300]", "--dry-run", "--json",
               "-o", tmp_path / "out")  # fmt: skip
    found = done.json
    assert [(node["name"], node["inputs"]) for node in found["nodes"]] == [("merge", ["s1", "s2"])]
    assert found["images"] == {"search": 180, "confirm": 120, "calibration": 397, "test": 500}
    assert found["evaluations"] == 20 + 19 * 19
    assert found["seconds"] == pytest.approx(found["images_seen"] / found["images_per_second"])
    assert found["download_bytes"] == 0
    assert found["peak_bytes"] > 79_050 * 4
    assert not (tmp_path / "out").exists()
    assert "estimated time" in done.stderr


def test_a_dry_run_refuses_what_the_merge_would(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match="one source cannot be merged"):
        estimate.estimate(settings(tiny_sources[:1], tmp_path))
    with pytest.raises(HfmegaError, match="no folder"):
        estimate.estimate(settings((*tiny_sources, tmp_path / "nothing"), tmp_path))


def test_the_hours_of_a_reproduction_are_printed_without_training(tmp_path: Path) -> None:
    done = run("reproduce", "table1", "--arch", "resnet8_cifar", "--dataset", "digits", "--dry-run", "--json",
               "-o", tmp_path / "out")  # fmt: skip
    (network,) = json.loads(done.stdout)["networks"]
    assert network["training"] > 0
    assert network["merging"] > 0
    assert network["fine_tuning"] == 0
    assert not (tmp_path / "out").exists()


def test_the_peak_memory_grows_with_the_sources_and_the_images() -> None:
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.0] * 3, "std": [1.0] * 3}
    large = spec("resnet152_cifar", pretrained_cfg=preprocessing)
    small = estimate.peak_bytes(large, 2, 0)
    more_sources, more_images = estimate.peak_bytes(large, 22, 0), estimate.peak_bytes(large, 2, 100_000)
    noise = 40e6  # of the process itself, between two calls
    assert abs(more_sources - small - 20 * 4 * 3_512_426) < noise
    assert abs(more_images - small - 100_000 * 3 * 32 * 32) < noise


def test_the_last_mile_and_its_controls_are_counted(tiny_sources: tuple[Path, Path]) -> None:
    """Three trainings at one rate, of twice as many epochs: about twice as long."""
    flags = ["--dataset", "digits", "--population", 3, "--generations", 1, "--dry-run", "--json", "--distill"]
    few, many = (run("merge", *tiny_sources, *flags, "--last-epochs", n, "--last-lr", 0.003).json for n in (10, 40))
    assert 0 < few["last_mile_seconds"] < few["seconds"]
    assert many["last_mile_seconds"] > 1.5 * few["last_mile_seconds"]


def test_a_teacher_is_asked_in_every_epoch_of_a_last_mile(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    """Both sources, and the start that teaches itself; a lesson of labels asks nobody."""
    rows: Any = SimpleNamespace(rows={p: range(100) for p in ("distill", "search", "confirm", "calibration", "test")})

    def passed(epochs: int, **lesson: bool) -> int:
        last = LastMileSettings(**lesson, epochs=epochs, learning_rate=0.001)
        asked = replace(settings(tiny_sources, tmp_path), last=last)
        return estimate.last_mile_images(asked, len(tiny_sources), rows)[1]

    assert passed(3, distill=True) - passed(1, distill=True) == (2 + 1) * 100 * 2
    assert passed(3, fine_tune=True) == passed(1, fine_tune=True)
