"""Ways of passing images through networks, in turn: how the evaluator does it, and what it leaves off."""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from hfmega.errors import HfmegaError
from hfmega.evaluation.evaluator import Evaluator
from hfmega.evaluation.precision import dtype_of
from hfmega.merging.prepare import Job
from hfmega.search.recipe import uniform_average

HFMEGA: Final = "as hfmega does it"
SIZES: Final = {"cpu": (8, 16, 64, 128, 512), "cuda": (128, 256, 512, 2048, 4096)}  # of batches, besides its own
TOGETHER: Final = 4  # individuals in one launch
ROUNDS: Final = 5


def rates(job: Job) -> dict[str, Any]:
    """Images per second of each way (median of rounds in which all take turns), and seconds of its first pass."""
    ways = dict(ways_of(job))
    images, first, seconds = len(job.search), {}, dict[str, list[float]]()
    with torch.inference_mode():
        for name, (run, _) in ways.items():
            first[name] = timed(run)
        for _ in range(ROUNDS):
            for name, (run, _) in ways.items():
                seconds.setdefault(name, []).append(timed(run))
    return {
        name: {"images_per_second": individuals * images / median(seconds[name]), "first": first[name]}
        for name, (_, individuals) in ways.items()
    }


def ways_of(job: Job) -> Iterator[tuple[str, tuple[Callable[[], object], int]]]:
    """What passes all search images through so many individuals, by name."""
    evaluator = job.evaluator
    images, size = evaluator.network.resident(job.search)[0], evaluator.network.batch_size
    model = evaluator.network.prepared(uniform_average(len(job.checkpoints), evaluator.network.can_calibrate))
    network = twin(evaluator, model)

    def passing(through: Callable[[Tensor], Tensor], batch: int = size) -> Callable[[], object]:
        return lambda: [through(evaluator.network.normalized(x)) for x in images.split(batch)]

    yield HFMEGA, (passing(network), 1)
    if network is not model:
        yield "BatchNorm not folded", (passing(model), 1)
    for other in SIZES.get(images.device.type, SIZES["cpu"]):
        yield f"batches of {other} instead of {size}", (passing(network, other), 1)
    yield "channels first", (passing(lambda x: network(x.contiguous())), 1)
    yield "torch.compile", (passing(torch.compile(network)), 1)
    for precision in ("bfloat16", "float16"):
        try:
            dtype = dtype_of(precision, images.device)  # type: ignore[arg-type]
        except HfmegaError:
            continue
        yield precision, (passing(cast(network, images.device.type, dtype)), 1)
    yield f"{TOGETHER} individuals in a launch (vmap)", (passing(stacked(network)), TOGETHER)


def twin(evaluator: Evaluator, model: nn.Module) -> nn.Module:
    """The network that scores come from."""
    if not evaluator.network.folded:
        return model
    evaluator.network.folded.update()
    return evaluator.network.folded.network


def cast(network: nn.Module, device: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def through(images: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            found: Tensor = network(images)
        return found

    return through


def stacked(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Copies of a network as one function of images."""
    skeleton = deepcopy(network).to("meta")
    weights = stack_module_state([network] * TOGETHER)  # type: ignore[arg-type]

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        found: Tensor = functional_call(skeleton, (parameters, buffers), (images,))
        return found

    return lambda images: vmap(one, in_dims=(0, 0, None))(*weights, images)


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
