"""Images that several processes share: whole batches change hands, and nothing else changes (2 s).

The processes are threads here, each with a network of its own; real ones are in system/test_processes.py.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hfmega.data.dataset import Dataset
from hfmega.data.images import Split, load_split, stratified
from hfmega.evaluation import evaluator as room
from hfmega.evaluation.evaluator import Evaluator
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import shared_out
from hfmega.evaluation.race import Race
from hfmega.evaluation.statistics import Statistics, average
from hfmega.hub.pull import pull
from hfmega.search.recipe import Recipe, source_alone, uniform_average
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.sources import mix

CALIBRATION: Final = 300  # three batches
WAIT: Final = 60.0  # seconds


@pytest.mark.parametrize("batches", [[3], [1, 1], [7, 0, 5], [94] * 5, [2, 11, 1, 1, 4]])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 64])
def test_every_batch_has_one_process_and_none_has_more_than_its_share(batches: list[int], processes: int) -> None:
    shared = shared_out(batches, processes)
    assert len(shared) == processes
    lengths = [sum(item.stop - item.start for item in items) for items in shared]
    assert max(lengths) - min(lengths) <= 1
    row = [(item.recipe, batch) for items in shared for item in items for batch in range(item.start, item.stop)]
    assert row == [(recipe, batch) for recipe, count in enumerate(batches) for batch in range(count)]


def test_one_recipe_is_cut_and_recipes_enough_stay_whole() -> None:
    assert [(i.start, i.stop) for items in shared_out([10], 4) for i in items] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert [[i.recipe for i in items] for items in shared_out([8] * 6, 3)] == [[0, 1], [2, 3], [4, 5]]


def test_an_average_over_batches_is_by_images_and_rounded_once() -> None:
    moments = torch.tensor([[1.0, 0.1], [4.0, 0.2]])
    found = average(moments, [range(20), range(10)])
    assert found.dtype == torch.float32
    assert found.tolist() == [2.0, pytest.approx((20 * 0.1 + 10 * 0.2) / 30)]
    assert torch.equal(average(moments[:1], [range(7)]), moments[0])


@pytest.fixture(scope="module")
def images(tiny_sources: tuple[Path, Path], digits: Dataset) -> Split:
    return stratified(load_split(digits, np.arange(750), pull(str(tiny_sources[0])).spec, "fitness"))


@pytest.fixture(scope="module")
def network(tiny_sources: tuple[Path, Path], digits: Dataset) -> Callable[[], Network]:
    sources = [pull(str(folder)) for folder in tiny_sources]
    calibration = load_split(digits, np.arange(900, 900 + CALIBRATION), sources[0].spec, "calibration")
    return lambda: Network(sources[0].spec, mix(sources, [load_weights(s) for s in sources]), calibration)


def together(count: int, new: Callable[[], Network], work: Callable[[Evaluator], Any], patch: Any) -> list[Any]:
    """What work gives in each of so many processes."""
    shared, meet = [None] * count, threading.Barrier(count, timeout=WAIT)
    found: list[Any] = [None] * count

    def gather(rank: int, mine: list[Any]) -> list[Any]:
        shared[rank] = mine[0]
        meet.wait()
        everyone = list(shared)
        meet.wait()
        return everyone

    def run(rank: int) -> None:
        one.rank = rank
        evaluator = Evaluator(new())
        evaluator.state = SimpleNamespace(process_index=rank, num_processes=count)  # type: ignore[assignment]
        found[rank] = (work(evaluator), evaluator.network.images_seen)

    one = threading.local()
    with patch.context() as change:
        change.setattr(room, "gather_object", lambda mine: gather(one.rank, mine))
        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    return found


def everything(images: Split) -> Callable[[Evaluator], dict[str, list[bytes]]]:
    """Scores, a race, answers, an ensemble and re-estimated statistics, as bytes."""
    population = [Recipe((share, 1 - share), calibrate=share > 0.4) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]

    def work(evaluator: Evaluator) -> dict[str, list[bytes]]:
        scores = evaluator.scores([uniform_average(2, calibrate=True)], images)
        (raced,) = evaluator.race([population], images, Race())
        answers = evaluator.answers([source_alone(0, 2), source_alone(1, 2, calibrate=True)], images)
        mean: Tensor = evaluator.together([source_alone(k, 2, calibrate=True) for k in (0, 1)], images)
        return {
            "scores": [np.float64(s.loss).tobytes() + bytes([s.exact]) for s in (*scores, *raced)],
            "answers": [answer.correct.tobytes() + answer.loss.tobytes() for answer in answers],
            "ensemble": [mean.numpy().tobytes()],
        }

    return work


def test_any_number_of_processes_finds_the_same_bits_and_passes_as_many_images(
    network: Callable[[], Network], images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more processes than recipes, and both with and without re-estimated statistics."""
    (alone,) = together(1, network, everything(images), monkeypatch)
    for count in (2, 3, 4):
        assert together(count, network, everything(images), monkeypatch) == [alone] * count


def test_processes_share_one_recipe_evenly(
    network: Callable[[], Network], images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """750 images are 24 batches; 300 calibration images are 3."""
    passed: list[int] = []

    def work(evaluator: Evaluator) -> None:
        forward = evaluator.network._forward

        def counted(x: Tensor, *model: Any) -> Tensor:
            passed.append(len(x))
            return forward(x, *model)

        evaluator.network._forward = counted  # type: ignore[method-assign]
        evaluator.scores([uniform_average(2, calibrate=True)], images)
        shares[evaluator.state.process_index] = evaluator.network.images_seen

    shares = dict[int, int]()
    together(3, network, work, monkeypatch)
    assert sorted(passed) == sorted([100] * 3 + [32] * 23 + [14])
    assert set(shares.values()) == {750 + CALIBRATION}


def test_a_batch_says_the_same_after_one_that_overflowed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)).eval()
    statistics, images = Statistics(model), torch.rand(5, 3, 6, 6)
    found = []
    with torch.no_grad(), statistics.of_the_batch():
        for batch in (images, images * torch.inf, images):
            statistics.clear()
            model(batch)
            found.append(statistics.moments())
    assert torch.equal(found[0], found[2])
    assert not found[1].isfinite().any()
    assert not any(module.training for module in model)
