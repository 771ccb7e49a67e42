"""One network on one device whose weights are views of a flat vector that recipes are materialized into."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from hfmega import phases
from hfmega.data.images import Split, batches, cut, even, fits, in_file, stream
from hfmega.errors import HfmegaError, SourceError
from hfmega.evaluation.answers import Answers, answers
from hfmega.evaluation.precision import Precision, computing, dtype_of, rough_precision
from hfmega.evaluation.statistics import Statistics, average
from hfmega.models.graph.fold import fold
from hfmega.models.library import Spec, buffers_of, build, normalizer, state_of
from hfmega.search.recipe import Recipe, source_alone
from hfmega.weights.sources import Sources
from hfmega.weights.tensors import finite

# Large enough to fill a GPU; on a CPU small enough for its caches (from 16 to 128, rates are within a tenth: `make
# bench`). Not probed by time: the batch size moves the last bits of a forward pass, and a result must not depend on how
# busy the machine was.
BATCH_SIZE: Final = {"cpu": 32, "cuda": 1024}
CALIBRATION_BATCH: Final = {"cpu": 128, "cuda": 1024}  # statistics of small batches miss what lies between them


def calibration_batch(device: torch.device) -> int:
    """How many images re-estimate statistics together."""
    return CALIBRATION_BATCH.get(device.type, CALIBRATION_BATCH["cpu"])


class Network:
    """A network, the sources of its weights, and the images that its BatchNorm statistics are re-estimated from.

    precision: of what steers a search (`look`); statistics and whatever is reported are float32.
    rough: the precision of what only ranks (`estimate`), its statistics too.
    images_seen: passes of one image through the network so far.
    known: the re-estimated statistics of recipes, all calibration images seen, that need not be estimated again.
    """

    def __init__(
        self, spec: Spec, sources: Sources, calibration: Split | None, precision: Precision = "float32"
    ) -> None:
        self.spec = spec
        self.sources = sources
        self.images_seen = 0
        self.known: dict[Recipe, Tensor] = {}
        self.batch_size = BATCH_SIZE.get(sources.device.type, BATCH_SIZE["cpu"])
        self.calibration_batch = calibration_batch(sources.device)
        self.rough = rough_precision(precision, sources.device)
        self._precision, self._rough = (dtype_of(name, sources.device) for name in (precision, self.rough))
        self._calibration = calibration
        self._flat = torch.empty(sources.layout.size, device=sources.device)
        self._model = attach(spec, build(spec).to(sources.device), sources, self._flat)
        self._statistics = Statistics(self._model)
        self._normalize = normalizer(spec, sources.device)
        self._on_device: dict[str, tuple[Tensor, Tensor]] = {}
        self.sources.materialize(source_alone(0, len(sources)), self._flat)
        with computable(spec):
            images = self._normalize(spec.preprocessing.noise(2).to(sources.device))
            with torch.inference_mode():
                shape = tuple(self._model(images).shape)
            if shape != (2, spec.classes):
                raise SourceError(
                    f"{spec.architecture} answers two images with numbers of shape {shape}, not with one for each of "
                    f"{spec.classes} classes."
                )
            self.folded = fold(self._model, images)

    @property
    def classes(self) -> int:
        """How many outputs the network has."""
        return self.spec.classes

    @property
    def in_float32(self) -> bool:
        """Whether a search is steered in the precision of reports."""
        return self._precision == torch.float32

    @property
    def can_calibrate(self) -> bool:
        """Whether the network has BatchNorm statistics and there are images to re-estimate them from."""
        return len(self._statistics) > 0 and self._calibration is not None and len(self._calibration) > 1

    def calibrates(self, recipe: Recipe) -> bool:
        """Whether the statistics of a recipe are re-estimated here."""
        return recipe.calibrate and self.can_calibrate

    def calibration_parts(self, rough: bool = False) -> list[range]:
        """The batches that statistics are re-estimated from; rough: only the first, for an estimate."""
        if not self.can_calibrate:
            return []
        assert self._calibration is not None
        parts = even(range(len(self._calibration)), self.calibration_batch)  # a single image has no variance
        return parts[:1] if rough else parts

    def moments(self, recipe: Recipe, parts: Sequence[range], rough: bool = False) -> Tensor:
        """The BatchNorm statistics of each of some batches of calibration images: float32 [batches, floats], CPU."""
        assert self._calibration is not None
        self.load(recipe)
        found = []
        with self._statistics.of_the_batch(), computing(self.sources.device, self._rough if rough else torch.float32):
            for images in self._images(self._calibration, parts):
                self._statistics.clear()
                self._forward(images)
                found.append(self._statistics.moments())
        return torch.stack(found).cpu()

    def load(self, recipe: Recipe, statistics: Tensor | None = None) -> None:
        """Materialize a recipe into the network. statistics: the re-estimated ones, float32 [floats]; None: its own."""
        self.sources.materialize(recipe, self._flat)
        if statistics is not None:
            self._statistics.write(statistics)
            self.sources.settle(self._flat)

    def look(self, split: Split, parts: Sequence[range], precision: torch.dtype | None = None) -> Answers:
        """What the loaded recipe says of some batches, with folded BatchNorm; NaN or Inf in its weights: all wrong."""
        rows = range(parts[0].start, parts[-1].stop)
        if not self._sound:
            return Answers(np.zeros(len(rows), bool), np.full(len(rows), math.inf))
        network = self._model
        if self.folded:
            self.folded.update()
            network = self.folded.network
        with computing(self.sources.device, precision or self._precision):
            found = torch.cat([self._forward(x, network) for x in self._images(split, parts)])
        return answers(found, cut(self.resident(split)[1], rows))

    def estimate(self, split: Split, parts: Sequence[range]) -> Answers:
        """`look` for what only ranks."""
        return self.look(split, parts, self._rough)

    def answers(self, split: Split, parts: Sequence[range]) -> Answers:
        """What the loaded recipe says of some batches, for a report; NaN or Inf in its weights: all wrong."""
        rows = range(parts[0].start, parts[-1].stop)
        return answers(self.log_probabilities(split, parts), cut(split.labels, rows))

    def log_probabilities(self, split: Split, parts: Sequence[range]) -> Tensor:
        """What the loaded recipe says of some batches: float32 [images, classes], on the CPU; NaN if it failed."""
        found = torch.cat([self._forward(x).cpu() for x in self._images(split, parts)])
        return found if self._sound else torch.full_like(found, math.nan)

    def predict(self, recipe: Recipe, split: Split) -> Tensor:
        """What a recipe says of a split, by this process alone, as `log_probabilities` gives it."""
        self._prepare(recipe)
        return self.log_probabilities(split, batches(range(len(split)), self.batch_size))

    def answer(self, recipe: Recipe, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """One recipe's log-probabilities of images that are seen once: uint8 images in, float32 [n, classes] out."""
        self._prepare(recipe)
        for part in parts:
            yield torch.cat([self._forward(x.to(self.sources.device)).cpu() for x in part.split(self.batch_size)])

    def statistics(self, recipe: Recipe) -> dict[str, Tensor]:
        """The BatchNorm statistics that calibration gives a recipe, by tensor name; empty if it asks for none."""
        self._prepare(recipe)
        if not self.calibrates(recipe):
            return {}
        state = state_of(self.spec, self._model)
        return {name: state[name].clone().cpu() for name in state if name.endswith(("running_mean", "running_var"))}

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
        with self._statistics.of_the_batch(wanted):
            yield self._model

    def resident(self, split: Split) -> tuple[Tensor, Tensor]:
        """The split on the device, moved there once; images that do not fit stay where they are."""
        if split.fingerprint not in self._on_device:
            device = self.sources.device
            images = split.images.to(device) if fits(split.images, device) else split.images
            self._on_device[split.fingerprint] = images, split.labels.to(device)
        return self._on_device[split.fingerprint]

    def _prepare(self, recipe: Recipe) -> None:
        """Load a recipe, its statistics re-estimated by this process alone if it asks for that."""
        parts = self.calibration_parts() if self.calibrates(recipe) and recipe not in self.known else []
        self.load(recipe, average(self.moments(recipe, parts), parts) if parts else self.known.get(recipe))

    @torch.inference_mode()
    def _forward(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """uint8 images -> log-probabilities, float32 [images, classes]."""
        self.images_seen += len(images)
        phases.passed(len(images))
        return (network or self._model)(self._normalize(images)).float().log_softmax(dim=1)  # type: ignore[no-any-return]

    @property
    def _sound(self) -> bool:
        """Whether all weights are finite: a ReLU may hide from the answers that one is not."""
        return finite(self._flat)

    def _images(self, split: Split, parts: Sequence[range]) -> Iterator[Tensor]:
        """Parts of the images of a split, one after another on the device."""
        images, labels = self.resident(split)
        if in_file(images) or images.device != labels.device:
            return stream(images, parts, labels.device)
        return (cut(images, part) for part in parts)


@contextmanager
def computable(spec: Spec) -> Iterator[None]:
    """The first forward pass: raises SourceError for a network that does not take the images of its own config."""
    try:
        yield
    except (HfmegaError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a layer comes upon that gets another shape than it takes
        channels, height, width = spec.preprocessing.input_size
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(
            f"{spec.architecture} does not take the images that its config asks for ({channels} channels, {height} x "
            f"{width} pixels): {said[:200]}"
        ) from error


def attach(spec: Spec, model: nn.Module, sources: Sources, flat: Tensor) -> nn.Module:
    """Make the float tensors of a network views of a flat vector, float32 [layout.size]."""
    every = spec.names.in_file(dict(model.named_parameters(remove_duplicate=False)))
    tensors = {**every, **buffers_of(spec, model)}
    for name, view in sources.layout.views(flat).items():
        if name not in spec.names.surplus:
            tensors[name].data = view
            tensors[name].requires_grad_(False)
    return model.eval()
