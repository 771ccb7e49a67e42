"""Coefficients by gradient (Wortsman et al. 2022, arXiv 2203.05482, appendix I: learned soup), for any genome."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn

from hfmega import phases
from hfmega.data.images import Split
from hfmega.evaluation.evaluator import Evaluator
from hfmega.evaluation.network import Network
from hfmega.models.library import call
from hfmega.rng import permutation
from hfmega.search.ga import MeGA
from hfmega.search.recipe import Recipe, blend, blend_groups
from hfmega.settings import GASettings

EPOCHS: Final = 10  # at most; with backward passes never more work than the genetic algorithm has
BATCH_SIZE: Final = 128
LEARNING_RATE: Final = 0.01
PASSES: Final = 3  # what a training step costs, in forward passes


class Learned(MeGA):
    """The first population is the average and the inputs; the second what Adam makes of the best of them.

    Coefficients may have any sign and sum. Where statistics are re-estimated, BatchNorm learns with those of the batch.
    """

    def __init__(
        self, inputs: Sequence[Recipe], settings: GASettings, seed: int, evaluator: Evaluator, images: Split
    ) -> None:
        self._evaluator, self._images = evaluator, images
        super().__init__(inputs, settings, seed, evaluator.network.sources.groups(settings.genome).count)

    @property
    def generations(self) -> int:
        return 2

    def _first(self) -> tuple[Recipe, ...]:
        average = blend(self.inputs, self._shares(None)[0].tolist())
        return tuple(dict.fromkeys([average, *self.inputs]))

    def _breed(self, ranks: Sequence[tuple[float, ...]]) -> tuple[Recipe, ...]:
        """Coefficients after the last step, and their mean over the second half of the steps, which fluctuates less."""
        best = self.population[max(range(len(ranks)), key=ranks.__getitem__)]
        start = self._shares(self.inputs.index(best) if best in self.inputs else None)
        learned = [self._learn(start)]
        if self._evaluator.state.num_processes > 1:  # the last bits may differ between them
            broadcast_object_list(learned)
        return tuple(self._recipe(shares) for shares in learned[0])

    def _shares(self, alone: int | None) -> NDArray[np.float64]:
        """float64 [groups, inputs]: one input alone, or all of them evenly."""
        count = len(self.inputs)
        row = np.full(count, 1 / count) if alone is None else np.eye(count)[alone]
        return np.tile(row, (self.groups, 1))

    def _recipe(self, shares: NDArray[np.float64]) -> Recipe:
        if self.settings.genome == "model":
            return blend(self.inputs, shares[0].tolist())
        return blend_groups(self.inputs, shares, self.settings.genome)

    def _learn(self, start: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        evaluator, images = self._evaluator, self._images
        network = Blend(evaluator.network, self.inputs, self.settings)
        table = torch.tensor(start, dtype=torch.float32, device=evaluator.network.sources.device, requires_grad=True)
        rows = self._batches()
        optimizer = torch.optim.Adam([table], lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(rows))
        mean, pixels, labels = torch.zeros_like(table), *evaluator.network.resident(images)
        for step, batch in enumerate(rows):
            loss = nn.functional.cross_entropy(network(table, pixels[batch].to(labels.device)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            evaluator.network.images_seen += PASSES * len(batch)
            phases.passed(PASSES * len(batch))
            if step >= len(rows) // 2:
                mean += table.detach() / (len(rows) - len(rows) // 2)
        return mean.double().cpu().numpy(), table.detach().double().cpu().numpy()

    def _batches(self) -> list[Tensor]:
        """The rows of each step, epoch after epoch."""
        settings, count = self.settings, len(self._images)
        epochs = max(1, min(EPOCHS, settings.population * settings.generations // PASSES))
        orders = [torch.from_numpy(permutation(count, self.seed, "learned", epoch)) for epoch in range(epochs)]
        return [rows for order in orders for rows in order.tensor_split(-(-count // BATCH_SIZE))]


class Blend:
    """A network as a function of the coefficients of its inputs."""

    def __init__(self, network: Network, inputs: Sequence[Recipe], settings: GASettings) -> None:
        self._network, sources = network, network.sources
        groups = sources.groups(settings.genome)
        self._owners = torch.from_numpy(np.repeat(groups.owners, groups.sizes)).to(sources.device)
        self._flats = torch.empty(len(inputs), sources.layout.size, device=sources.device)
        for recipe, flat in zip(inputs, self._flats, strict=True):
            sources.materialize(recipe, flat)
        self._batch_statistics = inputs[0].calibrate and network.can_calibrate

    def __call__(self, table: Tensor, images: Tensor) -> Tensor:
        """table: float32 [groups, inputs]; images: uint8 [n, channels, height, width] -> logits [n, classes]."""
        flat = (table[self._owners].T * self._flats).sum(0)
        layout = self._network.sources.layout
        tensors = layout.views(flat)
        if self._batch_statistics:  # which a forward pass writes to
            tensors |= {s.name: tensors[s.name].detach().clone() for s in layout.slots if not s.parameter}
        with self._network.batch_statistics(self._batch_statistics) as model:
            return call(self._network.spec, model, tensors, self._network.normalized(images))
