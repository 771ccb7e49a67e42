"""`--on FLAVOR`: a merge as a job of the Hub, found again by a label, its folder in a bucket that outlives the job."""

import hashlib
import json
import os
import re
import secrets
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from huggingface_hub import HfApi, JobInfo, JobStage, Volume, get_token

from hfmega.errors import HubError, SettingsError
from hfmega.hub.client import api
from hfmega.hub.problems import without_token
from hfmega.hub.pull import preview
from hfmega.hub.retry import steady
from hfmega.launch.flavors import flavor_of
from hfmega.launch.processes import DISTRIBUTED
from hfmega.launch.refusals import asking
from hfmega.launch.wheel import installed
from hfmega.output import FLAVOR
from hfmega.settings import MergeSettings, configured

BUCKET: Final = "hfmega-merges"  # of the user, private: a folder for each merge
MOUNT: Final = "/merges"  # where it lies in a job
ATTEMPTS: Final = 2  # a job that dies is started once more, and resumes
LABEL: Final = "hfmega"  # of a job: which merge it makes
FOLDER: Final = "folder"  # of a job: the folder in the bucket
WAITING: Final = (JobStage.SCHEDULING, JobStage.RUNNING)
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


def order_of(settings: MergeSettings, flags: Mapping[str, Any]) -> Order:
    """The command line of a merge without `--on`, its settings spelled out. Its sources and images are on the Hub."""
    known = configured(settings)
    words = [*known.pop("sources"), *flags_of(known), *flags_of({name: flags[name] for name in PASSED_ON})]
    return Order(
        flavor=flags["on"],
        timeout=flags["timeout"],
        words=tuple(map(str, words)),
        more=tuple(map(str, flags_of({name: flags[name] for name in OF_THE_MACHINE}))),
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


def logged_in() -> tuple[HfApi, str]:
    """The client, and the user whose jobs they are. Raises HubError where nobody is logged in."""
    if get_token() is None:
        raise HubError("a job of the Hub needs a token: log in with `hf auth login`, or set HF_TOKEN.")
    client = api()
    with asking("the user of this token"):
        return client, str(steady(client.whoami)["name"])


def job_for(client: HfApi, owner: str, order: Order, anew: bool) -> tuple[JobInfo, bool]:
    """The job that makes a merge, or has made it, else a new one; and whether it is new. anew: look for none.

    Raises HfmegaError where none can be started.
    """
    latest = None if anew else newest(client, owner, order.key)
    if latest and (latest.status.stage in WAITING or latest.status.stage == JobStage.COMPLETED):
        return latest, False
    folder = folder_of(latest) or (f"{order.folder}-{secrets.token_hex(2)}" if anew else order.folder)
    return started(client, owner, order, folder), True


def newest(client: HfApi, owner: str, key: str) -> JobInfo | None:
    """The latest job of a merge, if the Hub lists one."""
    with asking("the list of jobs"):
        found = steady(lambda: list(client.list_jobs(labels={LABEL: key}, namespace=owner)))
    return max(found, key=lambda job: job.created_at.timestamp() if job.created_at else 0.0, default=None)


def folder_of(job: JobInfo | None) -> str | None:
    """The folder of a job in the bucket."""
    return (job.labels or {}).get(FOLDER) if job else None


def place_of(owner: str, job: JobInfo) -> str:
    """Where the folder of a job lies, in the words of `hf buckets`."""
    return f"hf://buckets/{owner}/{BUCKET}/{folder_of(job)}"


def started(client: HfApi, owner: str, order: Order, folder: str) -> JobInfo:
    """Start a job. What would fail there is looked at here first: flavor and sources cost nothing to ask for."""
    flavor_of(client, order.flavor)
    for source in order.pulled:
        preview(source)
    program = installed(owner, order.dataset)
    with asking(f"the bucket {owner}/{BUCKET}"):
        client.create_bucket(f"{owner}/{BUCKET}", private=True, exist_ok=True)
    bucket = Volume(type="bucket", source=f"{owner}/{BUCKET}", mount_path=MOUNT)
    again = "If it was started all the same, the same command finds it."
    with asking(f"a job on {order.flavor}", again), nowhere(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the client calls this experimental
        job: JobInfo = client.run_uv_job(
            "hfmega",
            script_args=["merge", *order.words, *order.more, "--output", f"{MOUNT}/{folder}", "--json"],
            dependencies=[program.requirement],
            env={**SURROUNDINGS, FLAVOR: order.flavor},
            secrets={"HF_TOKEN": str(get_token())},
            flavor=order.flavor,
            timeout=order.timeout,
            attempts=ATTEMPTS,
            name=f"hfmega-{order.name}",
            labels={LABEL: order.key, FOLDER: folder},
            volumes=[bucket, *program.volumes],
            namespace=owner,
        )
    return job


@contextmanager
def nowhere() -> Iterator[None]:
    """Work in an empty folder for a moment: the client uploads what is a file among the words of a job."""
    here = Path.cwd()
    with TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            yield
        finally:
            os.chdir(here)


def ways(job: JobInfo) -> str:
    """How to follow a job, and how to stop it."""
    words = [word for word in sys.argv[1:] if word != "--overwrite"]
    command = without_token(shlex.join(["hfmega", *words]))
    return f"job {job.id} goes on at {job.url}: `{command}` follows it again, `hf jobs cancel {job.id}` stops it."


def check(settings: MergeSettings) -> None:
    """Raises SettingsError for what no job does: in one of several processes, each would start one."""
    if DISTRIBUTED in os.environ:
        raise SettingsError("--on starts one job, which uses every GPU of its flavor: run it without torchrun.")
    if settings.report_to != "none":
        raise SettingsError(f"--report-to {settings.report_to} does not go with --on: a job has no account for it.")
