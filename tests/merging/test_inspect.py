"""`hfmega inspect`: relation, walks, advice, picture."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.commands import run, run_all

from hfmega.merging.inspect import advise
from hfmega.report.inspection import Walk


@pytest.fixture(scope="module")
def branches(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two branches of one trunk: an epoch each, in another order of the images."""
    folder = tmp_path_factory.mktemp("branches")
    train = ["train", "resnet8_cifar", "--init", tiny_sources[0], "--dataset", "digits", "--train-split", "train[900:]"]
    train += ["--epochs", 1, "--batch-size", 64, "--lr", 0.003]
    done = run_all([[*train, "--seed", seed, "-o", folder / f"branch-{seed}"] for seed in (5, 6)])
    assert [d.code for d in done] == [0, 0]
    return [folder / "branch-5", folder / "branch-6"]


def test_branches_of_one_trunk_are_known(branches: list[Path], tmp_path: Path) -> None:
    done = run("inspect", *branches, "--dataset", "digits", "-o", tmp_path / "seen", "--json")
    found = done.json
    assert (found["compatible"], found["relation"]) == (True, "shared trunk")
    assert found["pairs"][0]["kinship"]["cosine"] > 0.5
    assert found["images"] == 900
    assert (tmp_path / "seen" / "paths.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "seen" / "inspection.json").read_text()) == found
    assert "the test images are not touched" in done.stderr


def test_seeds_are_independent_and_the_barrier_is_measured(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    found = run("inspect", *tiny_sources, "--dataset", "digits", "-o", tmp_path / "seen", "--json").json
    (pair,) = found["pairs"]
    assert found["relation"] == "independent"
    assert abs(pair["kinship"]["cosine"]) < 0.2 < pair["aligned_cosine"] + 0.2
    assert list(pair["barriers"]) == ["as they are", "calibrated", "aligned", "aligned, calibrated"]
    plain = pair["walks"][0]["accuracy"]
    assert len(plain) == 11
    assert plain[0] == pytest.approx(found["sources"][0]["accuracy"])
    assert plain[10] == pytest.approx(found["sources"][1]["accuracy"])
    ends = [(1 - a / 10) * plain[0] + a / 10 * plain[10] for a in range(11)]
    assert found["barrier"] == pytest.approx(max(end - seen for end, seen in zip(ends, plain, strict=True)))
    for plain_walk, aligned in zip(pair["walks"][:2], pair["walks"][2:], strict=True):  # the ends compute the same
        assert abs(plain_walk["accuracy"][10] - aligned["accuracy"][10]) <= 2 / 900


@pytest.mark.parametrize(("ensemble", "taught"), [(0.77, True), (0.755, False)])
def test_where_no_blend_pays_the_ensemble_may_teach_if_it_is_well_ahead(ensemble: float, taught: bool) -> None:
    pair = SimpleNamespace(prospect=SimpleNamespace(gain=-0.01, accuracy=0.74))
    found: Any = SimpleNamespace(relation="independent", pairs=[pair], ensemble_accuracy=ensemble, sources="ab")
    best: Any = SimpleNamespace(accuracy=0.75)
    said = advise(found, best)
    assert said.startswith("Merging will not pay: the best source has 0.7500")
    assert ("--distill" in said) is taught


def test_an_inspection_passes_as_many_images_as_it_says_ahead(
    tiny_sources: tuple[Path, Path], branches: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No source is looked at twice: not by the ensemble, and not as the end of a path between sources as they are."""
    passed, planned = [0.0], [0.0]
    monkeypatch.setattr("hfmega.phases.passed", lambda images: passed.__setitem__(0, passed[0] + images))
    monkeypatch.setattr("hfmega.phases.plan", lambda images: planned.__setitem__(0, sum(images.values())))
    sources = (*tiny_sources, branches[0])
    flags = ["--dataset", "digits", "--fitness-images", "100", "--calibration-split", "train[900:1000]", "--no-cache"]
    found = run("inspect", *sources, *flags, "-o", tmp_path / "seen", "--json").json
    assert len(found["pairs"]) == 2
    decoded = 100 + 100
    assert passed[0] - decoded == planned[0]


def test_three_sources_one_of_them_twice(tiny_sources: tuple[Path, Path], branches: list[Path], tmp_path: Path) -> None:
    inspect = ["inspect", branches[0], branches[0], "--dataset", "digits", "--fitness-images", 100, "--json", "-o"]
    three = ["inspect", branches[0], branches[1], tiny_sources[1], *inspect[3:]]
    same, mixed = run_all([[*inspect, tmp_path / "same"], [*three, tmp_path / "three"]])
    assert same.json["relation"] == "identical"
    assert same.json["advice"] == "The weights are the same: there is nothing to merge."
    assert [pair["kinship"]["relation"] for pair in mixed.json["pairs"]] == ["shared trunk", "independent"]
    assert mixed.json["relation"] == "independent"
    assert len(mixed.json["sources"]) == 3


def test_sources_that_do_not_fit_are_an_answer(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    train = ["train", "resnet20_cifar", "--dataset", "digits", "--train-split", "train[1200:]", "--epochs", 1]
    inspect = ["inspect", tiny_sources[0], other, "--dataset", "digits", "-o", tmp_path / "seen", "--json"]
    trained, looked = run_all([[*train, "-o", other], inspect])
    assert trained.code == 0
    assert (looked.json["compatible"], looked.json["relation"]) == (False, None)
    assert looked.json["advice"].startswith("These cannot be merged: ")


def test_one_source_cannot_be_inspected(tiny_sources: tuple[Path, Path]) -> None:
    assert run("inspect", tiny_sources[0]).complaint == "one source cannot be merged: name two or more."


def test_merge_says_the_relation_before_it_searches(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    merge = ["merge", *tiny_sources, "--dataset", "digits", "--population", 2, "--generations", 1, "--tournament", 2]
    done = run(*merge, "--fitness-split", "train[:50]", "--test-split", "test[:50]", "-o", tmp_path / "merged")
    assert done.code == 0
    said = done.stderr.index("relation: independent (median cosine ")
    assert said < done.stderr.index("generation 1/1")


def test_the_barrier_is_the_deepest_fall_below_the_line() -> None:
    accuracy = (0.8, 0.8, 0.8, 0.8, 0.8, 0.1, 0.6, 0.6, 0.6, 0.6, 0.6)
    assert Walk("none", False, accuracy, accuracy).barrier == pytest.approx(0.7 - 0.1)
    assert Walk("none", False, (0.5,) * 11, (0.5,) * 11).barrier == 0.0


def test_the_flags_of_a_walk() -> None:
    flat = (0.5,) * 11
    walks = [Walk(align, calibrated, flat, flat) for align in ("none", "weights") for calibrated in (False, True)]
    assert [walk.flags(statistics=False) for walk in walks[::2]] == ["", "--align weights"]
    assert [walk.flags(statistics=True) for walk in walks] == [
        "--no-calibrate",
        "--calibrate",
        "--align weights --no-calibrate",
        "--align weights --calibrate",
    ]


@pytest.mark.system
def test_s44_and_s45_are_independent_and_alignment_lowers_the_barrier(
    shared_checkpoints: Path, shared_cifar: Path, tmp_path: Path
) -> None:
    sources = [shared_checkpoints / "resnet8-s44", shared_checkpoints / "resnet8-s45"]
    found = run("inspect", *sources, "--dataset", shared_cifar, "--fitness-images", 1000, "-o", tmp_path, "--json").json
    barriers = found["pairs"][0]["barriers"]
    assert found["relation"] == "independent"
    assert barriers["aligned, calibrated"] + 0.1 < barriers["calibrated"]
    assert found["advice"].startswith("Merging will not pay: ")
    assert (tmp_path / "paths.png").is_file()
