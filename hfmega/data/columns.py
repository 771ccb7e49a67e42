"""Which columns of a dataset hold images and labels, as other writers than `datasets` store them too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import datasets

from hfmega.errors import HfmegaError

LABEL_NAMES: Final = ("label", "labels", "class", "cls", "category", "target")
BINARY: Final = ("binary", "large_binary", "binary_view")
WORDS: Final = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class Columns:
    """The image and the label column of a dataset, and what its labels are called; nothing where they are numbers."""

    image: str
    label: str
    classes: tuple[str, ...]


def find_columns(dataset: str, splits: datasets.DatasetDict, image: str | None, label: str | None) -> Columns:
    """The columns that are named, else the only ones that can be meant. dataset: what it is called to the user.

    Raises HfmegaError, for both columns in one sentence, where none or several can be.
    """
    features = next(iter(splits.values())).features
    for given in filter(None, (image, label)):
        if given not in features:
            raise HfmegaError(f"the dataset {dataset} has no column {given!r}, only {', '.join(features)}.")
    if image is not None and not holds_images(features[image]):
        raise HfmegaError(f"the column {image} of {dataset} does not hold images.")
    images = [image] if image else of_kind(features, (is_image, holds_images))
    labels = [label] if label else of_kind(features, (is_class,)) or _called_label(features)
    lacking = {what: found for what, found in (("image", images), ("label", labels)) if len(found) != 1}
    if lacking:
        have = [
            f"several {what} columns ({', '.join(found)})" if found else f"no {what} column"
            for what, found in lacking.items()
        ]
        flags = " and ".join(f"--{what}-column" for what in lacking)
        them = "it" if len(lacking) == 1 else "them"
        raise HfmegaError(
            f"the dataset {dataset} has {' and '.join(have)}: name {them} with {flags} "
            f"(columns: {', '.join(features)})."
        )
    return Columns(images[0], labels[0], classes_of(splits, labels[0]))


def of_kind(features: datasets.Features, kinds: Sequence[Callable[[Any], bool]]) -> list[str]:
    """The columns of the first of some kinds that any column is of."""
    found = ([name for name, feature in features.items() if kind(feature)] for kind in kinds)
    return next((names for names in found if names), [])


def is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image)


def is_class(feature: Any) -> bool:
    return isinstance(feature, datasets.ClassLabel)


def holds_images(feature: Any) -> bool:
    """Whether a column can be read as encoded images: of that type, or their bytes, bare or beside a path."""
    if isinstance(feature, dict):
        return "bytes" in feature and feature.keys() <= {"bytes", "path"} and holds_images(feature["bytes"])
    return is_image(feature) or (isinstance(feature, datasets.Value) and feature.dtype in BINARY)


def _called_label(features: datasets.Features) -> list[str]:
    """The column of words or numbers that is called as labels are."""
    plain = [name for name, feature in features.items() if isinstance(feature, datasets.Value)]
    return [name for name in plain if name.casefold() in LABEL_NAMES and features[name].dtype not in BINARY]


def classes_of(splits: datasets.DatasetDict, column: str) -> tuple[str, ...]:
    """What the labels of a column are called: names, or the words that it holds, sorted; nothing for numbers."""
    feature = next(iter(splits.values())).features[column]
    if is_class(feature):
        return tuple(feature.names)
    if isinstance(feature, datasets.Value) and feature.dtype in WORDS:
        return tuple(sorted({word for split in splits.values() for word in split.unique(column) if word is not None}))
    return ()


def hidden(split: datasets.Dataset, column: str) -> bool:
    """Whether a split keeps its labels to itself: each is -1 or missing."""
    feature = split.features.get(column)
    if not (is_class(feature) or isinstance(feature, datasets.Value)):
        return False
    return len(split) > 0 and set(split.unique(column)) <= {-1, None}
