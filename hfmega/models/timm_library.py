"""timm behind the boundary: from its config to a network and to the images that it takes, and back to a config."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from hfmega.errors import SourceError
from hfmega.models import config
from hfmega.models.library import CardFacts, Spec, record_of
from hfmega.models.preprocessing import Preprocessing

NAME: Final = "timm"
PACKAGES: Final = ("timm",)
# What of a config reaches timm's constructors. Configs come from anyone: nothing that names a file, a class or a place.
ARGUMENTS: Final = frozenset({"num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate"})
PRETRAINED: Final = frozenset(
    {"input_size", "test_input_size", "fixed_input_size", "min_input_size", "pool_size", "interpolation", "crop_pct"}
    | {"test_crop_pct", "crop_mode", "mean", "std", "first_conv", "classifier", "tag", "architecture"}
)


def read(document: Any, path: Path, where: str) -> Spec:
    """The spec of a timm config. Raises SourceError for one that makes no sense."""
    return spec_of(config.checked(document, path.name, where))


def spec_of(document: Mapping[str, Any]) -> Spec:
    """The spec of a timm config that was checked, or made here."""
    arguments = {name: value for name, value in document.get("model_args", {}).items() if name != "num_classes"}
    labels = document.get("label_names")
    return Spec(
        library=NAME,
        architecture=document["architecture"],
        classes=document["num_classes"],
        labels=None if labels is None else tuple(labels),
        preprocessing=preprocessing_of(document),
        arguments=arguments,
        record=record_of(document),
        config=document,
    )


def preprocessing_of(document: Mapping[str, Any]) -> Preprocessing:
    """What a timm config says of its images.

    Raises SourceError when mean and standard deviation are not those of as many channels as the network takes.
    """
    architecture = document["architecture"]
    pretrained_cfg = {**document.get("pretrained_cfg", {}), "architecture": architecture}
    found: dict[str, Any] = resolve_data_config({}, pretrained_cfg=pretrained_cfg)
    size, mean, std = (tuple(found.pop(key)) for key in ("input_size", "mean", "std"))
    if size[0] not in (1, 3) or any(len(values) != size[0] for values in (mean, std)):
        raise SourceError(f"{architecture} takes {size[0]} channels, which its mean and std do not fit.")
    return Preprocessing(size, mean, std, found)


def build(spec: Spec, seed: int) -> nn.Module:
    """The network of a spec, in eval mode, with weights drawn from a seed.

    Raises SourceError when timm does not know the architecture or refuses the config.
    """
    if not is_architecture(spec.architecture):
        raise SourceError(f"the architecture {spec.architecture!r} is unknown to timm {timm.__version__}: update timm.")
    if surplus := sorted(spec.arguments.keys() - ARGUMENTS):
        raise SourceError(
            f"the config of {spec.architecture} has the constructor argument {surplus[0]!r}, which hfmega does not "
            f"pass on (it passes {', '.join(sorted(ARGUMENTS))})."
        )
    options = {**spec.arguments, "num_classes": spec.classes}
    if spec.config.get("pretrained_cfg"):
        known = {key: value for key, value in spec.config["pretrained_cfg"].items() if key in PRETRAINED}
        options["pretrained_cfg"] = {**known, "num_classes": spec.classes}
    try:
        with torch.random.fork_rng(devices=[]):  # drawing weights must not move the caller's generator
            torch.manual_seed(seed)
            model = timm.create_model(spec.architecture, pretrained=False, **options)
    except Exception as error:  # timm's constructors take what they get, and raise what they come upon
        raise SourceError(f"timm cannot build {spec.architecture} from this config: {error}") from error
    return model.eval()  # type: ignore[no-any-return]


def transform(spec: Spec) -> Callable[[Image.Image], Tensor]:
    """timm's own transform for evaluation, up to uint8."""
    images = spec.preprocessing
    asked = {"input_size": images.input_size, "mean": images.mean, "std": images.std, **images.resize}
    made = create_transform(**asked, is_training=False, use_prefetcher=True)
    return lambda image: torch.as_tensor(made(image))


def merged_config(spec: Spec, tag: str | None) -> dict[str, Any]:
    """The first source's config without its training record; tag: in place of its own."""
    document = {key: value for key, value in spec.config.items() if key != "hfmega"}
    if tag is not None:
        document["pretrained_cfg"] = {**document["pretrained_cfg"], "tag": tag}
    return document


def card_facts(spec: Spec) -> CardFacts:
    """What the Hub calls the library. timm knows hfmega's own networks only after `import hfmega`; transformers loads
    timm's (by its TimmWrapper).
    """
    ours = spec.architecture.endswith("_cifar")
    return CardFacts("hfmega" if ours else NAME, () if ours else (NAME, "transformers"), registered=ours)


def is_architecture(name: str) -> bool:
    """Whether timm has a network of this name."""
    return bool(timm.is_model(name))


def scratch(architecture: str, classes: int, side: int | None) -> Spec:
    """The spec of a network that is trained from random weights."""
    document = {"architecture": architecture, "num_classes": classes}
    model: Any = build(spec_of(document), seed=0)
    pixels = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0}
    sized = {"input_size": (3, side, side), **pixels} if side else {}
    return spec_of({**document, "pretrained_cfg": {**model.pretrained_cfg, **sized}})


def write_trained(spec: Spec, model: nn.Module, labels: Sequence[str], seed: int, path: Path) -> None:
    """Write the config of a trained network as timm does, with the record of its training."""
    added = {"label_names": list(labels), "pretrained_cfg": {"tag": f"s{seed}"}, "hfmega": spec.record}
    save_config_for_hf(model, str(path), model_config=added)
