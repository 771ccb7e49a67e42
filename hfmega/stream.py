"""Images that do not fit: those of memory lie in a file, those of a device stream to it by a DataLoader."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Final

import datasets
import psutil
import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import DataLoader

from hfmega import HfmegaError

ROOM: Final = 0.5  # of what is free of a memory is for the images of a split
READ_AHEAD: Final = 4  # batches


def room(shape: tuple[int, ...]) -> Tensor:
    """uint8 of a shape: in memory, or where it would fill that, in a file beside the datasets that nobody else sees.

    Raises HfmegaError when the disk has no room for it either.
    """
    size = prod(shape)
    if size <= ROOM * psutil.virtual_memory().available:
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
