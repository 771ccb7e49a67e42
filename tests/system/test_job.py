"""A merge as a job of the test Hub: killed, resumed, left, found again, with the bytes of a local run. 60 seconds."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.hub import Hub

pytestmark = pytest.mark.system

TOKEN = "hf_ann"
MERGE = ("merge", "ann/s1", "ann/s2", "--dataset", "digits", "--fitness-split", "train[:900]", "--test-split",
         "test[:200]", "--population", 12, "--generations", 20, "--patience", 20, "--fitness", "loss",
         "--confirm-share", 0, "--mutation-sigma", 0.05, "--no-calibrate", "--exact", "--json")  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, tiny_sources: tuple[Path, Path]) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ann", TOKEN)
        hub.add_models("ann", tiny_sources)
        yield hub


def when(true: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a condition holds, beside the command that this process runs."""

    def wait() -> None:
        until = time.monotonic() + 600
        while not true() and time.monotonic() < until:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def generations(folder: Path) -> int:
    """How many a search has written."""
    try:
        return len(json.loads((folder / ".hfmega" / "progress.json").read_bytes())["scores"]["merge"])
    except (OSError, ValueError, KeyError):
        return 0


def test_a_job_killed_in_the_middle_ends_where_a_local_run_ends(hub: Hub, tmp_path: Path) -> None:
    environment = {**hub.environment(tmp_path / "home", TOKEN), "OMP_NUM_THREADS": "1"}

    def hfmega(*words: object) -> Any:
        return run(*MERGE, *words, cwd=tmp_path, environment=environment)

    local = hfmega("-o", "local").json
    command = ("-o", "ab", "--on", "cpu-basic", "--push-to-hub", "ann/ab")
    jobs, known = hub.jobs, hub.jobs.known
    bucket = jobs.bucket("ann/hfmega-merges")

    def folder() -> Path:
        return bucket / next(iter(known.values())).spec["labels"]["folder"]

    def kill() -> None:
        jobs.end(next(iter(known.values())), "ERROR", signal.SIGKILL)

    killer = when(lambda: bool(known) and generations(folder()) >= 3, kill)
    died = hfmega(*command)
    killer.join()
    first = next(iter(known.values()))
    assert f"job {first.id} on cpu-basic failed" in died.complaint
    assert 3 <= generations(folder()) < 20

    before = hub.count("GET", "/logs")
    leaver = when(lambda: hub.count("GET", "/logs") > before, lambda: os.kill(os.getpid(), signal.SIGINT))
    left = hfmega(*command)
    leaver.join()
    assert left.code == 130
    second = list(known.values())[1]
    assert f"job {second.id} goes on at {hub.url}/jobs/ann/{second.id}: `hfmega merge ann/s1 ann/s2" in left.stderr

    done = hfmega(*command)
    assert f"found job {second.id} on cpu-basic" in done.stderr
    assert "resuming merge after generation" in done.stderr
    assert f"card hf://buckets/ann/hfmega-merges/{folder().name}/README.md" in done.stderr
    assert len(known) == 2
    result = done.json
    same = [name for name in local if name not in ("output", "published", "seconds")]
    assert {name: result[name] for name in same} == {name: local[name] for name in same}
    for name in ("model.safetensors", "config.json"):
        assert (folder() / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    mine, theirs = (json.loads((place / "lineage.json").read_bytes()) for place in (tmp_path / "local", folder()))
    assert theirs["recipe"] == mine["recipe"]
    assert theirs["nodes"] == mine["nodes"]
    assert "flavor" not in mine["environment"]
    assert theirs["environment"]["flavor"] == "cpu-basic"
    assert "in a job of the Hub on `cpu-basic`" in (folder() / "README.md").read_text()
    assert result["published"].startswith(f"{hub.url}/ann/ab/commit/")
    assert len(list((hub.jobs.root / "installed").glob("*/hfmega/__init__.py"))) == 1  # both jobs ran the same wheel
    assert TOKEN not in died.stderr + left.stderr + done.stderr
