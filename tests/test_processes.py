"""One process or several, on one machine or two: the same recipe and the same bytes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from commands import run

MERGE = ("--dataset", "digits", "--fitness-split", "train[:900]", "--calibration-split", "train[900:1000]",
         "--confirm-share", 0.3, "--test-split", "test[:200]", "--population", 9, "--generations", 3, "--seed", 3,
         "--json")  # fmt: skip
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_any_number_of_processes_gives_the_recipe_and_the_bytes_of_one(
    tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """With racing: 210 images for all of a generation, 630 for some."""
    results = [
        run("merge", *tiny_sources, *MERGE, "-o", tmp_path / f"{n}", "--num-processes", n, environment=ONE_THREAD).json
        for n in (1, 2, 3)
    ]
    two_nodes(*tiny_sources, *MERGE, "-o", tmp_path / "nodes")
    lineages = [json.loads((tmp_path / n / "lineage.json").read_text()) for n in ("1", "2", "3", "nodes")]
    assert [lineage["environment"]["num_processes"] for lineage in lineages] == [1, 2, 3, 2]
    assert len({result["forward_passes"] for result in results}) == 1
    assert results[0]["forward_passes"] < 0.8 * (9 + 8 + 8) * (630 + 100)  # some have stopped
    for n, lineage in zip(("2", "3", "nodes"), lineages[1:], strict=True):
        assert lineage["recipe"] == lineages[0]["recipe"]
        assert lineage["nodes"] == lineages[0]["nodes"]
        assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / n / "model.safetensors").read_bytes()


def two_nodes(*arguments: object) -> None:
    """A merge on two loopback nodes of one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
              "--master-addr", "127.0.0.1", "--master-port", str(port)]  # fmt: skip
    nodes = [
        subprocess.Popen(
            [*launch, "--node-rank", str(rank), "-m", "hfmega", "merge", *map(str, arguments)],
            env={**ONE_THREAD, "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]


def test_a_problem_in_two_processes_is_said_once(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("merge", tiny_sources[0], "nowhere", "--num-processes", 2, "--cpu", "-o", tmp_path / "never")
    assert "no folder nowhere" in done.complaint
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_one_sentence_and_the_run_goes_on(
    rank: int, tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    flags = (*tiny_sources, *MERGE, "--generations", 8)
    command = [*map(str, ("merge", *flags)), "-o", str(tmp_path / "killed"), "--num-processes", "2", "--cpu"]
    started = subprocess.Popen(
        [sys.executable, "-m", "hfmega", *command],
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    await_state(tmp_path / "killed/.hfmega/progress.json", started)
    worker(started.pid, rank).send_signal(signal.SIGKILL)
    said, complaint = started.communicate(timeout=120)
    assert (started.returncode, said) == (1, "")
    assert "Traceback" not in complaint
    sentences = {line for line in complaint.splitlines() if line.startswith("hfmega: ")}
    assert f"hfmega: process {rank} of 2 was ended by SIGKILL; the same command resumes where it stopped." in sentences
    resumed = run(*command, environment=ONE_THREAD)
    assert resumed.code == 0, resumed.stderr
    assert recipe_of(tmp_path / "killed") == uninterrupted(flags, tmp_path)


def await_state(file: Path, running: subprocess.Popen[str]) -> None:
    """Until a run has written its state for the first time."""
    while not file.is_file():
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)


def worker(launcher: int, rank: int) -> psutil.Process:
    children = psutil.Process(launcher).children(recursive=True)
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def uninterrupted(flags: Sequence[object], folder: Path) -> object:
    assert run("merge", *flags, "-o", folder / "whole", "--cpu", environment=ONE_THREAD).code == 0
    return recipe_of(folder / "whole")


def recipe_of(folder: Path) -> object:
    return json.loads((folder / "lineage.json").read_text())["recipe"]
