"""On which images `hfmega evaluate` looks. 3 seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.commands import run

FEW = ["--dataset", "digits", "--fitness-split", "test[:200]", "--population", 3, "--generations", 1]


@pytest.fixture(scope="module")
def merged(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge whose search was steered by a part of the test split."""
    folder = tmp_path_factory.mktemp("merged") / "out"
    assert run("merge", *tiny_sources, *FEW, "--test-split", "test[200:]", "-o", folder).code == 0
    return folder


def test_a_merge_is_evaluated_on_the_images_of_its_report(merged: Path) -> None:
    found = run("evaluate", merged, "--json").json
    assert (found["split"], found["total"]) == ("test[200:]", 300)


def test_a_merge_with_a_damaged_lineage_is_not_evaluated_on_images_that_steered_it(
    merged: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(merged, tmp_path / "copy")
    (copy / "lineage.json").write_text("{")
    assert "lineage.json is not a lineage" in run("evaluate", copy).complaint


def test_a_source_without_a_lineage_is_evaluated_on_the_test_split(tiny_sources: tuple[Path, Path]) -> None:
    assert run("evaluate", tiny_sources[0], "--json").json["split"] == "test"
