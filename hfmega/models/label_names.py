"""What a config calls the outputs of a network, as different writers note it down."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

KEYS: Final = ("label_names", "labels", "id2label", "label2id", "class_names", "classes")
PLACEHOLDER: Final = re.compile(r"(label|class|output)[ _-]?\d+", re.IGNORECASE)  # names that say no more than a number
NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def fold(name: str) -> str:
    """A name without what is only spelling: case, Unicode forms, `_`, `-` and spaces, leading zeros of a numeral.

    Small numbers in English words are numerals.
    """
    plain = " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold())).strip()
    if plain in NUMBERS:
        return str(NUMBERS.index(plain))
    return str(int(plain)) if plain.isdecimal() and len(plain) < 20 else plain


def telling(names: Sequence[str] | None) -> tuple[str, ...]:
    """Names that say more than the number of an output; none where they do not."""
    return () if names is None or all(map(PLACEHOLDER.fullmatch, names)) else tuple(names)


def labels_in(document: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """The names of the outputs in their order, wherever a timm config has them; None where it has none.

    The top level goes before `pretrained_cfg`; null is none. Raises ValueError with the key for what is no list of
    names: a list of words or numbers, or a dictionary from numbers to names, or from names to numbers.
    """
    nested = document.get("pretrained_cfg")
    for place in (document, nested if isinstance(nested, Mapping) else {}):
        for key in KEYS:
            value = place.get(key)
            if value and not (key == "classes" and isinstance(value, int)):
                found = _names(value, count)
                if found is None:
                    raise ValueError(key)
                return found
    return None


def _names(value: Any, count: int) -> tuple[str, ...] | None:
    if isinstance(value, Mapping):
        value = _in_order(value, count)
    if not isinstance(value, list | tuple):
        return None
    plain = all(isinstance(name, str | int | float) and not isinstance(name, bool) for name in value)
    return tuple(map(str, value)) if plain else None


def _in_order(value: Mapping[Any, Any], count: int) -> list[Any] | None:
    """The names of a dictionary by their numbers; outputs without one are called by theirs."""
    numbered = value
    if not all(str(key).isdecimal() for key in value):
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in value.values()):
            return None
        numbered = {number: name for name, number in value.items()}
    found = {int(key): name for key, name in numbered.items() if len(str(key)) < 20}
    if len(found) != len(value) or not all(0 <= key < count for key in found):
        return None
    return [found.get(k, f"output {k}") for k in range(max(found) + 1)]
