"""`merge --on FLAVOR` against the jobs of a test Hub, where a short program stands in for the merge. 12 seconds."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import Done, run
from support.hub import Fault, Hub

TOKEN = "hf_ann"
RESULT = {"output": "/merges/x", "verdict": "better", "accuracy": 0.9, "published": None}
SAYS = "hfmega 0.1.0: merge", "progress: search 1 of 2, 9 of 200 images, about 3 minutes to go", "better than both"
MERGE = ("merge", "ann/s1", "ann/s2", "--dataset", "digits", "--population", 4, "-o", "out/a+b", "--on", "cpu-basic")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_sources: tuple[Path, Path]) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("ann", TOKEN)
        hub.add_user("bob", "hf_bob", role="read")
        hub.add_models("ann", tiny_sources)
        yield hub


@pytest.fixture
def machine(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Done]]:
    """`hfmega` on another machine than the jobs': it has a released version, so that no wheel goes along."""
    monkeypatch.setattr("hfmega.launch.wheel.origin", lambda: None)
    monkeypatch.setattr("hfmega.launch.wheel.find_spec", lambda name: name)  # and every extra
    hub.jobs.known.clear()
    hub.clear_faults()
    program(hub, *SAYS, json.dumps(RESULT))

    def hfmega(*words: object, token: str | None = TOKEN) -> Done:
        return run(*words, cwd=tmp_path, environment=hub.environment(tmp_path / "home", token))

    yield hfmega
    for job in hub.jobs.known.values():
        hub.jobs.end(job, "CANCELED", signal.SIGKILL)


def program(hub: Hub, *lines: str, code: int = 0, wait: float = 0.0) -> None:
    """Let jobs say lines, wait and exit in place of what they are asked to do."""
    source = f"import sys, time\nfor line in {list(lines)!r}: print(line, flush=True)\n"
    source += f"time.sleep({wait})\nsys.exit({code})"
    hub.jobs.program = [sys.executable, "-S", "-c", source]


def job_of(hub: Hub) -> Any:
    (job,) = hub.jobs.known.values()
    return job


def test_a_merge_runs_as_a_job_and_ends_with_its_verdict(hub: Hub, machine: Callable[..., Done]) -> None:
    done = machine(*MERGE, "--json")
    job = job_of(hub)
    folder = job.spec["labels"]["folder"]
    assert done.json == {**RESULT, "output": f"hf://buckets/ann/hfmega-merges/{folder}"}
    assert f"started job {job.id} on cpu-basic: {hub.url}/jobs/ann/{job.id}" in done.stderr
    assert "better than both" in done.stderr
    assert f"hf buckets sync hf://buckets/ann/hfmega-merges/{folder} out/a+b" in done.stderr


def test_a_job_is_what_the_client_asks_for(hub: Hub, machine: Callable[..., Done]) -> None:
    machine(*MERGE, "--push-to-hub", "ann/ab", "--private", "--seed", 3, "--no-calibrate", "--timeout", "90m", "-v")
    spec = job_of(hub).spec
    folder = spec["labels"]["folder"]
    assert spec["command"] == [
        "uv", "run", "--with", "hfmega[digits,transformers]==0.1.0", "hfmega", "merge", "ann/s1", "ann/s2",
        "--dataset=digits", "--population=4", "--seed=3", "--no-calibrate", "--push-to-hub=ann/ab", "--private",
        "--verbose", "--output", f"/merges/{folder}", "--json",
    ]  # fmt: skip
    assert spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert spec["environment"]["HFMEGA_FLAVOR"] == spec["flavor"] == "cpu-basic"
    assert spec["volumes"] == [{"type": "bucket", "source": "ann/hfmega-merges", "mountPath": "/merges"}]
    assert (spec["timeoutSeconds"], spec["attempts"]) == (5400, 2)
    assert folder.startswith("a-b-")
    assert spec["labels"] == {"hfmega": spec["labels"]["hfmega"], "folder": folder, "name": "hfmega-a-b"}


def test_the_same_command_finds_its_job_and_another_one_does_not(hub: Hub, machine: Callable[..., Done]) -> None:
    first = machine(*MERGE, "--json")
    again = machine(*MERGE[:-1], "l4x4", "--json", "-v")
    assert again.json == first.json
    job = job_of(hub)
    already = "which has made this merge already (--overwrite makes it again)"
    assert f"found job {job.id} on cpu-basic: {hub.url}/jobs/ann/{job.id}, {already}" in again.stderr
    assert machine(*MERGE, "--seed", 1).code == 0
    assert len(hub.jobs.known) == 2
    assert machine(*MERGE, "--overwrite").code == 0  # a finished one, made again in a new folder
    assert len({job.spec["labels"]["folder"] for job in hub.jobs.known.values()}) == len(hub.jobs.known) == 3


