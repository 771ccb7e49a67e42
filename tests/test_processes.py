"""One process or two: the same recipe and the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from commands import run

MERGE = ("--dataset", "digits", "--fitness-split", "train[:200]", "--calibration-split", "train[900:1000]",
         "--test-split", "test[:200]", "--population", 5, "--generations", 3, "--seed", 3, "--json")  # fmt: skip


def test_two_processes_give_the_recipe_and_the_bytes_of_one(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    results = [
        run("merge", *tiny_sources, *MERGE, "-o", tmp_path / f"{n}", "--num-processes", n, environment=environment).json
        for n in (1, 2)
    ]
    lineages = [json.loads((tmp_path / f"{n}" / "lineage.json").read_text()) for n in (1, 2)]
    assert [lineage["environment"]["num_processes"] for lineage in lineages] == [1, 2]
    assert lineages[0]["recipe"] == lineages[1]["recipe"]
    assert lineages[0]["nodes"] == lineages[1]["nodes"]
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()
    assert results[0]["forward_passes"] == results[1]["forward_passes"]


def test_a_problem_in_two_processes_is_said_once(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("merge", tiny_sources[0], "nowhere", "--num-processes", 2, "--cpu", "-o", tmp_path / "never")
    assert "no folder nowhere" in done.complaint
    assert not (tmp_path / "never").exists()
