"""`user/name@revision` or a folder -> a checkpoint on this disk; a folder -> a repository on the Hub.

huggingface_hub is the only client. Everything that leaves this room is a plain value; every failure is one sentence.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download, metadata_load, parse_hf_uri
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
from huggingface_hub.utils.sha import sha_fileobj
from yaml import YAMLError

from hfmega import HfmegaError, __version__

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
LINEAGE: Final = "lineage.json"
STATISTICS: Final = "statistics.safetensors"
RECIPE: Final = "recipe.safetensors"
CARD: Final = "README.md"
PUBLISHED: Final = (CARD, CONFIG, WEIGHTS, LINEAGE, STATISTICS, RECIPE, "figures/*.png")

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
    """Weights and config of one network on this disk. `revision` is a commit sha; both are None for a folder."""

    name: str
    repo_id: str | None
    revision: str | None
    folder: Path
    sha256: str
    config: dict[str, Any]
    license: str | None = None

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
    the Hub states for them, fetched again once, and refused if they still differ.
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
    config = _read_config(folder / CONFIG, str(folder))
    sha256 = sha256_of(folder / WEIGHTS)
    return Checkpoint(folder.resolve().name, None, None, folder.resolve(), sha256, config, _license(folder / CARD))


def _from_hub(repo_id: str, revision: str | None, token: str | None) -> Checkpoint:
    commit, stated = _pin(repo_id, revision, token)
    config_path = Path(hf_hub_download(repo_id, CONFIG, revision=commit, token=token))
    sha256 = _download_weights(repo_id, commit, stated, token)
    config, stated_license = _read_config(config_path, repo_id), None
    with suppress(EntryNotFoundError):
        stated_license = _license(Path(hf_hub_download(repo_id, CARD, revision=commit, token=token)))
    return Checkpoint(repo_id, repo_id, commit, config_path.parent, sha256, config, stated_license)


def _download_weights(repo_id: str, commit: str, stated: str | None, token: str | None) -> str:
    """Bring the weights, return their sha256. The client does not check what came: a damaged file is fetched again."""
    for again in (False, True):
        path = Path(hf_hub_download(repo_id, WEIGHTS, revision=commit, token=token, force_download=again))
        sha256 = sha256_of(path)
        if stated in (None, sha256):
            return sha256
    raise HfmegaError(f"{WEIGHTS} of {repo_id} came damaged twice: its sha256 is not the one that the Hub states.")


def _license(card: Path) -> str | None:
    """The license that a card states; None when there is no card, or none that can be parsed."""
    try:
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return None
    found = metadata.get("license")
    return found if isinstance(found, str) else None


def pull_merge(merge: str, token: str | None = None) -> Path:
    """A folder with the lineage of a merge, and the tensors beside it where it has some: from this disk or the Hub.

    Raises HfmegaError when it cannot be had.
    """
    if Path(merge).is_dir():
        return Path(merge)
    repo_id, revision = parse(merge)
    try:
        commit = api(token).model_info(repo_id, revision=revision).sha
        found = Path(hf_hub_download(repo_id, LINEAGE, revision=commit, token=token))
        for beside in (STATISTICS, RECIPE):
            with suppress(EntryNotFoundError):
                hf_hub_download(repo_id, beside, revision=commit, token=token)
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id, revision) from error
    return found.parent


def lineage_folder(checkpoint: Checkpoint, token: str | None = None) -> Path | None:
    """A folder with the lineage of a checkpoint that is a merge of hfmega; None for any other checkpoint."""
    if checkpoint.repo_id is None:
        return checkpoint.folder if (checkpoint.folder / LINEAGE).is_file() else None
    try:
        found = hf_hub_download(checkpoint.repo_id, LINEAGE, revision=checkpoint.revision, token=token)
    except EntryNotFoundError:
        return None
    except CLIENT_ERRORS as error:
        raise explained(error, checkpoint.repo_id, checkpoint.revision) from error
    return Path(found).parent


def exists(repo_id: str, token: str | None = None) -> bool:
    """Whether there is such a repository that the user may read."""
    try:
        return bool(api(token).repo_exists(repo_id))
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id) from error


@dataclass(frozen=True)
class Preview:
    """A source before it is fetched: its config, and how many bytes of weights are not on this disk yet."""

    checkpoint: Checkpoint
    download_bytes: int


def preview(source: str, token: str | None = None) -> Preview:
    """What `pull` would bring: of a Hub source only the config is fetched. Raises HfmegaError as `pull` does.

    The sha256 of a Hub source is empty: its weights are not here.
    """
    if _is_local(source):
        return Preview(_from_folder(Path(source)), 0)
    repo_id, revision = parse(source)
    try:
        config = Path(hf_hub_download(repo_id, CONFIG, revision=revision, token=token))
        commit = config.parent.name
        weights = hf_hub_download(repo_id, WEIGHTS, revision=commit, token=token, dry_run=True)
    except CLIENT_ERRORS as error:
        raise explained(error, repo_id, revision) from error
    checkpoint = Checkpoint(repo_id, repo_id, commit, config.parent, "", _read_config(config, repo_id))
    return Preview(checkpoint, (weights.file_size or 0) if weights.will_download else 0)


def _pin(repo_id: str, revision: str | None, token: str | None) -> tuple[str, str | None]:
    """The commit that a revision means now, and the sha256 that the Hub states for its weights (None: not in LFS)."""
    if constants.HF_HUB_OFFLINE:
        weights = Path(hf_hub_download(repo_id, WEIGHTS, revision=revision))
        blob = weights.resolve().name
        return weights.parent.name, blob if len(blob) == 64 else None
    client = api(token)
    info = client.model_info(repo_id, revision=revision, files_metadata=True)
    _require_safetensors(repo_id, (sibling.rfilename for sibling in info.siblings or []))
    # Asked for by its name, so that offline the cache knows what the name meant; all else comes from this commit.
    commit = Path(hf_hub_download(repo_id, CONFIG, revision=revision, token=token)).parent.name
    if commit != info.sha:
        info = client.model_info(repo_id, revision=commit, files_metadata=True)
    (lfs,) = [sibling.lfs for sibling in info.siblings or [] if sibling.rfilename == WEIGHTS]
    return commit, lfs.sha256 if lfs else None


def _require_safetensors(where: str, files: Iterable[str]) -> None:
    names = set(files)
    pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if WEIGHTS not in names and pickles:
        convert = f"s.save_file(torch.load('{pickles[0]}', weights_only=True), '{WEIGHTS}')"
        raise HfmegaError(
            f"{where} has only a pickle checkpoint ({pickles[0]}), which can run code when it is loaded: convert it "
            f'with `python -c "import torch, safetensors.torch as s; {convert}"`.'
        )
    for needed in (CONFIG, WEIGHTS):
        if needed not in names:
            raise HfmegaError(f"{where} has no {needed}: a source needs {CONFIG} and {WEIGHTS}, as timm writes them.")


def _read_config(path: Path, where: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HfmegaError(f"{CONFIG} of {where} cannot be read: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise HfmegaError(f"{CONFIG} of {where} is not a timm config: it names no architecture.")
    if "pretrained_cfg" not in config:  # timm's older layout, one flat dictionary
        config = {"architecture": config["architecture"], "pretrained_cfg": config}
    nested = config["pretrained_cfg"]
    for key in ("num_classes", "label_names"):
        if key not in config and key in nested:
            config[key] = nested[key]
    if not isinstance(config.get("num_classes"), int):
        raise HfmegaError(f"{CONFIG} of {where} does not say how many classes there are (num_classes).")
    return config


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
        return api(token).dataset_info(dataset).sha
    except CLIENT_ERRORS as error:
        raise explained(error, f"dataset {dataset}") from error


@dataclass(frozen=True)
class Push:
    """Where a folder goes on the Hub, with the words of the `hf` command line."""

    repo_id: str
    private: bool = False
    create_pr: bool = False
    commit_message: str | None = None
    token: str | None = None


def check_login(target: Push) -> None:
    """Raises HfmegaError before the long work rather than after it, when nobody is logged in to publish its result."""
    try:
        api(target.token).whoami()
    except CLIENT_ERRORS as error:
        raise HfmegaError(
            f"nothing could be published as {target.repo_id}: {explained(error, 'who you are')}"
        ) from error


def push(folder: Path, target: Push) -> str:
    """Publish a finished folder in one commit; returns the URL of the commit, or of the pull request.

    Raises HfmegaError with the way out: the folder stays complete, and pushing it again finishes the job.
    """
    if not (folder / WEIGHTS).is_file():
        raise HfmegaError(f"{folder} has no {WEIGHTS}: only a finished folder can be published.")
    operations = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), path)
        for pattern in PUBLISHED
        for path in sorted(folder.glob(pattern))
    ]
    message = target.commit_message or f"Upload {folder.name} with hfmega"
    client = api(target.token)
    try:
        client.create_repo(target.repo_id, private=target.private or None, exist_ok=True)
        commit = client.create_commit(target.repo_id, operations, commit_message=message, create_pr=target.create_pr)
    except (*CLIENT_ERRORS, RuntimeError) as error:  # a refused upload of a large file is a RuntimeError
        forbidden = isinstance(error, HfHubHTTPError) and error.response.status_code == 403
        propose = ", and --create-pr proposes it where you may not write" if forbidden else ""
        again = f"{folder} is complete: `hfmega push {folder} {target.repo_id}` finishes the job{propose}."
        raise HfmegaError(f"{explained(error, target.repo_id)} {again}") from error
    return commit.pr_url or commit.commit_url


def explained(error: Exception, what: str, revision: str | None = None) -> HfmegaError:
    """The one sentence for a failure of the client."""
    for kind, sentence in EXPLANATIONS:
        if isinstance(error, kind):
            return HfmegaError(sentence.format(what=what, revision=revision or "main", error=_line(error)))
    raise error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# Order matters: a gated repository is also a RepositoryNotFoundError, and most of them are also HfHubHTTPError.
EXPLANATIONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (GatedRepoError, "{what} is gated: ask for access on its page, then log in with `hf auth login` or HF_TOKEN."),
    (
        RepositoryNotFoundError,
        "{what} is not on the Hub, or it is private: log in with `hf auth login`, or set HF_TOKEN.",
    ),
    (RevisionNotFoundError, "{what} has no revision {revision}."),
    (OfflineModeIsEnabled, "{what} is needed, but HF_HUB_OFFLINE is set."),
    (LocalEntryNotFoundError, "{what} is not in the cache, and the Hub cannot be reached: {error}"),
    (EntryNotFoundError, "{what} lacks a file: {error}"),
    (LocalTokenNotFoundError, "there is no token: log in with `hf auth login`, or set HF_TOKEN."),
    (HFValidationError, "{what} is not a valid Hub id: {error}"),
    (HfHubHTTPError, "the Hub refused {what}: {error}"),
    (RuntimeError, "the Hub did not take {what}: {error}"),
    (httpx2.HTTPError, "the connection to the Hub failed for {what}: {error}"),
)
