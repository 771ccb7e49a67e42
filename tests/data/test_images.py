"""Images that fit no memory lie in a file, those that fit no device are streamed to it: the same results either way."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from hfmega.data import images as images_module
from hfmega.data.dataset import Dataset
from hfmega.data.images import READ_AHEAD, Split, as_in_training, even, fits, in_file, load_split, room, stratified
from hfmega.errors import HfmegaError
from hfmega.evaluation.evaluator import Evaluator
from hfmega.evaluation.network import Network
from hfmega.hub.pull import pull
from hfmega.merging.merge import merge
from hfmega.models import views
from hfmega.output import Output
from hfmega.search.recipe import Recipe
from hfmega.settings import DEFAULT, MergeSettings, SplitRequest
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.sources import mix

RECIPES = [Recipe((a, 1 - a), calibrate=calibrate) for a in (0.0, 0.4) for calibrate in (False, True)]


@contextmanager
def free_memory(count: int) -> Iterator[None]:
    """So many bytes are free, as far as hfmega knows."""
    with pytest.MonkeyPatch.context() as patch:
        memory = psutil.virtual_memory()._replace(available=count)
        patch.setattr(psutil, "virtual_memory", lambda: memory)
        yield


def new_evaluator(tiny_sources: tuple[Path, Path], calibration: Split) -> Evaluator:
    sources = [pull(str(folder)) for folder in tiny_sources]
    return Evaluator(Network(sources[0].spec, mix(sources, [load_weights(s) for s in sources]), calibration))


def load(tiny_sources: tuple[Path, Path], digits: Dataset, first: int, last: int) -> Split:
    return load_split(digits, np.arange(first, last), pull(str(tiny_sources[0])).spec, f"{first} to {last}")


def test_images_that_do_not_fit_memory_lie_in_a_file_without_a_name(
    tiny_sources: tuple[Path, Path], digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "new")
    inside = load(tiny_sources, digits, 0, 300)
    with free_memory(2 * inside.images.nbytes):
        assert not in_file(load(tiny_sources, digits, 0, 300).images)
    with free_memory(2 * inside.images.nbytes - 1):
        outside = load(tiny_sources, digits, 0, 300)
        ordered = stratified(outside)
    assert in_file(outside.images)
    assert in_file(ordered.images)
    assert list((tmp_path / "new").iterdir()) == []
    assert outside.fingerprint == inside.fingerprint
    assert torch.equal(outside.images, inside.images)
    assert torch.equal(outside.labels, inside.labels)
    assert torch.equal(ordered.images, stratified(inside).images)


def test_images_that_the_disk_does_not_hold_either_are_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9_000_000_000))
    with free_memory(8_000_000_000), pytest.raises(HfmegaError) as refused:
        room((500, 3, 4096, 4096))
    assert str(refused.value) == (
        "25.2 GB of images at 4096 x 4096 pixels fit neither memory nor the disk of the datasets cache: "
        "name fewer images."
    )


def test_streamed_images_give_the_scores_and_statistics_of_resident_ones(
    tiny_sources: tuple[Path, Path], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file on a CPU; on a device that they do not fit (`fits` says so) the way is the same."""
    loaders: list[DataLoader[torch.Tensor]] = []
    held_out, images = (load(tiny_sources, digits, *rows) for rows in ((0, 333), (400, 611)))
    resident = new_evaluator(tiny_sources, images)
    with free_memory(0):
        streamed = new_evaluator(tiny_sources, load(tiny_sources, digits, 400, 611))
        outside = load(tiny_sources, digits, 0, 333)

    class Watched(DataLoader[torch.Tensor]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            loaders.append(self)

    monkeypatch.setattr("hfmega.data.images.DataLoader", Watched)
    assert streamed.scores(RECIPES, outside) == resident.scores(RECIPES, held_out)
    assert len(loaders) == len(RECIPES) + sum(r.calibrate for r in RECIPES)  # for scores and for statistics
    assert {(loader.num_workers, loader.prefetch_factor) for loader in loaders} == {
        (1, READ_AHEAD) if sys.platform == "linux" else (0, None)
    }
    assert torch.equal(streamed.network.predict(RECIPES[3], outside), resident.network.predict(RECIPES[3], held_out))
    expected = resident.network.statistics(RECIPES[3])
    assert all(torch.equal(found, expected[name]) for name, found in streamed.network.statistics(RECIPES[3]).items())
    assert streamed.network.images_seen == resident.network.images_seen


@pytest.mark.parametrize(
    "method", ["mega", *(pytest.param(m, marks=pytest.mark.system) for m in ("learned", "fisher", "regmean"))]
)
def test_a_merge_whose_images_fit_no_memory_is_the_same_merge(
    method: str, tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    made = []
    for name, free in (("resident", psutil.virtual_memory().available), ("streamed", 0)):
        settings = MergeSettings(
            sources=tuple(map(str, tiny_sources)),
            output=tmp_path / name,
            dataset="digits",
            splits=SplitRequest(fitness="train[:600]", fitness_images=400, test="test[:100]"),
            search=DEFAULT.__class__(population=4, generations=2),
            method=method,
        )
        with free_memory(free):
            made.append(merge(settings, Output(muted=True)))
    assert made[0] is not None
    assert made[1] is not None
    assert made[1].recipe == made[0].recipe
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("resident", "streamed")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("count", [2, 127, 128, 129, 300, 1000])
@pytest.mark.parametrize("step", [1, 3])
def test_even_parts_are_those_of_tensor_split(count: int, step: int) -> None:
    rows = torch.arange(0, count, step)
    expected = rows.tensor_split(-(-len(rows) // 128))
    assert [list(part) for part in even(range(0, count, step), 128)] == [part.tolist() for part in expected]


def test_what_does_not_fit_a_gpu_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 8000))
    images = torch.zeros(4, 1, 10, 10, dtype=torch.uint8)
    assert fits(images, torch.device("cuda"))
    assert not fits(torch.cat([images, images]), torch.device("cuda"))


def test_the_evaluator_asks_what_fits(
    tiny_sources: tuple[Path, Path], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = load(tiny_sources, digits, 0, 50)
    evaluator = new_evaluator(tiny_sources, images)
    monkeypatch.setattr("hfmega.evaluation.network.fits", lambda *_: False)
    assert evaluator.network.resident(images)[0] is images.images


def test_images_as_in_training_are_shifted_copies_and_always_the_same(
    tiny_sources: tuple[Path, Path], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator of the process is not used; parts of any length cover every image."""
    plain = load(tiny_sources, digits, 0, 50)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    shown = as_in_training(plain)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again = as_in_training(plain)
    assert torch.equal(shown.images, again.images)
    assert shown.fingerprint == again.fingerprint != plain.fingerprint
    assert torch.equal(shown.labels, plain.labels)
    same = (shown.images == plain.images).flatten(1).all(dim=1)
    assert 0 < same.sum() < 25  # a ninth is not shifted, half of these not mirrored
    for module in (images_module, views):
        monkeypatch.setattr(module, "AT_ONCE", 49)
    assert len(as_in_training(plain).images) == 50
