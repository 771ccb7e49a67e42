"""Networks without BatchNorm: nothing is re-estimated, decoded for it, counted, or spoken of. 15 seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import run
from support.specs import spec

from hfmega.models.library import build, has_statistics
from hfmega.weights.checkpoint import save_weights

CONFIG = {
    "architecture": "test_vit",
    "num_classes": 10,
    "model_args": {"img_size": 32},
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
}
DIGITS = ("--dataset", "digits", "--fitness-split", "train[:60]", "--test-split", "test[:60]")
SMALL = ("--population", 4, "--generations", 2)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two small vision transformers, untrained."""
    folder = tmp_path_factory.mktemp("vit")
    for seed in (1, 2):
        place = folder / f"v{seed}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(CONFIG))
        save_weights(build(spec(**CONFIG), seed).state_dict(), place / "model.safetensors")
    return folder / "v1", folder / "v2"


def test_only_networks_with_batchnorm_have_statistics() -> None:
    assert has_statistics(spec())
    assert not has_statistics(spec(**CONFIG))


def test_a_merge_says_nothing_of_statistics(sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("merge", *sources, *DIGITS, *SMALL, "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    lineage = json.loads((tmp_path / "out/lineage.json").read_text())
    assert lineage["data"]["splits"].keys() == {"search", "confirm", "test"}
    assert {reference["kind"] for reference in lineage["references"]} == {"source", "average", "ensemble"}
    card = (tmp_path / "out/README.md").read_text()
    told = (done.stderr + card.replace("--no-calibrate", "")).lower()
    for word in ("batchnorm statistics", "calibrated", "re-estimated"):
        assert word not in told, [line for line in told.splitlines() if word in line]
    assert "calibration" not in card.partition("## Data")[2].partition("## Reproduce")[0]
    assert run("verify", tmp_path / "out").code == 0


def test_alignment_by_activations_still_gets_its_images_and_one_note_for_each_reason(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    flags = ("--align", "activations", "--method", "average", "-o", tmp_path / "out")
    assert run("merge", *sources, *DIGITS, *flags).code == 0
    lineage = json.loads((tmp_path / "out/lineage.json").read_text())
    assert lineage["data"]["splits"]["calibration"]["images"] > 0
    assert sum("cannot be permuted" in note for note in lineage["notes"]) <= 3
    assert "Calibrated" not in (tmp_path / "out/README.md").read_text()


def test_calibration_is_refused_for_its_true_cause(sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("merge", *sources, *DIGITS, *SMALL, "--calibrate", "-o", tmp_path / "out")
    assert done.complaint == "--calibrate re-estimates BatchNorm statistics, but test_vit has none: remove --calibrate."


def test_a_dry_run_counts_no_calibration(sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("merge", *sources, *DIGITS, *SMALL, "--exact", "--dry-run", "--json", "-o", tmp_path / "out").json
    assert done["images"] == {"search": 36, "confirm": 24, "test": 60}
    search, run_off, shown = (3 + 4 + 3) * 36, (2 + 3) * 24 + 2 * 36, (2 + 1 + 1) * 60
    assert done["images_seen"] == search + run_off + shown


def test_an_inspection_names_no_flag_of_calibration(sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("inspect", *sources, *DIGITS[:4], "-o", tmp_path / "seen")
    assert done.code == 0, done.stderr
    assert "calibrate" not in done.stdout + done.stderr


def test_there_is_nothing_to_update(sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("update-bn", sources[0], "--dataset", "digits", "-o", tmp_path / "out")
    assert done.code == 1
    assert "update-bn re-estimates BatchNorm statistics, but test_vit has none." in done.stderr
