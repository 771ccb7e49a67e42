"""How the labels of a dataset become the outputs of a network: by name where that is certain, else refused."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hfmega.errors import HfmegaError
from hfmega.models.label_names import fold, telling

INSIST: Final = "labels are matched by their number only with --labels-by-number"


@dataclass(frozen=True)
class LabelMap:
    """How labels become outputs. outputs: of each label; None: a label is its output; where one of them is None, the
    network does not have that class. names: what each output is called in tables. note: what the user should know.
    """

    outputs: tuple[int | None, ...] | None
    names: tuple[str, ...]
    note: str | None = None

    def output(self, label: int) -> int | None:
        """The output of a label; None where there is none. Labels beyond the names are outputs of their own number."""
        if self.outputs is None or not 0 <= label < len(self.outputs):
            return label if 0 <= label < len(self.names) else None
        return self.outputs[label]


def match_labels(
    classes: Sequence[str], names: Sequence[str] | None, count: int, where: str, by_number: bool = False
) -> LabelMap:
    """How the labels of a dataset become outputs. Spelling (case, spaces, leading zeros) does not make names different.

    classes: what the dataset calls its labels, empty where it has numbers; names: what the network calls its `count`
    outputs, None where it does not say; where: the dataset; by_number: a label is its output, as the user insists.
    Raises HfmegaError where no name tells which output is meant.
    """
    known = telling(names)
    if len(known) > count:  # which name is of which output is not known
        known = ()
    if by_number or not classes:
        return _by_number(classes, known, count, by_number)
    if not known:
        return _without_names(classes, count, where)
    if len(set(known)) < len(known) and list(classes) == list(known):
        return LabelMap(None, tuple(classes))
    return _by_name(classes, known, count, where)


def matched_before(classes: Sequence[str], names: Sequence[str] | None) -> bool:
    """Whether hfmega 0.1.0 took numbers for these names: whenever they were not the same set."""
    return not (names and len(set(names)) == len(names) and set(classes) == set(names))


def _by_number(classes: Sequence[str], known: Sequence[str], count: int, asked: bool) -> LabelMap:
    named = [*classes, *known[len(classes) :]][:count]
    shown = (*named, *map(str, range(len(named), count)))
    if asked:
        return LabelMap(None, shown, "labels are matched by their number, as asked.")
    note = "the dataset's labels are numbers without names: they are matched by their number."
    return LabelMap(None, shown, note if known else None)


def _without_names(classes: Sequence[str], count: int, where: str) -> LabelMap:
    """Labels for a network that names no outputs: numerals are numbers, words are counted if all are there."""
    numbers = [int(name) if name.strip().isdecimal() else -1 for name in classes]
    if len(set(numbers)) == len(numbers) and all(0 <= number < count for number in numbers):
        note = "the network names none of its classes: the dataset's names, which are numbers, are taken for outputs."
        return _mapped(classes, tuple(numbers), (), count, None if numbers == list(range(count)) else note)
    if len(classes) == count and -1 in numbers:
        note = "the network names none of its classes: labels are matched by their number."
        return LabelMap(None, tuple(classes), note)
    raise HfmegaError(
        f"{where} has {len(classes)} classes ({_few(classes)}), but the network has {count} and names none of them, so "
        f"nothing tells which of its outputs are meant; {INSIST}."
    )


def _by_name(classes: Sequence[str], known: Sequence[str], count: int, where: str) -> LabelMap:
    exact, folded = _places(known), _places([fold(name) for name in known])
    alone = Counter(map(fold, classes))
    found = tuple(exact.get(name, folded.get(fold(name)) if alone[fold(name)] == 1 else None) for name in classes)
    taken = {output for output in found if output is not None}
    if not taken:
        raise HfmegaError(
            f"the classes of {where} ({_few(classes)}) are none of the network's ({_few(known)}): name a dataset "
            f"that it was trained for with --dataset; {INSIST}."
        )
    missing = [name for name, output in zip(classes, found, strict=True) if output is None]
    notes = []
    if missing:
        notes.append(f"the network does not have the class {_listed(missing)} of the dataset")
    if len(taken) < len(known):
        notes.append(f"{len(taken)} of the network's {len(known)} classes are in the dataset")
    elif len(known) != count:
        notes.append(f"the network names {len(known)} of its {count} outputs")
    note = f"{'; '.join(notes)}: labels are matched by name." if notes else None
    return _mapped(classes, found, known, count, note)


def _mapped(
    classes: Sequence[str], found: tuple[int | None, ...], known: Sequence[str], count: int, note: str | None
) -> LabelMap:
    """The map, with the dataset's names for the outputs that it has."""
    names = [*known, *map(str, range(len(known), count))]
    for name, output in zip(classes, found, strict=True):
        if output is not None:
            names[output] = name
    return LabelMap(None if found == tuple(range(count)) else found, tuple(names), note)


def _places(names: Sequence[str]) -> dict[str, int]:
    """Name to place, of the names that stand once."""
    often = Counter(names)
    return {name: place for place, name in enumerate(names) if often[name] == 1}


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")