def test_ctrl_c_leaves_the_job_and_the_same_command_attaches(hub: Hub, machine: Callable[..., Done]) -> None:
    program(hub, SAYS[0], json.dumps(RESULT), wait=30)
    followed = hub.count("GET", "/logs")

    def interrupt() -> None:
        while hub.count("GET", "/logs") == followed:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    left = machine(*MERGE)
    thread.join()
    job = job_of(hub)
    assert left.code == 130
    assert f"job {job.id} goes on at {hub.url}/jobs/ann/{job.id}: `hfmega merge ann/s1 ann/s2 " in left.stderr
    assert f"`hf jobs cancel {job.id}` stops it." in left.stderr
    assert job.stage == "RUNNING"
    threading.Timer(0.3, lambda: hub.jobs.end(job, "COMPLETED", signal.SIGKILL)).start()
    assert machine(*MERGE, "--json").json["verdict"] == "better"
    assert len(hub.jobs.known) == 1


def test_a_job_that_failed_says_why_and_the_next_one_takes_its_folder(hub: Hub, machine: Callable[..., Done]) -> None:
    program(hub, SAYS[0], "hfmega: ann/s1 has 100 classes, ann/s2 has 10.", code=1)
    failed = machine(*MERGE)
    job = job_of(hub)
    assert failed.complaint == (
        f"ann/s1 has 100 classes, ann/s2 has 10 (job {job.id} on cpu-basic, {hub.url}/jobs/ann/{job.id})."
    )
    place = f"hf://buckets/ann/hfmega-merges/{job.spec['labels']['folder']}"
    inside = f"/merges/{job.spec['labels']['folder']}"
    program(
        hub, f"hfmega: not published. {inside} is complete: `hfmega push {inside} ann/ab` finishes the job.", code=1
    )
    assert f"`hf buckets sync {place} DIR` brings its folder here." in machine(*MERGE).complaint
    program(hub, "error: no version of hfmega==0.1.0", code=2)
    assert "failed (Job failed with exit code: 2); its log ends with: error: no version of" in machine(*MERGE).complaint
    program(hub, *SAYS, json.dumps(RESULT))
    assert machine(*MERGE).code == 0
    assert len({job.spec["labels"]["folder"] for job in hub.jobs.known.values()}) == 1
    assert len(hub.jobs.known) == 4


