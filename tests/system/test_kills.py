"""Killed at any moment (SIGKILL): the same command goes on, and ends where an uninterrupted run ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import pytest

from hfmega.folder import FINGERPRINT, WORK

pytestmark = pytest.mark.system

if sys.platform != "linux":
    pytest.skip("forks of a process that holds torch: Linux alone", allow_module_level=True)

KILLS: Final = 20
PRELOADED: Final = [
    "hfmega.cli.commands",
    "hfmega.merging.estimate",
    "hfmega.report.figures",
    "hfmega.merging.merge",
    "hfmega.hub.push",
    "sklearn.datasets",
]
TOUCHES: Final = ("open", "os.mkdir", "os.rename", "os.remove")
FLAGS: Final = ("--dataset", "digits", "--fitness-split", "train[:60]", "--calibration-split", "train[900:920]",
                "--test-split", "test[:40]", "--no-calibrate", "--population", "4", "--generations", "5",
                "--fitness", "loss", "--mutation-sigma", "0.05")  # fmt: skip


def hfmega(arguments: Sequence[str], folder: Path, last: int | None, said: Path, touched: Connection) -> None:
    """`python -m hfmega ARGUMENTS`, in a fork. It kills itself before its `last`-th touch of a file in `folder`."""
    count = 0

    def touch(event: str, what: tuple[Any, ...]) -> None:
        nonlocal count
        if event in TOUCHES and str(what[0]).startswith(str(folder)):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.stdout = sys.stderr = said.open("w", encoding="utf-8")
    sys.argv = ["hfmega", *arguments]
    sys.addaudithook(touch)
    try:
        runpy.run_module("hfmega", run_name="__main__")
    finally:
        touched.send(count)


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServerContext]:
    """Processes that need not import torch again, each as fresh as the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    yield context
    from multiprocessing.forkserver import _forkserver  # type: ignore[attr-defined]

    _forkserver._stop()


class Merges:
    """The same merge into one folder after another, each command in a process of its own."""

    def __init__(self, context: ForkServerContext, sources: Sequence[Path], place: Path) -> None:
        self.context, self.sources, self.place = context, sources, place

    def start(self, name: str, last: int | None = None) -> tuple[BaseProcess, Connection]:
        folder, (receive, send) = self.place / name, self.context.Pipe(duplex=False)
        arguments = ["merge", *map(str, self.sources), *FLAGS, "-o", str(folder)]
        process = self.context.Process(target=hfmega, args=(arguments, folder, last, self.said(name), send))
        process.start()
        return process, receive

    def finish(self, name: str) -> int:
        """The command to its end; returns how often it touched a file."""
        process, touched = self.start(name)
        process.join()
        assert process.exitcode == 0, self.said(name).read_text(encoding="utf-8")
        return int(touched.recv())

    def kill(self, name: str, after: float | None = None, before: int | None = None) -> bool:
        """Kill the command after so many seconds, or before a touch; returns whether its run is unfinished."""
        process, _ = self.start(name, before)
        process.join(after)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), self.said(name).read_text(encoding="utf-8")
        # Between the last file and its exit a process has nothing to lose.
        finished = (self.place / name / "lineage.json").exists() and not self.mark(name).exists()
        return process.exitcode != 0 and not finished

    def mark(self, name: str) -> Path:
        """What lies there while a run is unfinished."""
        return self.place / name / WORK / FINGERPRINT

    def said(self, name: str) -> Path:
        return self.place / f"{name}.txt"

    def phase(self, name: str) -> str:
        """How far a killed run had come."""
        folder = self.place / name
        record = folder / WORK / "progress.json"
        if not record.exists():
            return "while the result is finished" if (folder / "lineage.json").exists() else "before the first state"
        known = json.loads(record.read_text(encoding="utf-8"))
        if not known["done"]:
            return "in the search" if len(known["scores"]["merge"]) < 5 else "in the run-off"
        return "while the report is written"

    def made(self, name: str) -> tuple[Any, dict[str, bytes]]:
        """The lineage without its date and its seconds, and every file that lies there without these."""
        folder = self.place / name
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        lineage = json.loads(files.pop("lineage.json"))
        date = lineage.pop("date").encode()
        del lineage["seconds"]
        for page in ("README.md", "report.html"):
            files[page] = re.sub(rb"\b[\d,.]+ (seconds?|minutes)", b"", files[page]).replace(date, b"")
        return lineage, files


def moments(seconds: float, touches: int) -> Iterator[dict[str, Any]]:
    """Random moments spread over a run: every second by the clock, every second before it touches a file."""
    draw = random.Random(20)
    for k in range(KILLS // 2):
        yield {"after": (k + draw.random()) / (KILLS // 2) * seconds}
        yield {"before": 1 + int((k + draw.random()) / (KILLS // 2) * touches)}


def test_a_run_killed_at_any_moment_resumes_to_the_same_result(
    forks: ForkServerContext, tiny_sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merges, draw = Merges(forks, tiny_sources, tmp_path), random.Random(21)
    merges.finish("first")  # which waits for the imports
    started = time.monotonic()
    touches = merges.finish("whole")
    seconds = time.monotonic() - started
    expected = merges.made("whole")
    phases, same = Counter[str](), 0
    for k, moment in enumerate(moments(seconds, touches)):
        name = f"killed-{k}"
        while not merges.kill(name, **moment):
            name, moment = name + "-again", {"after": draw.random() * seconds}
        phases[merges.phase(name)] += 1
        merges.finish(name)
        assert merges.made(name) == expected, (moment, merges.said(name).read_text(encoding="utf-8"))
        same += 1
    with capsys.disabled():
        print(f"\n{same} of {KILLS} random kills resume to the same recipe ({dict(phases)})")
    assert set(phases) >= {"before the first state", "in the search", "while the report is written"}
