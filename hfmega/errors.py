"""What hfmega raises: problems that one sentence explains.

HfmegaError
  SettingsError   settings that make no merge (also a ValueError)
  SourceError     a checkpoint that cannot be used, or is not there
  HubError        the Hub refuses, lacks or does not answer
"""


def printable(text: str) -> str:
    """Text as a terminal shows it and nothing more: whatever else is in it is spelled (\\x1b). Lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


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
