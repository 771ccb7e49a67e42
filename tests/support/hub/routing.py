"""From a request to the endpoint that answers it, and who may do what on the way."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from typing import Any
from urllib.parse import unquote

from .storage import Commit, Repository, Store

REPO = "(?P<id>[^/]+(?:/[^/]+)?)"
API = f"/api/(?P<kind>models|datasets|spaces)/{REPO}"
FILES = f"/(?:(?P<kind>datasets|spaces)/)?{REPO}"


@dataclass(frozen=True)
class User:
    """Whom a token stands for; the role is the token's: "write" or "read"."""

    name: str
    role: str


@dataclass(frozen=True)
class Site:
    """What all requests share; `users` is keyed by token, `secret` signs the addresses of uploads."""

    store: Store
    users: dict[str, User]
    endpoint: str
    secret: bytes
    jobs: Any = None  # support.hub.jobs.Jobs


@dataclass(frozen=True)
class Response:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: Iterator[bytes] | None = None  # in place of a body: sent as it comes, until it ends


@dataclass(frozen=True)
class Call:
    """One request: `path` as it came, `args` the unquoted parts of it that the route names."""

    site: Site
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    args: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        return self.args.get("kind", "models").removesuffix("s")

    @property
    def user(self) -> User | None:
        """Who asks; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.site.users:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.site.users.get(token)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


class RefusedError(Exception):
    """An answer with an error status; the clients choose their exception by `code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        self.response = reply({"error": message}, status, {**named, **more})


Endpoint = Callable[[Call], Response]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Let the decorated function answer this method on raw paths that match; the first registered wins."""

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((method, re.compile(pattern), endpoint))
        return endpoint

    return register


def address(call: Call, repo_id: str) -> str:
    """Where a person finds a repository."""
    prefix = "" if call.kind == "model" else f"{call.kind}s/"
    return f"{call.site.endpoint}/{prefix}{repo_id}"


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer. Dates in the metadata of cards are not JSON, so they become text."""
    body = json.dumps(value, default=str).encode()
    return Response(status, {"Content-Type": "application/json", **(headers or {})}, body)


def answer(call: Call) -> Response:
    """Find the endpoint and ask it; whatever goes wrong becomes an answer too."""
    try:
        endpoint, args = _match("GET" if call.method == "HEAD" else call.method, call.path)
        call = replace(call, args=args)
        _ = call.user  # a token that nobody knows is refused before anything else is looked at
        if call.method in ("GET", "HEAD"):
            return endpoint(call)
        with call.site.store.lock:
            return endpoint(call)
    except RefusedError as refused:
        return refused.response
    except Exception as error:  # a client would retry a lost connection and hide the fault of the server
        traceback.print_exc()
        return reply({"error": f"the test Hub failed: {error!r}"}, 500)


def _match(method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
    for wanted, pattern, endpoint in ROUTES:
        if wanted == method and (match := pattern.fullmatch(path)):
            # Unquoted only now: a revision and a folder hold quoted slashes that are no separators.
            named = {name: part for name, part in match.groupdict().items() if part is not None}
            return endpoint, {name: unquote(part) for name, part in named.items()}
    raise RefusedError(404, f"the test Hub has no {method} {path}")


def readable(call: Call) -> Repository:
    """The repository of the request, if its existence may be known."""
    repository = call.site.store.find(call.kind, call.args["id"])
    if repository is None or (repository.settings.private and not owns(call.user, repository)):
        # Anonymous, the Hub does not tell a repository that is missing from one that is hidden.
        raise RefusedError(404 if call.user else 401, "Repository not found", "RepoNotFound")
    return repository


def downloadable(call: Call) -> Repository:
    """The repository of the request, if its files may be read: the description of a gated one is public."""
    repository = readable(call)
    if repository.settings.gated and not owns(call.user, repository):
        raise RefusedError(403 if call.user else 401, f"Access to {repository.id} is restricted", "GatedRepo")
    return repository


def writable(call: Call, by_pull_request: bool = False) -> Repository:
    """The repository of the request, if it may be changed: by its owner, or by anybody as a proposal."""
    repository = readable(call)
    if call.user is None:
        raise RefusedError(401, "Invalid username or password.")
    if call.user.role != "write":
        raise RefusedError(403, "This token has no write permission")
    if not (by_pull_request or owns(call.user, repository)):
        raise RefusedError(403, f"You have no write access to {repository.id}")
    return repository


def owns(user: User | None, repository: Repository) -> bool:
    return user is not None and user.name == repository.owner


def commit_at(repository: Repository, revision: str) -> Commit:
    commit = repository.find(revision)
    if commit is None:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit
