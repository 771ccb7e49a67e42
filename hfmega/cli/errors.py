"""What ends a command early, as a sentence and an exit code."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final

import rich_click as click
from click.exceptions import Exit

from hfmega.errors import HfmegaError, unforeseen
from hfmega.launch import DISTRIBUTED, Terminated, lost_a_peer

RESUMES: Final = "the same command resumes where it stopped."


def disk_problem(error: OSError) -> str:
    """The sentence for a disk that is full or may not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full; free some space, and {RESUMES}"
    return f"{error.strerror or error}: {error.filename or 'a file'}."


def peer_problem(error: RuntimeError) -> str | None:
    """The sentence for a run that lost one of its processes."""
    return f"another process of this run has ended; {RESUMES}" if lost_a_peer(error) else None


# The first that fits: what was raised, its sentence (None: it says nothing of this one), the exit code.
PROBLEMS: Final[tuple[tuple[type[BaseException], Callable[[Any], str | None], int], ...]] = (
    (KeyboardInterrupt, lambda error: str(error) or f"interrupted; {RESUMES}", 130),
    (click.Abort, lambda error: str(error.__context__ or "") or f"interrupted; {RESUMES}", 130),  # click's word for it
    (Terminated, lambda error: str(error) or f"terminated; {RESUMES}", 143),
    (HfmegaError, str, 1),
    (OSError, disk_problem, 1),
    (RuntimeError, peer_problem, 1),
)
STOPS: Final = (KeyboardInterrupt, click.Abort, Terminated)  # nobody needs the traceback of one


def code_of(error: BaseException, debug: bool) -> int:
    """Say what ended a command in one sentence, and return its exit code. Raises the error again to debug it."""
    if isinstance(error, Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if debug and not isinstance(error, STOPS):
        raise error
    for kind, sentence_of, code in PROBLEMS:
        sentence = sentence_of(error) if isinstance(error, kind) else None
        if sentence is not None:
            tell(sentence)
            return code
    if not isinstance(error, Exception):
        raise error
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    tell(unforeseen(error, f"hfmega {command}".rstrip()))
    return 1


def tell(sentence: str) -> None:
    """One sentence on stderr, once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"hfmega: {sentence}", err=True)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated here, unless somebody else answers to it (a launch of several processes does)."""

    def stop(_: int, __: FrameType | None) -> None:
        raise Terminated

    if DISTRIBUTED in os.environ or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback on stderr, without a token that a message of the Hub may repeat."""
    from hfmega.hub.problems import without_token

    click.echo(without_token("".join(traceback.format_exception(kind, error, trace))), err=True, nl=False)


def hide_token() -> None:
    """Start again with the token of `--token` in the environment: a command line is seen by everyone on a machine."""
    given = [k for k, word in enumerate(sys.argv) if word == "--token" or word.startswith("--token=")]
    if not given or sys.argv[1:] != sys.orig_argv[-len(sys.argv[1:]) :] or os.name != "posix":
        return
    words = sys.argv[1:]
    while given:
        at = next(k for k, word in enumerate(words) if word == "--token" or word.startswith("--token="))
        _, equals, token = words.pop(at).partition("=")
        os.environ["HF_TOKEN"] = token if equals else words.pop(at) if at < len(words) else ""
        given.pop()
    os.execv(sys.executable, [sys.executable, "-m", "hfmega", *words])
