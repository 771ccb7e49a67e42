"""The jobs of a user on the Hub: started, found, followed; what the Hub says no to, as sentences."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from huggingface_hub import HfApi, JobHardwareInfo, JobInfo, Volume, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, JobNotFoundError

from hfmega.errors import HubError
from hfmega.hub.client import api
from hfmega.hub.problems import CLIENT_ERRORS, explained, without_token
from hfmega.hub.retry import steady

RESUMES: Final = "the same command starts another job, which goes on where that one stopped."


@dataclass(frozen=True)
class Jobs:
    """The jobs and the buckets of the user whose token this is. Everything here raises HubError."""

    client: HfApi
    owner: str

    def flavors(self) -> list[JobHardwareInfo]:
        """The machines that jobs run on, with their prices."""
        with asking("the list of flavors"):
            return steady(self.client.list_jobs_hardware)

    def newest(self, labels: Mapping[str, str]) -> JobInfo | None:
        """The latest job with these labels, if the Hub lists one."""
        with asking("the list of jobs"):
            found = steady(lambda: list(self.client.list_jobs(labels=dict(labels), namespace=self.owner)))
        return max(found, key=lambda job: job.created_at.timestamp() if job.created_at else 0.0, default=None)

    def bucket(self, name: str, mount: str) -> Volume:
        """A private bucket as a folder of a job, made if it is not there."""
        with asking(f"the bucket {self.owner}/{name}"):
            self.client.create_bucket(f"{self.owner}/{name}", private=True, exist_ok=True)
        return Volume(type="bucket", source=f"{self.owner}/{name}", mount_path=mount)

    def start(self, words: Sequence[str], requirement: str, volumes: Sequence[Volume], **more: Any) -> JobInfo:
        """Start `hfmega WORDS` where a requirement is installed. more: as `HfApi.run_uv_job` has it."""
        again = "If it was started all the same, the same command finds it."
        with asking(f"a job on {more['flavor']}", again), nowhere(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the client calls this experimental
            job: JobInfo = self.client.run_uv_job(
                "hfmega",
                script_args=list(words),
                dependencies=[requirement],
                secrets={"HF_TOKEN": str(get_token())},
                volumes=list(volumes),
                namespace=self.owner,
                **more,
            )
        return job

    def lines(self, job: JobInfo, follow: bool) -> Iterator[str]:
        """The log of a job from its beginning. follow: to its end, however long that takes."""
        for said in self.client.fetch_job_logs(job_id=job.id, namespace=self.owner, follow=follow):
            yield from without_token(said).splitlines()

    def now(self, job: JobInfo) -> JobInfo:
        """A job as it is now."""
        return steady(self.client.inspect_job, job_id=job.id, namespace=self.owner)


def logged_in() -> Jobs:
    """The jobs of this user. Raises HubError where nobody is logged in."""
    if get_token() is None:
        raise HubError("a job of the Hub needs a token: log in with `hf auth login`, or set HF_TOKEN.")
    client = api()
    with asking("the user of this token"):
        return Jobs(client, str(steady(client.whoami)["name"]))


@contextmanager
def asking(what: str, more: str = "") -> Iterator[None]:
    """Raise HubError for what goes wrong inside. what: is asked for; more: a sentence to add, but of a lost job."""
    try:
        yield
    except CLIENT_ERRORS as error:
        gone = isinstance(error, JobNotFoundError)
        raise HubError(f"{refused(error, what)} {'' if gone else more}".rstrip()) from error


def refused(error: Exception, what: str) -> str:
    """Why the Hub says no, and the way out."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, JobNotFoundError):
        return f"{what} is not there any more, somebody deleted it: {RESUMES}"
    if status == 402:
        return f"the Hub runs no job without credit: add some at {constants.ENDPOINT}/settings/billing."
    if status == 403:
        return (
            f"this token may not start jobs ({what}): log in with one of the role `write`, or one that has the "
            "permissions to run jobs and to write buckets (`hf auth login`)."
        )
    return str(explained(error, what))


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
