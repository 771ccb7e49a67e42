"""Jobs and buckets: what is submitted really runs, in a process of this machine, with its volumes as folders.

Written from huggingface_hub 2.4. A Hub installs what `uv run --with` names; here this Python has it already, and only a
wheel is unpacked and put before everything else.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .routing import Call, RefusedError, Response, reply, route
from .storage import Store, now

L4: Final = {"type": "gpu", "model": "L4", "quantity": "4", "vram": "96 GB", "manufacturer": "Nvidia"}
HARDWARE: Final = [
    {"name": "cpu-basic", "prettyName": "CPU Basic", "cpu": "2 vCPU", "ram": "16 GB", "ephemeralStorage": "50 GB",
     "accelerator": None, "unitCostMicroUSD": 167, "unitCostUSD": 0.000167, "unitLabel": "minute"},
    {"name": "l4x4", "prettyName": "4x Nvidia L4", "cpu": "48 vCPU", "ram": "186 GB", "ephemeralStorage": "400 GB",
     "accelerator": L4, "unitCostMicroUSD": 63333, "unitCostUSD": 0.063333, "unitLabel": "minute"},
]  # fmt: skip
ENDED: Final = ("COMPLETED", "CANCELED", "ERROR", "DELETED")


@dataclass
class Job:
    """One job: what was asked for, how far it is, and its log. `changed` is notified of every line and stage."""

    id: str
    owner: str
    spec: dict[str, Any]
    created: str = field(default_factory=now)
    stage: str = "SCHEDULING"
    message: str | None = None
    log: list[dict[str, str]] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def told(self) -> dict[str, Any]:
        """The job as the Hub describes it: no value of a secret."""
        kept = ("dockerImage", "command", "arguments", "environment", "flavor", "labels", "volumes")
        who = {"id": self.owner, "name": self.owner, "type": "user"}
        return {
            "id": self.id,
            "createdAt": self.created,
            "owner": who,
            "initiator": who,
            "status": {"stage": self.stage, "message": self.message},
            "secrets": dict.fromkeys(self.spec.get("secrets", {}), ""),
            "retry": self.spec.get("attempts", 1) - 1,
            **{name: self.spec[name] for name in kept if name in self.spec},
        }

    def say(self, line: str) -> None:
        with self.changed:
            self.log.append({"timestamp": now(), "data": line})
            self.changed.notify_all()

    def become(self, stage: str, message: str | None = None) -> None:
        with self.changed:
            if self.stage not in ENDED:
                self.stage, self.message = stage, message
            self.changed.notify_all()

    def events(self) -> Iterator[bytes]:
        """The log as server-sent events, to its end."""
        shown = 0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: len(self.log) > shown or self.stage in ENDED)  # noqa: B023
                lines, over = self.log[shown:], self.stage in ENDED
            yield from (f"data: {json.dumps(line)}\n\n".encode() for line in lines)
            shown += len(lines)
            if over and shown == len(self.log):
                return


class Jobs:
    """All jobs of a Hub. program: what runs in place of the words of a job; None: the words."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self.store = root, store
        self.known: dict[str, Job] = {}
        self.environment: Callable[[Path], dict[str, str]] = lambda _: dict(os.environ)
        self.program: Sequence[str] | None = None
        self._threads: list[threading.Thread] = []

    def submit(self, owner: str, spec: dict[str, Any]) -> Job:
        job = self.known[identity] = Job(identity := secrets.token_hex(12), owner, spec)
        self._threads.append(threading.Thread(target=self.work, args=(job,)))
        self._threads[-1].start()
        return job

    def stop(self) -> None:
        """End every job: none outlives the test."""
        for job in list(self.known.values()):
            self.end(job, "CANCELED", signal.SIGKILL)
        for thread in self._threads:
            thread.join()

    def end(self, job: Job, stage: str, sent: int) -> None:
        job.become(stage)
        if job.process:
            with suppress(ProcessLookupError):
                os.killpg(job.process.pid, sent)

    def bucket(self, name: str) -> Path:
        return self.root / "buckets" / name

    def work(self, job: Job) -> None:
        """Run a job to its end, as often as it may be tried."""
        try:
            mounts = {volume["mountPath"]: self.mounted(job, volume) for volume in job.spec.get("volumes", [])}
            words, environment = self.prepared(job, mounts)
            job.say("===== Job started at now =====")
            for _ in range(job.spec.get("attempts", 1)):
                code = self.attempt(job, words, environment, mounts)
                if code == 0 or job.stage in ENDED:
                    break
            job.become("COMPLETED") if code == 0 else job.become("ERROR", f"Job failed with exit code: {code}.")
        except Exception as error:
            job.say(f"the test Hub failed: {error!r}")
            job.become("ERROR", repr(error))

    def attempt(
        self, job: Job, words: Sequence[str], environment: Mapping[str, str], mounts: Mapping[str, Path]
    ) -> int:
        """Run the words once; what they say of the folders of mounts is said with the names that a job has for them."""
        place = self.root / "containers" / job.id
        place.mkdir(parents=True, exist_ok=True)
        job.process = subprocess.Popen(
            words, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        job.become("RUNNING")
        late = threading.Timer(job.spec.get("timeoutSeconds", 1800), self.end, (job, "ERROR", signal.SIGKILL))
        late.start()
        assert job.process.stdout
        for line in job.process.stdout:
            for mount, folder in mounts.items():
                line = line.replace(str(folder), mount)
            job.say(line.rstrip("\n"))
        late.cancel()
        job.process.stdout.close()
        return job.process.wait()

    def prepared(self, job: Job, mounts: Mapping[str, Path]) -> tuple[list[str], dict[str, str]]:
        """The words of a job for this machine, with folders for its mounts, and its environment."""
        words = [placed(word, mounts) for word in job.spec["command"]]
        assert words[:2] == ["uv", "run"], words
        wanted, words = [], words[2:]
        while words[0] == "--with":
            wanted, words = [*wanted, words[1]], words[2:]
        assert words[0] == "hfmega", words
        told = {**job.spec.get("environment", {}), **job.spec.get("secrets", {})}
        environment = {**self.environment(self.root / "job-home"), **told}
        for place in (word.partition("file://")[2] for word in wanted if "file://" in word):
            environment["PYTHONPATH"] = str(self.unpacked(Path(place)))
        return [*(self.program or [sys.executable, "-m", "hfmega"]), *words[1:]], environment

    def mounted(self, job: Job, volume: Mapping[str, Any]) -> Path:
        """The folder of a volume: the bucket itself, or a copy of what a repository holds."""
        if volume["type"] == "bucket":
            return self.bucket(volume["source"]) / volume.get("path", "")
        repository = self.store.find(volume["type"], volume["source"])
        commit = repository.find("main") if repository else None
        assert repository, volume
        assert commit, volume
        folder = self.root / "mounts" / job.id / volume["source"]
        for name, file in commit.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(repository.blob(file.sha256).read_bytes())
        return folder

    def unpacked(self, wheel: Path) -> Path:
        folder = self.root / "installed" / wheel.parent.name
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        return folder


def placed(word: str, mounts: Mapping[str, Path]) -> str:
    """A word with the folder of this machine for the mount that it names."""
    for mount, folder in mounts.items():
        if word.startswith(f"{mount}/") or f"file://{mount}/" in word:
            return word.replace(f"{mount}/", f"{folder}/", 1)
    return word


def _jobs_of(call: Call) -> Jobs:
    """The jobs, for the user whose they are."""
    if call.user is None:
        raise RefusedError(401, "Invalid username or password.")
    if call.user.name != call.args["owner"] or call.user.role != "write":
        raise RefusedError(403, f"This token has no permission to run jobs in {call.args['owner']}")
    return call.site.jobs


def _job(call: Call) -> Job:
    job = _jobs_of(call).known.get(call.args["job"])
    if job is None:
        raise RefusedError(404, "Job not found")
    return job


JOB = "/api/jobs/(?P<owner>[^/]+)/(?P<job>[^/]+)"


@route("GET", "/api/jobs/hardware")
def hardware(call: Call) -> Response:
    return reply(HARDWARE)


@route("POST", "/api/jobs/(?P<owner>[^/]+)")
def submit(call: Call) -> Response:
    jobs, spec = _jobs_of(call), call.json
    if spec["flavor"] not in [one["name"] for one in HARDWARE]:
        raise RefusedError(400, f"Invalid flavor {spec['flavor']}")
    for volume in spec.get("volumes", []):
        here = jobs.bucket(volume["source"]).is_dir()
        if not (here if volume["type"] == "bucket" else jobs.store.find(volume["type"], volume["source"])):
            raise RefusedError(404, f"Volume {volume['source']} not found")
    for value in spec.get("labels", {}).values():
        if len(value) > 100 or not value.replace("-", "").replace("_", "").isalnum():
            raise RefusedError(400, f"Invalid label {value!r}")
    return reply(jobs.submit(call.args["owner"], spec).told)


@route("GET", "/api/jobs/(?P<owner>[^/]+)")
def listed(call: Call) -> Response:
    wanted = [label.split("=", 1) for label in call.query.get("label", [])]
    stages = call.query.get("stage", [])
    found = [job for job in _jobs_of(call).known.values() if job.owner == call.args["owner"]]
    found = [job for job in found if all(job.spec.get("labels", {}).get(key) == value for key, value in wanted)]
    return reply([job.told for job in reversed(found) if not stages or job.stage in stages])


@route("GET", JOB)
def inspect(call: Call) -> Response:
    return reply(_job(call).told)


@route("GET", f"{JOB}/logs")
def logs(call: Call) -> Response:
    return Response(headers={"Content-Type": "text/event-stream"}, stream=_job(call).events())


@route("POST", f"{JOB}/cancel")
def cancel(call: Call) -> Response:
    call.site.jobs.end(_job(call), "CANCELED", signal.SIGTERM)
    return reply({})


@route("POST", "/api/buckets/(?P<owner>[^/]+)/(?P<name>[^/]+)")
def create_bucket(call: Call) -> Response:
    place = _jobs_of(call).bucket(f"{call.args['owner']}/{call.args['name']}")
    url = f"{call.site.endpoint}/buckets/{call.args['owner']}/{call.args['name']}"
    known = place.is_dir()
    place.mkdir(parents=True, exist_ok=True)
    return reply({"url": url, "name": place.name}, 409 if known else 200)
