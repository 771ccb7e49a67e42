"""timm behind the boundary: from its config to a network and to the images that it takes, and back to a config."""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from hfmega.models.label_names import labels_in
from hfmega.models.library import CardFacts, Spec, record_of
from hfmega.models.names import Names, in_container, shapes_in
from hfmega.models.preprocessing import Preprocessing

NAME: Final = "timm"
PACKAGES: Final = ("timm",)
PREFIX: Final = "timm_model."  # which transformers' TimmWrapper puts before each name, or not
# What of a config reaches timm's constructors. Configs come from anyone: nothing that names a file, a class or a place.
ARGUMENTS: Final = frozenset({"num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate"})
# Numbers and switches that timm's exporter records beside them.
PLAIN: Final = frozenset(
    {"dynamic_img_size", "dynamic_img_pad", "strict_img_size", "class_token", "reg_tokens", "no_embed_class", "qk_norm"}
    | {"init_values", "drop_block_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate"}
    | {"output_stride", "patch_size", "window_size", "bn_eps", "bn_momentum", "zero_init_last", "qkv_bias", "fc_norm"}
    | {"final_norm", "pre_norm", "always_partition", "conv_mlp", "ls_init_value", "head_init_scale", "stem_width"}
)
PRETRAINED: Final = frozenset(
    {"input_size", "test_input_size", "fixed_input_size", "min_input_size", "pool_size", "interpolation", "crop_pct"}
    | {"test_crop_pct", "crop_mode", "mean", "std", "first_conv", "classifier", "tag", "architecture"}
)


def read(document: Any, path: Path, where: str) -> Spec:
    """The spec of a timm config. Raises SourceError for one that makes no sense."""
    found = spec_of(config.checked(document, path.name, where))
    if found.config.get("model_type") is None:
        return found
    wrapped = [name for name in shapes_in(path.parent) if name.startswith(PREFIX)]
    return replace(found, names=Names({name: name.removeprefix(PREFIX) for name in wrapped}))


def spec_of(document: Mapping[str, Any]) -> Spec:
    """The spec of a timm config that was checked, or made here."""
    arguments = {name: value for name, value in document.get("model_args", {}).items() if name != "num_classes"}
    found: dict[str, Any] = dict(document.get("pretrained_cfg") or {}, architecture=document["architecture"])
    asked: dict[str, Any] = resolve_data_config({}, pretrained_cfg=found)
    spec = Spec(
        library=NAME,
        architecture=document["architecture"],
        classes=document["num_classes"],
        labels=labels_in(document, document["num_classes"]),
        preprocessing=preprocessing_of(document["architecture"], asked),
        arguments=arguments,
        record=record_of(document),
        config=document,
    )
    if disagree(arguments, spec.preprocessing.input_size):
        spec = replace(spec, preprocessing=preprocessing_of(spec.architecture, asked_by(spec, found)))
    return spec


def asked_by(spec: Spec, found: Mapping[str, Any]) -> dict[str, Any]:
    """What timm says of the images of a network whose arguments and `pretrained_cfg` (found) disagree."""
    with torch.device("meta"):
        model = build(spec, seed=0)
    if importlib.util.find_spec("timm.data.model_config"):  # since 1.0.31
        resolve = importlib.import_module("timm.data.model_config").resolve_input_data_config
        logging.getLogger("timm.data.model_config").setLevel(logging.ERROR)
        try:
            return dict(
                resolve(model, pretrained_cfg={key: value for key, value in found.items() if value is not None})
            )
        except Exception as error:  # it takes what a config says, and raises what it comes upon
            raise SourceError(f"timm cannot tell which images {spec.architecture} takes: {error}") from error
    channels, *sides = spec.preprocessing.input_size
    side = spec.arguments.get("img_size")
    size = side if isinstance(side, list | tuple) else [side or part for part in sides]
    asked = {**found, "input_size": (spec.arguments.get("in_chans", channels), *size)}
    return dict(resolve_data_config({}, pretrained_cfg=asked))


def disagree(arguments: Mapping[str, Any], size: tuple[int, int, int]) -> bool:
    """Whether the arguments of a network ask for other images than its `pretrained_cfg`: then timm asks the network."""
    side = arguments.get("img_size")
    sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
    return arguments.get("in_chans", size[0]) != size[0] or (side is not None and sides != size[1:])


def preprocessing_of(architecture: str, asked: Mapping[str, Any]) -> Preprocessing:
    """What timm says of the images of a network; mean and std of another number of channels are averaged, as timm does.

    Raises SourceError for channels that no image has.
    """
    found = dict(asked)
    size, mean, std = (tuple(found.pop(key)) for key in ("input_size", "mean", "std"))
    if size[0] not in (1, 3):
        raise SourceError(f"{architecture} takes {size[0]} channels: hfmega reads images of 1 or 3.")
    mean, std = (v if len(v) == size[0] else (sum(v) / len(v),) * size[0] for v in (mean, std))
    return Preprocessing(size, mean, std, found)


def build(spec: Spec, seed: int) -> nn.Module:
    """The network of a spec, in eval mode, with weights drawn from a seed.

    Raises SourceError when timm does not know the architecture or refuses the config.
    """
    if not is_architecture(spec.architecture):
        raise SourceError(f"the architecture {spec.architecture!r} is unknown to timm {timm.__version__}: update timm.")
    if surplus := sorted(k for k, v in spec.arguments.items() if k not in ARGUMENTS and not (k in PLAIN and plain(v))):
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


def plain(value: Any) -> bool:
    """Whether an argument is a switch, a number of ordinary size, or a pair of such."""
    if isinstance(value, list | tuple):
        return len(value) <= 2 and all(plain(part) for part in value)
    return isinstance(value, bool | int | float) and abs(value) <= 4096  # a NaN is not


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


def stage(tensor: str) -> str:
    """The stage of a tensor, with or without the prefix of a wrapper."""
    return in_container(tensor.removeprefix(PREFIX))


def card_facts(spec: Spec) -> CardFacts:
    """What the Hub calls the library. timm knows hfmega's own networks only after `import hfmega`; transformers loads
    timm's (by its TimmWrapper).
    """
    if spec.names.own:  # so named only transformers loads it
        return CardFacts("transformers", (NAME,), registered=False, snippet="transformers")
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
