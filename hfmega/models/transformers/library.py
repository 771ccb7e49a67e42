"""transformers behind the boundary: its image classifiers by name, from its own tables, and never code of others."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hfmega.errors import SourceError
from hfmega.folder import CONFIG, write_atomically
from hfmega.folder import PREPROCESSOR as FILE
from hfmega.models import config as files
from hfmega.models.library import CardFacts, Spec, record_of
from hfmega.models.names import Names, shapes_in, to_first_number
from hfmega.models.transformers.config import checked, labels_of
from hfmega.models.transformers.images import Processor
from hfmega.models.transformers.names import mapped, numbered
from hfmega.models.transformers.quiet import first_line, quiet

NAME: Final = "transformers"
PACKAGES: Final = ("transformers", "torchvision")  # the resize is torchvision's
LOCAL: Final = frozenset({"attn_implementation", "experts_implementation", "use_kernels", "name_or_path"})
ROOM: Final = 1_000_000  # numbers that the loader may draw at random before it says what is missing
_NAMES: Final[dict[str, Names]] = {}
# Of a filled config: what does not change the function of the weights.
UNCOUNTED: Final = frozenset(
    {"transformers_version", "dtype", "torch_dtype", "problem_type", "id2label", "label2id", "num_labels"}
    | {"architectures", "model_type", "initializer_range", "initializer_factor", "name_or_path"}
)


class Classifier(nn.Module):
    """A network of the library: images in, logits out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """images: float [n, channels, height, width] -> float [n, classes]."""
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def read(document: Any, path: Path, where: str) -> Spec:
    """The spec of a config of transformers, of the processor beside it, and of the names in the weights beside it.

    Raises SourceError for what is no image classifier, or what hfmega does not run.
    """
    classes, labels = labels_of(document, where)
    kept = checked(document, where)
    if not (path.parent / FILE).is_file():
        raise SourceError(f"{where} has no {FILE}: without it nobody knows which images the network takes.")
    beside = files.load(path.parent / FILE, where)
    if not isinstance(beside, dict):
        raise SourceError(f"{FILE} of {where} is no dictionary.")
    with quiet():
        name, filled = class_name(document, where), config_of(kept, classes, where)
        processor = processor_of(beside, document, where)
        counted = {k: v for k, v in filled.to_dict().items() if not k.startswith("_") and k not in UNCOUNTED}
        found = Spec(
            library=NAME,
            architecture=name,
            classes=classes,
            labels=labels,
            preprocessing=processor.probe(),
            arguments=json.loads(json.dumps(counted, default=str)),
            record=record_of(document),
            config=document,
            beside={FILE: beside},
        )
        shapes = shapes_in(path.parent)
        return replace(found, names=names_of(found, shapes, where)) if shapes else found


def class_name(document: Mapping[str, Any], where: str) -> str:
    """The class that a config names, if it is one of the library's image classifiers. Raises SourceError for others."""
    kind, named = document["model_type"], document.get("architectures") or []
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(kind, ())
    classes = (known,) if isinstance(known, str) else known
    asked = named[0] if isinstance(named, list) and named else next(iter(classes), "")
    if asked not in classes:
        raise SourceError(
            f"{where} is no image classifier that transformers {transformers.__version__} knows: its config names "
            f"{str(asked)[:60] or 'no class'} of the type {kind[:60]}."
        )
    if getattr(transformers, asked).main_input_name != "pixel_values":
        raise SourceError(f"{where} is {asked}, which does not take images as they are: hfmega cannot evaluate it.")
    return str(asked)


def config_of(kept: Mapping[str, Any], classes: int, where: str) -> Any:
    """The library's config, filled with its defaults. kept: what `checked` leaves. Raises SourceError."""
    try:
        return CONFIG_MAPPING[kept["model_type"]].from_dict({**kept, "num_labels": classes})
    except Exception as error:  # the library's classes take what they get, and raise what they come upon
        raise SourceError(f"config.json of {where} makes no sense to transformers: {first_line(error)}") from error


