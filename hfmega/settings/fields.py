"""Fields that the command line offers, and the sentences for values that a flag does not take."""

import re
from dataclasses import MISSING, field
from typing import Any, Final, Literal

from hfmega.errors import SettingsError

Group = Literal["Everyday", "Data", "Search", "Method", "Hardware", "Publishing", "Output"]
SLICE: Final = re.compile(r"\w+(\.\w+)*(\[(-?[\d_]+%?)?:(-?[\d_]+%?)?\])?(\([^)]*\))?")


def said(text: str, group: Group, default: Any = MISSING, **more: Any) -> Any:
    """A field that the command line offers.

    more: `metavar`; `name`: what flag, YAML and lineage call it, if not as the field is called; `short`: one letter;
    `switches`: flags that stand for a value each; `usual`: the default in words, where it is not a value; `recorded`:
    False for what a lineage records elsewhere or nowhere; `choices`: those that are offered, if not all.
    """
    return field(default=default, metadata={"text": text, "group": group, **more})


def require(holds: bool, flag: str, what: str, value: object) -> None:
    """Raises SettingsError with what a flag must be, unless it is."""
    if not holds:
        raise SettingsError(f"--{flag} must be {what}, not {value}.")


def check_slice(flag: str, text: str | None) -> None:
    """Raises SettingsError for text that is not a slice as `datasets` writes it; None is no slice, and passes."""
    if text is not None and not all(SLICE.fullmatch(part.strip()) for part in text.split("+")):
        raise SettingsError(f"--{flag} {text!r} is not a slice: write train, train[:5000], train[10%:20%] or a+b.")
