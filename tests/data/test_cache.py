"""Decoded images of earlier runs: the same images with and without them, whatever lies there. 6 seconds."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from support.commands import run
from support.specs import spec

from hfmega.data import cache, images
from hfmega.data.dataset import Dataset
from hfmega.data.images import Split, in_file, load_split
from hfmega.data.pixels import ANIMATED, TRANSPARENT
from hfmega.errors import HfmegaError
from hfmega.folder import NO_CACHE
from hfmega.models.library import Spec


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where images are kept, small ones too."""
    monkeypatch.delenv(NO_CACHE, raising=False)
    monkeypatch.setattr(cache, "FOLDER", str(tmp_path / "kept"))
    monkeypatch.setattr(cache, "LEAST", 1)
    return tmp_path / "kept"


@contextmanager
def undecodable() -> Iterator[None]:
    """Whoever decodes an image fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "decode", lambda *_: pytest.fail("an image was decoded"))
        yield


def network(side: int = 8, **preprocessing: Any) -> Spec:
    cfg = {"input_size": [3, side, side], "mean": [0.0] * 3, "std": [1.0] * 3, "crop_pct": 1.0, **preprocessing}
    return spec(num_classes=2, label_names=["dog", "cat"], pretrained_cfg=cfg)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight images; the second is animated, the third and fourth are transparent."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    frames = [Image.fromarray(draw.randint(0, 255, (12, 12, 3), np.uint8)) for _ in range(8)]
    for number, frame in enumerate(frames):
        if number == 1:
            frame.save(folder / f"{number}.png", save_all=True, append_images=[frames[0]])
        else:
            (frame if number not in (2, 3) else frame.convert("L").convert("LA")).save(folder / f"{number}.png")
    for number in (2, 3):
        clear = Image.open(folder / f"{number}.png")
        clear.putalpha(100)
        clear.save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def dataset_of(files: list[Path]) -> Dataset:
    """A dataset whose images are named by their places, as `imagefolder` does."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": None, "path": str(path)} for path in files], "label": [0, 1] * (len(files) // 2)}
    part = datasets.Dataset.from_dict(rows, features=features)
    return Dataset("ann/pets", None, datasets.DatasetDict({"test": part}), "image", "label", ("cat", "dog"))


def load(files: list[Path], given: Spec | None = None, name: str = "test") -> Split:
    return load_split(dataset_of(files), np.arange(len(files)), given or network(), name)


def same(one: Split, other: Split) -> bool:
    equal = torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    return equal and vars(one) | {"images": 0, "labels": 0} == vars(other) | {"images": 0, "labels": 0}


def without_cache(files: list[Path]) -> Split:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NO_CACHE, "1")
        return load(files)


def kept_in(place: Path) -> list[Path]:
    return sorted(place.glob("*.safetensors"))


def test_a_second_run_decodes_nothing_and_has_the_same_split(files: list[Path], place: Path) -> None:
    expected = without_cache(files)
    assert not place.exists()
    assert expected.notes[-2:] == (
        f"1 of the 8 test images have {ANIMATED}.",
        f"2 of the 8 test images have {TRANSPARENT}.",
    )
    assert same(load(files), expected)
    with undecodable():
        again = load(files)
    assert same(again, expected)
    assert not in_file(again.images)
    assert load(files, name="search").notes[-1] == f"2 of the 8 search images have {TRANSPARENT}."
    assert len(kept_in(place)) == 1


