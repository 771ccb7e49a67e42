"""Recipes in, answers out: scores, races, ensembles; remembered, and spread over processes by Accelerate."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final, Literal, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from hfmega.data.images import Split, batches, cut, even, fits, in_file, stream
from hfmega.errors import HfmegaError
from hfmega.evaluation.answers import Answers, answers, pool
from hfmega.evaluation.processes import processes
from hfmega.evaluation.race import Race, rungs, survivors
from hfmega.models.fold import fold
from hfmega.models.preprocessing import normalizer, preprocessing_of
from hfmega.models.timm_library import build
from hfmega.search.recipe import Recipe, source_alone
from hfmega.weights.sources import Sources
from hfmega.weights.tensors import finite

# Large enough to fill a GPU; on a CPU small enough for its caches (from 16 to 128, rates are within a tenth: `make
# bench`). Not probed by time: the batch size moves the last bits of a forward pass, and a result must not depend on how
# busy the machine was.
BATCH_SIZE: Final = {"cpu": 32, "cuda": 1024}
CALIBRATION_BATCH: Final = {"cpu": 128, "cuda": 1024}  # statistics of small batches miss what lies between them
Precision = Literal["float32", "bfloat16", "float16"]
T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """What a split says of an individual: `correct` of `total` images, mean cross-entropy `loss` in nats."""

    correct: int
    total: int
    loss: float
    exact: bool = True

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


def score_of(seen: Answers, exact: bool = True) -> Score:
    """A candidate with NaN or Inf is the worst, never the best."""
    if not math.isfinite(seen.mean_loss):
        return Score(0, len(seen.correct), math.inf, exact)
    return Score(int(seen.correct.sum()), len(seen.correct), seen.mean_loss, exact)


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """What convolutions and products of scores are computed in. Raises HfmegaError where the device has no such."""
    if precision == "float32":
        return torch.float32
    if device.type == "cpu":
        known = torch.ops.mkldnn
        has = known._is_mkldnn_bf16_supported() if precision == "bfloat16" else known._is_mkldnn_fp16_supported()
    else:
        has = precision == "float16" or device.type != "cuda" or torch.cuda.is_bf16_supported()
    if not has:
        raise HfmegaError(f"this {device.type} does not compute in {precision}: leave the flag away.")
    return torch.bfloat16 if precision == "bfloat16" else torch.float16


class Evaluator:
    """One network on one device whose weights are views of a flat vector that recipes are materialized into.

    Scores do not depend on how many processes share the work: each individual is evaluated whole by one of them.
    precision: of scores, which steer a search; statistics and whatever is reported are float32.
    """

    def __init__(
        self, config: dict[str, Any], sources: Sources, calibration: Split | None, precision: Precision = "float32"
    ) -> None:
        self.state = processes()
        self._precision = dtype_of(precision, sources.device)
        self.sources = sources
        self.images_seen = 0
        self._calibration = calibration
        self._flat = torch.empty(sources.layout.size, device=sources.device)
        self._model = attach(build(config).to(sources.device), sources, self._flat)
        self._norms = [
            m for m in self._model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
        ]
        self._normalize = normalizer(config, sources.device)
        self.batch_size = BATCH_SIZE.get(sources.device.type, BATCH_SIZE["cpu"])
        self._calibration_batch = CALIBRATION_BATCH.get(sources.device.type, CALIBRATION_BATCH["cpu"])
        self.sources.materialize(source_alone(0, len(sources)), self._flat)
        self.folded = fold(self._model, self._normalize(any_images(config, 2).to(sources.device)))
        self._scores: dict[tuple[Recipe, str], Score] = {}
        self._answers: dict[tuple[Recipe, str], Answers] = {}
        self._ensembles: dict[tuple[tuple[Recipe, ...], str], Answers] = {}
        self._on_device: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def can_calibrate(self) -> bool:
        """Whether the network has BatchNorm statistics and there are images to re-estimate them from."""
        return bool(self._norms) and self._calibration is not None and len(self._calibration) > 1

    def scores(
        self, recipes: Sequence[Recipe], split: Split, advance: Callable[[int], None] | None = None
    ) -> list[Score]:
        """The score of each recipe; one already known is not computed again. `advance` hears of each one done."""
        unknown = [r for r in dict.fromkeys(recipes) if (r, split.fingerprint) not in self._scores]
        done = advance or (lambda _: None)
        done(len(recipes) - len(unknown))

        def work(recipe: Recipe) -> Score:
            score = self._score(recipe, split)
            done(self.state.num_processes)
            return score

        for recipe, score in zip(unknown, self._spread(work, unknown), strict=True):
            self.remember(recipe, split, score)
        return [self._scores[recipe, split.fingerprint] for recipe in recipes]

    def race(
        self,
        populations: Sequence[Sequence[Recipe]],
        split: Split,
        rules: Race,
        advance: Callable[[int], None] | None = None,
    ) -> list[list[Score]]:
        """The scores of populations that race, each for itself; who stops early keeps its estimate, not `exact`.

        After each rung those who go on are spread over the processes anew. Statistics are re-estimated from a share of
        the calibration images as large as that of the images seen, so that who sees all of them is scored exactly.
        """
        fingerprint, done, seen = split.fingerprint, advance or (lambda _: None), dict[Recipe, Answers]()
        running = [[r for r in dict.fromkeys(p) if (r, fingerprint) not in self._scores] for p in populations]
        taken = [len(set(p)) - len(runners) for p, runners in zip(populations, running, strict=True)]
        done(sum(map(len, populations)) - sum(map(len, running)))
        for start, stop in pairwise([0, *rungs(len(split), rules.halving)]):
            before = sum(map(len, running))
            if start:
                running = [
                    [runners[k] for k in survivors([seen[r] for r in runners], busy, len(split) - start, rules)]
                    for runners, busy in zip(running, taken, strict=True)
                ]
                done(before - sum(map(len, running)))
            alive = list(dict.fromkeys(recipe for runners in running for recipe in runners))
            found = self._spread(partial(self._look, split=split, start=start, stop=stop), alive)
            for recipe, part in zip(alive, found, strict=True):
                seen[recipe] = part if len(part.correct) == stop else pool(seen[recipe], part)
        done(sum(map(len, running)))
        scores = {recipe: score_of(part, len(part.correct) == len(split)) for recipe, part in seen.items()}
        for recipe, score in scores.items():
            self.remember(recipe, split, score)
        return [[scores.get(r) or self._scores[r, fingerprint] for r in population] for population in populations]

    def remember(self, recipe: Recipe, split: Split, score: Score) -> None:
        """Take a score that was computed, here or by an earlier run; an estimate is not kept."""
        if score.exact:
            self._scores[recipe, split.fingerprint] = score

    def forget(self, split: Split) -> None:
        """Know no score on a split any more."""
        self._scores = {key: score for key, score in self._scores.items() if key[1] != split.fingerprint}

    def answers(self, recipes: Sequence[Recipe], split: Split) -> list[Answers]:
        """What each recipe says of each image; one already known is not computed again."""
        unknown = [r for r in dict.fromkeys(recipes) if (r, split.fingerprint) not in self._answers]
        found = self._spread(lambda r: answers(self.predict(r, split), split.labels), unknown)
        self._answers |= {(r, split.fingerprint): a for r, a in zip(unknown, found, strict=True)}
        return [self._answers[recipe, split.fingerprint] for recipe in recipes]

    def ensemble(self, recipes: Sequence[Recipe], split: Split) -> Answers:
        """What the mean probability of several recipes says of each image; their own answers are known afterwards."""
        key = (tuple(recipes), split.fingerprint)
        if key not in self._ensembles:
            predictions = self._spread(lambda r: self.predict(r, split), recipes)
            known = {
                (r, split.fingerprint): answers(p, split.labels) for r, p in zip(recipes, predictions, strict=True)
            }
            self._answers |= known
            mean = torch.stack(predictions).logsumexp(dim=0) - math.log(len(predictions))
            self._ensembles[key] = answers(mean, split.labels)
        return self._ensembles[key]

    def statistics(self, recipe: Recipe) -> dict[str, Tensor]:
        """The BatchNorm statistics that calibration gives a recipe, by tensor name; empty if it asks for none."""
        self._prepare(recipe)
        if not (recipe.calibrate and self.can_calibrate):
            return {}
        state = self._model.state_dict()
        return {name: state[name].clone().cpu() for name in state if name.endswith(("running_mean", "running_var"))}

    def _spread(self, work: Callable[[Recipe], T], recipes: Sequence[Recipe]) -> list[T]:
        """work(recipe) for each recipe, every n-th in each of n processes; the same list in all of them."""
        rank, count = self.state.process_index, self.state.num_processes
        before = self.images_seen
        mine = [(i, work(recipes[i])) for i in range(rank, len(recipes), count)]
        if count == 1:
            return [result for _, result in mine]
        everyone = gather_object([(mine, self.images_seen - before)])
        self.images_seen = before + sum(seen for _, seen in everyone)
        done = dict(pair for results, _ in everyone for pair in results)
        return [done[i] for i in range(len(recipes))]

    def _score(self, recipe: Recipe, split: Split) -> Score:
        return score_of(self._look(recipe, split, 0, len(split)))

    def _look(self, recipe: Recipe, split: Split, start: int, stop: int) -> Answers:
        """What one recipe says of the images from start to stop, with folded BatchNorm; NaN or Inf: all wrong.

        A recipe that re-estimates its statistics starts from the first image again, with more calibration images.
        """
        self._prepare(recipe, stop / len(split))
        if recipe.calibrate and self.can_calibrate:
            start = 0
        if not self._sound:
            return Answers(np.zeros(stop - start, bool), np.full(stop - start, math.inf))
        network = self._model
        if self.folded:
            self.folded.update()
            network = self.folded.network
        half = self._precision != torch.float32
        with torch.autocast(self.sources.device.type, self._precision) if half else nullcontext():
            parts = batches(range(start, stop), self.batch_size)
            found = torch.cat([self._forward(x, network) for x in self._images(split, parts)])
        return answers(found, self.resident(split)[1][start:stop])

    def predict(self, recipe: Recipe, split: Split) -> Tensor:
        """One recipe's log-probabilities in this process: float32 [images, classes], on the CPU; NaN if it failed."""
        self._prepare(recipe)
        parts = batches(range(len(split)), self.batch_size)
        found = torch.cat([self._forward(x).cpu() for x in self._images(split, parts)])
        return found if self._sound else torch.full_like(found, math.nan)

    @property
    def _sound(self) -> bool:
        """Whether all weights are finite: a ReLU may hide from the answers that one is not."""
        return finite(self._flat)

    def time(self, split: Split) -> float:
        """Seconds to materialize the only source and score it."""
        started = time.perf_counter()
        self._score(Recipe((1.0,)), split)
        return time.perf_counter() - started

    @torch.inference_mode()
    def _forward(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """uint8 images -> log-probabilities, float32 [images, classes]."""
        self.images_seen += len(images)
        return (network or self._model)(self._normalize(images)).float().log_softmax(dim=1)  # type: ignore[no-any-return]

    def resident(self, split: Split) -> tuple[Tensor, Tensor]:
        """The split on the device, moved there once; images that do not fit stay where they are."""
        if split.fingerprint not in self._on_device:
            device = self.sources.device
            images = split.images.to(device) if fits(split.images, device) else split.images
            self._on_device[split.fingerprint] = images, split.labels.to(device)
        return self._on_device[split.fingerprint]

    def _images(self, split: Split, parts: Sequence[range]) -> Iterator[Tensor]:
        """Parts of the images of a split, one after another on the device."""
        images, labels = self.resident(split)
        if in_file(images) or images.device != labels.device:
            return stream(images, parts, labels.device)
        return (cut(images, part) for part in parts)

    def prepared(self, recipe: Recipe) -> nn.Module:
        """The network with the weights of a recipe, until the next one."""
        self._prepare(recipe)
        return self._model

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 images as the network takes them."""
        return self._normalize(images)

    @contextmanager
    def batch_statistics(self, wanted: bool) -> Iterator[nn.Module]:
        """The network, for `functional_call`; if wanted, BatchNorm uses the statistics of each batch."""
        for norm in self._norms if wanted else ():
            norm.train()
        try:
            yield self._model
        finally:
            self._model.eval()

    def _prepare(self, recipe: Recipe, share: float = 1.0) -> None:
        """Materialize a recipe into the network; re-estimate its BatchNorm statistics if it asks for that.

        share: of the calibration images that are used, at least two.
        """
        self.sources.materialize(recipe, self._flat)
        if recipe.calibrate and self.can_calibrate:
            assert self._calibration is not None
            count = len(self._calibration)
            self._calibrate(self._calibration, range(0, count, min(round(1 / share), count // 2)))

    def _calibrate(self, split: Split, rows: range) -> None:
        """Statistics as exact averages over some images, each image with the same weight.

        Not a moving average: the momentum of each batch is its share of the images seen so far.
        """
        for norm in self._norms:
            norm.train()
        seen = 0
        parts = even(rows, self._calibration_batch)  # a single image has no variance
        for batch in self._images(split, parts):
            seen += len(batch)
            for norm in self._norms:
                norm.momentum = len(batch) / seen
            self._forward(batch)
        for norm in self._norms:
            norm.eval()
        self.sources.settle(self._flat)


def any_images(config: dict[str, Any], count: int) -> Tensor:
    """uint8 [count, channels, height, width] of noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *preprocessing_of(config)["input_size"]), dtype=torch.uint8, generator=generator)


def attach(model: nn.Module, sources: Sources, flat: Tensor) -> nn.Module:
    """Make the float tensors of a network views of a flat vector, float32 [layout.size]."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, view in sources.layout.views(flat).items():
        tensors[name].data = view
        tensors[name].requires_grad_(False)
    return model.eval()
