"""Training a source checkpoint by the paper's protocol, so that a merge knows what it was trained on."""

import io
import json
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from statistics import median
from typing import Any, Final

import numpy as np
import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from hfmega import HfmegaError, card, hub, run
from hfmega.data import Dataset, Split, load_split, normalizer, open_dataset, rows_of, spell
from hfmega.evaluate import Evaluation, evaluate_checkpoint, processes
from hfmega.models import build
from hfmega.output import Output
from hfmega.rng import permutation
from hfmega.weights import load_weights, save_weights

ADAM_EPSILON: Final = 1e-7  # Keras' default, which the paper used
STATE: Final = "training.pt"


@dataclass(frozen=True)
class TrainSettings:
    """MeGA, section 4: 50 epochs of batches of 256, Adam at a constant 0.01, no augmentation, float32.

    image_size: pixels of a side, which are then fed as pixels / 255; None: what timm says of the network.
    compiled: whether torch.compile is used; None: on a GPU, if a short probe shows a gain.
    """

    network: str
    output: Path
    dataset: str = "uoft-cs/cifar10"
    image_column: str | None = None
    label_column: str | None = None
    train_split: str = "train[10%:]"
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 0.01
    seed: int = 56
    init: str | None = None
    image_size: int | None = None
    bf16: bool = False
    compiled: bool | None = None
    overwrite: bool = False
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise HfmegaError("epochs, batch size and learning rate must be positive.")
        if self.bf16 and not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()):
            raise HfmegaError("--bf16 needs a GPU that computes in bfloat16.")


def train(settings: TrainSettings, output: Output) -> Evaluation | None:
    """Train, or go on training, and write a checkpoint folder; returns how it does on the held-out images, if any.

    A state is kept after every epoch; the same command again resumes from it to the same weights.
    Raises HfmegaError for anything that stands in the way.
    """
    run.check_output(settings.output, hub.WEIGHTS, settings.overwrite)
    dataset = open_dataset(settings.dataset, settings.image_column, settings.label_column, settings.token)
    config, start = starting_point(settings, dataset)
    record = make_record(settings, dataset)
    images = load_split(dataset, rows_of(dataset, record["train_split"]), config, "train")
    device = processes().device
    output.say(
        f"training {config['architecture']} on {record['train_split']} ({len(images):,} images), device {device.type}"
    )
    with run.open_run(settings.output, json.dumps([record, images.fingerprint]), settings.overwrite) as work:
        model = build(config, settings.seed)
        if start:
            model.load_state_dict(start)
        fit(model.to(device), images, config, settings, work / STATE, output)
        state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        labels = list(config.get("label_names") or dataset.classes)
        save_config_for_hf(
            model,
            str(settings.output / hub.CONFIG),
            model_config={"label_names": labels, "pretrained_cfg": {"tag": f"s{settings.seed}"}, "hfmega": record},
        )
        save_weights(state, settings.output / hub.WEIGHTS)
        checkpoint = hub.pull(str(settings.output))
        held_out = (
            evaluate_checkpoint(checkpoint, dataset, record["held_out_split"]) if record["held_out_split"] else None
        )
        card.write_source_card(checkpoint.config, held_out, settings.output)
        run.finish(settings.output)
    return held_out


def starting_point(settings: TrainSettings, dataset: Dataset) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """The network's config, and the weights to start from: `--init`, or a source named in place of an architecture."""
    init = settings.init or (None if timm.is_model(settings.network) else settings.network)
    if init is None:
        return scratch_config(settings, len(dataset.classes)), None
    checkpoint = hub.pull(init, settings.token)
    if settings.network not in (init, checkpoint.config["architecture"]):
        raise HfmegaError(f"{init} is a {checkpoint.config['architecture']}, not a {settings.network}.")
    return checkpoint.config, load_weights(checkpoint)


def scratch_config(settings: TrainSettings, classes: int) -> dict[str, Any]:
    """The config of a network that is trained from random weights."""
    model: Any = build({"architecture": settings.network, "num_classes": classes})
    pixels = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0}
    sized = {"input_size": (3, settings.image_size, settings.image_size), **pixels} if settings.image_size else {}
    return {
        "architecture": settings.network,
        "num_classes": classes,
        "pretrained_cfg": {**model.pretrained_cfg, **sized},
    }


