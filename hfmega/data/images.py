"""Rows of a dataset as tensors: decoded once, in memory or, where they do not fit, in a file that is streamed."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Final

import datasets
import numpy as np
import psutil
import torch
import torch.utils.data
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from hfmega import phases
from hfmega.data import cache
from hfmega.data.cache import Decoded
from hfmega.data.dataset import Dataset, Rows, _first_line, _starts
from hfmega.data.labels import LabelMap, match_labels
from hfmega.data.pixels import decode
from hfmega.errors import HfmegaError
from hfmega.models.library import Spec, transform
from hfmega.models.views import AT_ONCE, draw
from hfmega.rng import permutation

UNLABELLED: Final = ("calibration", "distill")  # purposes
READ_AT_ONCE: Final = 100  # encoded images
HIDDEN: Final = -1  # the label of images whose label is not published


@dataclass(frozen=True)
class Split:
    """Images of one purpose. images: uint8 [n, channels, height, width]; labels: int64 [n], as the network counts.

    Instead of labels there may be the probabilities of a teacher, float32 [n, classes].
    names: what each output is called, by the dataset where it has a name; notes: what the user should know of them.
    """

    name: str
    images: Tensor
    labels: Tensor
    fingerprint: str
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def load_split(dataset: Dataset, rows: Rows, spec: Spec, name: str) -> Split:
    """Decode and preprocess rows once, as the network takes them (size, crop, interpolation).

    name: the purpose; of UNLABELLED ones no label is used, so that it may be hidden, or of another class: it is 0 then.
    Raises HfmegaError for an image that cannot be read, or a label that the network has no output for.
    """
    known = match_labels(dataset.classes, spec.labels, spec.classes, f"the dataset {dataset.id}", dataset.by_number)
    labels = torch.from_numpy(_outputs(dataset, rows, known, spec.classes, name in UNLABELLED))
    found = _decoded(dataset, rows, spec) if not cache.enabled() else _kept(dataset, rows, spec)
    notes = [f"{count:,} of the {len(rows):,} {name} images have {remark}." for remark, count in found.remarks.items()]
    notes = [*([known.note] if known.note else []), *notes]
    return Split(name, found.pixels, labels, found.fingerprint, known.names, tuple(notes))


def _decoded(dataset: Dataset, rows: Rows, spec: Spec) -> Decoded:
    """The images of some rows. Raises HfmegaError for one that cannot be read."""
    pixels, mode = transform(spec), spec.preprocessing.mode
    images, digest, seen = room((len(rows), *spec.preprocessing.input_size)), hashlib.sha256(), Counter[str]()
    for place, (where, content, label) in enumerate(_read(dataset, rows)):
        digest.update(_hashed(content, label))
        image, remarks = _decode(content, mode, where)
        images[place] = pixels(image)
        seen.update(remarks)
        phases.passed(1)
    return Decoded(images, digest.hexdigest(), dict(seen))


def _kept(dataset: Dataset, rows: Rows, spec: Spec) -> Decoded:
    """The images of some rows, as an earlier run decoded them, if one did and they are worth a file."""
    digest, size = hashlib.sha256(), 0
    for _, content, label in _read(dataset, rows):
        digest.update(_hashed(content, label))
        size += len(content)
    if size < cache.LEAST:
        return _decoded(dataset, rows, spec)
    found = cache.kept(digest.hexdigest(), len(rows), spec, lambda: _decoded(dataset, rows, spec))
    if in_file(found.pixels) and fits_memory(found.pixels.nbytes):
        return replace(found, pixels=found.pixels.clone())
    return found


def _hashed(content: bytes, label: int) -> bytes:
    """What the fingerprint of a split takes of an image."""
    return content + label.to_bytes(8, "little", signed=True)


def load_splits(
    dataset: Dataset, rows: Mapping[str, Rows], spec: Spec, augmented: bool, ordered: str | None = None
) -> dict[str, Split]:
    """Load the images of each purpose. augmented: those of the calibration as the sources' training showed them.

    ordered: the purpose whose images are `stratified`, before others are loaded: for a moment they take twice the room.
    """
    splits = dict[str, Split]()
    for purpose, chosen in rows.items():
        split = load_split(dataset, chosen, spec, purpose)
        split = as_in_training(split) if augmented and purpose == "calibration" else split
        splits[purpose] = stratified(split) if purpose == ordered else split
    return splits


def as_in_training(split: Split) -> Split:
    """The images mirrored and shifted at random, as `train --augment` shows them; always the same.

    A network's BatchNorm statistics belong to the images that its training showed it: re-estimated on plain ones they
    cost a ResNet-8 1.8 points (`make families`: 0.7861 against 0.8037 of 10,000 test images, 5,000 calibration images).
    """
    images = room(tuple(split.images.shape))
    parts = draw(images.shape, "flips and crops", "calibration").parts(split.images)
    for start, part in zip(range(0, len(images), AT_ONCE), parts, strict=True):
        images[start : start + AT_ONCE] = part
    return replace(split, images=images, fingerprint=f"{split.fingerprint}, mirrored and shifted")


def stratified(split: Split) -> Split:
    """The same images in a fixed random order, of which every beginning has each class in its share."""
    labels = (split.labels.argmax(1) if split.labels.dim() == 2 else split.labels).numpy()
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows[permutation(len(rows), 0, "stratified", label)]] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = torch.from_numpy(np.lexsort((permutation(len(labels), 0, "stratified"), place)))
    images = torch.index_select(split.images, 0, order, out=room(tuple(split.images.shape)))
    return replace(split, images=images, labels=split.labels[order])


def _outputs(dataset: Dataset, rows: Rows, known: LabelMap, count: int, unused: bool) -> NDArray[np.int64]:
    """The network's output for each row, read before any image is; unused: whether it may be missing.

    Raises HfmegaError for a label without one.
    """
    found = np.empty(len(rows), np.int64)
    for place, (where, label) in enumerate(_labels(dataset, rows)):
        output = known.output(label)
        if output is None and not unused:
            raise HfmegaError(f"{where} {_unknown(dataset, label, count)}")
        found[place] = output or 0
    return found


def _unknown(dataset: Dataset, label: int, count: int) -> str:
    """What is wrong with a label that the network has no output for."""
    if label == HIDDEN:
        return (
            f"has label {HIDDEN}, but the network has {count} classes: {HIDDEN} hides a label, so name another split."
        )
    if 0 <= label < len(dataset.classes) and not dataset.by_number:
        return (
            f"is of the class {dataset.classes[label]!r}, which the network does not have: name images of other "
            "classes, or match labels by their number with --labels-by-number."
        )
    return f"has label {label}, but the network has {count} classes."


def _labels(dataset: Dataset, rows: Rows) -> Iterator[tuple[str, int]]:
    """Where each row is, and its label."""
    words = {name: number for number, name in enumerate(dataset.classes)}
    for name, inside in _parts(dataset, rows):
        column = dataset.splits[name].select_columns([dataset.label_column]).with_format("arrow").select(inside)
        for row, label in zip(inside, column[:][dataset.label_column].to_pylist(), strict=True):
            where = f"row {row} of {name} in {dataset.id}"
            number = words.get(label) if isinstance(label, str) else label
            if isinstance(number, float) and number.is_integer():
                number = int(number)
            if not isinstance(number, int):
                raise HfmegaError(f"{where} has the label {label!r}, which is not a class number.")
            yield where, number


def _read(dataset: Dataset, rows: Rows) -> Iterator[tuple[str, bytes, int]]:
    """Where each row is, its encoded image and its label."""
    labels = _labels(dataset, rows)
    for name, inside in _parts(dataset, rows):
        part = dataset.splits[name].select_columns([dataset.image_column])
        part = part.cast_column(dataset.image_column, datasets.Image(decode=False)).select(inside)
        for batch in part.with_format("arrow").iter(READ_AT_ONCE):  # row by row takes ten times as long
            for image, (where, label) in zip(batch[dataset.image_column].to_pylist(), labels, strict=False):
                yield where, _content(image, where), label


def _parts(dataset: Dataset, rows: Rows) -> Iterator[tuple[str, Rows]]:
    """Each split with its own numbers of some rows."""
    for name, start in _starts(dataset.lengths).items():
        inside = rows[(rows >= start) & (rows < start + dataset.lengths[name])] - start
        if len(inside):
            yield name, inside


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


def _decode(content: bytes, mode: str, where: str) -> tuple[Image.Image, tuple[str, ...]]:
    """The pixels, and what the user should know of them; an image that cannot be read is one sentence."""
    try:
        return decode(content, mode)
    except Exception as error:  # PIL's decoders raise whatever their parsing comes upon
        raise HfmegaError(f"{where} is not an image that can be read: {_first_line(error)}") from error


ROOM: Final = 0.5  # of what is free of a memory is for the images of a split
READ_AHEAD: Final = 4  # batches


def room(shape: tuple[int, ...]) -> Tensor:
    """uint8 of a shape: in memory, or where it would fill that, in a file beside the datasets that nobody else sees.

    Raises HfmegaError when the disk has no room for it either.
    """
    size = prod(shape)
    if fits_memory(size):
        return torch.empty(shape, dtype=torch.uint8)
    beside = Path(datasets.config.HF_DATASETS_CACHE)
    beside.mkdir(parents=True, exist_ok=True)
    if size > shutil.disk_usage(beside).free:
        raise HfmegaError(
            f"{size / 1e9:,.1f} GB of images at {shape[2]} x {shape[3]} pixels fit neither memory nor the disk "
            "of the datasets cache: name fewer images."
        )
    with tempfile.NamedTemporaryFile(dir=beside, prefix="hfmega-") as file:  # its name goes at once, it with the tensor
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that fills up later would be a signal, not an error
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8).view(shape)


def fits_memory(size: int) -> bool:
    """Whether so many bytes of images are kept in memory."""
    return size <= ROOM * psutil.virtual_memory().available


def in_file(images: Tensor) -> bool:
    """Whether images lie in a file."""
    return images.untyped_storage().filename is not None


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether a device takes all images of a split at once."""
    if device.type != "cuda":
        return not in_file(images)
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= ROOM * free