@pytest.mark.parametrize(("stage", "said"), [("CANCELED", "was cancelled: "), ("ERROR", "failed; its log ends with")])
def test_a_job_that_was_stopped_is_no_verdict(hub: Hub, machine: Callable[..., Done], stage: str, said: str) -> None:
    program(hub, *SAYS, wait=30)

    def end() -> None:
        while not (hub.jobs.known and len(job_of(hub).log) > len(SAYS)):
            time.sleep(0.01)
        hub.jobs.end(job_of(hub), stage, signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    assert said in machine(*MERGE).complaint
    thread.join()


def test_a_deleted_job_is_said_to_be_gone(hub: Hub, machine: Callable[..., Done]) -> None:
    hub.inject(Fault("/api/jobs/ann/[0-9a-f]+$", method="GET", status=404, times=9))
    complaint = machine(*MERGE).complaint
    assert f"job {job_of(hub).id} is not there any more, somebody deleted it: the same command" in complaint
    assert "goes on at" not in complaint


@pytest.mark.parametrize("wait", [0.0, 1.0], ids=["its job has ended", "its job goes on"])
def test_a_lost_log_is_read_on_without_a_line_twice(hub: Hub, machine: Callable[..., Done], wait: float) -> None:
    program(hub, *SAYS, json.dumps(RESULT), wait=wait)
    hub.inject(Fault("/logs", cut_after=230))
    done = machine(*MERGE)
    assert done.code == 0, done.stderr
    assert [done.stderr.count(line) for line in SAYS[1:]] == [0, 1]  # the progress without the mark of a log
    assert done.stderr.count("search 1 of 2") == 1


REFUSED = [
    (["--on", "l4x9"], "--on l4x9 is not a flavor of the Hub's jobs: choose one of cpu-basic, l4x4."),
    (["--dataset", "./photos"], "--dataset ./photos is on this machine, and a job of the Hub cannot read it"),
    (["--report-to", "wandb"], "--report-to wandb does not go with --on"),
]


@pytest.mark.parametrize(("flags", "sentence"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_what_no_job_can_do_is_refused(hub: Hub, machine: Callable[..., Done], flags: list[str], sentence: str) -> None:
    assert sentence in machine(*MERGE, *flags).complaint
    assert not hub.jobs.known


def test_a_source_that_is_not_on_the_hub_starts_no_job(
    hub: Hub, machine: Callable[..., Done], tiny_sources: tuple[Path, Path]
) -> None:
    assert "ann/s3 is not on the Hub" in machine(*MERGE, "ann/s3").complaint
    local = machine("merge", "ann/s1", tiny_sources[1], "--on", "cpu-basic").complaint
    assert f"{tiny_sources[1]} is a folder on this machine, and a job of the Hub cannot read it" in local
    assert "--push-sources" in local
    base = machine(*MERGE, "--method", "cmaes", "--base", tiny_sources[0]).complaint
    assert f"{tiny_sources[0]} is a folder on this machine" in base
    assert not hub.jobs.known


def test_push_sources_publishes_them_and_the_job_gets_their_commits(
    hub: Hub, machine: Callable[..., Done], tiny_sources: tuple[Path, Path]
) -> None:
    words = ["merge", "ann/s1", tiny_sources[1], "--on", "cpu-basic", "--push-to-hub", "ann/ab2", "--push-sources"]
    assert machine(*words).code == 0
    (source,) = [word for word in job_of(hub).spec["command"] if word.startswith("ann/ab2-sources-s2@")]
    assert len(source.partition("@")[2]) == 40
    assert machine(*words).code == 0
    assert len(hub.jobs.known) == 1  # the same commit: the same merge


def test_who_may_not_start_jobs_is_told_the_way_out(hub: Hub, machine: Callable[..., Done]) -> None:
    assert "a job of the Hub needs a token: log in with `hf auth login`" in machine(*MERGE, token=None).complaint
    assert "this token may not start jobs" in machine(*MERGE, token="hf_bob").complaint
    assert "Invalid user token" in machine(*MERGE, token="hf_nobody").complaint
    hub.inject(Fault("/api/jobs/ann$", method="POST", status=402))
    assert f"the Hub runs no job without credit: add some at {hub.url}/settings/billing." in machine(*MERGE).complaint
    hub.inject(Fault("/api/jobs/ann$", method="POST", drop=True))
    assert "If it was started all the same, the same command finds it." in machine(*MERGE).complaint
    assert not hub.jobs.known
    assert TOKEN not in machine(*MERGE).stderr


def test_a_hub_out_of_reach_is_one_sentence(
    hub: Hub, machine: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfmega.hub.retry.ATTEMPTS", 1)
    away = {**hub.environment(tmp_path / "home", TOKEN), "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "the connection to the Hub failed for the user of this token" in run(*MERGE, environment=away).complaint
    offline = {**hub.environment(tmp_path / "home", TOKEN), "HF_HUB_OFFLINE": "1"}
    assert "HF_HUB_OFFLINE is set" in run(*MERGE, environment=offline).complaint


def test_one_of_several_processes_starts_no_job(hub: Hub, machine: Callable[..., Done], tmp_path: Path) -> None:
    one_of_two = {**hub.environment(tmp_path / "home", TOKEN), "WORLD_SIZE": "2", "RANK": "0"}
    assert "--on starts one job" in run(*MERGE, environment=one_of_two).complaint


def test_quiet_says_nothing_but_the_place(hub: Hub, machine: Callable[..., Done]) -> None:
    done = machine(*MERGE, "-q")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == f"hf://buckets/ann/hfmega-merges/{job_of(hub).spec['labels']['folder']}\n"


def test_two_attempts_with_two_problems_tell_both(hub: Hub, machine: Callable[..., Done], tmp_path: Path) -> None:
    mark = tmp_path / "tried"
    source = f"from pathlib import Path as P; p = P({str(mark)!r}); print('hfmega:', 'two' if p.exists() else 'one')\n"
    hub.jobs.program = [sys.executable, "-S", "-c", source + "p.touch(); raise SystemExit(1)"]
    assert machine(*MERGE).complaint.startswith("one; then, tried again: two (job ")


def test_wrong_usage_is_found_before_anything_is_asked(hub: Hub, machine: Callable[..., Done]) -> None:
    before = len(hub.requests)
    assert machine(*MERGE, "--timeout", "soon").code == 2
    assert machine("merge", "ann/s1", "--on", "cpu-basic").code == 1
    assert len(hub.requests) == before


def test_a_dry_run_says_what_it_would_cost_and_starts_nothing(
    hub: Hub, machine: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfmega.merging.estimate.PROBE_SECONDS", 0.05)
    done = machine(*MERGE[:-1], "l4x4", "--dry-run", "--json", "--fitness-split", "train[:200]")
    found = done.json
    assert found["flavor"] == "l4x4"
    assert found["dollars_per_hour"] == pytest.approx(3.8, abs=0.01)
    assert found["dollars"] == pytest.approx(found["seconds"] * 0.063333 / 60)
    assert "l4x4 (48 vCPU, 186 GB, 4 x L4 with 96 GB)" in done.stderr
    assert "estimated time (here)" in done.stderr
    assert "price of an hour there" in done.stderr
    assert not hub.jobs.known
