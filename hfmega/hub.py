"""`user/name@revision` or a folder -> a checkpoint on this disk.

huggingface_hub is the only client. Everything that leaves this room is a plain value; every failure is one sentence.
All files of a source come from one commit, and each is compared with the hash that the Hub states for it.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
from huggingface_hub import (
    DryRunFileInfo,
    HfApi,
    ModelInfo,
    constants,
    get_token,
    hf_hub_download,
    metadata_load,
    parse_hf_uri,
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
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from yaml import YAMLError

from hfmega import HfmegaError, __version__
from hfmega.config import read as read_config
from hfmega.shards import INDEX, read_index, shards_of
from hfmega.steady import steady

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
LINEAGE: Final = "lineage.json"
STATISTICS: Final = "statistics.safetensors"
RECIPE: Final = "recipe.safetensors"
CARD: Final = "README.md"
SHA256: Final = re.compile("[0-9a-f]{64}")
TOKEN: Final = re.compile("hf_[A-Za-z0-9]{20,}")
SHA1: Final = re.compile("[0-9a-f]{40}")
PUBLISHED: Final = (CARD, CONFIG, WEIGHTS, LINEAGE, STATISTICS, RECIPE, "figures/*.png")

# File name to what the Hub states of it: the sha256 of a large file, the git blob id (sha1) of a small one.
Stated = dict[str, str]

CLIENT_ERRORS: Final = (
    HfHubHTTPError,
    EntryNotFoundError,
    OfflineModeIsEnabled,
    HFValidationError,
    LocalTokenNotFoundError,
    httpx2.HTTPError,
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights and config of one network on this disk. `revision` is a commit sha; both are None for a folder.

    shards: the files of its weights where they are not one; sha256: see `sha256_of_weights`.
    """

    name: str
    repo_id: str | None
    revision: str | None
    folder: Path
    sha256: str
    config: dict[str, Any]
    license: str | None = None
    shards: tuple[str, ...] = ()

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def record(self) -> dict[str, Any] | None:
        """How hfmega trained this source, if it did."""
        record = self.config.get("hfmega")
        whole = isinstance(record, dict) and all(isinstance(record.get(k), str) for k in ("dataset", "train_split"))
        return record if whole else None


def pull(source: str, token: str | None = None) -> Checkpoint:
    """Bring a source to this disk: `user/name[@revision]`, `hf://user/name[@revision]` or a folder.

    A Hub source is pinned to the commit that its revision means now; its weights are compared with the sha256 that
    the Hub states for them, fetched again once, and refused if they still differ. Of weights in several files those
    are fetched that their index names.
    Raises HfmegaError for anything that cannot be had, is only a pickle, or has a config that cannot be read.
    """
    if _is_local(source):
        return _from_folder(Path(source))
    repo_id, revision = parse(source)
    try:
        return _from_hub(repo_id, revision, token)
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id, revision) from error


def _is_local(source: str) -> bool:
    """Whether a source is a folder, or is written like one."""
    if source.startswith("hf://"):
        return False
    return Path(source).is_dir() or source.startswith((".", "/", "~")) or source.count("/") != 1


def parse(source: str) -> tuple[str, str | None]:
    """`user/name[@revision]` or `hf://user/name[@revision]` -> repository id, revision."""
    try:
        uri = parse_hf_uri(source if source.startswith("hf://") else f"hf://{source}")
    except (HFValidationError, ValueError) as error:
        raise HfmegaError(f"{source!r} is neither a folder nor a Hub id (user/name or user/name@revision).") from error
    if uri.type != "model" or uri.path_in_repo:
        raise HfmegaError(f"{source!r} is not a model repository: write user/name or user/name@revision.")
    return uri.id, uri.revision


