"""Everything the Hub answers about repositories, except uploads: accounts, information, files, refs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlencode

import yaml

from .cards import check, front_matter
from .routing import (
    API,
    FILES,
    Call,
    RefusedError,
    Response,
    address,
    commit_at,
    downloadable,
    readable,
    reply,
    route,
    writable,
)
from .storage import Commit, File, Repository

PAGE = 1000  # entries of a tree in one answer
REVISION = "(?P<revision>[^/]+)"


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Response:
    if call.user is None:
        raise RefusedError(401, "Invalid username or password.")
    token = {"accessToken": {"displayName": "test", "role": call.user.role}}
    return reply({"type": "user", "name": call.user.name, "orgs": [], "auth": token})


@route("POST", "/api/repos/create")
def create(call: Call) -> Response:
    call = _named_in_body(call)
    if call.user is None or call.user.role != "write" or call.user.name != call.args["id"].partition("/")[0]:
        raise RefusedError(403 if call.user else 401, f"You have no right to create {call.args['id']}")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]{0,95}", call.args["id"], re.ASCII):
        raise RefusedError(400, f"Invalid repository name: {call.args['id']}")
    if call.kind == "space" and not call.json.get("sdk"):
        raise RefusedError(400, "A Space needs an sdk")
    url = address(call, call.args["id"])
    if call.site.store.find(call.kind, call.args["id"]):
        # `create_repo(exist_ok=True)` reads the url out of this refusal.
        return reply({"error": "You already created this repo", "url": url}, 409)
    call.site.store.create(call.kind, call.args["id"], private=call.json.get("visibility") == "private")
    return reply({"url": url, "name": call.args["id"]})


@route("DELETE", "/api/repos/delete")
def delete(call: Call) -> Response:
    call = _named_in_body(call)
    call.site.store.delete(writable(call))
    return reply({})


def _named_in_body(call: Call) -> Call:
    """The same call with the repository where other endpoints have it: in the args."""
    owner = call.json.get("organization") or (call.user.name if call.user else "")
    kind = call.json.get("type") or "model"
    return replace(call, args={"id": f"{owner}/{call.json['name']}", "kind": f"{kind}s"})


@route("GET", f"{API}/tree/{REVISION}(?:/(?P<folder>.+))?")
def tree(call: Call) -> Response:
    repository = readable(call)
    files = commit_at(repository, call.args["revision"]).files
    folder = call.args.get("folder", "")
    inside = {path: file for path, file in files.items() if path.startswith(folder and f"{folder}/")}
    if folder and not inside:
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    entries = [_entry(path, files) for path in sorted(_listing(inside, folder, call.flag("recursive")))]
    return _page(call, entries)


def _listing(files: dict[str, File], folder: str, recursive: bool) -> set[str]:
    """The files and the folders under a folder; without `recursive` only its own."""
    top = PurePosixPath(folder)
    parents = {parent for path in files for parent in PurePosixPath(path).parents if top in parent.parents}
    listed = {str(parent) for parent in parents} | set(files)
    return listed if recursive else {path for path in listed if PurePosixPath(path).parent == top}


def _entry(path: str, files: dict[str, File]) -> dict[str, Any]:
    if path not in files:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    file = files[path]
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return {
        "type": "file",
        "path": path,
        "oid": file.oid,
        "size": file.size,
        **({"lfs": lfs} if file.lfs else {}),
    }


def _page(call: Call, entries: list[dict[str, Any]]) -> Response:
    start = int(call.query.get("cursor", ["0"])[0])
    if start + PAGE >= len(entries):
        return reply(entries[start:])
    query = urlencode({**call.query, "cursor": start + PAGE}, doseq=True)
    link = f'<{call.site.endpoint}{call.path}?{query}>; rel="next"'
    return reply(entries[start : start + PAGE], headers={"Link": link})


@route("POST", f"{API}/paths-info/{REVISION}")
def paths_info(call: Call) -> Response:
    files = commit_at(readable(call), call.args["revision"]).files
    known = _listing(files, "", recursive=True)
    asked = parse_qs(call.body.decode()).get("paths", [])
    return reply([_entry(path, files) for path in asked if path in known])


@route("GET", f"{API}/refs")
def refs(call: Call) -> Response:
    repository = readable(call)
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/"}
    if call.flag("include_prs"):
        kinds["pullRequests"] = "refs/pr/"
    listed = {kind: _refs_under(repository, prefix) for kind, prefix in kinds.items()}
    return reply({"converts": [], **listed})


def _refs_under(repository: Repository, prefix: str) -> list[dict[str, str]]:
    found = {ref: target for ref, target in repository.settings.refs.items() if ref.startswith(prefix)}
    return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": found[ref]} for ref in found]


@route("GET", f"{API}/commits/{REVISION}")
def commits(call: Call) -> Response:
    repository = readable(call)
    history = repository.history(commit_at(repository, call.args["revision"]))
    return reply([_commit_entry(commit) for commit in history])


def _commit_entry(commit: Commit) -> dict[str, Any]:
    about = {"id": commit.id, "title": commit.title, "message": commit.description, "date": commit.date}
    return {**about, "authors": [{"user": commit.author}]}


@route("GET", f"{API}/auth-check(?P<write>/write)?")
def auth_check(call: Call) -> Response:
    _ = writable(call) if "write" in call.args else downloadable(call)
    return reply({})


@route("POST", f"{API}/branch/(?P<branch>[^/]+)")
def create_branch(call: Call) -> Response:
    start = call.json.get("startingPoint") or "main"
    return _create_ref(call, f"refs/heads/{call.args['branch']}", start)


@route("POST", f"{API}/tag/{REVISION}")
def create_tag(call: Call) -> Response:
    return _create_ref(call, f"refs/tags/{call.json['tag']}", call.args["revision"])


def _create_ref(call: Call, name: str, revision: str) -> Response:
    repository = writable(call)
    commit = commit_at(repository, revision)
    if name in repository.settings.refs:
        raise RefusedError(409, f"Reference {name} exists already")
    repository.set_ref(name, commit.id)
    return reply({})


@route("DELETE", f"{API}/(?P<space>branch|tag)/(?P<name>[^/]+)")
def delete_ref(call: Call) -> Response:
    repository = writable(call)
    space = "heads" if call.args["space"] == "branch" else "tags"
    ref = f"refs/{space}/{call.args['name']}"
    if ref == "refs/heads/main":
        raise RefusedError(403, "The main branch cannot be deleted")
    if ref not in repository.settings.refs:
        raise RefusedError(404, f"Reference {ref} does not exist", "RevisionNotFound")
    repository.set_ref(ref, None)
    return reply({})


@route("GET", f"{FILES}/resolve/{REVISION}/(?P<path>.+)")
def resolve(call: Call) -> Response:
    repository = downloadable(call)
    commit = commit_at(repository, call.args["revision"])
    file = commit.files.get(call.args["path"])
    if file is None:
        # With the commit in this answer, the client remembers that the file is absent there.
        raise RefusedError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.id)
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    return _part(repository.blob(file.sha256).read_bytes(), call.headers.get("Range"), headers)


def _part(content: bytes, wanted: str | None, headers: dict[str, str]) -> Response:
    """The bytes that a Range header asks for (`bytes=a-b`, `bytes=a-`, `bytes=-n`), or all of them."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not match or match[0] == "bytes=-":
        return Response(200, headers, content)
    size = len(content)
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or size), size - 1)
    else:
        start, end = max(size - int(match[2]), 0), size - 1
    if start > end:
        return Response(416, {**headers, "Content-Range": f"bytes */{size}"})
    headers = {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}
    return Response(206, headers, content[start : end + 1])


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Response:
    errors, warnings = check(call.json["content"])
    found = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    return reply(found, 400 if errors else 200)


