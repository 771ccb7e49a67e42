"""Training a source checkpoint by the paper's protocol, so that a merge knows what it was trained on."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from hfmega import phases
from hfmega.data.dataset import Dataset, open_dataset, rows_of, spell
from hfmega.data.images import as_in_training, load_split
from hfmega.errors import HfmegaError, SettingsError
from hfmega.evaluation.answers import answers
from hfmega.evaluation.checkpoint import Evaluation, evaluate_checkpoint
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import processes
from hfmega.folder import CONFIG, WEIGHTS, check_output, finish, open_run
from hfmega.hub import pull
from hfmega.merging.estimate import PROBE_SECONDS
from hfmega.models import library
from hfmega.models.fit import Schedule, fit, seconds_per_step
from hfmega.models.library import Spec, build, load_into, normalizer, parameters_of, state_of
from hfmega.output import Output
from hfmega.report import card
from hfmega.report.markdown import short
from hfmega.search.recipe import Recipe
from hfmega.weights.checkpoint import Checkpoint, load_weights, save_weights
from hfmega.weights.sources import Sources, rebuild

STATE: Final = "training.pt"
AS_TRAINED: Final = Recipe((1.0,))
UPDATED: Final = Recipe((1.0,), calibrate=True)


@dataclass(frozen=True)
class TrainSettings:
    """MeGA, section 4: 50 epochs of batches of 256, Adam at a constant 0.01, no augmentation, float32.

    image_size: pixels of a side, which are then fed as pixels / 255; None: what timm says of the network.
    decay, augment, compiled: see `Schedule`. update_bn: whether BatchNorm statistics are re-estimated at the end.
    """

    network: str
    output: Path
    dataset: str = "uoft-cs/cifar10"
    image_column: str | None = None
    label_column: str | None = None
    labels_by_number: bool = False
    train_split: str = "train[10%:]"
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 0.01
    decay: Literal["constant", "cosine"] = "constant"
    augment: bool = False
    seed: int = 56
    init: str | None = None
    image_size: int | None = None
    bf16: bool = False
    compiled: bool | None = None
    update_bn: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise SettingsError("epochs, batch size and learning rate must be positive.")
        if self.bf16 and not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()):
            raise SettingsError("--bf16 needs a GPU that computes in bfloat16.")

    @property
    def schedule(self) -> Schedule:
        """What of this is the training loop's."""
        shared = {f.name: getattr(self, f.name) for f in fields(Schedule) if f.name != "augment"}
        return Schedule(**shared, augment="flips and crops" if self.augment else "none")


@dataclass(frozen=True)
class Trained:
    """What was written, judged on the held-out images, if there are any.

    as_trained, updated: accuracy with the running BatchNorm statistics of the training, and with re-estimated ones; the
    latter is None for a network without BatchNorm.
    """

    held_out: Evaluation | None
    as_trained: float | None = None
    updated: float | None = None


def train(settings: TrainSettings, output: Output) -> Trained:
    """Train, or go on training, and write a checkpoint folder; returns how it does on the held-out images, if any.

    A state is kept after every epoch; the same command again resumes from it to the same weights. At the end BatchNorm
    statistics become exact averages over the training images, unless the settings keep those of the training.
    Raises HfmegaError for anything that stands in the way.
    """
    check_output(settings.output, WEIGHTS, settings.overwrite)
    dataset = open_dataset(settings.dataset, settings.image_column, settings.label_column, settings.labels_by_number)
    spec, start = starting_point(settings, dataset)
    updates = settings.update_bn and library.has_statistics(spec)
    record = make_record(settings, dataset) | ({"update_bn": True} if updates else {})
    rows, held_out = rows_of(dataset, record["train_split"]), record["held_out_split"]
    phases.begin("images", len(rows), "reads")
    images = load_split(dataset, rows, spec, "train")
    phases.plan(ahead(settings, len(rows), len(rows_of(dataset, held_out)) if held_out else 0, updates))
    device = processes().device
    for note in images.notes:
        output.say(note)
    output.say(
        f"training {spec.architecture} on {record['train_split']} ({len(images):,} images), device {device.type}"
    )
    with open_run(settings.output, json.dumps([record, images.fingerprint]), settings.overwrite) as work:
        phases.begin("training")
        model = build(spec, settings.seed)
        if start:
            load_into(spec, model, start)
        fit(
            model.to(device),
            images.images,
            images.labels,
            normalizer(spec, device),
            settings.schedule,
            work / STATE,
            output,
        )
        trained = {name: tensor.detach().cpu().contiguous() for name, tensor in state_of(spec, model).items()}
        state = {**(start or {}), **trained}  # what the network leaves aside stays as it was
        shown = as_in_training(images) if settings.augment else images
        network = Network(spec, Sources([state], parameters_of(spec, model), device), shown)
        if updates:
            phases.begin("BatchNorm")
            state = rebuild(network.sources, UPDATED, network.statistics(UPDATED))
        labels = list(spec.labels or dataset.classes)
        library.write_trained(replace(spec, record=record), model, labels, settings.seed, settings.output / CONFIG)
        save_weights(state, settings.output / WEIGHTS)
        checkpoint = pull.pull(str(settings.output))
        phases.begin("test")
        found = judged(network, checkpoint, dataset)
        card.write_source_card(checkpoint.spec, found.held_out, settings.output)
        finish(settings.output)
    return found


