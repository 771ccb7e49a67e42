"""Decoded images of earlier runs: files beside the datasets cache that anybody may throw away at any time.

A file is found by the sha256 of the encoded images and their labels, the preprocessing, and the versions of whatever
decodes and resizes: it cannot be of other images, wherever those came from, and holds what decoding would give.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Final

import datasets
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hfmega import phases
from hfmega.data.pixels import REMARKS
from hfmega.folder import NO_CACHE, TEMPORARY
from hfmega.models.library import Spec, packages

FORMAT: Final = 1  # another one where the same file is decoded to other pixels than before
FOLDER: Final = "hfmega-images"
LIMIT: Final = 10 << 30  # bytes of all files together
ROOM: Final = 0.5  # of what is free on the disk is for one more file
LEAST: Final = 1 << 18  # encoded bytes: fewer are decoded in no time
WAIT: Final = 600  # seconds for another process that decodes the same images; then both do it
IMAGES: Final = "images"


@dataclass(frozen=True)
class Decoded:
    """Images as a network takes them. pixels: uint8 [n, channels, height, width].

    fingerprint: the sha256 of the encoded images and their labels; remarks: how many images have which of `REMARKS`,
    in the order of the first of each.
    """

    pixels: Tensor
    fingerprint: str
    remarks: dict[str, int]


def enabled() -> bool:
    """Whether decoded images are kept."""
    return not os.environ.get(NO_CACHE)


def kept(fingerprint: str, count: int, spec: Spec, decode: Callable[[], Decoded]) -> Decoded:
    """The images of a fingerprint: those of an earlier run, in a mapped file, else decoded now and kept.

    A file that is damaged, or not of these images, is written anew; where no file can be written, none is.
    """
    path = Path(datasets.config.HF_DATASETS_CACHE) / FOLDER / f"{key(fingerprint, spec)}.safetensors"
    with alone(path):
        found = read(path, fingerprint, (count, *spec.preprocessing.input_size))
        if found is None:
            found = decode()
            if found.fingerprint == fingerprint:  # else an image has changed between the two readings
                write(path, found)
        else:
            phases.skipped(count)
    return found


def key(fingerprint: str, spec: Spec) -> str:
    """What decides the pixels: the encoded images, what a network makes of them, and whoever decodes and resizes."""
    decoders = {name: version(name) for name in sorted({"pillow", "numpy", "torch", "torchvision", *packages(spec)})}
    known = [FORMAT, fingerprint, spec.library, asdict(spec.preprocessing), decoders]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def alone(path: Path) -> AbstractContextManager[object]:
    """The right to decode the images of a file while no other process does, as far as the disk has locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix(".lock")).acquire(timeout=WAIT)
    except (OSError, NotImplementedError, Timeout):
        return nullcontext()


def read(path: Path, fingerprint: str, shape: Sequence[int]) -> Decoded | None:
    """The images of a file, mapped; None where it is not there, damaged, or of other images."""
    try:
        with safe_open(path, "pt") as file:
            if list(file.keys()) != [IMAGES] or file.get_slice(IMAGES).get_shape() != list(shape):
                return None
            said = file.metadata() or {}
        every = torch.from_file(str(path), shared=True, size=path.stat().st_size, dtype=torch.uint8)
        pixels, remarks = every[len(every) - prod(shape) :].view(*shape), json.loads(said["remarks"])
        sound = said["fingerprint"] == fingerprint and said["sha256"] == sha256_of(pixels)
        if not sound or not remarks.keys() <= set(REMARKS):
            return None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError):
        return None
    with suppress(OSError):
        os.utime(path)  # it was used now
    return Decoded(pixels, fingerprint, remarks)


def sha256_of(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.numpy().reshape(-1).data).hexdigest()


def write(path: Path, found: Decoded) -> None:
    """Keep images for later runs, whole or not at all, where there is room for them."""
    said = {"fingerprint": found.fingerprint, "sha256": sha256_of(found.pixels), "remarks": json.dumps(found.remarks)}
    with suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it since
        if found.pixels.nbytes > min(LIMIT, ROOM * shutil.disk_usage(path.parent).free):
            return
        with tempfile.TemporaryDirectory(dir=path.parent, suffix=TEMPORARY) as folder:
            whole = Path(folder) / path.name
            save_file({IMAGES: found.pixels.contiguous()}, whole, said)
            whole.replace(path)
        make_room(path.parent)


def make_room(folder: Path) -> None:
    """Throw away the files that were not used for longest, until those that are left are within the limit."""
    files = []
    for path in folder.rglob("*.safetensors"):  # those of runs that were killed while they wrote too
        with suppress(OSError):  # another process was faster
            about = path.stat()
            files.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= LIMIT:
            return
        with suppress(OSError):
            path.unlink()
            path.with_suffix(".lock").unlink(missing_ok=True)
        total -= size
