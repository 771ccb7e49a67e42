"""The command line as a child: started, watched, stopped. What it is, said and printed lies in a folder of its own.

So every window sees the same, also after the page was closed and opened again.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from hfmega.errors import HfmegaError
from hfmega.folder import write_atomically

COMMAND: Final = "command.json"
LOG: Final = "log.txt"  # its stderr
RESULT: Final = "result.json"  # its stdout
LAST: Final = 200_000  # bytes of a log that are read
COLUMNS: Final = "100"  # characters in a line of a child's tables
FINAL: Final = "hfmega: "  # how the sentence begins that ends a command
BOX: Final = re.compile("[╭╮╰╯│─]+")
TOKEN: Final = re.compile("hf_[A-Za-z0-9]{8,}")
_children: Final[dict[Path, subprocess.Popen[bytes]]] = {}  # those of this process, to be reaped


@dataclass(frozen=True)
class State:
    """A child. result: what it printed, when it is done; problem: the sentence that ended it, in its own words."""

    running: bool
    words: tuple[str, ...]
    log: str
    result: dict[str, Any] | None
    problem: str | None


def start(words: Sequence[str], place: Path, environment: Mapping[str, str] | None = None) -> None:
    """Start `hfmega WORDS --json`; it goes on when this process ends. environment: what it has over this process.

    Raises HfmegaError where one is running, or the place cannot be written.
    """
    if running(place):
        raise HfmegaError(f"{place.name} is running already: wait for it, or stop it.")
    own = {"COLUMNS": COLUMNS, "NO_COLOR": "1", "PYTHONUTF8": "1", **(environment or {})}
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / RESULT).unlink(missing_ok=True)
        with (place / LOG).open("wb") as log, (place / RESULT).open("wb") as result:
            child = subprocess.Popen(
                [sys.executable, "-m", "hfmega", *words, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=log,
                env={**os.environ, **own},
                start_new_session=True,
            )
        _children[place] = child
        note = {"words": list(words), "pid": child.pid, "created": created(child.pid)}
        write_atomically(place / COMMAND, json.dumps(note).encode())
    except OSError as error:
        raise HfmegaError(f"{place} cannot be written ({error.strerror or error}).") from error


def read(place: Path) -> State:
    """A child as it is now, whoever started it."""
    alive, note = running(place), noted(place)
    log = tail(place / LOG)
    result = None if alive else printed(place / RESULT)
    ended = bool(note) and not alive and result is None
    return State(alive, tuple(note.get("words", ())), log, result, sentence(log) if ended else None)


def wait(words: Sequence[str], place: Path, seconds: float = 600.0) -> State:
    """Run a short command to its end. Raises HfmegaError where it cannot be started, or takes longer."""
    start(words, place)
    until = time.monotonic() + seconds
    while running(place):
        if time.monotonic() > until:
            stop(place)
            raise HfmegaError(f"hfmega {words[0]} took longer than {seconds:.0f} seconds, and was stopped.")
        time.sleep(0.1)
    return read(place)


def running(place: Path) -> bool:
    """Whether the child of a place is alive."""
    child = _children.get(place)
    if child is not None and child.poll() is not None:
        del _children[place]
    note = noted(place)
    return alive(note.get("pid"), note.get("created"))


def stop(place: Path) -> None:
    """Ask the child of a place to stop, as a terminal or a scheduler does: what is done is kept."""
    if running(place):
        terminate(noted(place)["pid"])


def terminate(pid: int) -> None:
    """SIGTERM, which a merge says and survives."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)


def created(pid: int) -> float:
    """When a process began: a process id comes again, with another one. 0: it has ended."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def alive(pid: object, since: object) -> bool:
    """Whether the process that had this id since then is still at work."""
    if not isinstance(pid, int) or not isinstance(since, int | float):
        return False
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - since) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def noted(place: Path) -> dict[str, Any]:
    """What was started in a place; empty where nothing was, or it cannot be read."""
    return found if isinstance(found := parsed(place / COMMAND), dict) else {}


def printed(path: Path) -> dict[str, Any] | None:
    """The JSON object that a command printed at its end; None where it did not come so far."""
    return found if isinstance(found := parsed(path), dict) else None


def parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def tail(path: Path) -> str:
    """The end of a log, without anything that looks like a token."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST))
            return TOKEN.sub("<token>", file.read().decode("utf-8", "replace"))
    except OSError:
        return ""


def sentence(log: str) -> str:
    """Why a command ended: the sentence that it says last, the one in the box of a wrong usage, or its last line."""
    lines = log.splitlines()
    said = [line.removeprefix(FINAL) for line in lines if line.startswith(FINAL)]
    if said:
        return said[-1]
    boxed = [number for number, line in enumerate(lines) if line.startswith("╭") and "Error" in line]
    if boxed:
        inside = [BOX.sub(" ", line) for line in lines[boxed[-1] + 1 :]]
        return " ".join(" ".join(inside).split())
    if "Traceback (most recent call last)" in log:
        return f"hfmega failed: {lines[-1]}"
    return "it was ended from outside; Resume goes on where it stopped."