def ahead(settings: TrainSettings, images: int, held_out: int, updates: bool) -> dict[str, float]:
    """The phases, each with the images that it will pass through the network."""
    found = {"training": phases.TRAINING * settings.epochs * images, "BatchNorm": images if updates else 0}
    return {name: float(count) for name, count in {**found, "test": 3 * held_out}.items() if count}


def judged(network: Network, checkpoint: Checkpoint, dataset: Dataset) -> Trained:
    """The written checkpoint on the images that it was not trained on, and both ways of its BatchNorm statistics."""
    chosen = (checkpoint.record or {}).get("held_out_split")
    if not chosen:
        return Trained(None)
    split = load_split(dataset, rows_of(dataset, chosen), checkpoint.spec, chosen)
    ways = [AS_TRAINED, UPDATED] if network.can_calibrate else [AS_TRAINED]
    accuracies = [answers(network.predict(way, split), split.labels).accuracy for way in ways]
    return Trained(evaluate_checkpoint(checkpoint, dataset, chosen), *accuracies)


def spoken(trained: Trained, updated: bool) -> list[str]:
    """What a training came to, in sentences. updated: whether re-estimated statistics were written."""
    held_out = trained.held_out
    if held_out is None:
        return ["no images were held out, so there is no accuracy to report"]
    on = f"on the {held_out.total:,} held-out images ({short(held_out.split)})"
    if trained.as_trained is None or trained.updated is None:
        return [f"accuracy {held_out.accuracy:.4f} {on}"]
    kept = "re-estimated" if updated else "running"
    return [
        f"accuracy {trained.updated:.4f} with re-estimated BatchNorm statistics, {trained.as_trained:.4f} with the "
        f"running ones of the training, {on}",
        "why they differ: running statistics are a moving average that lags behind the weights, most of all after few "
        "steps; re-estimated ones are exact averages over the training images with the final weights",
        f"written: the {kept} statistics" + ("" if updated else " (hfmega update-bn re-estimates them)"),
    ]


def starting_point(settings: TrainSettings, dataset: Dataset) -> tuple[Spec, dict[str, Tensor] | None]:
    """The network's spec, and the weights to start from: `--init`, or a source named in place of an architecture."""
    init = settings.init or (None if library.is_architecture(settings.network) else settings.network)
    if init is None:
        return scratch_spec(settings, len(dataset.classes)), None
    checkpoint = pull.pull(init)
    if settings.network not in (init, checkpoint.spec.architecture):
        raise HfmegaError(f"{init} is a {checkpoint.spec.architecture}, not a {settings.network}.")
    return checkpoint.spec, load_weights(checkpoint)


def scratch_spec(settings: TrainSettings, classes: int) -> Spec:
    """The spec of a network that is trained from random weights."""
    return library.scratch(settings.network, classes, settings.image_size)


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
        **({"decay": settings.decay} if settings.decay != "constant" else {}),
        **({"augment": True} if settings.augment else {}),
        "init": pull.pull(settings.init).sha256 if settings.init else None,
    }


def training_rate(spec: Spec, settings: TrainSettings) -> float:
    """Images per second of training on this process's device, measured on random images."""
    device = processes().device
    model = build(spec).to(device).to(memory_format=torch.channels_last)
    images = normalizer(spec, device)(spec.preprocessing.noise(settings.batch_size).to(device))
    return settings.batch_size / seconds_per_step(model, images, settings.schedule, at_least=PROBE_SECONDS)
