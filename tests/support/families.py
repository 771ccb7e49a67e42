"""Tiny image classifiers of transformers, written as that library writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from hfmega.weights.checkpoint import save_weights

SIDE: Final = 32
LABELS: Final = {k: str(k) for k in range(10)}
VIT: Final = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
PATCHES: Final = {"image_size": SIDE, "patch_size": 8}
STAGES: Final = {"depths": [1, 1], "hidden_sizes": [16, 24]}
# Family: the name of its classes, the arguments of its config, the class of its image processor, and its arguments.
FAMILIES: Final[dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]]] = {
    "vit": ("ViT", {**VIT, **PATCHES}, "ViT", {"size": {"height": SIDE, "width": SIDE}}),
    "deit": (
        "DeiT",
        {**VIT, **PATCHES},
        "DeiT",
        {"size": {"height": 36, "width": 36}, "crop_size": {"height": SIDE, "width": SIDE}},
    ),
    "beit": (
        "Beit",
        {**VIT, **PATCHES, "use_relative_position_bias": True},
        "Beit",
        {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False},
    ),
    "dinov2": (
        "Dinov2",
        {**VIT, **PATCHES, "mlp_ratio": 2},
        "Bit",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}},
    ),
    "siglip": (
        "Siglip",
        {"vision_config": {**VIT, **PATCHES}, "text_config": {**VIT, "vocab_size": 64}},
        "Siglip",
        {"size": {"height": SIDE, "width": SIDE}},
    ),
    "swin": (
        "Swin",
        {"image_size": SIDE, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        "ViT",
        {"size": {"height": SIDE, "width": SIDE}},
    ),
    "convnext": (
        "ConvNext",
        {"image_size": SIDE, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]},
        "ConvNext",
        {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875},
    ),
    "resnet": (
        "ResNet",
        {**STAGES, "embedding_size": 8, "layer_type": "basic"},
        "ConvNext",
        {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875},
    ),
    "mobilenet_v2": (
        "MobileNetV2",
        {"image_size": SIDE, "depth_multiplier": 0.35},
        "MobileNetV2",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}},
    ),
}


def model_of(family: str, seed: int = 0, **changes: Any) -> Any:
    """The untrained network of a family. changes: of its config."""
    import transformers

    prefix, arguments, *_ = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(
        **{**arguments, **changes}, id2label=LABELS, label2id={name: k for k, name in LABELS.items()}
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}ForImageClassification")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias_table"):  # which BEiT leaves as the memory was
            torch.nn.init.normal_(parameter, std=0.02)
    for module in model.modules():  # as if it had seen images
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval()


def processor_of(family: str, **changes: Any) -> Any:
    """The image processor of a family. changes: of its arguments."""
    import transformers

    *_, prefix, arguments = FAMILIES[family]
    return getattr(transformers, f"{prefix}ImageProcessor")(**{**arguments, **changes})


def write(family: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A folder as `save_pretrained` of network and processor leaves it."""
    model_of(family, seed, **changes).save_pretrained(folder)
    processor_of(family).save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object], file: str = "config.json") -> None:
    """Change a JSON file of a folder."""
    document = json.loads((folder / file).read_text())
    change(document)
    (folder / file).write_text(json.dumps(document))


def rename(folder: Path, name: Callable[[str], str]) -> None:
    """Write the weights of a folder under other names."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    save_weights({name(key): tensor for key, tensor in state.items()}, folder / "model.safetensors")