@route("GET", "/api/models")
def models(call: Call) -> Response:
    """The public models whose ids have the words of a search, and whose tags the filters."""
    words, wanted = call.query.get("search", [""])[0].lower(), set(call.query.get("filter", []))
    author = call.query.get("author", [""])[0]
    found = []
    for repository in call.site.store.every("model"):
        about = _about(repository, commit_at(repository, "main"), blobs=False)
        tags = {*about["tags"], about.get("pipeline_tag")}
        asked = words in repository.id.lower() and wanted <= tags and author in ("", repository.owner)
        if asked and not repository.settings.private:
            found.append(about)
    return reply(found[: int(call.query.get("limit", ["1000"])[0])])


# Last of all: its path is the beginning of the others.
@route("GET", f"{API}(?:/revision/{REVISION})?")
def info(call: Call) -> Response:
    repository = readable(call)
    commit = commit_at(repository, call.args.get("revision", "main"))
    about = _about(repository, commit, blobs=call.flag("blobs"))
    if "expand" in call.query:
        about = {name: value for name, value in about.items() if name in ("id", *call.query["expand"])}
    return reply(about)


def _about(repository: Repository, commit: Commit, blobs: bool) -> dict[str, Any]:
    """What model_info and dataset_info say: the repository, this commit of it, and its card."""
    card = _card(repository, commit)
    settings = repository.settings
    tags = card.get("tags") or []
    return {
        "id": repository.id,
        "author": repository.owner,
        "sha": commit.id,
        "private": settings.private,
        "gated": "manual" if settings.gated else False,
        "disabled": False,
        "createdAt": settings.created,
        "lastModified": commit.date,
        "tags": tags if isinstance(tags, list) else [tags],
        "cardData": card,
        "siblings": [_sibling(path, file, blobs) for path, file in commit.files.items()],
        **{name: card[name] for name in ("library_name", "pipeline_tag", "model-index") if name in card},
    }


def _card(repository: Repository, commit: Commit) -> dict[str, Any]:
    """The metadata of the README.md, empty where it has none that can be read."""
    readme = commit.files.get("README.md")
    try:
        return front_matter(repository.blob(readme.sha256).read_text("utf-8")) if readme else {}
    except (yaml.YAMLError, ValueError):
        return {}


def _sibling(path: str, file: File, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return {"rfilename": path, "size": file.size, "blobId": file.oid, **({"lfs": lfs} if file.lfs else {})}
