"""A finished folder -> a repository on the Hub: one commit, made once, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from hfmega.errors import HfmegaError, HubError
from hfmega.folder import PUBLISHED, WEIGHTS
from hfmega.hub.client import Stated, api, damaged, stated_of
from hfmega.hub.problems import CLIENT_ERRORS, explained
from hfmega.hub.retry import passing, steady


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


def check_login(target: Push) -> None:
    """Raises HubError before the long work rather than after it, when nobody is logged in to publish its result."""
    try:
        steady(api().whoami)
    except CLIENT_ERRORS as error:
        raise HubError(f"nothing could be published as {target.repo_id}: {explained(error, 'who you are')}") from error


def push(folder: Path, target: Push) -> str:
    """Publish a finished folder in one commit; returns the URL of the commit, or of the pull request.

    The commit is made on the one that was newest when it began, so that nothing of others is overwritten unseen. What
    is there already is not committed again. Raises HubError with the way out: the folder stays complete, and pushing
    it again finishes the job.
    """
    if not (folder / WEIGHTS).is_file():
        raise HfmegaError(f"{folder} has no {WEIGHTS}: only a finished folder can be published.")
    files = [path for pattern in PUBLISHED for path in sorted(folder.glob(pattern))]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    client = api()
    try:
        steady(client.create_repo, target.repo_id, private=target.private or None, exist_ok=True)
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
