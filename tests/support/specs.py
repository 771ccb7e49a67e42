"""Specs of networks without a file: as cheap as the timm config that is named."""

from typing import Any

from hfmega.models.library import Spec
from hfmega.models.timm_library import spec_of


def spec(architecture: str = "resnet8_cifar", num_classes: int = 10, **config: Any) -> Spec:
    """The spec of a timm config with these keys."""
    return spec_of({"architecture": architecture, "num_classes": num_classes, **config})
