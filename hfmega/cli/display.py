"""The output of the command that runs: opened by it, closed wherever it ends."""

import os
from typing import Any, Final

OPEN: Final[list[Any]] = []


def open_output(flags: dict[str, Any]) -> Any:
    """The output sink of this process, which shows from now on how far it is: only the main one speaks."""
    from hfmega.output import Output

    muted = os.environ.get("RANK", "0") != "0"
    OPEN.append(Output(flags["as_json"], muted, flags["verbose"], flags["quiet"]).watch())
    return OPEN[-1]


def close_output() -> None:
    """Take the display away, so that what is said last stays."""
    while OPEN:
        OPEN.pop().close()