def make_record(settings: TrainSettings, dataset: Dataset) -> dict[str, Any]:
    """What a later merge must know of this training: above all which images it saw, and which it did not."""
    rows = np.unique(rows_of(dataset, settings.train_split))
    first_split = spell(dataset, rows).split("+")[0].split("[")[0]
    held_out = np.setdiff1d(rows_of(dataset, first_split), rows)
    dataset_id = settings.dataset if dataset.revision else dataset.id
    return {
        "dataset": dataset_id,
        "train_split": spell(dataset, rows),
        "held_out_split": spell(dataset, held_out) or None,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "optimizer": "adam",
        "init": hub.pull(settings.init, settings.token).sha256 if settings.init else None,
    }


def fit(
    model: nn.Module, images: Split, config: dict[str, Any], settings: TrainSettings, state: Path, output: Output
) -> None:
    """Adam on cross-entropy. Every epoch draws its order and its noise (dropout) from (seed, epoch)."""
    device = next(model.parameters()).device
    optimizer = adam(model, settings)
    first = resume(model, optimizer, state, device)
    if first:
        output.say(f"resuming after epoch {first} of {settings.epochs}")
    model = model.to(memory_format=torch.channels_last).train()
    normalize, pixels, labels = normalizer(config, device), images.images.to(device), images.labels.to(device)
    batches = -(-len(images) // settings.batch_size)
    if pays_to_compile(model, normalize(pixels[: settings.batch_size]), settings, output):
        model.compile()
    with output.progress("first epoch", settings.epochs * batches) as bar:
        bar.advance(first * batches)
        for epoch in range(first, settings.epochs):
            total = torch.zeros((), device=device)
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed * 100_003 + epoch)
                for rows in epoch_batches(len(images), settings, epoch):
                    loss = step(model, optimizer, normalize(pixels[rows]), labels[rows], settings.bf16)
                    total += loss.detach() * len(rows)
                    bar.advance()
            save_state(model, optimizer, epoch + 1, state)
            mean_loss = float(total) / len(images)
            if not np.isfinite(mean_loss):
                raise HfmegaError(
                    f"training diverged in epoch {epoch + 1}: try a lower --lr than {settings.learning_rate}."
                )
            bar.line(f"epoch {epoch + 1}/{settings.epochs}: training loss {mean_loss:.4f}")
    model.eval()


def adam(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=settings.learning_rate, eps=ADAM_EPSILON, fused=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, bf16: bool) -> Tensor:
    """One step on one batch of normalised images; returns its mean cross-entropy."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        answers = model(images)
    loss = nn.functional.cross_entropy(answers.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def seconds_per_step(model: nn.Module, images: Tensor, settings: TrainSettings, at_least: float = 0.0) -> float:
    """Seconds of a training step on a copy of the network: the median of 3 steps, or of `at_least` seconds of them."""
    copied, labels = deepcopy(model).train(), torch.zeros(len(images), dtype=torch.int64, device=images.device)
    optimizer = adam(copied, settings)
    times: list[float] = []
    for _ in range(2):  # compilation, buffers
        step(copied, optimizer, images, labels, settings.bf16)
    while len(times) < 3 or sum(times) < at_least:
        started = time.perf_counter()
        step(copied, optimizer, images, labels, settings.bf16).item()  # waits for the device
        times.append(time.perf_counter() - started)
    return median(times)


def pays_to_compile(model: nn.Module, images: Tensor, settings: TrainSettings, output: Output) -> bool:
    """As asked; else, on a GPU, whether a compiled step is at least 5 % faster. On a CPU compiling costs minutes."""
    if settings.compiled is not None:
        return settings.compiled
    if images.device.type != "cuda":
        return False
    compiled = deepcopy(model)
    compiled.compile()
    with torch.random.fork_rng():
        seconds = [seconds_per_step(network, images, settings, at_least=1.0) for network in (model, compiled)]
    output.detail(f"a training step takes {seconds[0]:.4f} s, compiled {seconds[1]:.4f} s")
    return seconds[1] < 0.95 * seconds[0]


def epoch_batches(count: int, settings: TrainSettings, epoch: int) -> Iterator[Tensor]:
    """The row numbers of each batch of an epoch, in an order of its own."""
    return iter(torch.from_numpy(permutation(count, settings.seed, "epoch", epoch)).split(settings.batch_size))


def save_state(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, path: Path) -> None:
    """Keep what the next epoch starts from, whole or not at all."""
    content = io.BytesIO()  # a full disk is an OSError for a file, but a RuntimeError for torch
    torch.save({"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, content)
    run.write_atomically(path, content.getvalue())


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
