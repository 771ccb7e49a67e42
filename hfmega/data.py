"""From a dataset name or folder to splits as tensors that are ready for a device."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import datasets
import numpy as np
import torch
from datasets.arrow_reader import ReadInstruction
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from hfmega import HfmegaError, hub
from hfmega.rng import permutation
from hfmega.steady import steady
from hfmega.stream import room

Rows = NDArray[np.int64]
DEFAULT_DATASET: Final = "uoft-cs/cifar10"
DIGITS_TRAIN: Final = 1297
LONGEST: Final = 200  # times the shorter side of an image
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


@dataclass(frozen=True)
class Split:
    """Images of one purpose. images: uint8 [n, channels, height, width]; labels: int64 [n], as the network counts."""

    name: str
    images: Tensor
    labels: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)


def open_dataset(
    name: str, image_column: str | None = None, label_column: str | None = None, token: str | None = None
) -> Dataset:
    """Open a Hub dataset (pinned to the commit it is at now), a local folder, or the embedded `digits`.

    Raises HfmegaError when it cannot be read, or when it has no image or no label column.
    """
    datasets.disable_progress_bars()
    revision = None
    if name == "digits":
        splits = digits()
    elif Path(name).is_dir():
        splits = _load(datasets.load_dataset, name, str(Path(name).resolve()))
        name = hub.name_of(Path(name))
    else:
        revision = hub.dataset_revision(name, token)
        splits = _load(datasets.load_dataset, name, name, revision=revision, token=token)
    features = next(iter(splits.values())).features
    image = _column(name, features, datasets.Image, "image", image_column)
    label = _column(name, features, datasets.ClassLabel, "label", label_column)
    classes = tuple(features[label].names) if isinstance(features[label], datasets.ClassLabel) else ()
    return Dataset(name, revision, splits, image, label, classes)


def describe(
    name: str, image_column: str | None = None, label_column: str | None = None, token: str | None = None
) -> tuple[Dataset, int]:
    """A dataset with the bytes that opening it would download. One that is not on this disk has row numbers only.

    Raises HfmegaError when it cannot be read.
    """
    if name == "digits" or Path(name).is_dir():
        return open_dataset(name, image_column, label_column, token), 0
    revision = hub.dataset_revision(name, token)
    builder = _load(datasets.load_dataset_builder, name, name, revision=revision, token=token)
    if Path(builder.cache_dir).is_dir() or not builder.info.splits:
        return open_dataset(name, image_column, label_column, token), 0
    lengths = {split: info.num_examples for split, info in builder.info.splits.items()}
    rows = {split: datasets.Dataset.from_dict({"row": range(count)}) for split, count in lengths.items()}
    described = Dataset(name, revision, datasets.DatasetDict(rows), "", "", ())
    return described, builder.info.download_size or 0


def _load(load: Callable[..., Any], name: str, path: str, **options: Any) -> Any:
    """load(path, **options), and what can go wrong with it in one sentence."""
    try:
        return steady(load, path, **options)
    except hub.CLIENT_ERRORS as error:
        raise hub.explained(error, f"dataset {name}") from error
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


def label_order(classes: Sequence[str], label_names: Sequence[str] | None) -> tuple[list[int] | None, str | None]:
    """How dataset labels become network outputs: (dataset label -> output, a note for the user), None = as they are.

    The same names in another order are mapped by name; different names are taken in their order, and the note says so.
    """
    if not classes or not label_names or list(classes) == list(label_names):
        return None, None
    if len(set(label_names)) == len(label_names) and set(classes) == set(label_names):
        return [list(label_names).index(name) for name in classes], None
    return None, (
        f"the network's labels ({', '.join(label_names[:3])}, ...) are not the dataset's "
        f"({', '.join(classes[:3])}, ...): labels are matched by their number."
    )


def load_split(dataset: Dataset, rows: Rows, config: dict[str, Any], name: str) -> Split:
    """Decode and preprocess rows once, as the network's timm config asks (size, crop, interpolation).

    Raises HfmegaError for an image that cannot be read, or a label that the network has no output for.
    """
    preprocessing = preprocessing_of(config)
    transform = create_transform(**preprocessing, is_training=False, use_prefetcher=True)
    mode = "L" if preprocessing["input_size"][0] == 1 else "RGB"
    order, _ = label_order(dataset.classes, config.get("label_names"))
    images, labels = room((len(rows), *preprocessing["input_size"])), torch.empty(len(rows), dtype=torch.int64)
    digest = hashlib.sha256()
    for place, (where, content, label) in enumerate(_read(dataset, rows)):
        output = order[label] if order and 0 <= label < len(order) else label
        if not 0 <= output < config["num_classes"]:
            raise HfmegaError(f"{where} has label {label}, but the network has {config['num_classes']} classes.")
        digest.update(content + label.to_bytes(8, "little", signed=True))
        images[place] = transform(_decode(content, mode, where))
        labels[place] = output
    return Split(name, images, labels, digest.hexdigest())


def stratified(split: Split) -> Split:
    """The same images in a fixed random order, of which every beginning has each class in its share."""
    labels = split.labels.numpy()
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows[permutation(len(rows), 0, "stratified", label)]] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = torch.from_numpy(np.lexsort((permutation(len(labels), 0, "stratified"), place)))
    images = torch.index_select(split.images, 0, order, out=room(tuple(split.images.shape)))
    return replace(split, images=images, labels=split.labels[order])


def preprocessing_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a timm config says of its images: input_size, interpolation, mean, std, crop.

    Raises HfmegaError when mean and standard deviation are not those of as many channels as the network takes.
    """
    pretrained_cfg = {**config.get("pretrained_cfg", {}), "architecture": config["architecture"]}
    found: dict[str, Any] = resolve_data_config({}, pretrained_cfg=pretrained_cfg)
    channels = found["input_size"][0]
    if channels not in (1, 3) or any(len(found[key]) != channels for key in ("mean", "std")):
        raise HfmegaError(f"{config['architecture']} takes {channels} channels, which its mean and std do not fit.")
    return found


