"""A dataset by its name or folder, and slices of it as row numbers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import datasets
import numpy as np
from datasets.arrow_reader import ReadInstruction
from numpy.typing import NDArray
from PIL import Image

from hfmega.data.columns import find_columns, hidden, is_image
from hfmega.errors import HfmegaError
from hfmega.folder import like_a_path
from hfmega.hub.client import dataset_revision
from hfmega.hub.problems import CLIENT_ERRORS, explained
from hfmega.hub.retry import steady
from hfmega.weights.checkpoint import name_of

Rows = NDArray[np.int64]
DEFAULT_DATASET: Final = "uoft-cs/cifar10"
DIGITS_TRAIN: Final = 1297
EVALUATION_SPLITS: Final = ("test", "validation", "val", "valid")
CONFIGS: Final = re.compile(r"pick one among the available configs: \[(.+?)\]")  # said by `datasets`


@dataclass(frozen=True)
class Dataset:
    """A labelled image dataset. `id` is what a lineage records, `revision` the commit of a Hub dataset.

    A row number counts through all splits in their order, so that sets of rows of several splits are plain arrays.
    classes: the names of its labels, or the words that its label column holds, sorted; by_number: whether labels are
    outputs of the network whatever their names, as the user insists.
    """

    id: str
    revision: str | None
    splits: datasets.DatasetDict
    image_column: str
    label_column: str
    classes: tuple[str, ...]
    by_number: bool = False

    @property
    def lengths(self) -> dict[str, int]:
        """Split name to number of images."""
        return {name: len(split) for name, split in self.splits.items()}


def open_dataset(
    name: str, image_column: str | None = None, label_column: str | None = None, by_number: bool = False
) -> Dataset:
    """Open a Hub dataset (pinned to the commit it is at now), a local folder, or the embedded `digits`.

    name: of a dataset with several configurations `ID:CONFIG` or `FOLDER:CONFIG`; by_number: as `Dataset` has it.
    Raises HfmegaError when it cannot be read, or when it has no image or no label column.
    """
    datasets.disable_progress_bars()
    place, config = split_config(name)
    revision = None
    if name == "digits":
        splits = digits()
    elif Path(place).is_dir():
        splits = _load(datasets.load_dataset, name, str(Path(place).resolve()), name=config)
        name = ":".join([name_of(Path(place)), *([config] if config else [])])
    else:
        revision = dataset_revision(_on_hub(place))
        splits = _load(datasets.load_dataset, name, place, name=config, revision=revision)
    found = find_columns(name, splits, image_column, label_column)
    if not is_image(next(iter(splits.values())).features[found.image]):
        splits = _load(splits.cast_column, name, found.image, feature=datasets.Image())
    return Dataset(name, revision, splits, found.image, found.label, found.classes, by_number)


def split_config(name: str) -> tuple[str, str | None]:
    """`ID:CONFIG` -> the dataset and its configuration, None where none is named."""
    place, colon, config = name.rpartition(":")
    if not colon or len(place) < 2 or Path(name).is_dir():  # one letter is a drive
        return name, None
    return place, config


def _on_hub(place: str) -> str:
    """A dataset that is no folder here. Raises HfmegaError for what is written like a folder."""
    if like_a_path(place):
        raise HfmegaError(f"there is no folder {place}, and no dataset on the Hub is called so.")
    return place


def describe(
    name: str, image_column: str | None = None, label_column: str | None = None, by_number: bool = False
) -> tuple[Dataset, int]:
    """A dataset with the bytes that opening it would download. One that is not on this disk has row numbers only.

    Raises HfmegaError when it cannot be read.
    """
    place, config = split_config(name)
    if name == "digits" or Path(place).is_dir():
        return open_dataset(name, image_column, label_column, by_number), 0
    revision = dataset_revision(_on_hub(place))
    builder = _load(datasets.load_dataset_builder, name, place, name=config, revision=revision)
    if Path(builder.cache_dir).is_dir() or not builder.info.splits:
        return open_dataset(name, image_column, label_column, by_number), 0
    lengths = {split: info.num_examples for split, info in builder.info.splits.items()}
    rows = {split: datasets.Dataset.from_dict({"row": range(count)}) for split, count in lengths.items()}
    described = Dataset(name, revision, datasets.DatasetDict(rows), "", "", ())
    return described, builder.info.download_size or 0


def _load(load: Callable[..., Any], dataset: str, path: str, **options: Any) -> Any:
    """load(path, **options), and what can go wrong with it in one sentence."""
    try:
        return steady(load, path, **options)
    except CLIENT_ERRORS as error:
        raise explained(error, f"dataset {dataset}") from error
    except Exception as error:  # it parses cards, tables and archives of anyone, and raises what they come upon
        configs = CONFIGS.search(str(error))
        if configs and options.get("name") is None:
            names = re.findall(r"'([^']+)'", configs[1])
            raise HfmegaError(
                f"the dataset {dataset} has several configurations ({', '.join(names)}): "
                f"name one with --dataset {dataset}:{names[0]}."
            ) from error
        raise HfmegaError(f"the dataset {dataset} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 handwritten digits, real 8x8 images that come inside its wheel: 1,297 train, 500 test."""
    table = digits_table()
    pixels, labels = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), table[:, -1].astype(int)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(d) for d in range(10)])}
    )

    def part(rows: slice) -> datasets.Dataset:
        images = [Image.fromarray(p).convert("RGB") for p in pixels[rows]]
        return datasets.Dataset.from_dict({"image": images, "label": labels[rows].tolist()}, features=features)

    return datasets.DatasetDict({"train": part(slice(DIGITS_TRAIN)), "test": part(slice(DIGITS_TRAIN, None))})


def digits_table() -> NDArray[np.float64]:
    """The pixels, 0 to 16, and the label of each image: float64 [1797, 65], from the file inside scikit-learn.

    Importing scikit-learn for it would cost a second of CPU. Raises HfmegaError where it is not installed.
    """
    found = find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if path is None or not path.is_file():
        raise HfmegaError("the dataset digits comes with scikit-learn: pip install 'hfmega[digits]'.")
    return np.loadtxt(path, delimiter=",")


def evaluation_split(dataset: Dataset, ask: str = "name the images to report on with --split") -> str:
    """The split that reports are made on: `test`, else a validation split whose labels are not hidden.

    Raises HfmegaError when there is none; ask: what the user may do then.
    """
    for name in EVALUATION_SPLITS:
        if name in dataset.lengths and not hidden(dataset.splits[name], dataset.label_column):
            return name
    unlabelled = [name for name in EVALUATION_SPLITS if name in dataset.lengths]
    why = f" (the labels of {' and '.join(unlabelled)} are hidden)" if unlabelled else ""
    raise HfmegaError(f"the dataset {dataset.id} has only the split(s) {', '.join(dataset.lengths)}{why}: {ask}.")


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
