"""A job as its log shows it: the lines it says, its progress in the display of this terminal, and what it printed."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from huggingface_hub import JobInfo, JobStage

from hfmega import phases
from hfmega.errors import HubError
from hfmega.hub.jobs import RESUMES, Jobs, asking
from hfmega.launch.job import MOUNT, folder_of, place_of, ways
from hfmega.launch.processes import Terminated
from hfmega.output import TOLD, Output

FINAL: Final = "hfmega: "  # how the sentence begins that ends a command
SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600}
PROGRESS: Final = re.compile(
    rf"{TOLD}(?P<name>.*?)(, ((?P<done>[\d,]+) of )?(?P<total>[\d,]+) images)?"
    r"(, about (?P<number>[\d,.]+) (?P<unit>second|minute|hour)s? to go)?"
)


@dataclass
class Heard:
    """What a log has told so far. result: what the command printed; sentences: those that ended it, one each attempt;
    last: the line said last; lines: how many there were.
    """

    result: dict[str, Any] | None = None
    sentences: list[str] = field(default_factory=list)
    last: str = ""
    lines: int = 0


def follow(jobs: Jobs, job: JobInfo, output: Output) -> dict[str, Any]:
    """Show a job until it ends; returns what its command printed, as `--json` prints it.

    Raises HubError for a job that failed or is not there any more. Ctrl-C leaves the job running: KeyboardInterrupt (or
    Terminated) then says how to follow it and how to stop it.
    """
    heard = Heard()
    try:
        phases.begin(f"waiting for {job.flavor}")
        with asking(f"job {job.id}", ways(job)):
            for line in lines(jobs, job, follow=True):
                hear(line, heard, output)
            ended = jobs.now(job)
            if heard.result is None:  # the client reads no more of a log that was cut when its job had ended
                for line in islice(lines(jobs, job, follow=False), heard.lines, None):
                    hear(line, heard, output)
    except (KeyboardInterrupt, Terminated) as stopped:
        raise type(stopped)(ways(job)) from None
    if ended.status.stage == JobStage.COMPLETED and heard.result is not None:
        return heard.result
    raise HubError(failure(ended, heard, place_of(jobs, job)))


def lines(jobs: Jobs, job: JobInfo, follow: bool) -> Iterator[str]:
    """The log of a job, with the name that its folder has outside of it."""
    inside, outside = f"{MOUNT}/{folder_of(job)}", place_of(jobs, job)
    return (line.replace(inside, outside) for line in jobs.lines(job, follow))


def hear(line: str, heard: Heard, output: Output) -> None:
    """One line of a log: progress, the result, the sentence that ends the command, or talk."""
    heard.lines += 1
    if (found := printed(line)) is not None:
        heard.result = found
    elif line.startswith(FINAL):
        heard.sentences.append(line.removeprefix(FINAL))
    elif (told := PROGRESS.fullmatch(line)) and output.live:
        show(told)
    else:
        heard.last = line.strip() or heard.last
        output.say(line.removeprefix(TOLD))


def printed(line: str) -> dict[str, Any] | None:
    """The JSON object that a merge prints; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "verdict" in found else None


def show(told: re.Match[str]) -> None:
    """The progress of the job in the display of this process, which counts the rest down by itself."""
    name, number = told["name"], told["number"]
    left = float(number.replace(",", "")) * SECONDS[told["unit"]] if number else None
    phases.plan({}, {} if left is None else {name: left})
    phases.begin(name, images_of(told["total"]) if told["total"] else None)
    phases.skipped(images_of(told["done"] or "0"))


def images_of(text: str) -> float:
    return float(text.replace(",", ""))


def failure(job: JobInfo, heard: Heard, place: str) -> str:
    """Why a job has no result: in its own words where it had some."""
    named = f"job {job.id} on {job.flavor}"
    if job.status.stage == JobStage.COMPLETED:
        return f"{named} has ended, but its log at {job.url} lacks the result: its folder is {place}."
    if job.status.stage in (JobStage.CANCELED, JobStage.DELETED):
        return f"{named} was {'cancelled' if job.status.stage == JobStage.CANCELED else 'deleted'}: {RESUMES}"
    if heard.sentences:
        said = "; then, tried again: ".join(sentence.rstrip(".") for sentence in dict.fromkeys(heard.sentences))
        way = f" `hf buckets sync {place} DIR` brings its folder here." if place in said else ""
        return f"{said} ({named}, {job.url}).{way}"
    reason = f" ({job.status.message.rstrip('.')})" if job.status.message else ""
    last = f"; its log ends with: {heard.last.rstrip('.')}" if heard.last else ""
    return f"{named} failed{reason}{last}. Its page is {job.url}; {RESUMES}"
