"""Repositories on disk: in `<kind>s/<owner>/<name>/`, `repo.json`, `commits/<sha>.json`, `blobs/<sha256>`."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

LARGE = 10 * 1024 * 1024
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".bin")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)


def belongs_to_lfs(path: str, size: int) -> bool:
    """Whether the Hub asks for this file by LFS; an empty file never goes there."""
    return size > LARGE or (size > 0 and path.endswith(LFS_SUFFIXES))


def now() -> str:
    """The time as the clients parse it: they refuse a date without milliseconds or final Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_sha1(content: bytes) -> str:
    """The object id that git gives a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """One file of a commit; its bytes are the blob named `sha256`."""

    sha256: str
    size: int
    oid: str  # git's id of the content, or of the pointer that stands for it in LFS
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        return len(lfs_pointer(self.sha256, self.size))


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files, and where it came from."""

    id: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    files: dict[str, File]


@dataclass(frozen=True)
class Settings:
    """What `repo.json` says; `refs` maps full names (refs/heads/main, refs/tags/v1, refs/pr/1) to commits."""

    private: bool
    gated: bool
    created: str
    refs: dict[str, str]


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def lfs_file(sha256: str, size: int) -> File:
    return File(sha256, size, git_sha1(lfs_pointer(sha256, size)), lfs=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write so that a reader in another thread sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
    part.write_bytes(content)
    part.replace(path)


class Repository:
    """One repository folder."""

    def __init__(self, folder: Path, kind: str, repo_id: str) -> None:
        self.folder, self.kind, self.id = folder, kind, repo_id
        self.owner = repo_id.partition("/")[0]

    @property
    def settings(self) -> Settings:
        return Settings(**json.loads((self.folder / "repo.json").read_bytes()))

    def save(self, settings: Settings) -> None:
        write_atomically(self.folder / "repo.json", json.dumps(asdict(settings)).encode())

    def set_ref(self, name: str, commit_id: str | None) -> None:
        """Point a ref at a commit; None removes the ref."""
        settings = self.settings
        refs = {ref: target for ref, target in settings.refs.items() if ref != name}
        if commit_id is not None:
            refs[name] = commit_id
        self.save(replace(settings, refs=refs))

    def ref_name(self, revision: str) -> str | None:
        """The full name of a branch, a tag or a pull request, however it was written."""
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.settings.refs), None)

    def find(self, revision: str) -> Commit | None:
        """The commit that a ref or a full commit id names."""
        name = self.ref_name(revision)
        commit_id = self.settings.refs[name] if name else revision
        path = self.folder / "commits" / f"{commit_id}.json"
        if not re.fullmatch("[0-9a-f]{40}", commit_id) or not path.exists():
            return None
        fields = json.loads(path.read_bytes())
        files = {name: File(**file) for name, file in fields.pop("files").items()}
        return Commit(**fields, files=files)

    def history(self, commit: Commit | None) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        while commit is not None:
            yield commit
            commit = self.find(commit.parent) if commit.parent else None

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def add(self, content: bytes, lfs: bool) -> File:
        """Keep these bytes, so that a commit can name them."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.blob(sha256).exists():
            write_atomically(self.blob(sha256), content)
        if lfs:
            return lfs_file(sha256, len(content))
        return File(sha256, len(content), git_sha1(content), lfs=False)

    def commit(self, ref: str, parent: Commit | None, files: Mapping[str, File], **about: str) -> Commit:
        """Record a snapshot on top of `parent` and move `ref` to it.

        `about`: title, author and, optionally, description.
        """
        fields = {"parent": parent.id if parent else None, "description": "", "date": now(), **about}
        listing = {path: asdict(files[path]) for path in sorted(files)}
        commit_id = hashlib.sha1(json.dumps([fields, listing]).encode()).hexdigest()
        content = json.dumps({"id": commit_id, **fields, "files": listing})
        write_atomically(self.folder / "commits" / f"{commit_id}.json", content.encode())
        self.set_ref(ref, commit_id)
        commit = self.find(commit_id)
        assert commit is not None
        return commit


class Store:
    """All repositories; whoever changes one holds `lock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()

    def _at(self, kind: str, repo_id: str) -> Repository:
        return Repository(self.root / f"{kind}s" / repo_id, kind, repo_id)

    def find(self, kind: str, repo_id: str) -> Repository | None:
        repository = self._at(kind, repo_id)
        return repository if (repository.folder / "repo.json").exists() else None

    def every(self, kind: str) -> list[Repository]:
        """The repositories of a kind, by name."""
        paths = sorted((self.root / f"{kind}s").glob("*/*/repo.json"))
        return [self._at(kind, f"{path.parent.parent.name}/{path.parent.name}") for path in paths]

    def create(self, kind: str, repo_id: str, private: bool = False, gated: bool = False) -> Repository:
        """A new repository with one commit, as the Hub makes it: only `.gitattributes` on main."""
        repository = self._at(kind, repo_id)
        repository.save(Settings(private, gated, now(), refs={}))
        attributes = repository.add(GITATTRIBUTES.encode(), lfs=False)
        files = {".gitattributes": attributes}
        repository.commit("refs/heads/main", None, files, title="initial commit", author=repository.owner)
        return repository

    def delete(self, repository: Repository) -> None:
        shutil.rmtree(repository.folder)
