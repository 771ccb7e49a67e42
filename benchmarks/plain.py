"""The paper's loop as one would write it in plain PyTorch: a list of state dicts, DataLoaders, load_state_dict."""

import random
from collections.abc import Callable, Collection, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from hfmega.settings import GASettings

BATCH_SIZE: Final = 256

State = dict[str, Tensor]


def loader(images: Tensor, labels: Tensor) -> DataLoader:
    """images: float32 [n, channels, height, width], scaled as the network takes them."""
    return DataLoader(TensorDataset(images, labels), batch_size=BATCH_SIZE)


class Fitness:
    """Accuracy of a state dict, after its BatchNorm statistics were re-estimated if there is a `calibration` loader.

    images, individuals: how many went through the network so far.
    """

    def __init__(self, model: nn.Module, search: DataLoader, calibration: DataLoader | None) -> None:
        self.model, self.search, self.calibration = model, search, calibration
        self.device = next(model.parameters()).device
        self.images = self.individuals = 0

    def __call__(self, state: State) -> float:
        self.individuals += 1
        return self.accuracy(state, self.search)

    def accuracy(self, state: State, images: DataLoader) -> float:
        self.model.load_state_dict(state)
        if self.calibration is not None:
            update_bn(self.calibration, self.model, device=self.device)
            self.images += len(self.calibration.dataset)  # type: ignore[arg-type]
        self.model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in images:
                correct += int((self.model(x.to(self.device)).argmax(dim=1) == y.to(self.device)).sum())
        self.images += len(images.dataset)  # type: ignore[arg-type]
        return correct / len(images.dataset)  # type: ignore[arg-type]


def blend(first: State, second: State, share: float) -> State:
    """share * first + (1 - share) * second; integer tensors come from the first."""
    return {
        name: share * tensor + (1 - share) * second[name] if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def mutate(state: State, parameters: Collection[str], settings: GASettings, generator: torch.Generator) -> State:
    """Sparse Gaussian noise on every parameter."""
    mutated = dict(state)
    for name in parameters:
        tensor = state[name]
        hit = torch.rand(tensor.shape, generator=generator) < settings.mutation_rate
        mutated[name] = tensor + hit * torch.randn(tensor.shape, generator=generator) * settings.mutation_sigma
    return mutated


def tournament(scores: Sequence[float], size: int, draws: random.Random) -> int:
    return max(draws.sample(range(len(scores)), size), key=scores.__getitem__)


def search(
    population: list[State],
    fitness: Callable[[State], float],
    parameters: Collection[str],
    settings: GASettings,
    seed: int,
) -> tuple[State, float, int]:
    """Selection, crossover, mutation, elitism: the fittest, its fitness, and how many populations were scored.

    The elite keeps its score: it is not scored again.
    """
    draws, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    scores = [fitness(state) for state in population]
    for _ in range(settings.generations - 1):
        parents = [population[tournament(scores, settings.tournament, draws)] for _ in range(settings.parents)]
        best = scores.index(max(scores))
        children = []
        while len(children) < settings.population - 1:
            first, second = draws.sample(parents, 2)
            children.append(mutate(blend(first, second, draws.random()), parameters, settings, generator))
        population = [population[best], *children]
        scores = [scores[best], *(fitness(child) for child in children)]
    best = scores.index(max(scores))
    return population[best], scores[best], settings.generations