def _from_folder(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise HfmegaError(f"there is no folder {folder}, and it is not a Hub id (user/name).")
    files = {path.name for path in folder.iterdir()}
    _require_safetensors(str(folder), files)
    config = read_config(folder / CONFIG, str(folder))
    shards = shards_in(folder, files)
    sha256 = sha256_of_weights(folder, shards)
    return Checkpoint(name_of(folder), None, None, folder.resolve(), sha256, config, _license(folder / CARD), shards)


def shards_in(folder: Path, files: Collection[str]) -> tuple[str, ...]:
    """The shards of the weights in a folder of some files; none where the weights are one file.

    Raises HfmegaError for an index that cannot be read, or names a shard that is not among the files.
    """
    return () if WEIGHTS in files else _named(folder / INDEX, files, str(folder))


def _named(index: Path, files: Collection[str], where: str) -> tuple[str, ...]:
    """The shards that an index names, if all of them are there."""
    shards = shards_of(read_index(index, where))
    if missing := [shard for shard in shards if shard not in files]:
        raise HfmegaError(f"{where} lacks {missing[0]}, which its {INDEX} names ({len(missing)} missing).")
    return shards


def sha256_of_weights(folder: Path, shards: Collection[str]) -> str:
    """The sha256 of the weights in a folder: that of their file, or of what `sha256sum` prints of their shards.

    Of each shard, sorted by name, that is a line of its sha256, two spaces and its name; in a shell
    `sha256sum model-*.safetensors | sha256sum` gives the same.
    """
    if not shards:
        return sha256_of(folder / WEIGHTS)
    lines = [f"{sha256_of(folder / shard)}  {shard}\n" for shard in sorted(shards)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def name_of(folder: Path) -> str:
    """The name of a folder as text that can be written into a file, whatever bytes it has on the disk."""
    return os.fsencode(folder.resolve().name).decode("utf-8", "replace")


@dataclass(frozen=True)
class Remote:
    """A repository at a commit, and what is stated of its files: by the Hub, or offline by the names in the cache."""

    repo_id: str
    commit: str
    stated: Stated
    token: str | None = field(default=None, repr=False)

    def fetch(self, name: str) -> Path:
        """One file on this disk. The client does not check what came: a damaged file is fetched again, then refused."""
        for again in (False,) if constants.HF_HUB_OFFLINE else (False, True):
            path = Path(
                steady(
                    hf_hub_download,
                    self.repo_id,
                    name,
                    revision=self.commit,
                    token=self.token,
                    force_download=again,
                )
            )
            if not damaged(path, self.stated.get(name) or path.resolve().name):
                return path
        where = "is damaged in the cache" if constants.HF_HUB_OFFLINE else "came damaged twice"
        raise HfmegaError(f"{name} of {self.repo_id} {where}: its hash is not the one that the Hub states.")

    def missing_bytes(self, name: str) -> int:
        """How much of a file is not on this disk yet."""
        file = steady(hf_hub_download, self.repo_id, name, revision=self.commit, token=self.token, dry_run=True)
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
        return _named(self.fetch(INDEX), self.stated, self.repo_id)

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


def _from_hub(repo_id: str, revision: str | None, token: str | None) -> Checkpoint:
    remote = _pin(repo_id, revision, token)
    config, shards = remote.fetch(CONFIG), remote.shards()
    for name in shards or (WEIGHTS,):
        remote.fetch(name)
    card = remote.fetch_if_there(CARD)
    stated_license = _license(card) if card else None
    return Checkpoint(
        repo_id,
        repo_id,
        remote.commit,
        config.parent,
        sha256_of_weights(config.parent, shards),
        read_config(config, repo_id),
        stated_license,
        shards,
    )


def _license(card: Path) -> str | None:
    """The license that a card states; None when there is no card, or none that can be parsed."""
    try:
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return None
    found = metadata.get("license")
    return found if isinstance(found, str) and found.isprintable() else None


def pull_merge(merge: str, token: str | None = None) -> Path:
    """A folder with the lineage of a merge, and the tensors beside it where it has some: from this disk or the Hub.

    Raises HfmegaError when it cannot be had.
    """
    if Path(merge).is_dir():
        return Path(merge)
    repo_id, revision = parse(merge)
    try:
        remote = _pin(repo_id, revision, token)
        found = remote.fetch(LINEAGE)
        for beside in (STATISTICS, RECIPE, CARD):
            remote.fetch_if_there(beside)
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id, revision) from error
    return found.parent


def lineage_folder(checkpoint: Checkpoint, token: str | None = None) -> Path | None:
    """A folder with the lineage of a checkpoint that is a merge of hfmega; None for any other checkpoint."""
    if checkpoint.repo_id is None:
        return checkpoint.folder if (checkpoint.folder / LINEAGE).is_file() else None
    try:
        remote = _pin(checkpoint.repo_id, checkpoint.revision, token)
        found = remote.fetch_if_there(LINEAGE)
        for beside in (STATISTICS, RECIPE) if found else ():
            remote.fetch_if_there(beside)
    except CLIENT_ERRORS as error:
        raise explained(error, checkpoint.repo_id, checkpoint.revision) from error
    return found.parent if found else None


def exists(repo_id: str, token: str | None = None) -> bool:
    """Whether there is such a repository that the user may read."""
    try:
        return bool(steady(api(token).repo_exists, repo_id))
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id) from error


