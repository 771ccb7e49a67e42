"""What hfmega raises: problems that one sentence explains.

HfmegaError
  SettingsError   settings that make no merge (also a ValueError)
  SourceError     a checkpoint that cannot be used, or is not there
  HubError        the Hub refuses, lacks or does not answer
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STEP: Final = "hfmega_step"  # an attribute of an exception


def printable(text: str) -> str:
    """Text as a terminal shows it and nothing more: whatever else is in it is spelled (\\x1b). Lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Name what goes on, with the source that it is done to, for the sentence of an exception that nothing foresaw.

    The innermost step is the one that is named.
    """
    try:
        yield
    except Exception as error:
        error.__dict__.setdefault(STEP, what)
        raise


def unforeseen(error: BaseException, otherwise: str) -> str:
    """The sentence for an exception that nothing foresaw. otherwise: what went on, where no step says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return printable(
        f"{error.__dict__.get(STEP, otherwise)} failed with what hfmega does not expect ({said.rstrip('.')}): --debug "
        "shows where; please report it."
    )


class HfmegaError(Exception):
    """A problem that one sentence explains: what was wrong, where, and what to do.

    Names in it come from anyone: it is one line, and a terminal has nothing to obey in it.
    """

    def __init__(self, sentence: str = "") -> None:
        super().__init__(printable(" ".join(sentence.splitlines())))


class SettingsError(HfmegaError, ValueError):
    """Settings that make no merge."""


class SourceError(HfmegaError):
    """A checkpoint that cannot be used, or is not there."""


class HubError(HfmegaError):
    """The Hub refuses, lacks or does not answer."""
