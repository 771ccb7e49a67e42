"""What a network wants of its images: size, crop, interpolation, mean and standard deviation."""

from collections.abc import Callable
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor

from hfmega.errors import SourceError


def preprocessing_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a timm config says of its images: input_size, interpolation, mean, std, crop.

    Raises SourceError when mean and standard deviation are not those of as many channels as the network takes.
    """
    pretrained_cfg = {**config.get("pretrained_cfg", {}), "architecture": config["architecture"]}
    found: dict[str, Any] = resolve_data_config({}, pretrained_cfg=pretrained_cfg)
    channels = found["input_size"][0]
    if channels not in (1, 3) or any(len(found[key]) != channels for key in ("mean", "std")):
        raise SourceError(f"{config['architecture']} takes {channels} channels, which its mean and std do not fit.")
    return found


def normalizer(config: dict[str, Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    """From images as `Split` holds them to a network's input: float32, scaled as its timm config says."""
    preprocessing = preprocessing_of(config)
    mean = torch.tensor(preprocessing["mean"], device=device).view(1, -1, 1, 1) * 255
    std = torch.tensor(preprocessing["std"], device=device).view(1, -1, 1, 1) * 255
    return lambda images: ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
