"""The networks of the paper, registered with timm."""

from typing import Any, Final

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.xception import Xception
from torch import Tensor, nn

KERAS_EPSILON: Final = 1e-3
KERAS_MOMENTUM: Final = 0.01  # Keras' 0.99, in torch's convention


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with the defaults of Keras, which the paper used."""
    return nn.BatchNorm2d(channels, eps=KERAS_EPSILON, momentum=KERAS_MOMENTUM)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with bias, and a 1x1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.bn1 = batch_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = batch_norm(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), batch_norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.downsample(x))


class CifarResNet(nn.Module):
    """The paper's ResNet: a 3x3 stem of 16 filters, three stages of 16, 32 and 64, average pool, one linear layer.

    x: float [images, 3, height, width] -> float [images, classes]. MeGA, section 4, after He et al. 2015, section 4.2,
    with Keras' defaults (convolutions with bias, Glorot-uniform kernels).
    """

    def __init__(self, blocks: tuple[int, int, int], num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1)
        self.bn1 = batch_norm(16)
        self.layer1 = self._stage(16, 16, blocks[0], stride=1)
        self.layer2 = self._stage(16, 32, blocks[1], stride=2)
        self.layer3 = self._stage(32, 64, blocks[2], stride=2)
        self.fc = nn.Linear(64, num_classes)
        self.apply(keras_init)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.layer3(self.layer2(self.layer1(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class CifarXception(Xception):  # type: ignore[misc]
    """timm's Xception with the paper's head: dense 1024, ReLU, dense classes; Keras' BatchNorm defaults."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        hidden = nn.Linear(self.num_features, 1024)
        self.fc = nn.Sequential(hidden, nn.ReLU(), nn.Linear(1024, num_classes))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = KERAS_EPSILON, KERAS_MOMENTUM
        self.apply(keras_init)


def keras_init(module: nn.Module) -> None:
    """Glorot-uniform kernels and zero biases, the defaults of Keras."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def cifar_cfg(first_conv: str = "conv1", classifier: str = "fc") -> dict[str, Any]:
    """timm's description of a network that takes 32-pixel images, pixels / 255 and nothing else."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": first_conv,
        "classifier": classifier,
    }


default_cfgs = generate_default_cfgs(
    {
        **{f"resnet{depth}_cifar": cifar_cfg() for depth in (8, 20, 56, 110, 152)},
        "xception_cifar": cifar_cfg(classifier="fc.2"),
    }
)


def _resnet(variant: str, blocks: tuple[int, int, int], pretrained: bool, **kwargs: Any) -> CifarResNet:
    kwargs.pop("global_pool", None)  # timm's factory passes its config's value; there is only the average here
    return build_model_with_cfg(CifarResNet, variant, pretrained, blocks=blocks, **kwargs)  # type: ignore[no-any-return]


@register_model  # type: ignore[untyped-decorator]
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """79,050 floats."""
    return _resnet("resnet8_cifar", (1, 1, 1), pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """274,826 floats."""
    return _resnet("resnet20_cifar", (3, 3, 3), pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """862,154 floats (the paper's 0.86 M)."""
    return _resnet("resnet56_cifar", (9, 9, 9), pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """1,743,146 floats (the paper prints 1.78 M)."""
    return _resnet("resnet110_cifar", (18, 18, 18), pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet152_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """3,512,426 floats (the paper's 3.51 M)."""
    return _resnet("resnet152_cifar", (18, 37, 37), pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def xception_cifar(pretrained: bool = False, **kwargs: Any) -> CifarXception:
    """22,969,906 floats (the paper prints 22.96 M)."""
    kwargs.pop("global_pool", None)
    return build_model_with_cfg(CifarXception, "xception_cifar", pretrained, **kwargs)  # type: ignore[no-any-return]
