"""What hfmega raises: problems that one sentence explains."""


def printable(text: str) -> str:
    """Text as a terminal shows it and nothing more: whatever else is in it is spelled (\\x1b). Lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class HfmegaError(Exception):
    """A problem that one sentence explains: what was wrong, where, and what to do.

    Names in it come from anyone: it is one line, and a terminal has nothing to obey in it.
    """

    def __init__(self, sentence: str = "") -> None:
        super().__init__(printable(" ".join(sentence.splitlines())))