def stream(images: Tensor, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
    """The parts of images that fit no device, one after another on it; the next ones are read meanwhile."""
    forks = sys.platform == "linux"
    loader: DataLoader[Tensor] = DataLoader(
        Parts(images, parts),
        batch_size=None,
        num_workers=int(forks),
        prefetch_factor=READ_AHEAD if forks else None,
        multiprocessing_context="fork" if forks else None,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        yield batch.to(device, non_blocking=True)


class Parts(torch.utils.data.Dataset[Tensor]):
    """Ranges of images. images: uint8 [n, channels, height, width]."""

    def __init__(self, images: Tensor, parts: Sequence[range]) -> None:
        self._images, self._parts = images, parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, place: int) -> Tensor:
        return cut(self._images, self._parts[place]).clone()  # a worker that sends a view of a mapped file hangs


def cut(images: Tensor, rows: range) -> Tensor:
    """Some images, as a view."""
    return images[rows.start : rows.stop : rows.step]


def batches(rows: range, size: int) -> list[range]:
    """As many as `size` each, the last one what is left."""
    return [rows[k : k + size] for k in range(0, len(rows), size)]


def even(rows: range, most: int) -> list[range]:
    """As few as take at most `most` each, of lengths that differ by one at most, the longer ones first."""
    count = -(-len(rows) // most)
    least, longer = divmod(len(rows), count)
    ends = [least * k + min(k, longer) for k in range(count + 1)]
    return [rows[a:b] for a, b in pairwise(ends)]
