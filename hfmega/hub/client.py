"""The client, and a repository at a commit: huggingface_hub is the only client."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import (
    DryRunFileInfo,
    HfApi,
    ModelInfo,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from hfmega import __version__
from hfmega.errors import SourceError
from hfmega.folder import CONFIG, WEIGHTS
from hfmega.hub.problems import CLIENT_ERRORS, explained
from hfmega.hub.retry import steady
from hfmega.weights.checkpoint import named_shards, require_safetensors, sha256_of
from hfmega.weights.shards import INDEX, read_index, shards_of

SHA256: Final = re.compile("[0-9a-f]{64}")
SHA1: Final = re.compile("[0-9a-f]{40}")
# File name to what the Hub states of it: the sha256 of a large file, the git blob id (sha1) of a small one.
Stated = dict[str, str]


@dataclass(frozen=True)
class Remote:
    """A repository at a commit, and what is stated of its files: by the Hub, or offline by the names in the cache."""

    repo_id: str
    commit: str
    stated: Stated

    def fetch(self, name: str) -> Path:
        """One file on this disk. The client does not check what came: a damaged file is fetched again, then refused."""
        for again in (False,) if constants.HF_HUB_OFFLINE else (False, True):
            path = Path(
                steady(
                    hf_hub_download,
                    self.repo_id,
                    name,
                    revision=self.commit,
                    force_download=again,
                )
            )
            if not damaged(path, self.stated.get(name) or path.resolve().name):
                return path
        where = "is damaged in the cache" if constants.HF_HUB_OFFLINE else "came damaged twice"
        raise SourceError(f"{name} of {self.repo_id} {where}: its hash is not the one that the Hub states.")

    def missing_bytes(self, name: str) -> int:
        """How much of a file is not on this disk yet."""
        file = steady(hf_hub_download, self.repo_id, name, revision=self.commit, dry_run=True)
        assert isinstance(file, DryRunFileInfo)
        return (file.file_size or 0) if file.will_download else 0

    @property
    def sharded(self) -> bool:
        """Whether the weights lie in several files."""
        return INDEX in self.stated and WEIGHTS not in self.stated

    def shards(self) -> tuple[str, ...]:
        """The files of sharded weights, by their index; none where the weights are one file. None is fetched."""
        if not self.sharded:
            return ()
        if constants.HF_HUB_OFFLINE:  # what the cache lacks, the Hub may have: `fetch` says so
            return shards_of(read_index(self.fetch(INDEX), self.repo_id))
        return named_shards(self.fetch(INDEX), self.stated, self.repo_id)

    def fetch_if_there(self, name: str) -> Path | None:
        with suppress(EntryNotFoundError):
            return self.fetch(name)
        return None


def damaged(path: Path, stated: str) -> bool:
    """Whether a file is not what its hash (sha256, or git's sha1) says; anything else than a hash says nothing."""
    if SHA256.fullmatch(stated):
        return sha256_of(path) != stated
    return bool(SHA1.fullmatch(stated)) and git_hash(path.read_bytes()) != stated


def stated_of(info: ModelInfo) -> Stated:
    """What the Hub states of the files of a commit (asked with files_metadata)."""
    found = {s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id for s in info.siblings or []}
    return {name: hash_ for name, hash_ in found.items() if hash_}


def exists(repo_id: str) -> bool:
    """Whether there is such a repository that the user may read."""
    try:
        return bool(steady(api().repo_exists, repo_id))
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id) from error


def pin(repo_id: str, revision: str | None) -> Remote:
    """The commit that a revision means now, with what is stated of its files: the cache calls them by their hashes."""
    if constants.HF_HUB_OFFLINE:
        snapshot = Path(hf_hub_download(repo_id, CONFIG, revision=revision)).parent
        return Remote(repo_id, snapshot.name, {p.name: p.resolve().name for p in snapshot.iterdir()})
    client = api()
    info = steady(client.model_info, repo_id, revision=revision, files_metadata=True)
    require_safetensors(repo_id, (sibling.rfilename for sibling in info.siblings or []))
    # Asked for by its name, so that offline the cache knows what the name meant; all else comes from this commit.
    commit = Path(steady(hf_hub_download, repo_id, CONFIG, revision=revision)).parent.name
    if commit != info.sha:
        info = steady(client.model_info, repo_id, revision=commit, files_metadata=True)
    return Remote(repo_id, commit, stated_of(info))


def api() -> HfApi:
    """The client, under our name. Without a token it uses the user's (`hf auth login`, HF_TOKEN)."""
    return HfApi(library_name="hfmega", library_version=__version__)


def dataset_revision(dataset: str) -> str | None:
    """The commit that a Hub dataset is at now; None when offline."""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return str(steady(api().dataset_info, dataset).sha)
    except CLIENT_ERRORS as error:
        raise explained(error, f"dataset {dataset}") from error
