"""`user/name@revision` or a folder -> a checkpoint on this disk.

All files of a source come from one commit, and each is compared with the hash that the Hub states for it.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    parse_hf_uri,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hfmega.errors import HubError, SourceError
from hfmega.folder import (
    CARD,
    CONFIG,
    EVAL_RESULTS,
    LINEAGE,
    PREPROCESSOR,
    RECIPE,
    REPORT,
    STATISTICS,
    WEIGHTS,
    like_a_path,
)
from hfmega.hub.client import Remote, pin
from hfmega.hub.near import near_ids, near_revisions
from hfmega.hub.problems import CLIENT_ERRORS, explained
from hfmega.models.library import read as read_spec
from hfmega.settings.words import spelled
from hfmega.weights.checkpoint import Checkpoint, from_folder, license_of, sha256_of_weights


def pull(source: str) -> Checkpoint:
    """Bring a source to this disk: `user/name[@revision]`, `hf://user/name[@revision]` or a folder.

    A Hub source is pinned to the commit that its revision means now; its weights are compared with the sha256 that
    the Hub states for them, fetched again once, and refused if they still differ. Of weights in several files those
    are fetched that their index names.
    Raises SourceError or HubError for what cannot be had, is only a pickle, or has a config that cannot be read.
    """
    source = spelled(source)
    if is_local(source):
        return from_folder(Path(source).expanduser())
    repo_id, revision = parse(source)
    try:
        return _from_hub(repo_id, revision)
    except CLIENT_ERRORS as error:
        raise _nowhere(source, error) from error


def _nowhere(source: str, error: Exception) -> HubError:
    """What to say of a source that the Hub does not have: what is near it there, and that it is no folder either."""
    repo_id, revision = parse(source)
    problem = str(explained(error, repo_id, revision))
    if isinstance(error, RevisionNotFoundError):
        return HubError(problem + near_revisions(repo_id, revision))
    missing = isinstance(error, RepositoryNotFoundError | LocalEntryNotFoundError)
    if not missing or isinstance(error, GatedRepoError):
        return HubError(problem)
    folder = "" if source.startswith("hf://") else f"there is no folder {source}, and "
    return HubError(f"{folder}{problem}{near_ids(repo_id)}")


def is_local(source: str) -> bool:
    """Whether a source is a folder, or is written like one."""
    if source.startswith("hf://"):
        return False
    return Path(source).is_dir() or source.count("/") != 1 or like_a_path(source)


def parse(source: str) -> tuple[str, str | None]:
    """`user/name[@revision]` or `hf://user/name[@revision]` -> repository id, revision."""
    try:
        uri = parse_hf_uri(source if source.startswith("hf://") else f"hf://{source}")
    except (HFValidationError, ValueError) as error:
        raise SourceError(f"{source!r} is neither a folder nor a Hub id (user/name or user/name@revision).") from error
    if uri.type != "model" or uri.path_in_repo:
        raise SourceError(f"{source!r} is not a model repository: write user/name or user/name@revision.")
    return uri.id, uri.revision


def _from_hub(repo_id: str, revision: str | None) -> Checkpoint:
    remote = pin(repo_id, revision)
    config, shards = fetch_config(remote), remote.shards()
    for name in shards or (WEIGHTS,):
        remote.fetch(name)
    card = remote.fetch_if_there(CARD)
    stated_license = license_of(card) if card else None
    return Checkpoint(
        repo_id,
        repo_id,
        remote.commit,
        config.parent,
        sha256_of_weights(config.parent, shards),
        read_spec(config, repo_id),
        stated_license,
        shards,
    )


def fetch_config(remote: Remote) -> Path:
    """The config of a repository on this disk, and beside it what says how images are prepared, if that is a file."""
    if PREPROCESSOR in remote.stated:
        remote.fetch(PREPROCESSOR)
    return remote.fetch(CONFIG)


def pull_merge(merge: str) -> Path:
    """A folder with the lineage of a merge, and the tensors beside it where it has some: from this disk or the Hub.

    Raises SourceError or HubError when it cannot be had.
    """
    merge = spelled(merge)
    if Path(merge).is_dir():
        return Path(merge)
    repo_id, revision = parse(merge)
    try:
        remote = pin(repo_id, revision)
        found = remote.fetch(LINEAGE)
        optional = [name for name in (EVAL_RESULTS, REPORT) if name in remote.stated]
        for beside in (CONFIG, STATISTICS, RECIPE, CARD, *optional):
            remote.fetch_if_there(beside)
    except CLIENT_ERRORS as error:
        raise _nowhere(merge, error) from error
    return found.parent


def lineage_folder(checkpoint: Checkpoint) -> Path | None:
    """A folder with the lineage of a checkpoint that is a merge of hfmega; None for any other checkpoint."""
    if checkpoint.repo_id is None:
        return checkpoint.folder if (checkpoint.folder / LINEAGE).is_file() else None
    try:
        remote = pin(checkpoint.repo_id, checkpoint.revision)
        found = remote.fetch_if_there(LINEAGE)
        for beside in (STATISTICS, RECIPE) if found else ():
            remote.fetch_if_there(beside)
    except CLIENT_ERRORS as error:
        raise explained(error, checkpoint.repo_id, checkpoint.revision) from error
    return found.parent if found else None


@dataclass(frozen=True)
class Preview:
    """A source before it is fetched: its config, and how many bytes of weights are not on this disk yet."""

    checkpoint: Checkpoint
    download_bytes: int


def preview(source: str) -> Preview:
    """What `pull` would bring: of a Hub source only the config is fetched, and the index of its weights if it has one.

    Raises SourceError or HubError as `pull` does.

    The sha256 of a Hub source is empty: its weights are not here.
    """
    source = spelled(source)
    if is_local(source):
        return Preview(from_folder(Path(source).expanduser()), 0)
    repo_id, revision = parse(source)
    try:
        remote = pin(repo_id, revision)
        config, shards = fetch_config(remote), remote.shards()
        missing = sum(remote.missing_bytes(name) for name in shards or (WEIGHTS,))
    except CLIENT_ERRORS as error:
        raise _nowhere(source, error) from error
    checkpoint = Checkpoint(repo_id, repo_id, remote.commit, config.parent, "", read_spec(config, repo_id))
    return Preview(checkpoint, missing)
