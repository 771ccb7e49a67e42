"""A `config.json` of transformers as it may come from anyone: what of it reaches the library, and what is refused."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from hfmega.errors import SourceError

REFUSED: Final = {
    "auto_map": "names code of its own, which hfmega never runs",
    "quantization_config": "has quantized weights, which cannot be averaged",
}
# Keys that choose how a network is computed, or where: some fetch code from the Hub. Nothing that starts with _ counts.
DROPPED: Final = frozenset(
    {"attn_implementation", "experts_implementation", "use_kernels", "dtype", "torch_dtype", "hfmega", "problem_type"}
    | {"return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "torchscript", "name_or_path"}
    | {"gradient_checkpointing", "id2label", "label2id", "num_labels", "transformers_version", "architectures"}
)
PROBLEMS: Final = {
    "multi_label_classification": "gives several labels to an image",
    "regression": "predicts numbers",
}
CLASSES: Final = 1_000_000
COUNTED: Final = re.compile(r"layers|depth|blocks|repeat|levels|stages")  # keys of how often something is built
REPEATS: Final = 1_000
LARGEST: Final = 1 << 24
ENTRIES: Final = 1_000  # of a list


def checked(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of a config describes the network, without what only says how it is computed.

    Raises SourceError for code, quantized weights, tasks that are not the choice of one label, and numbers that no
    network has.
    """
    for mapping in nested(document):
        for key, why in REFUSED.items():
            if mapping.get(key):
                raise SourceError(f"config.json of {where} {why} ({key}).")
    if (problem := document.get("problem_type")) in PROBLEMS:
        raise SourceError(f"{where} {PROBLEMS[problem]} ({problem}): hfmega merges classifiers of one label.")
    found: dict[str, Any] = pruned(document)
    bound(found, where)
    return found


def nested(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every dictionary in a document."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from nested(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nested(inner)


def pruned(document: Any) -> Any:
    """A document without the dropped keys, at any depth."""
    if isinstance(document, list):
        return [pruned(inner) for inner in document]
    if not isinstance(document, Mapping):
        return document
    kept = {key: value for key, value in document.items() if not key.startswith("_") and key not in DROPPED}
    return {key: pruned(value) for key, value in kept.items()}


def bound(value: Any, where: str, key: str = "", limit: float = LARGEST) -> None:
    """Raises SourceError for a number that no network has, before anything is built of it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            bound(inner, where, f"{key}.{name}".lstrip("."), REPEATS if COUNTED.search(name) else limit)
    elif isinstance(value, list):
        if len(value) > ENTRIES:
            raise SourceError(f"config.json of {where} makes no sense: {len(value):,} entries (at {key}).")
        for inner in value:
            bound(inner, where, key, limit)
    elif isinstance(value, int | float) and not abs(value) <= limit:
        raise SourceError(f"config.json of {where} makes no sense: {value} is out of range (at {key}).")


def labels_of(document: Mapping[str, Any], where: str) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes, and their names in the order of the outputs, None where there are only numbers.

    Raises SourceError for numbers with holes or too many.
    """
    named = document.get("id2label")
    if not isinstance(named, Mapping) or not named:
        count = document.get("num_labels", document.get("_num_labels"))
        count = 2 if count is None else count  # the library's default
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= CLASSES:
            raise SourceError(f"config.json of {where} makes no sense: {str(count)[:60]} classes (at num_labels).")
        return count, None
    try:
        numbers = {int(key): value for key, value in named.items()}
    except (TypeError, ValueError) as error:
        raise SourceError(f"config.json of {where} makes no sense: {error} (at id2label).") from error
    if len(numbers) != len(named) or sorted(numbers) != list(range(len(numbers))):
        raise SourceError(f"config.json of {where} makes no sense: id2label does not number its labels from 0 on.")
    names = tuple(str(numbers[k]) for k in range(len(numbers)))
    return len(names), None if names == tuple(f"LABEL_{k}" for k in range(len(names))) else names
