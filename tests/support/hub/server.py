"""The Hub as tests use it: start, seed, let clients talk to it, make it fail, and look at what was asked."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from . import endpoints, routing, uploads  # noqa: F401  (two of them only register their routes)
from .jobs import Jobs
from .routing import Call, Response, Site, User, reply
from .storage import Repository, Store, belongs_to_lfs


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next `times` requests whose raw path, without the query, matches `path`."""

    path: str = ""  # a regex, searched
    method: str = ""  # any
    times: int = 1
    status: int | None = None  # answer this, with `headers`
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before the answer
    cut_after: int | None = None  # close the connection after so many bytes of the body
    stop_reading: int | None = None  # close the connection after so many bytes of what is sent here
    drop: bool = False  # close the connection in place of an answer
    flip_byte: int | None = None  # the byte of the body to send inverted
    after: bool = False  # do the work first: only the answer is lost (drop) or replaced (status)

    def hits(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("", method) and re.search(self.path, path) is not None


class Hub:
    """A Hub on a loopback port, serving from entry to exit of `with`; `root` outlives it."""

    def __init__(self, root: Path) -> None:
        self.requests: list[tuple[str, str]] = []  # method and raw path, in the order they came
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        store = Store(root)
        self.jobs = Jobs(root, store)
        self.jobs.environment = self.environment
        self._site = Site(store, {}, self.url, secrets.token_bytes(16), self.jobs)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.jobs.stop()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def add_user(self, name: str, token: str, role: str = "write") -> None:
        """Let this token act for this user; the role is "write" or "read"."""
        self._site.users[token] = User(name, role)

    def create(self, repo_id: str, kind: str = "model", private: bool = False, gated: bool = False) -> None:
        """Make a repository without a client; `kind` is "model", "dataset" or "space"."""
        with self._site.store.lock:
            assert not self._site.store.find(kind, repo_id), f"{repo_id} exists already"
            self._site.store.create(kind, repo_id, private, gated)

    def add_models(self, owner: str, folders: Sequence[Path], private: bool = False) -> None:
        """Publish folders as OWNER/s1, OWNER/s2 and so on."""
        for number, folder in enumerate(folders, 1):
            self.create(f"{owner}/s{number}", private=private)
            self.commit_folder(f"{owner}/s{number}", folder)

    def commit_folder(self, repo_id: str, folder: Path, kind: str = "model", message: str = "Upload") -> str:
        """Add all files of a folder to main without a client; returns the id of the commit."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.commit(repo_id, contents, kind, message)

    def commit(self, repo_id: str, contents: Mapping[str, bytes], kind: str = "model", message: str = "Upload") -> str:
        """Add files of any name to main without a client, which would refuse some; returns the id of the commit."""
        with self._site.store.lock:
            repository = self._repository(repo_id, kind)
            parent = repository.find("main")
            files = dict(parent.files) if parent else {}
            for name, content in contents.items():
                files[name] = repository.add(content, belongs_to_lfs(name, len(content)))
            about = {"title": message, "author": repository.owner}
            return repository.commit("refs/heads/main", parent, files, **about).id

    def _repository(self, repo_id: str, kind: str) -> Repository:
        repository = self._site.store.find(kind, repo_id)
        assert repository is not None, f"create the {kind} {repo_id} first"
        return repository

    def inject(self, fault: Fault) -> None:
        """Let a fault wait for its requests; of several that fit, the one injected first strikes first."""
        with self._lock:
            self._faults.append(fault)

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def count(self, method: str, path: str) -> int:
        """How many requests with this method came whose raw path contains the regex."""
        return sum(asked == method and re.search(path, at) is not None for asked, at in self.requests)

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The variables for a client process that talks to this Hub and to nothing else.

        huggingface_hub reads them when it is imported, so they must be set before Python starts.
        """
        foreign = re.compile("HF_|HUGGING|.*_proxy$", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # or each LFS file goes to Xet, which this server does not speak
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # or datasets asks a server outside
        }
        return {**kept, **settings, **({"HF_TOKEN": token} if token else {})}

    # What follows is for the request handler.

    def note(self, method: str, path: str) -> Fault:
        """Log a request and take the fault that strikes it; without one, a Fault that does nothing."""
        with self._lock:
            self.requests.append((method, path))
            for i, fault in enumerate(self._faults):
                if fault.hits(method, path):
                    self._faults[i] = replace(fault, times=fault.times - 1)
                    return fault
        return Fault()

    def pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> Response:
        path, _, query = handler.path.partition("?")
        fields = parse_qs(query, keep_blank_values=True)
        return routing.answer(Call(self._site, handler.command, path, fields, handler.headers, body))


class Server(ThreadingHTTPServer):
    """Keeps the open connections, to end those that clients keep alive when the test is over."""

    daemon_threads = False  # server_close waits for the threads: none outlives the test
    request_queue_size = 64

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def close_request(self, request: Any) -> None:
        self._open.discard(request)
        super().close_request(request)

    def hang_up(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body, a second write, waits until the headers are acknowledged
    server: Server

    def do_GET(self) -> None:
        hub = self.server.hub
        fault = hub.note(self.command, self.path.partition("?")[0])
        length = int(self.headers.get("Content-Length", 0))
        if fault.stop_reading is not None:
            self.rfile.read(min(length, fault.stop_reading))
            self.close_connection = True
            return
        # Read before anything else fails: to close with bytes unread is a reset, which clients treat otherwise.
        body = self.rfile.read(length)
        hub.pause(fault.delay)
        lost = fault.drop or fault.status is not None
        response = Response() if lost and not fault.after else hub.answer(self, body)
        if fault.drop:
            self.close_connection = True
            return
        if fault.status is not None:
            response = reply({"error": "injected by the test"}, fault.status, fault.headers)
        self._send(response, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _send(self, response: Response, fault: Fault) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value.replace("\n", " "))
        if response.stream is not None:
            self._send_stream(response.stream, fault)
            return
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else _flipped(response.body, fault.flip_byte)
        if fault.cut_after is not None:
            body = body[: fault.cut_after]
            self.close_connection = True
        self.wfile.write(body)

    def _send_stream(self, stream: Iterator[bytes], fault: Fault) -> None:
        """What comes, as it comes, in chunks; one that is cut short is a lost connection."""
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        for part in stream:
            sent += len(part)
            over = 0 if fault.cut_after is None else max(sent - fault.cut_after, 0)
            self.wfile.write((b"%x\r\n%s\r\n" % (len(part), part))[: -over - 2 if over else None])
            if over:
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silence: `Hub.requests` is the log."""


def _flipped(body: bytes, position: int | None) -> bytes:
    if position is None or position >= len(body):
        return body
    return body[:position] + bytes([body[position] ^ 0xFF]) + body[position + 1 :]
