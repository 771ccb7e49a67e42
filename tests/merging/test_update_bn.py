"""`hfmega update-bn`: what it writes, says, and that replay, verify, evaluate and a later merge take it. 12 seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import Done, run

import hfmega
from hfmega.hub import pull
from hfmega.report import lineage, wording


@pytest.fixture(scope="module")
def done(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("updated") / "s1"
    return folder, run("update-bn", tiny_sources[0], "-o", folder, "--dataset", "digits", "--json")


def test_only_statistics_change(done: tuple[Path, Done], tiny_sources: tuple[Path, Path]) -> None:
    before, after = load_file(tiny_sources[0] / "model.safetensors"), load_file(done[0] / "model.safetensors")
    assert before.keys() == after.keys()
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    assert differ
    assert all(name.endswith(("running_mean", "running_var")) for name in differ)


def test_it_is_judged_against_the_source_as_it_is(done: tuple[Path, Done]) -> None:
    """Of the fixture: 0.87 as trained, 0.93 re-estimated, on all 500 test images."""
    found = done[1].json
    assert (found["verdict"], found["best_reference"]) == ("better", "s1")
    assert [r["kind"] for r in found["references"]] == ["source"]
    made = lineage.read(done[0] / "lineage.json")
    assert {name: split.slice for name, split in made.data.splits.items()} == {
        "calibration": "train[900:]",
        "test": "test",
    }
    assert found["gain"] == pytest.approx(found["accuracy"] - found["references"][0]["accuracy"])
    assert wording.verdict(made).startswith(
        "s1 with re-estimated BatchNorm statistics. Better than the source as it is: 93.0 % against 86.8 %"
    )


def test_the_card_says_what_was_done_and_how_to_repeat_it(done: tuple[Path, Done]) -> None:
    card = (done[0] / "README.md").read_text()
    assert "# s1 with re-estimated BatchNorm statistics" in card
    assert "hfmega update-bn s1 --dataset digits" in card
    assert "| **s1, BN re-estimated** |" in card
    assert "| s1 as it is |" in card
    assert "resnet8_cifar.derived" in card
    for word in ("merged from", "ensemble", "uniform average", "genetic", "the search", "Run-off", "best source"):
        assert word not in card, word
    assert (done[0] / "figures/comparison.png").is_file()


def test_it_replays_and_verifies(done: tuple[Path, Done]) -> None:
    assert run("replay", done[0], "--json").json["equal"]
    checks = run("verify", done[0], "--json").json
    assert checks["verified"], checks
    said = {check["name"]: check["detail"] for check in checks["checks"]}
    assert said["evaluation"].endswith("1 of 1 references again")


def test_a_later_merge_knows_what_it_was_trained_on(
    done: tuple[Path, Done], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    assert (pull.pull(str(done[0])).record or {})["train_split"] == "train[900:]"
    merged = run("merge", done[0], tiny_sources[1], "--method", "average", "-o", tmp_path / "out", "--json")
    assert merged.code == 0, merged.stderr
    splits = json.loads((tmp_path / "out/lineage.json").read_text())["data"]["splits"]
    assert (splits["search"]["slice"], splits["test"]["slice"]) == ("train[:900]", "test")


def test_other_images_can_be_named(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    few = ["--calibration-split", "train[:200]", "--test-split", "test[:100]"]
    found = run("update-bn", tiny_sources[1], "-o", tmp_path / "out", "--dataset", "digits", *few, "--json")
    assert found.code == 0, found.stderr
    made = lineage.read(tmp_path / "out/lineage.json")
    assert [(s.slice, s.images) for s in made.data.splits.values()] == [("train[:200]", 200), ("test[:100]", 100)]
    assert pull.pull(str(tmp_path / "out")).record is None  # it has seen images that the record calls held out
    assert "--calibration-split 'train[:200]' --test-split 'test[:100]'" in (tmp_path / "out/README.md").read_text()


def test_a_merge_is_judged_on_the_test_images_of_its_report(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    images = {"dataset": "digits", "fitness_split": "test[:200]", "test_split": "test[300:]"}
    hfmega.merge(*tiny_sources, method="average", calibrate=False, **images, output=tmp_path / "soup")
    updated = hfmega.update_bn(tmp_path / "soup", output=tmp_path / "out")
    assert (updated.lineage.data.id, updated.lineage.data.splits["test"].slice) == ("digits", "test[300:]")
    assert [source.name for source in updated.lineage.sources] == ["soup"]
    assert hfmega.evaluate(tmp_path / "out").accuracy == updated.accuracy
    assert updated.verdict == "better"


def test_a_name_of_a_merge_is_no_name_of_this(tiny_sources: tuple[Path, Path]) -> None:
    with pytest.raises(hfmega.SettingsError, match=r"^fitness_split is not a setting of update-bn"):
        hfmega.update_bn(tiny_sources[0], fitness_split="train")


def test_a_method_of_that_name_is_not_offered_to_a_merge(tiny_sources: tuple[Path, Path]) -> None:
    assert run("merge", *tiny_sources, "--method", "update-bn").code == 2
