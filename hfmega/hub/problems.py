"""Failures of the Hub as sentences."""

import re
from typing import Final

import httpx2
from huggingface_hub import (
    get_token,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfmega.errors import HubError

TOKEN: Final = re.compile("hf_[A-Za-z0-9]{20,}")
CLIENT_ERRORS: Final = (
    HfHubHTTPError,
    EntryNotFoundError,
    OfflineModeIsEnabled,
    HFValidationError,
    LocalTokenNotFoundError,
    httpx2.HTTPError,
)


def explained(error: Exception, what: str, revision: str | None = None) -> HubError:
    """The one sentence for a failure of the client."""
    if isinstance(error, HfHubHTTPError) and "Invalid credentials" in str(error):
        return HubError(
            "the Hub does not know this token (any more): log in again with `hf auth login`, or set HF_TOKEN."
        )
    for kind, sentence in EXPLANATIONS:
        if isinstance(error, kind):
            return HubError(sentence.format(what=what, revision=revision or "main", error=_line(error)))
    raise error


def _line(error: Exception) -> str:
    said = re.sub(r"For more information check: \S+", "", without_token(str(error)))
    return " ".join(said.split())[:300].rstrip(".") or type(error).__name__


def without_token(text: str) -> str:
    """A message without the user's token, or anything that looks like one: a server may say back what it was sent."""
    known = get_token()
    return TOKEN.sub("<token>", text.replace(known, "<token>") if known else text)


# Order matters: a gated repository is also a RepositoryNotFoundError, and most of them are also HfHubHTTPError.
EXPLANATIONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (GatedRepoError, "{what} is gated: ask for access on its page, then log in with `hf auth login` or HF_TOKEN."),
    (
        RepositoryNotFoundError,
        "{what} is not on the Hub, or it is private: log in with `hf auth login`, or set HF_TOKEN.",
    ),
    (RevisionNotFoundError, "{what} has no revision {revision}."),
    (OfflineModeIsEnabled, "{what} is needed, but HF_HUB_OFFLINE is set."),
    (LocalEntryNotFoundError, "{what} is not in the cache, and the Hub cannot be reached: {error}."),
    (EntryNotFoundError, "{what} lacks a file: {error}."),
    (LocalTokenNotFoundError, "there is no token: log in with `hf auth login`, or set HF_TOKEN."),
    (HFValidationError, "{what} is not a valid Hub id: {error}."),
    (HfHubHTTPError, "the Hub refused {what}: {error}."),
    (RuntimeError, "the Hub did not take {what}: {error}."),
    (
        httpx2.HTTPError,
        "the connection to the Hub failed for {what} ({error}): try again, or set HF_HUB_OFFLINE=1 if it is cached.",
    ),
)
