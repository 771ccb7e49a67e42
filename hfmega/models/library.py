"""The boundary to model libraries: above it nobody reads a config key or names a library.

A library is one module with the functions of `Library`, and one line in `LIBRARIES`. It is imported when a config is
its own, and not before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from hfmega.errors import SourceError
from hfmega.models import config
from hfmega.models.names import Names
from hfmega.models.preprocessing import Preprocessing

WRAPPED: Final = "timm_wrapper"  # the type of networks of timm, as transformers writes them
SCRATCH: Final = "timm"  # the library of networks that are trained from random weights


@dataclass(frozen=True)
class Home:
    """Where a library's module is. knows: whether a config is one of its; extra: what it needs beside hfmega."""

    module: str
    knows: Callable[[Mapping[str, Any]], bool]
    extra: str | None = None


def is_native(document: Mapping[str, Any]) -> bool:
    """Whether a config is one of transformers, of a network that is not timm's."""
    kind = document.get("model_type")
    return isinstance(kind, str) and kind != WRAPPED


# Who is asked first stands first; who takes a config that nobody knows says what is wrong with it.
LIBRARIES: Final = {
    "transformers": Home("hfmega.models.transformers.library", is_native, extra="transformers"),
    "timm": Home("hfmega.models.timm_library", lambda _: False),
}


@dataclass(frozen=True)
class Spec:
    """A network without its weights, as its config describes it.

    labels: the names of the outputs in their order; None where the config has none. arguments: whatever else must be
    equal for two networks to be one function of their weights. record: how hfmega trained it, if it did.
    config: the whole config, as it will be written again; beside: other files that belong to it, by name.
    names: what the checkpoint calls the network's tensors.
    """

    library: str
    architecture: str
    classes: int
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    arguments: Mapping[str, Any]
    record: Mapping[str, Any] | None
    config: Mapping[str, Any]
    beside: Mapping[str, Any] = field(default_factory=dict)
    names: Names = field(default_factory=Names)

    @property
    def identity(self) -> dict[str, Any]:
        """What of two specs must be equal for their networks to be one function of their weights, in words."""
        return {
            "library": self.library,
            "architecture": self.architecture,
            "number of classes": self.classes,
            "label order": None if self.labels is None else list(self.labels),
            "model arguments": dict(self.arguments),
            "input_size": self.preprocessing.input_size,
            **self.preprocessing.resize,
            "mean": self.preprocessing.mean,
            "std": self.preprocessing.std,
        }


@dataclass(frozen=True)
class CardFacts:
    """What a model card says of the library. registered: whether hfmega must be imported to load the network."""

    library_name: str
    tags: tuple[str, ...]
    registered: bool
    snippet: Literal["timm", "transformers"] = "timm"


class Library(Protocol):
    """What a module of `LIBRARIES` has. packages: those whose versions a lineage records."""

    PACKAGES: tuple[str, ...]

    def read(self, document: Any, path: Path, where: str) -> Spec:
        """The spec of a parsed config file; other files may lie beside its path. Raises SourceError."""

    def build(self, spec: Spec, seed: int) -> nn.Module:
        """The network in eval mode, with weights drawn from a seed. Raises SourceError."""

    def transform(self, spec: Spec) -> Callable[[Image.Image], Tensor]:
        """From an image to uint8 [channels, height, width]."""

    def merged_config(self, spec: Spec, tag: str | None) -> dict[str, Any]:
        """The config of a merge of networks of this spec; tag: in place of the first source's."""

    def stage(self, tensor: str) -> str:
        """The stage of a network that a tensor of its checkpoint belongs to."""

    def card_facts(self, spec: Spec) -> CardFacts:
        """What a model card says of the library."""

    def write_trained(self, spec: Spec, model: nn.Module, labels: Sequence[str], seed: int, path: Path) -> None:
        """Write the config of a trained network, with the spec's record in it."""


class Scratch(Library, Protocol):
    """A library whose networks can be trained from random weights."""

    def is_architecture(self, name: str) -> bool:
        """Whether the library has a network of this name."""

    def scratch(self, architecture: str, classes: int, side: int | None) -> Spec:
        """The spec of a network by its name. Raises SourceError."""


def _library(name: str) -> Library:
    return cast(Library, import_module(LIBRARIES[name].module))


def _scratch() -> Scratch:
    return cast(Scratch, import_module(LIBRARIES[SCRATCH].module))


