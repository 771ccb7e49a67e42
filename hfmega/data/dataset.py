"""A dataset by its name or folder, and slices of it as row numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import datasets
import numpy as np
from datasets.arrow_reader import ReadInstruction
from numpy.typing import NDArray
from PIL import Image

from hfmega.errors import HfmegaError
from hfmega.hub.client import dataset_revision
from hfmega.hub.problems import CLIENT_ERRORS, explained
from hfmega.hub.retry import steady
from hfmega.weights.checkpoint import name_of

Rows = NDArray[np.int64]
DEFAULT_DATASET: Final = "uoft-cs/cifar10"
DIGITS_TRAIN: Final = 1297
EVALUATION_SPLITS: Final = ("test", "validation", "val", "valid")


@dataclass(frozen=True)
class Dataset:
    """A labelled image dataset. `id` is what a lineage records, `revision` the commit of a Hub dataset.

    A row number counts through all splits in their order, so that sets of rows of several splits are plain arrays.
    """

    id: str
    revision: str | None
    splits: datasets.DatasetDict
    image_column: str
    label_column: str
    classes: tuple[str, ...]

    @property
    def lengths(self) -> dict[str, int]:
        """Split name to number of images."""
        return {name: len(split) for name, split in self.splits.items()}


def open_dataset(name: str, image_column: str | None = None, label_column: str | None = None) -> Dataset:
    """Open a Hub dataset (pinned to the commit it is at now), a local folder, or the embedded `digits`.

    Raises HfmegaError when it cannot be read, or when it has no image or no label column.
    """
    datasets.disable_progress_bars()
    revision = None
    if name == "digits":
        splits = digits()
    elif Path(name).is_dir():
        splits = _load(datasets.load_dataset, name, str(Path(name).resolve()))
        name = name_of(Path(name))
    else:
        revision = dataset_revision(name)
        splits = _load(datasets.load_dataset, name, name, revision=revision)
    features = next(iter(splits.values())).features
    image = _column(name, features, datasets.Image, "image", image_column)
    label = _column(name, features, datasets.ClassLabel, "label", label_column)
    classes = tuple(features[label].names) if isinstance(features[label], datasets.ClassLabel) else ()
    return Dataset(name, revision, splits, image, label, classes)


def describe(name: str, image_column: str | None = None, label_column: str | None = None) -> tuple[Dataset, int]:
    """A dataset with the bytes that opening it would download. One that is not on this disk has row numbers only.

    Raises HfmegaError when it cannot be read.
    """
    if name == "digits" or Path(name).is_dir():
        return open_dataset(name, image_column, label_column), 0
    revision = dataset_revision(name)
    builder = _load(datasets.load_dataset_builder, name, name, revision=revision)
    if Path(builder.cache_dir).is_dir() or not builder.info.splits:
        return open_dataset(name, image_column, label_column), 0
    lengths = {split: info.num_examples for split, info in builder.info.splits.items()}
    rows = {split: datasets.Dataset.from_dict({"row": range(count)}) for split, count in lengths.items()}
    described = Dataset(name, revision, datasets.DatasetDict(rows), "", "", ())
    return described, builder.info.download_size or 0


def _load(load: Callable[..., Any], name: str, path: str, **options: Any) -> Any:
    """load(path, **options), and what can go wrong with it in one sentence."""
    try:
        return steady(load, path, **options)
    except CLIENT_ERRORS as error:
        raise explained(error, f"dataset {name}") from error
    except Exception as error:  # it parses cards, tables and archives of anyone, and raises what they come upon
        raise HfmegaError(f"the dataset {name} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _column(dataset: str, features: datasets.Features, kind: type, what: str, given: str | None) -> str:
    """The column of a feature type, or the one that the user named."""
    if given is not None:
        if given not in features:
            raise HfmegaError(f"the dataset {dataset} has no column {given!r}, only {', '.join(features)}.")
        if kind is datasets.Image and not isinstance(features[given], kind):
            raise HfmegaError(f"the column {given} of {dataset} does not hold images.")
        return given
    found: list[str] = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        have = f"has no {what} column" if not found else f"has several {what} columns ({', '.join(found)})"
        raise HfmegaError(
            f"the dataset {dataset} {have}: name it with --{what}-column (columns: {', '.join(features)})."
        )
    return found[0]


def digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 handwritten digits, real 8x8 images that come inside its wheel: 1,297 train, 500 test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise HfmegaError("the dataset digits comes with scikit-learn: pip install 'hfmega[digits]'.") from error
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(d) for d in range(10)])}
    )

    def part(rows: slice) -> datasets.Dataset:
        images = [Image.fromarray(p).convert("RGB") for p in pixels[rows]]
        return datasets.Dataset.from_dict({"image": images, "label": bunch.target[rows].tolist()}, features=features)

    return datasets.DatasetDict({"train": part(slice(DIGITS_TRAIN)), "test": part(slice(DIGITS_TRAIN, None))})


def evaluation_split(dataset: Dataset) -> str:
    """The split that reports are made on: `test`, else a validation split. Raises HfmegaError when there is none."""
    for name in EVALUATION_SPLITS:
        if name in dataset.lengths:
            return name
    raise HfmegaError(
        f"the dataset {dataset.id} has only the split(s) {', '.join(dataset.lengths)}: name the images to report on."
    )


def rows_of(dataset: Dataset, spec: str) -> Rows:
    """The rows that a slice such as `train[:5000]` or `train[:10%]+test` names, in its order.

    Raises HfmegaError when it cannot be parsed, names an unknown split, or is empty.
    """
    starts = _starts(dataset.lengths)
    try:
        parts = ReadInstruction.from_spec(spec).to_absolute(dataset.lengths)
    except (ValueError, AssertionError, KeyError) as error:
        raise HfmegaError(
            f"{spec!r} is not a slice of {dataset.id} (splits: {', '.join(dataset.lengths)}): {_first_line(error)}"
        ) from error
    rows = np.concatenate([np.arange(p.from_, p.to, dtype=np.int64) + starts[p.splitname] for p in parts])
    if len(rows) == 0:
        raise HfmegaError(f"the split {spec!r} of {dataset.id} is empty.")
    return rows


def spell(dataset: Dataset, rows: Rows) -> str:
    """The slice that names these rows (sorted), as short as it gets: the inverse of `rows_of`."""
    words = []
    rows = np.unique(rows)
    for name, start in _starts(dataset.lengths).items():
        length = dataset.lengths[name]
        inside = rows[(rows >= start) & (rows < start + length)] - start
        for run in np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1):
            if len(run):
                first, last = (run[0] or ""), ("" if run[-1] == length - 1 else run[-1] + 1)
                words.append(name if len(run) == length else f"{name}[{first}:{last}]")
    return "+".join(words)


def _starts(lengths: dict[str, int]) -> dict[str, int]:
    ends = np.cumsum(list(lengths.values()))
    return {name: int(end) - length for (name, length), end in zip(lengths.items(), ends, strict=True)}
