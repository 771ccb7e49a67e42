"""What the Hub says no to where jobs are concerned, as sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, JobNotFoundError

from hfmega.errors import HubError
from hfmega.hub.problems import CLIENT_ERRORS, explained

RESUMES: Final = "the same command starts another job, which goes on where that one stopped."


@contextmanager
def asking(what: str, more: str = "") -> Iterator[None]:
    """Raise HubError for what goes wrong inside. what: is asked for; more: a sentence to add, of a job that goes on."""
    try:
        yield
    except CLIENT_ERRORS as error:
        gone = isinstance(error, JobNotFoundError)
        raise HubError(f"{refused(error, what)} {'' if gone else more}".rstrip()) from error


def refused(error: Exception, what: str) -> str:
    """Why, and the way out."""
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