def read(path: Path, where: str) -> Spec:
    """The spec of the network that a config file describes.

    Raises SourceError for a file that cannot be read, or in which something has no sense.
    """
    document = config.load(path, where)
    known = [name for name, home in LIBRARIES.items() if isinstance(document, dict) and home.knows(document)]
    name = known[0] if known else SCRATCH
    try:
        library = _library(name)
    except ImportError as error:
        raise SourceError(
            f"{where} is a checkpoint of {name}, which hfmega reads with an extra: pip install "
            f"'hfmega[{LIBRARIES[name].extra}]'."
        ) from error
    return library.read(document, path, where)


def build(spec: Spec, seed: int = 0) -> nn.Module:
    """The network of a spec, in eval mode, with weights drawn from `seed`.

    Raises SourceError when its library does not know the architecture or refuses the arguments.
    """
    return _library(spec.library).build(spec, seed)


def outline(spec: Spec) -> nn.Module:
    """The network of a spec without memory for its tensors. Raises as `build` does."""
    with torch.device("meta"):
        return build(spec)


def sizes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Tensor name in the checkpoint to shape, of the network of a spec. Raises as `build` does."""
    state = state_of(spec, outline(spec))
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name in (spec.names.own or state)}


def state_of(spec: Spec, model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network by the names of its checkpoint."""
    return spec.names.in_file(model.state_dict())


def parameters_of(spec: Spec, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a network by the names of its checkpoint."""
    return spec.names.in_file(dict(model.named_parameters()))


def buffers_of(spec: Spec, model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a network, those that are not saved among them, by the names of its checkpoint."""
    return spec.names.in_file(dict(model.named_buffers()))


def load_into(spec: Spec, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a checkpoint into a network."""
    model.load_state_dict(spec.names.in_network(state), strict=not spec.names.own)  # whose names were checked


def call(spec: Spec, model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """The answers of a network with other tensors, named as in the checkpoint, in place of its own."""
    logits: Tensor = functional_call(model, spec.names.in_network(tensors), (images,))
    return logits


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The modules of a network that have BatchNorm statistics."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if norm.track_running_stats]


def has_statistics(spec: Spec) -> bool:
    """Whether the network of a spec has BatchNorm statistics."""
    return bool(batch_norms(outline(spec)))


def normalizer(spec: Spec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From images as `Split` holds them to the network's input, float32."""
    return spec.preprocessing.normalizer(device)


def transform(spec: Spec) -> Callable[[Image.Image], Tensor]:
    """From an image of the right mode to what `Split` holds of it: uint8 [channels, height, width]."""
    return _library(spec.library).transform(spec)


def merged_config(spec: Spec, tag: str | None) -> dict[str, Any]:
    """The config of a merge, as it is written into a file."""
    return _library(spec.library).merged_config(spec, tag)


def stage_of(spec: Spec) -> Callable[[str], str]:
    """From a tensor of the checkpoint to the stage of the network that it belongs to."""
    return _library(spec.library).stage


def card_facts(spec: Spec) -> CardFacts:
    """What a model card says of the library."""
    return _library(spec.library).card_facts(spec)


def packages(spec: Spec) -> tuple[str, ...]:
    """The packages of the library whose versions a lineage records."""
    return _library(spec.library).PACKAGES


def record_of(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """How hfmega trained a network, of its config; None if it did not."""
    record = document.get("hfmega")
    whole = isinstance(record, dict) and all(isinstance(record.get(k), str) for k in ("dataset", "train_split"))
    return cast(dict[str, Any], record) if whole else None


def with_record(document: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """A config with how hfmega trained the network."""
    return {**document, "hfmega": dict(record)}


def write_trained(spec: Spec, model: nn.Module, labels: Sequence[str], seed: int, path: Path) -> None:
    """Write the config of a network that hfmega trained. spec: with the record of its training."""
    _library(spec.library).write_trained(spec, model, labels, seed, path)


def is_architecture(name: str) -> bool:
    """Whether a network of this name can be trained from random weights."""
    return _scratch().is_architecture(name)


def scratch(architecture: str, classes: int, side: int | None = None) -> Spec:
    """The spec of a network that is trained from random weights. side: pixels, fed as pixels / 255; None: its own.

    Raises SourceError when there is no such architecture.
    """
    return _scratch().scratch(architecture, classes, side)
