"""How files come in: preupload says which way, LFS takes the large ones, one NDJSON body is the commit."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from .cards import check
from .endpoints import REVISION
from .routing import API, FILES, Call, RefusedError, Response, address, commit_at, reply, route, writable
from .storage import LARGE, Commit, File, Repository, belongs_to_lfs, lfs_file

TARGET = "(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)/(?P<oid>[^/]+)/(?P<size>[0-9]+)"


@route("POST", f"{API}/preupload/{REVISION}")
def preupload(call: Call) -> Response:
    repository = writable(call, by_pull_request=call.flag("create_pr"))
    present = commit_at(repository, call.args["revision"]).files
    return reply({"files": [_upload_mode(wanted, present) for wanted in call.json["files"]]})


def _upload_mode(wanted: dict[str, Any], present: dict[str, File]) -> dict[str, Any]:
    """`oid` lets the client leave out what has not changed."""
    path = wanted["path"]
    mode = "lfs" if belongs_to_lfs(path, wanted["size"]) else "regular"
    oid = {"oid": present[path].etag} if path in present else {}
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, **oid}


@route("POST", rf"{FILES}\.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> Response:
    # The client names no ref when the files are for a pull request that does not exist yet.
    repository = writable(call, by_pull_request="ref" not in call.json)
    objects = [_lfs_object(call, repository, wanted) for wanted in call.json["objects"]]
    return reply({"transfer": "basic", "objects": objects})


def _lfs_object(call: Call, repository: Repository, wanted: dict[str, Any]) -> dict[str, Any]:
    """Where to PUT the bytes; no actions where they are present."""
    oid, size = wanted["oid"], wanted["size"]
    if repository.blob(oid).exists():
        return {"oid": oid, "size": size}
    target = f"{repository.kind}s/{repository.id}/{oid}/{size}"
    upload = f"{call.site.endpoint}/lfs-upload/{target}/{_signature(call, target)}"
    verify = f"{address(call, repository.id)}.git/info/lfs/verify"
    return {"oid": oid, "size": size, "actions": {"upload": {"href": upload}, "verify": {"href": verify}}}


def _signature(call: Call, target: str) -> str:
    """The PUT comes without a token, so its address proves that we gave it out."""
    return hmac.new(call.site.secret, target.encode(), hashlib.sha256).hexdigest()


@route("PUT", f"/lfs-upload/(?P<target>{TARGET})/(?P<signature>[^/]+)")
def lfs_put(call: Call) -> Response:
    if not hmac.compare_digest(call.args["signature"], _signature(call, call.args["target"])):
        raise RefusedError(403, "The signature of this address is wrong")
    repository = call.site.store.find(call.kind, call.args["id"])
    if repository is None:
        raise RefusedError(404, "Repository not found", "RepoNotFound")
    received = hashlib.sha256(call.body).hexdigest()
    if received != call.args["oid"] or len(call.body) != int(call.args["size"]):
        raise RefusedError(400, f"{len(call.body)} bytes came that are not {call.args['oid']}")
    repository.add(call.body, lfs=True)
    return Response()


@route("POST", rf"{FILES}\.git/info/lfs/verify")
def lfs_verify(call: Call) -> Response:
    repository = writable(call, by_pull_request=True)
    _received(repository, call.json["oid"], call.json["size"])
    return reply({})


@route("POST", f"{API}/commit/{REVISION}")
def commit(call: Call) -> Response:
    """One commit of all that the lines of the body say, on the branch or in a new pull request."""
    repository = writable(call, by_pull_request=call.flag("create_pr"))
    parent = commit_at(repository, call.args["revision"])
    ref = repository.ref_name(call.args["revision"])
    if ref is None or ref.startswith("refs/tags/"):
        raise RefusedError(404, f"{call.args['revision']} is not a branch", "RevisionNotFound")
    header, *changes = [json.loads(line) for line in call.body.splitlines() if line]
    _refuse_stale(parent, header["value"].get("parentCommit"))
    files = dict(parent.files)
    for change in changes:
        _apply(change["key"], change["value"], files, repository)
    _refuse_bad_card(repository, parent, files)
    assert call.user is not None
    number = _next_pull_request(repository)
    target = f"refs/pr/{number}" if call.flag("create_pr") else ref
    about = {"title": header["value"]["summary"], "description": header["value"].get("description") or ""}
    made = repository.commit(target, parent, files, author=call.user.name, **about)
    return _commit_reply(call, repository, made, number)


def _commit_reply(call: Call, repository: Repository, made: Commit, number: int) -> Response:
    url = address(call, repository.id)
    where = {"commitOid": made.id, "commitUrl": f"{url}/commit/{made.id}"}
    if call.flag("create_pr"):
        where["pullRequestUrl"] = f"{url}/discussions/{number}"
    return reply(where)


def _refuse_stale(parent: Commit, expected: str | None) -> None:
    if expected not in (None, parent.id):
        raise RefusedError(412, f"A commit has happened since {expected}. Please refresh and try again.")


def _next_pull_request(repository: Repository) -> int:
    return 1 + sum(ref.startswith("refs/pr/") for ref in repository.settings.refs)


def _apply(key: str, value: dict[str, Any], files: dict[str, File], repository: Repository) -> None:
    """One line of a commit, done to the listing `files`."""
    path = value["path"]
    if key == "file":
        files[_sane(path)] = _regular(repository, path, base64.b64decode(value["content"], validate=True))
    elif key == "lfsFile":
        files[_sane(path)] = _received(repository, value["oid"], value.get("size"))
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(path))]
        if not gone:
            raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise RefusedError(400, f"unknown operation {key!r}")


def _sane(path: str) -> str:
    if any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise RefusedError(400, f"invalid path {path!r}")
    return path


def _regular(repository: Repository, path: str, content: bytes) -> File:
    if len(content) > LARGE:
        raise RefusedError(400, f"{path} has more than 10 MiB: upload it by LFS")
    return repository.add(content, lfs=False)


def _received(repository: Repository, oid: str, size: int | None) -> File:
    """An LFS file whose bytes are here; each blob was hashed when it came. A copy names no size."""
    blob = repository.blob(oid)
    if not oid.isalnum() or not blob.exists() or size not in (None, blob.stat().st_size):
        raise RefusedError(400, f"LFS object {oid} of size {size} has not been uploaded")
    return lfs_file(oid, blob.stat().st_size)


def _refuse_bad_card(repository: Repository, parent: Commit, files: dict[str, File]) -> None:
    readme = files.get("README.md")
    if readme is None or readme == parent.files.get("README.md"):
        return
    errors, _ = check(repository.blob(readme.sha256).read_text("utf-8", errors="replace"))
    if errors:
        raise RefusedError(400, "Invalid metadata in README.md. " + " ".join(errors))