@dataclass(frozen=True)
class Preview:
    """A source before it is fetched: its config, and how many bytes of weights are not on this disk yet."""

    checkpoint: Checkpoint
    download_bytes: int


def preview(source: str, token: str | None = None) -> Preview:
    """What `pull` would bring: of a Hub source only the config is fetched, and the index of its weights if it has one.

    Raises HfmegaError as `pull` does.

    The sha256 of a Hub source is empty: its weights are not here.
    """
    if _is_local(source):
        return Preview(_from_folder(Path(source)), 0)
    repo_id, revision = parse(source)
    try:
        remote = _pin(repo_id, revision, token)
        config, shards = remote.fetch(CONFIG), remote.shards()
        missing = sum(remote.missing_bytes(name) for name in shards or (WEIGHTS,))
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id, revision) from error
    checkpoint = Checkpoint(repo_id, repo_id, remote.commit, config.parent, "", read_config(config, repo_id))
    return Preview(checkpoint, missing)


def _pin(repo_id: str, revision: str | None, token: str | None) -> Remote:
    """The commit that a revision means now, with what is stated of its files: the cache calls them by their hashes."""
    if constants.HF_HUB_OFFLINE:
        snapshot = Path(hf_hub_download(repo_id, CONFIG, revision=revision)).parent
        return Remote(repo_id, snapshot.name, {p.name: p.resolve().name for p in snapshot.iterdir()}, token)
    client = api(token)
    info = steady(client.model_info, repo_id, revision=revision, files_metadata=True)
    _require_safetensors(repo_id, (sibling.rfilename for sibling in info.siblings or []))
    # Asked for by its name, so that offline the cache knows what the name meant; all else comes from this commit.
    commit = Path(steady(hf_hub_download, repo_id, CONFIG, revision=revision, token=token)).parent.name
    if commit != info.sha:
        info = steady(client.model_info, repo_id, revision=commit, files_metadata=True)
    return Remote(repo_id, commit, stated_of(info), token)


def _require_safetensors(where: str, files: Iterable[str]) -> None:
    names = set(files)
    pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if not names & {WEIGHTS, INDEX} and pickles:
        convert = f"s.save_file(torch.load('{pickles[0]}', weights_only=True), '{WEIGHTS}')"
        raise HfmegaError(
            f"{where} has only a pickle checkpoint ({pickles[0]}), which can run code when it is loaded: convert it "
            f'with `python -c "import torch, safetensors.torch as s; {convert}"`.'
        )
    for needed in ({CONFIG}, {WEIGHTS, INDEX}):
        if not names & needed:
            raise HfmegaError(
                f"{where} has no {min(needed)}: a source needs {CONFIG} and {WEIGHTS}, as timm writes them, or the "
                f"shards of its weights with {INDEX}."
            )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def api(token: str | None = None) -> HfApi:
    """The client, under our name. Without a token it uses the user's (`hf auth login`, HF_TOKEN)."""
    return HfApi(token=token, library_name="hfmega", library_version=__version__)


def dataset_revision(dataset: str, token: str | None = None) -> str | None:
    """The commit that a Hub dataset is at now; None when offline."""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return str(steady(api(token).dataset_info, dataset).sha)
    except CLIENT_ERRORS as error:
        raise explained(error, f"dataset {dataset}") from error


def explained(error: Exception, what: str, revision: str | None = None) -> HfmegaError:
    """The one sentence for a failure of the client."""
    if isinstance(error, HfHubHTTPError) and "Invalid credentials" in str(error):
        return HfmegaError(
            "the Hub does not know this token (any more): log in again with `hf auth login`, or set HF_TOKEN."
        )
    for kind, sentence in EXPLANATIONS:
        if isinstance(error, kind):
            return HfmegaError(sentence.format(what=what, revision=revision or "main", error=_line(error)))
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