def network_config(spec: Spec) -> Any:
    """The config that the network of a spec is built of."""
    return config_of(checked(spec.config, spec.architecture), spec.classes, spec.architecture)


def processor_of(beside: Mapping[str, Any], document: Mapping[str, Any], where: str) -> Processor:
    """The image processor of a config."""
    mode = "L" if document.get("num_channels") == 1 else "RGB"
    return Processor(beside, document["model_type"], mode, where)


def check_images(spec: Spec, network: nn.Module, where: str) -> None:
    """Raises SourceError for a network that does not take the images of its processor.

    Not on the meta device: some networks keep what a first forward pass computed, for all others of their class.
    """
    size = spec.preprocessing.input_size
    try:
        with torch.inference_mode():
            answers = Classifier(network)(torch.zeros(2, *size))
    except Exception as error:  # as above
        raise SourceError(
            f"the network of {where} does not take the images of its {FILE} ({' x '.join(map(str, size))}): "
            f"{first_line(error)}"
        ) from error
    if tuple(answers.shape) != (2, spec.classes):
        raise SourceError(f"the network of {where} has {tuple(answers.shape)[1:]} answers, its config {spec.classes}.")


def build(spec: Spec, seed: int) -> nn.Module:
    """The network of a spec, in eval mode, float32, with weights drawn from a seed.

    Raises SourceError when the library refuses the config.
    """
    config = network_config(spec)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = getattr(transformers, spec.architecture)(config)
    except Exception as error:  # as above
        raise SourceError(f"transformers cannot build {spec.architecture}: {first_line(error)}") from error
    return Classifier(network).eval()


def names_of(spec: Spec, shapes: Mapping[str, tuple[int, ...]], where: str) -> Names:
    """What a checkpoint calls the tensors of its network. Raises SourceError where that is not one to one."""
    key = json.dumps([spec.config, spec.beside, list(shapes.items())], sort_keys=True)
    if key not in _NAMES:
        with torch.device("meta"):
            needed = sum(p.numel() for p in build(spec, seed=0).parameters())
        there = sum(math.prod(shape) for shape in shapes.values())
        if needed > 2 * there + ROOM:  # which need not be allocated to be refused
            raise SourceError(f"{where} has {there:,} numbers in its weights, its config describes {needed:,}.")
        network = numbered(getattr(transformers, spec.architecture), network_config(spec), shapes, where)
        found = mapped(network, shapes, where)
        check_images(spec, network, where)
        _NAMES[key] = Names({k: f"network.{name}" for k, name in found.items()}, frozenset(shapes) - found.keys())
    return _NAMES[key]


def transform(spec: Spec) -> Callable[[Image.Image], Tensor]:
    """The library's own processor for evaluation, up to uint8."""
    with quiet():
        processor = processor_of(spec.beside[FILE], spec.config, spec.architecture)
        processor.probe()
    return processor.levels


def merged_config(spec: Spec, tag: str | None) -> dict[str, Any]:  # noqa: ARG001  (it has none)
    """The first source's config without its training record, without what is of the machine that wrote it."""
    return {k: v for k, v in spec.config.items() if k != "hfmega" and k not in LOCAL and not k.startswith("_")}


def stage(tensor: str) -> str:
    """The stage of a tensor, below the prefix of the network: a block of a vision transformer."""
    return to_first_number(tensor)


def card_facts(spec: Spec) -> CardFacts:
    """What the Hub calls the library."""
    return CardFacts(NAME, (spec.config["model_type"],), registered=False, snippet=NAME)


def write_trained(spec: Spec, _: nn.Module, labels: Sequence[str], seed: int, path: Path) -> None:  # noqa: ARG001
    """Write the config of a trained network, with its labels and the record of its training, and its processor's."""
    document = {**merged_config(spec, None), "hfmega": dict(spec.record or {})}
    if len(labels) == spec.classes:
        document["id2label"] = {str(k): name for k, name in enumerate(labels)}
        document["label2id"] = {name: k for k, name in enumerate(labels)}
    for name, content in {CONFIG: document, **spec.beside}.items():
        write_atomically(path.parent / name, f"{json.dumps(content, indent=2)}\n".encode())
