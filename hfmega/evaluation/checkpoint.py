"""One checkpoint on a split: its predictions, and what `hfmega evaluate` reports."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfmega import phases
from hfmega.data.dataset import Dataset, rows_of
from hfmega.data.images import Split, load_split
from hfmega.errors import step
from hfmega.evaluation.answers import answers
from hfmega.evaluation.network import Network
from hfmega.evaluation.processes import processes
from hfmega.search.recipe import Recipe
from hfmega.weights.checkpoint import Checkpoint, load_weights
from hfmega.weights.mergeable import check_mergeable
from hfmega.weights.sources import mix


@dataclass(frozen=True)
class Evaluation:
    """What `hfmega evaluate` reports of a checkpoint on a split. loss in nats; per_class: class name to accuracy.

    notes: what the user should know of labels and images.
    """

    accuracy: float
    interval: tuple[float, float]
    loss: float
    correct: int
    total: int
    split: str
    per_class: dict[str, float]
    notes: tuple[str, ...] = ()


def predict_checkpoint(checkpoint: Checkpoint, split: Split, device: torch.device) -> Tensor:
    """A checkpoint's log-probabilities: float32 [images, classes], on the CPU."""
    states = [load_weights(checkpoint)]
    check_mergeable([checkpoint], states)
    with step(f"evaluating {checkpoint.name}"):
        network = Network(checkpoint.spec, mix([checkpoint], states, device), calibration=None)
        return network.predict(Recipe((1.0,)), split)


def evaluate_checkpoint(checkpoint: Checkpoint, dataset: Dataset, chosen: str) -> Evaluation:
    """A checkpoint on a slice of a dataset. Raises HfmegaError for anything that does not fit."""
    rows = rows_of(dataset, chosen)
    phases.begin("images", len(rows), "reads")
    split = load_split(dataset, rows, checkpoint.spec, chosen)
    phases.begin("test", len(rows))
    judged = answers(predict_checkpoint(checkpoint, split, processes().device), split.labels)
    classes = split.labels.unique().tolist()
    return Evaluation(
        accuracy=judged.accuracy,
        interval=judged.interval,
        loss=judged.mean_loss,
        correct=int(judged.correct.sum()),
        total=len(split),
        split=chosen,
        per_class={split.names[c]: float(judged.correct[split.labels.numpy() == c].mean()) for c in classes},
        notes=split.notes,
    )
