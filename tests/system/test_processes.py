"""One process or several, on one machine or two: the same recipe and the same bytes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.commands import alone

from hfmega.folder import WORK
from hfmega.launch import killed

pytestmark = pytest.mark.system

MERGE = ("--dataset", "digits", "--fitness-split", "train[:900]", "--calibration-split", "train[900:1000]",
         "--confirm-share", 0.3, "--test-split", "test[:200]", "--population", 9, "--generations", 3, "--seed", 3,
         "--json")  # fmt: skip
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_any_number_of_processes_gives_the_recipe_and_the_bytes_of_one(
    tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """With racing: 210 images for all of a generation, 630 for some."""
    results = [
        alone(
            "merge", *tiny_sources, *MERGE, "-o", tmp_path / f"{n}", "--num-processes", n, environment=ONE_THREAD
        ).json
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


def test_more_processes_than_individuals_share_the_images(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    """A population of three, of which two see all images: four processes share their batches, of calibration too."""
    few = ("--population", 3, "--parents", 2, "--tournament", 2, "--generations", 3, "--calibrate")
    for n in (1, 2, 3, 4):
        calibration = ("--calibration-split", "train[900:1297]")  # four batches
        torchrun(n, "merge", *tiny_sources, *MERGE, *few, *calibration, "-o", tmp_path / f"{n}")
    lineages = [json.loads((tmp_path / f"{n}/lineage.json").read_text()) for n in (1, 2, 3, 4)]
    assert [lineage["environment"].pop("num_processes") for lineage in lineages] == [1, 2, 3, 4]
    for n, lineage in enumerate(lineages, 1):
        assert {lineage.pop(key) is None for key in ("date", "seconds")} == {False}
        assert lineage == lineages[0]
        for name in ("model.safetensors", "statistics.safetensors"):
            assert (tmp_path / f"{n}" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def torchrun(processes: int, *arguments: object) -> None:
    """A command as `torchrun` starts it on a machine without GPUs."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launch, "-m", "hfmega", *map(str, arguments)],
        env={**ONE_THREAD, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


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
    done = alone("merge", tiny_sources[0], "nowhere", "--num-processes", 2, "--cpu", "-o", tmp_path / "never")
    assert "no folder nowhere" in done.complaint
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ({1: -9}, 1),
        ({1: -9, 0: -15}, 1),
        ({0: 1, 1: -9}, 1),  # the peer of a killed process was seen first
        ({0: -15}, 0),  # a batch scheduler
        ({0: 1, 1: -15}, None),  # a problem, said already
        ({0: 1, 1: 1}, None),
    ],
)
def test_only_a_process_killed_from_outside_is_named(codes: dict[int, int], rank: int | None) -> None:
    assert killed(codes) == rank


def test_a_killed_process_ends_the_run_with_a_sentence_and_the_same_command_goes_on(
    tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    command = ("merge", *tiny_sources, *MERGE, "--generations", 8, "--num-processes", 2)
    for rank in (0, 1):
        assert kill(rank, *command, "-o", tmp_path / "killed") == (
            f"hfmega: process {rank} of 2 was ended by SIGKILL; the same command resumes where it stopped."
        )
    for name in ("killed", "whole"):
        assert alone(*command, "-o", tmp_path / name, environment=ONE_THREAD).code == 0
    killed, whole = (json.loads((tmp_path / name / "lineage.json").read_text()) for name in ("killed", "whole"))
    assert killed["recipe"] == whole["recipe"]
    assert killed["nodes"] == whole["nodes"]


def kill(rank: int, *arguments: object) -> str:
    """Start a merge, kill one of its processes when the next state is written; what the command says last."""
    record = Path(str(arguments[-1])) / WORK / "progress.json"
    before = record.stat().st_mtime_ns if record.exists() else 0
    merging = subprocess.Popen(
        [sys.executable, "-m", "hfmega", *map(str, arguments)],
        env=ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not record.exists() or record.stat().st_mtime_ns == before:
        assert merging.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(merging.pid).children(recursive=True)
    (worker,) = [worker for worker in workers if worker.environ().get("RANK") == str(rank)]
    worker.kill()
    _, said = merging.communicate(timeout=120)
    assert merging.returncode == 1
    return said.splitlines()[-1]


def test_a_last_mile_by_two_processes_comes_to_the_weights_of_one(
    tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """The main process trains, the other one waits: with as many threads the weights are the same bit for bit."""
    last = ("--fitness", "ensemble", "--distill", "--fine-tune", "--last-epochs", 3, "--last-lr", 0.003)
    for n in (1, 2):
        one = ("merge", *tiny_sources, *MERGE, *last, "-o", tmp_path / f"{n}", "--num-processes", n)
        assert alone(*one, environment=ONE_THREAD).json["last_mile"]["epochs"] == 3
    first, second = (json.loads((tmp_path / n / "lineage.json").read_text()) for n in ("1", "2"))
    assert first["recipe"] == second["recipe"]
    assert first["result"]["sha256"] == second["result"]["sha256"]
    assert first["controls"] == second["controls"]
