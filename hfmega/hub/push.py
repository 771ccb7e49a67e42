"""A finished folder -> a repository on the Hub: one commit, made once, or nothing."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hfmega.errors import HubError
from hfmega.folder import PUBLISHED, WEIGHTS
from hfmega.hub.client import Stated, api, damaged, stated_of
from hfmega.hub.problems import CLIENT_ERRORS, explained
from hfmega.hub.retry import passing, steady
from hfmega.weights.shards import INDEX


@dataclass(frozen=True)
class Push:
    """Where a folder goes on the Hub, with the words of the `hf` command line."""

    repo_id: str
    private: bool = False
    create_pr: bool = False
    commit_message: str | None = None


@dataclass(frozen=True)
class Before:
    """A repository before the commit: its newest commit, what that holds, and the pull requests that there are."""

    commit: str
    files: Stated
    proposals: frozenset[str]


def open_repository(target: Push) -> tuple[Push, bool]:
    """Create the repository before the long work rather than after it; returns its whole id, and whether it is new.

    Raises HubError when nobody is logged in, or when the token may not write there.
    """
    client = api()
    try:
        steady(client.whoami)
        repo_id, new = created(client, target)
        if not new and not target.create_pr:
            steady(client.auth_check, repo_id, write=True)
    except CLIENT_ERRORS as error:
        raise HubError(f"nothing could be published as {target.repo_id}: {refusal(error, target)}") from error
    return replace(target, repo_id=repo_id), new


def created(client: HfApi, target: Push) -> tuple[str, bool]:
    """The id that the Hub gives a repository (`me/name` for `name`), and whether it was created just now."""
    try:
        return steady(client.create_repo, target.repo_id, private=target.private or None).repo_id, True
    except HfHubHTTPError as error:
        if error.response.status_code not in (403, 409):
            raise
        return steady(client.create_repo, target.repo_id, private=target.private or None, exist_ok=True).repo_id, False


def refusal(error: Exception, target: Push) -> str:
    """Why nothing may be written there, and the way out."""
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 403:
        return (
            "this token may not write there: log in with one of the role `write` (`hf auth login`), or name a "
            "repository of your own; --create-pr proposes it to a repository of others."
        )
    return str(explained(error, target.repo_id))


@contextmanager
def repository(target: Push | None) -> Iterator[Push | None]:
    """The repository of a run that publishes its result, created before anything is computed.

    A new one in which nothing was published is removed again. Only the main process of several asks the Hub.
    """
    if target is None or os.environ.get("RANK", "0") != "0":
        yield target
        return
    opened, new = open_repository(target)
    try:
        yield opened
    finally:
        if new:
            with suppress(*CLIENT_ERRORS):
                remove_empty(opened)


def remove_empty(target: Push) -> None:
    """Remove a repository that holds nothing but what the Hub put there, and that nobody proposes anything to."""
    client = api()
    if set(look(client, target).files) <= {".gitattributes"} and not proposals(client, replace(target, create_pr=True)):
        client.delete_repo(target.repo_id)


def check_finished(folder: Path) -> None:
    if not (folder / WEIGHTS).is_file():
        raise HubError(f"{folder} has no {WEIGHTS}: only a finished folder can be published.")


def files_of(folder: Path, more: Sequence[str] = ()) -> dict[str, Path]:
    """What is published of a folder: names in the repository to files. more: the shards of weights in several files."""
    found = [path for pattern in PUBLISHED for path in sorted(folder.glob(pattern))]
    found += [folder / name for name in ([INDEX, *more] if more else [])]
    return {path.relative_to(folder).as_posix(): path for path in found}


def newest(repo_id: str) -> str:
    """The commit that a repository is at."""
    try:
        return str(steady(api().model_info, repo_id).sha)
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id) from error


def push(folder: Path, target: Push, files: dict[str, Path] | None = None) -> str:
    """Publish a finished folder in one commit; returns the URL of the commit, or of the pull request.

    files: what of it, if not all that is published of a folder.
    The commit is made on the one that was newest when it began, so that nothing of others is overwritten unseen. What
    is there already is not committed again. Raises HubError with the way out: the folder stays complete, and pushing
    it again finishes the job.
    """
    if files is None:
        check_finished(folder)
    names = files if files is not None else files_of(folder)
    client = api()
    try:
        made = steady(client.create_repo, target.repo_id, private=target.private or None, exist_ok=True)
        target = replace(target, repo_id=made.repo_id)
        before = look(client, target)
        if holds(before.files, names):
            return commit_url(client, target, before.commit)
        operations = [CommitOperationAdd(name, path) for name, path in names.items()]
        return steady(commit_once, client, target, operations, names, before, folder.resolve().name)
    except (*CLIENT_ERRORS, RuntimeError) as error:  # a refused upload of a large file is a RuntimeError
        raise HubError(f"{reason(error, target)} {way_out(error, folder, target)}") from error


def look(client: HfApi, target: Push) -> Before:
    """The repository as it is now."""
    info = steady(client.model_info, target.repo_id, files_metadata=True)
    return Before(str(info.sha), stated_of(info), frozenset(proposals(client, target)))


def proposals(client: HfApi, target: Push) -> list[str]:
    """The refs of all pull requests, if one is to be made."""
    if not target.create_pr:
        return []
    refs = steady(client.list_repo_refs, target.repo_id, include_pull_requests=True)
    return [ref.ref for ref in refs.pull_requests or []]


def commit_once(
    client: HfApi, target: Push, operations: Sequence[CommitOperationAdd], names: dict[str, Path], before: Before,
    title: str,
) -> str:  # fmt: skip
    """Make the commit; when its answer is lost, look whether it was made before anyone tries again.

    Nor is anything lost when somebody else has committed the same files meanwhile.
    """
    try:
        made = client.create_commit(
            target.repo_id,
            list(operations),
            commit_message=target.commit_message or f"Upload {title} with hfmega",
            create_pr=target.create_pr,
            parent_commit=before.commit,
        )
    except CLIENT_ERRORS as error:
        found = made_already(client, target, names, before) if passing(error) or overtaken(error) else None
        if found is None:
            raise
        return found
    return made.pr_url or made.commit_url


def made_already(client: HfApi, target: Push, names: dict[str, Path], before: Before) -> str | None:
    """The URL of a commit (or pull request) that was made after `before` and holds these files."""
    if not target.create_pr:
        now = look(client, target)
        return commit_url(client, target, now.commit) if holds(now.files, names) else None
    for ref in proposals(client, target):
        if ref not in before.proposals:
            info = steady(client.model_info, target.repo_id, revision=ref, files_metadata=True)
            if holds(stated_of(info), names):
                return f"{client.endpoint}/{target.repo_id}/discussions/{ref.rpartition('/')[2]}"
    return None


def holds(files: Stated, names: dict[str, Path]) -> bool:
    """Whether a repository has these files, byte for byte."""
    return all(name in files and not damaged(path, files[name]) for name, path in names.items())


def commit_url(client: HfApi, target: Push, commit: str) -> str:
    return f"{client.endpoint}/{target.repo_id}/commit/{commit}"


def overtaken(error: Exception) -> bool:
    """Whether another commit came while this one was being made: the Hub refuses this one with 412."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)


def reason(error: Exception, target: Push) -> str:
    """What went wrong."""
    if overtaken(error):
        return f"{target.repo_id} got another commit while this one was being made, so nothing was changed there."
    return str(explained(error, target.repo_id))


def way_out(error: Exception, folder: Path, target: Push) -> str:
    forbidden = isinstance(error, HfHubHTTPError) and error.response.status_code == 403
    propose = ", and --create-pr proposes it where you may not write" if forbidden else ""
    return f"{folder} is complete: `hfmega push {folder} {target.repo_id}` finishes the job{propose}."