def test_images_that_fit_no_memory_stay_in_the_kept_file(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, memory = load(files), psutil.virtual_memory()._replace(available=10)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with undecodable():
        found = load(files)
    assert in_file(found.images)
    assert same(found, expected)


@pytest.mark.parametrize("damage", ["half", "a bit", "text", "other images", "another shape", "remarks", "a folder"])
def test_a_file_that_is_damaged_or_of_other_images_is_written_anew(damage: str, files: list[Path], place: Path) -> None:
    expected = load(files)
    (path,) = kept_in(place)
    whole = path.read_bytes()
    with safe_open(path, "pt") as file:
        said, pixels = file.metadata(), file.get_tensor("images").clone()
    if damage == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "a bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "text":
        path.write_text("not a file of ours")
    elif damage == "other images":
        other = 255 - pixels
        save_file({"images": other}, path, said | {"fingerprint": "0" * 64, "sha256": cache.sha256_of(other)})
    elif damage == "another shape":
        save_file({"images": pixels[:4]}, path, said)
    elif damage == "remarks":
        save_file({"images": pixels}, path, said | {"remarks": json.dumps({"anything at all": 3})})
    else:
        path.unlink()
        path.mkdir()
    assert same(load(files), expected)
    if damage != "a folder":
        with undecodable():
            assert same(load(files), expected)


def test_each_preprocessing_label_and_version_has_a_file_of_its_own(
    files: list[Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in (network(), network(10), network(crop_pct=0.8), network(interpolation="nearest")):
        load(files, given)
    assert len(kept_in(place)) == 4
    load(files, network(mean=[0.5] * 3))  # the pixels are those of the first, but that is not worth a rule
    load(files[:6])
    assert len(kept_in(place)) == 6
    monkeypatch.setattr(cache, "version", lambda name: "0.0" if name == "pillow" else "1.0")
    load(files)
    assert len(kept_in(place)) == 7


def test_an_image_that_changed_since_is_decoded_whatever_its_dates_say(tmp_path: Path, files: list[Path]) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in files]
    before, times = load(copies), copies[0].stat()
    other = Image.fromarray(255 - np.asarray(Image.open(copies[0])))
    other.save(copies[0])
    os.utime(copies[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load(copies)
    assert torch.equal(after.images[1:], before.images[1:])
    assert not torch.equal(after.images[0], before.images[0])


def test_an_image_that_changes_between_two_readings_is_not_kept(
    tmp_path: Path, files: list[Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in files]
    kept = cache.kept

    def late(*arguments: Any) -> cache.Decoded:
        shutil.copy(copies[4], copies[0])
        return kept(*arguments)

    monkeypatch.setattr(cache, "kept", late)
    found = load(copies)
    assert kept_in(place) == []
    assert torch.equal(found.images[0], found.images[4])
    assert found.fingerprint == without_cache(copies).fingerprint


def test_what_was_not_used_for_longest_goes_first(
    files: list[Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (8, 6, 4):
        load(files[:count])
        for path in kept_in(place):
            os.utime(path, (path.stat().st_atime - 100, path.stat().st_mtime - 100))
    load(files)  # used again, so that the one of six images is the oldest
    of_six = min(kept_in(place), key=lambda path: path.stat().st_mtime)
    monkeypatch.setattr(cache, "LIMIT", sum(path.stat().st_size for path in kept_in(place)))
    load(files[:2])
    assert not of_six.exists()
    assert len(kept_in(place)) == 3
    assert not of_six.with_suffix(".lock").exists()


def test_nothing_is_kept_that_is_small_or_finds_no_room(
    files: list[Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = without_cache(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "LEAST", 1 << 20)
        assert same(load(files), expected)
    for limit, free in ((expected.images.nbytes - 1, 1 << 30), (1 << 30, 2 * expected.images.nbytes - 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "LIMIT", limit)
            patch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
            assert same(load(files), expected)
    assert kept_in(place) == []
    place.rmdir() if not list(place.iterdir()) else shutil.rmtree(place)
    place.write_text("a file where the folder would be")
    assert same(load(files), expected)


def test_of_two_at_once_one_decodes_and_both_have_the_images(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, decode, decoded, found = without_cache(files), images.decode, [], []

    def slowly(content: bytes, mode: str) -> Any:
        decoded.append(threading.get_ident())
        time.sleep(0.02)
        return decode(content, mode)

    monkeypatch.setattr(images, "decode", slowly)
    workers = [threading.Thread(target=lambda: found.append(load(files))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(decoded) == len(files)
    assert all(same(split, expected) for split in found)
    assert len(found) == 3


def test_a_folder_that_is_removed_meanwhile_is_made_again(
    files: list[Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = images.decode

    def removing(content: bytes, mode: str) -> Any:
        shutil.rmtree(place, ignore_errors=True)
        return decode(content, mode)

    monkeypatch.setattr(images, "decode", removing)
    assert same(load(files), without_cache(files))
    assert len(kept_in(place)) == 0  # the last decoding was without a cache, and removed it once more
    load(files)
    assert len(kept_in(place)) == 1


def test_an_image_that_cannot_be_read_is_refused_as_ever(tmp_path: Path, files: list[Path], place: Path) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in files]
    copies[5].write_bytes(copies[5].read_bytes()[:40])
    for _ in range(2):
        with pytest.raises(HfmegaError, match=r"^row 5 of test in ann/pets is not an image that can be read"):
            load(copies)
    assert kept_in(place) == []


def test_a_merge_is_the_same_with_and_without_kept_images(
    tiny_sources: tuple[Path, Path], tmp_path: Path, place: Path
) -> None:
    splits = "--fitness-split train[:200] --test-split test[:100]"
    few = f"--dataset digits {splits} --population 3 --generations 2".split()
    for name, flags in (("without", ["--no-cache"]), ("first", []), ("second", [])):
        command = ("merge", *tiny_sources, *few, "-o", tmp_path / name, *flags)
        done = run(*command, environment=dict(os.environ))
        assert done.code == 0, done.stderr
        assert len(kept_in(place)) == (0 if name == "without" else 4)
    made = [json.loads((tmp_path / name / "lineage.json").read_text()) for name in ("without", "first", "second")]
    for one in made:
        del one["date"], one["seconds"]
    assert made[0] == made[1] == made[2]
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("without", "first", "second")}
    assert len(weights) == 1
