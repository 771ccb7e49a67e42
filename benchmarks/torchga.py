"""The same search with PyGAD: its TorchGA and its GA, with the paper's two operators handed in.

PyGAD has neither a blend of parents nor Gaussian mutation. Its own random mutation loops over the genes in Python;
operators on whole arrays are the faster way of using it.
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pygad
from numpy.typing import NDArray
from plain import State
from pygad.torchga import TorchGA, model_weights_as_dict, model_weights_as_vector
from torch import nn

from hfmega.settings import GASettings


def search(
    model: nn.Module,
    population: list[State],
    fitness: Callable[[State], float],
    parameters: Collection[str],
    settings: GASettings,
    seed: int,
) -> Callable[[], tuple[State, float, int]]:
    """What runs the search: the fittest state dict, its fitness, and how many populations there were.

    PyGAD scores the first population and one more after each of its generations; an elite keeps its score.
    """
    torch_ga = TorchGA(model, num_solutions=1)
    torch_ga.population_weights = []
    for state in population:
        model.load_state_dict(state)
        torch_ga.population_weights.append(model_weights_as_vector(model))
    mutable = np.concatenate([np.full(t.numel(), name in parameters) for name, t in model.state_dict().items()])
    generator = np.random.default_rng(seed)

    def score(_: pygad.GA, solution: NDArray[np.float32], __: int) -> float:
        return fitness(model_weights_as_dict(model, solution))

    def blend(parents: NDArray[np.float32], size: tuple[int, int], _: pygad.GA) -> NDArray[np.float32]:
        pairs = [generator.choice(len(parents), 2, replace=False) for _ in range(size[0])]
        shares = generator.random(size[0], dtype=np.float32)
        return np.stack([s * parents[a] + (1 - s) * parents[b] for s, (a, b) in zip(shares, pairs, strict=True)])

    def mutate(offspring: NDArray[np.float32], _: pygad.GA) -> NDArray[np.float32]:
        hit = (generator.random(offspring.shape) < settings.mutation_rate) & mutable
        offspring[hit] += generator.normal(0, settings.mutation_sigma, int(hit.sum()))
        return offspring

    ga = pygad.GA(
        num_generations=settings.generations - 1,
        num_parents_mating=settings.parents,
        fitness_func=score,
        initial_population=np.array(torch_ga.population_weights),
        gene_type=np.float32,
        parent_selection_type="tournament",
        K_tournament=settings.tournament,
        keep_elitism=1,
        crossover_type=blend,
        mutation_type=mutate,
        random_seed=seed,
        suppress_warnings=True,
    )

    def run() -> tuple[State, float, int]:
        ga.run()
        best, value, _ = ga.best_solution(pop_fitness=ga.last_generation_fitness)
        return _copied(model_weights_as_dict(model, best)), float(value), ga.generations_completed + 1

    return run


def _copied(state: dict[str, Any]) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}
