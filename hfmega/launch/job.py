"""`--on FLAVOR`: a merge as a job of the Hub, found again by a label, its folder in a bucket that outlives the job."""

import hashlib
import json
import os
import re
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub import JobInfo, JobStage

from hfmega.errors import SettingsError
from hfmega.hub.jobs import Jobs
from hfmega.hub.problems import without_token
from hfmega.hub.pull import preview
from hfmega.launch.price import flavor_of
from hfmega.launch.processes import DISTRIBUTED
from hfmega.launch.wheel import installed
from hfmega.output import FLAVOR
from hfmega.settings import MergeSettings, configured

BUCKET: Final = "hfmega-merges"  # of the user, private: a folder for each merge
MOUNT: Final = "/merges"  # where it lies in a job
ATTEMPTS: Final = 2  # a job that dies is started once more, and resumes
LABEL: Final = "hfmega"  # of a job: which merge it makes
FOLDER: Final = "folder"  # of a job: the folder in the bucket
FOUND: Final = (JobStage.SCHEDULING, JobStage.RUNNING, JobStage.COMPLETED)
PASSED_ON: Final = ("push_to_hub", "private", "create_pr", "commit_message", "push_anyway", "push_report",
                    "push_images")  # fmt: skip
OF_THE_MACHINE: Final = ("num_processes", "cpu", "verbose", "debug")
SURROUNDINGS: Final = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}


@dataclass(frozen=True)
class Order:
    """A merge for a machine of the Hub. words: what makes it this merge; more: how it runs; name: of its folder."""

    flavor: str
    timeout: str
    words: tuple[str, ...]
    more: tuple[str, ...]
    name: str
    dataset: str | None
    pulled: tuple[str, ...]

    @property
    def key(self) -> str:
        """The merge as a label says it: the same command has the same key, on whatever flavor."""
        return hashlib.sha256(json.dumps([self.name, self.words]).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.key[:8]}"


def check(settings: MergeSettings) -> None:
    """Raises SettingsError for what no job does: in one of several processes, each would start one."""
    if DISTRIBUTED in os.environ:
        raise SettingsError("--on starts one job, which uses every GPU of its flavor: run it without torchrun.")
    if settings.report_to != "none":
        raise SettingsError(f"--report-to {settings.report_to} does not go with --on: a job has no account for it.")


def order_of(settings: MergeSettings, flags: Mapping[str, Any]) -> Order:
    """The command line of a merge without `--on`, its settings spelled out. Its sources and images are on the Hub."""
    known = configured(settings)
    words = [*known.pop("sources"), *flags_of(known), *flags_of({name: flags[name] for name in PASSED_ON})]
    return Order(
        flavor=flags["on"],
        timeout=flags["timeout"],
        words=tuple(map(str, words)),
        more=tuple(flags_of({name: flags[name] for name in OF_THE_MACHINE})),
        name=re.sub(r"[^A-Za-z0-9]+", "-", settings.output.resolve().name).strip("-")[:60] or "merge",
        dataset=settings.dataset,
        pulled=settings.pulled,
    )


def flags_of(named: Mapping[str, Any]) -> Iterator[str]:
    """Names and values as flags; what is None or off is left out, but for `calibrate`, which has a flag for no."""
    for name, value in named.items():
        flag = name.replace("_", "-")
        if value is True:
            yield f"--{flag}"
        elif value is False and name == "calibrate":
            yield "--no-calibrate"
        elif value is not None and value is not False:
            yield f"--{flag}={value}"


def job_for(jobs: Jobs, order: Order, anew: bool) -> tuple[JobInfo, bool]:
    """The job that makes a merge, or has made it, else a new one; and whether it is new. anew: look for none.

    Raises HfmegaError where none can be started.
    """
    latest = None if anew else jobs.newest({LABEL: order.key})
    if latest and latest.status.stage in FOUND:
        return latest, False
    folder = folder_of(latest) or (f"{order.folder}-{secrets.token_hex(2)}" if anew else order.folder)
    return started(jobs, order, folder), True


def started(jobs: Jobs, order: Order, folder: str) -> JobInfo:
    """Start a job. What would fail there is looked at here first: flavor and sources cost nothing to ask for."""
    flavor_of(jobs, order.flavor)
    for source in order.pulled:
        preview(source)
    program = installed(jobs.owner, order.dataset)
    return jobs.start(
        ["merge", *order.words, *order.more, "--output", f"{MOUNT}/{folder}", "--json"],
        program.requirement,
        [jobs.bucket(BUCKET, MOUNT), *program.volumes],
        env={**SURROUNDINGS, FLAVOR: order.flavor},
        flavor=order.flavor,
        timeout=order.timeout,
        attempts=ATTEMPTS,
        name=f"hfmega-{order.name}",
        labels={LABEL: order.key, FOLDER: folder},
    )


def folder_of(job: JobInfo | None) -> str | None:
    """The folder of a job in the bucket."""
    return (job.labels or {}).get(FOLDER) if job else None


def place_of(jobs: Jobs, job: JobInfo) -> str:
    """Where the folder of a job lies, in the words of `hf buckets`."""
    return f"hf://buckets/{jobs.owner}/{BUCKET}/{folder_of(job)}"


def introduced(job: JobInfo, new: bool) -> str:
    """What to say of a job before its log."""
    named = f"job {job.id} on {job.flavor}: {job.url}"
    if new:
        return f"started {named}"
    done = ", which has made this merge already (--overwrite makes it again)"
    return f"found {named}{done if job.status.stage == JobStage.COMPLETED else ''}"


def ways(job: JobInfo) -> str:
    """How to follow a job, and how to stop it."""
    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    command = without_token(shlex.join(["hfmega", *words]))
    return f"job {job.id} goes on at {job.url}: `{command}` follows it again, `hf jobs cancel {job.id}` stops it."
