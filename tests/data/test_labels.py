"""Two lists of class names: what is certain is mapped by name, what is not is refused. 1 second."""

from __future__ import annotations

import pytest

from hfmega.data.labels import LabelMap, match_labels, matched_before
from hfmega.errors import HfmegaError

PETS = ("cat", "dog", "owl")
BY_NAME = "labels are matched by name."
TAKEN = "the network names none of its classes: the dataset's names, which are numbers, are taken for outputs."
BY_NUMBER = "labels are matched by their number."
NUMERALS = [str(k) for k in range(12)]
AS_TEXT = tuple(sorted(NUMERALS))  # 0, 1, 10, 11, 2, ...


def match(classes: tuple[str, ...], names: list[str] | None, count: int = 3, by_number: bool = False) -> LabelMap:
    return match_labels(classes, names, count, "the dataset pets", by_number)


@pytest.mark.parametrize(
    ("classes", "names", "outputs", "note"),
    [
        (PETS, ["cat", "dog", "owl"], [0, 1, 2], None),
        (PETS, ["owl", "cat", "dog"], [1, 2, 0], None),
        (("dog", "owl"), ["cat", "dog", "owl"], [1, 2], f"2 of the network's 3 classes are in the dataset: {BY_NAME}"),
        (("Cat", "DOG", "owl"), ["owl", "cat", "dog"], [1, 2, 0], None),
        (("barn_owl", "Polar Bear", "cat"), ["polar-bear", "cat", "Barn  Owl"], [2, 0, 1], None),
        (("café", "b", "c"), ["c", "b", "cafe\u0301"], [2, 1, 0], None),
        (("03", "01", "02"), ["1", "2", "3"], [2, 0, 1], None),
        (
            ("cat", "dog", "eel", "owl"),
            ["owl", "dog", "cat"],
            [2, 1, None, 0],
            f"the network does not have the class eel of the dataset: {BY_NAME}",
        ),
        (
            ("ant", "cat", "eel"),
            ["cat", "dog", "owl"],
            [None, 0, None],
            "the network does not have the class ant, eel of the dataset; "
            f"1 of the network's 3 classes are in the dataset: {BY_NAME}",
        ),
        (PETS, ["dog", "dog", "owl"], [None, None, 2], None),
        (("cat", "cat ", "dog"), ["cat", "dog", "owl"], [0, None, 1], None),
        (PETS, None, [0, 1, 2], f"the network names none of its classes: {BY_NUMBER}"),
        (PETS, ["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2], f"the network names none of its classes: {BY_NUMBER}"),
        (PETS, ["class 2", "class 0", "class 1"], [0, 1, 2], f"the network names none of its classes: {BY_NUMBER}"),
        (("0", "1", "2"), None, [0, 1, 2], None),
        (("1", "2"), None, [1, 2], TAKEN),
    ],
)  # fmt: skip
def test_what_is_certain_is_mapped_by_name(
    classes: tuple[str, ...], names: list[str] | None, outputs: list[int | None], note: str | None
) -> None:
    found = match(classes, names)
    assert [found.output(label) for label in range(len(classes))] == outputs
    if note is not None or None not in outputs:
        assert found.note == note
    for label, output in enumerate(outputs):
        assert output is None or found.names[output] == classes[label]  # tables call it as the dataset does
    assert len(found.names) == 3


@pytest.mark.parametrize("names", [NUMERALS, list(AS_TEXT), list(reversed(NUMERALS)), None])
def test_numerals_that_are_sorted_as_text_are_the_numbers_they_say(names: list[str] | None) -> None:
    found = match(AS_TEXT, names, count=12)
    said = [(names or NUMERALS)[output] for output in map(found.output, range(12)) if output is not None]
    assert tuple(said) == AS_TEXT
    assert (found.note is None) == (names is not None)


@pytest.mark.parametrize(
    ("classes", "names", "count"),
    [
        (("0", "1", "2"), ["cat", "dog", "owl"], 3),  # numbers against words: CIFAR networks on digits
        (PETS, ["0", "1", "2"], 3),
        (PETS, ["tench", "goldfish", "shark"], 3),
        (("n01440764", "n01443537"), ["tench", "goldfish"], 2),
        (PETS, ["chat", "chien", "hibou", "ours"], 4),
        (("cat", "dog"), None, 10),  # four folders of ten, and a network that does not say which
        (PETS, None, 2),
        (("1", "2", "3"), None, 3),  # from one: which of them is output 0 is not certain
        (("1", "10", "2"), ["LABEL_0", "LABEL_1", "LABEL_2"], 3),
        (("cat",), [], 3),
    ],
)
def test_what_no_name_decides_is_refused_until_the_user_insists(
    classes: tuple[str, ...], names: list[str] | None, count: int
) -> None:
    with pytest.raises(HfmegaError, match=r"the dataset pets.*labels are matched by their number only with --labels"):
        match(classes, names, count)
    found = match(classes, names, count, by_number=True)
    assert [found.output(label) for label in range(count + 1)] == [*range(count), None]
    assert found.note == "labels are matched by their number, as asked."
    assert found.names[: len(classes)] == classes[:count]


def test_numbers_without_names_are_outputs() -> None:
    found = match((), ["cat", "dog", "owl"])
    assert [found.output(label) for label in (-1, 0, 2, 3)] == [None, 0, 2, None]
    assert (found.names, found.note) == (
        PETS,
        f"the dataset's labels are numbers without names: they are {BY_NUMBER[11:]}",
    )
    assert match((), None).note is None


def test_equal_lists_with_a_name_twice_are_as_they_are() -> None:
    cranes = ("crane", "crane", "owl")
    assert [match(cranes, list(cranes)).output(label) for label in range(3)] == [0, 1, 2]


def test_a_list_that_is_longer_than_the_outputs_names_none() -> None:
    assert (
        match(PETS, ["background", "cat", "dog", "owl"]).note == f"the network names none of its classes: {BY_NUMBER}"
    )


@pytest.mark.parametrize(
    ("names", "before"), [(["dog", "cat"], False), (["cat", "dog", "owl"], True), (["a", "b"], True), (None, True)]
)
def test_older_lineages_took_numbers_unless_the_set_of_names_was_the_same(
    names: list[str] | None, before: bool
) -> None:
    assert matched_before(("cat", "dog"), names) == before