def normalizer(config: dict[str, Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    """From images as `Split` holds them to a network's input: float32, scaled as its timm config says."""
    preprocessing = preprocessing_of(config)
    mean = torch.tensor(preprocessing["mean"], device=device).view(1, -1, 1, 1) * 255
    std = torch.tensor(preprocessing["std"], device=device).view(1, -1, 1, 1) * 255
    return lambda images: ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def _read(dataset: Dataset, rows: Rows) -> Iterator[tuple[str, bytes, int]]:
    """Where each row is, its encoded image and its label."""
    for name, start in _starts(dataset.lengths).items():
        inside = rows[(rows >= start) & (rows < start + dataset.lengths[name])] - start
        part = dataset.splits[name].select_columns([dataset.image_column, dataset.label_column])
        part = part.cast_column(dataset.image_column, datasets.Image(decode=False)).select(inside)
        for row, example in zip(inside, part, strict=True):
            image, label = example[dataset.image_column], example[dataset.label_column]
            where = f"row {row} of {name} in {dataset.id}"
            if not isinstance(label, int):
                raise HfmegaError(f"{where} has the label {label!r}, which is not a class number.")
            yield where, _content(image, where), label


def _content(image: dict[str, Any] | None, where: str) -> bytes:
    """The encoded image of a row: its own bytes, or those of the file that it names; never of a device or a pipe."""
    known = image or {}
    if known.get("bytes"):
        return bytes(known["bytes"])
    try:
        path = Path(known.get("path") or "")
        if path.is_file():
            return path.read_bytes()
    except (OSError, ValueError) as error:
        raise HfmegaError(f"{where} names an image file that cannot be read: {_first_line(error)}") from error
    raise HfmegaError(f"{where} has no image.")


def _decode(content: bytes, mode: str, where: str) -> Image.Image:
    """The pixels. What would take very many of them is refused by its header: PIL's warning is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content))
            if max(image.size) > LONGEST * min(image.size):  # its shorter side is what is scaled to the network's size
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            return image.convert(mode)
        except Exception as error:  # PIL's decoders raise whatever their parsing comes upon
            raise HfmegaError(f"{where} is not an image that can be read: {_first_line(error)}") from error
