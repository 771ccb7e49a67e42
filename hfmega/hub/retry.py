"""How often a request to the Hub is repeated: the one policy for everything that hfmega asks of it."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

T = TypeVar("T")
CHANGED: Final = "Consistency check failed"  # the client's words for a file that got another commit on its way
ATTEMPTS: Final = 5
LONGEST_WAIT: Final = 60.0  # seconds, however long the Hub asks for
PASSING: Final = (408, 429, 500, 502, 503, 504)  # statuses of a Hub that is busy or ill, not of a wrong request


def passing(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment: the Hub is busy or ill, or the connection was lost."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    if isinstance(error, OSError) and CHANGED in str(error):
        return True
    return isinstance(error, httpx2.TransportError)


def wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: as long as the Hub asks for (`Retry-After`), else 1, 2, 4, 8."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked) if asked.isdigit() else 2.0 ** (state.attempt_number - 1), LONGEST_WAIT)


def steady(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """call(*arguments, **options), up to five times while what goes wrong is `passing`; then its own error.

    Only for calls that may be made twice. The client repeats some requests by itself before.
    """
    attempts = Retrying(stop=stop_after_attempt(ATTEMPTS), wait=wait, retry=retry_if_exception(passing), reraise=True)
    return attempts(call, *arguments, **options)
