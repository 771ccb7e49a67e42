"""What may have been meant: the ids and the revisions on the Hub that are near a name that is not there."""

from contextlib import suppress
from difflib import get_close_matches
from typing import Final

from huggingface_hub import constants

from hfmega.hub.client import api
from hfmega.hub.problems import CLIENT_ERRORS

LISTED: Final = 300  # models of an owner that are looked through


def near_ids(repo_id: str) -> str:
    """A sentence with ids near to one that is not on the Hub, beginning with a space; empty where there is none."""
    owner, _, name = repo_id.rpartition("/")
    known: set[str] = set()
    if not constants.HF_HUB_OFFLINE:
        with suppress(*CLIENT_ERRORS):
            known |= {model.id for model in api().list_models(author=owner, limit=LISTED)}
        with suppress(*CLIENT_ERRORS):
            known |= {model.id for model in api().list_models(search=name, limit=20)}
    near = get_close_matches(repo_id, sorted(known), 3, cutoff=0.7)
    return f" Near it: {', '.join(near)}." if near else ""


def near_revisions(repo_id: str, revision: str | None) -> str:
    """A sentence with the revisions that a repository has, the near ones first; empty where none can be had."""
    names: list[str] = []
    if not constants.HF_HUB_OFFLINE:
        with suppress(*CLIENT_ERRORS):
            refs = api().list_repo_refs(repo_id)
            names = [ref.name for ref in (*refs.branches, *refs.tags)]
    near = get_close_matches(revision or "", names, 3, cutoff=0.5) or names[:5]
    return f" It has {', '.join(near)}." if near else ""
