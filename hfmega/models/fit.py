"""One training loop on images that lie in memory: for sources, for branches, for the controls of a merge."""

import io
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from statistics import median
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hfmega import phases
from hfmega.errors import HfmegaError
from hfmega.folder import write_atomically
from hfmega.models.views import Drawn, Views, draw
from hfmega.output import Output
from hfmega.rng import permutation

ADAM_EPSILON: Final = 1e-7  # Keras' default, which the paper used
Targets = Tensor | Callable[[int], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: Adam, on batches in an order of their own in each epoch.

    decay: `cosine` lowers the rate from `learning_rate` to zero over all steps; `constant` is the paper's.
    augment: random horizontal flips, or flips and crops.
    compiled: whether torch.compile is used; None: if a probe shows a gain.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    augment: Views = "none"
    bf16: bool = False
    compiled: bool | None = None

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one of all steps."""
        if self.decay == "constant":
            return self.learning_rate
        return 0.5 * self.learning_rate * (1 + math.cos(math.pi * step / steps))

    def shows(self, images: Tensor, epoch: int) -> Drawn:
        """How an epoch shows each image. images: uint8 [n, channels, height, width]."""
        return draw(images.shape, self.augment, self.seed, "epoch", epoch)


def fit(
    model: nn.Module,
    images: Tensor,
    targets: Targets,
    normalize: Callable[[Tensor], Tensor],
    schedule: Schedule,
    state: Path,
    output: Output,
) -> None:
    """Minimise cross-entropy. Every epoch draws its order, its crops and its dropout from (seed, epoch).

    images: uint8 [n, channels, height, width]; targets: labels, int64 [n], or probabilities, float32 [n, classes], or
    those of an epoch, whose images are shown as `Schedule.shows` says. normalize: from images to the network's input;
    state: the file that keeps each epoch.
    Raises HfmegaError when the loss is no longer finite.
    """
    device = next(model.parameters()).device
    optimizer = adam(model, schedule)
    first = resume(model, optimizer, state, device)
    if first:
        output.say(f"resuming after epoch {first} of {schedule.epochs}")
    model = model.to(memory_format=torch.channels_last).train()
    pixels = images.to(device)
    batches = -(-len(images) // schedule.batch_size)
    if pays_to_compile(model, normalize(pixels[: schedule.batch_size]), schedule, output):
        model.compile()
    phases.skipped(phases.TRAINING * first * len(images))
    for epoch in range(first, schedule.epochs):
        phases.step(f"epoch {epoch + 1}/{schedule.epochs}")
        total, shows = torch.zeros((), device=device), schedule.shows(images, epoch)
        wanted = (targets(epoch) if callable(targets) else targets).to(device)
        with torch.random.fork_rng():
            torch.manual_seed(schedule.seed * 100_003 + epoch)
            for number, rows in enumerate(epoch_batches(len(images), schedule, epoch), epoch * batches):
                set_rate(optimizer, schedule.rate(number, schedule.epochs * batches))
                batch = normalize(shows.shown(pixels, rows))
                loss = step(model, optimizer, batch, wanted[rows], schedule.bf16)
                total += loss.detach() * len(rows)
                phases.passed(phases.TRAINING * len(rows))
        save_state(model, optimizer, epoch + 1, state)
        mean_loss = float(total) / len(images)
        if not np.isfinite(mean_loss):
            raise HfmegaError(
                f"training diverged in epoch {epoch + 1}: try a lower --lr than {schedule.learning_rate}."
            )
        output.say(f"epoch {epoch + 1}/{schedule.epochs}: training loss {mean_loss:.4f}")
    model.eval()


def adam(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=schedule.learning_rate, eps=ADAM_EPSILON, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, bf16: bool) -> Tensor:
    """Take one step on one batch of normalised images; return its mean cross-entropy."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        answers = model(images)
    loss = nn.functional.cross_entropy(answers.float(), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def seconds_per_step(model: nn.Module, images: Tensor, schedule: Schedule, at_least: float = 0.0) -> float:
    """Seconds of a training step on a copy of the network: the median of 3 steps, or of `at_least` seconds of them."""
    copied, labels = deepcopy(model).train(), torch.zeros(len(images), dtype=torch.int64, device=images.device)
    optimizer = adam(copied, schedule)
    times: list[float] = []
    for _ in range(2):  # compilation, buffers
        step(copied, optimizer, images, labels, schedule.bf16)
    while len(times) < 3 or sum(times) < at_least:
        started = time.perf_counter()
        step(copied, optimizer, images, labels, schedule.bf16).item()  # waits for the device
        times.append(time.perf_counter() - started)
    return median(times)


def pays_to_compile(model: nn.Module, images: Tensor, schedule: Schedule, output: Output) -> bool:
    """As asked; else, on a GPU, whether a compiled step is at least 5 % faster. On a CPU compiling costs minutes."""
    if schedule.compiled is not None:
        return schedule.compiled
    if images.device.type != "cuda":
        return False
    compiled = deepcopy(model)
    compiled.compile()
    with torch.random.fork_rng():
        seconds = [seconds_per_step(network, images, schedule, at_least=1.0) for network in (model, compiled)]
    output.detail(f"a training step takes {seconds[0]:.4f} s, compiled {seconds[1]:.4f} s")
    return seconds[1] < 0.95 * seconds[0]


def epoch_batches(count: int, schedule: Schedule, epoch: int) -> Iterator[Tensor]:
    """The row numbers of each batch of an epoch, in an order of its own."""
    return iter(torch.from_numpy(permutation(count, schedule.seed, "epoch", epoch)).split(schedule.batch_size))


def save_state(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, path: Path) -> None:
    """Keep what the next epoch starts from, whole or not at all."""
    content = io.BytesIO()  # a full disk is an OSError for a file, but a RuntimeError for torch
    torch.save({"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, content)
    write_atomically(path, content.getvalue())


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, device: torch.device) -> int:
    """Load the state of an unfinished training; returns how many epochs it has done.

    Raises HfmegaError for a file that is none.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["epoch"])
    except (UnpicklingError, EOFError, RuntimeError, OSError, ValueError, LookupError, TypeError) as error:
        raise HfmegaError(
            f"{path} is no state of this training, so it cannot go on: --overwrite starts anew."
        ) from error
