"""BatchNorm folded into convolutions: the same answers, and nothing folded where they would be others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.specs import spec
from torch import Tensor, nn

from hfmega.models.graph.fold import fold, pairs_of
from hfmega.models.library import build


def trained(architecture: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network with statistics that are not those of a new one."""
    given: dict[str, Any] = {"input_size": [3, size, size]}
    model = build(spec(architecture, num_classes=5, pretrained_cfg=given))
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                tensor.data.normal_(0, 0.2, generator=generator)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, torch.rand(4, 3, size, size, generator=generator)


@pytest.mark.parametrize(
    ("architecture", "size", "pairs"),
    [
        ("resnet8_cifar", 32, 9),
        ("resnet18", 64, 20),
        ("tf_efficientnet_lite0", 64, 49),
        ("mobilenetv3_small_050", 64, 34),
    ],
)
def test_a_folded_network_answers_as_the_whole_one(architecture: str, size: int, pairs: int) -> None:
    model, images = trained(architecture, size)
    folded = fold(model, images[:2])
    assert folded is not None
    assert len(folded) == pairs == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.network.modules())
    expected = model(images)
    assert torch.allclose(folded.network(images), expected, atol=1e-4 * float(expected.abs().max()))


def test_a_folded_network_follows_weights_and_statistics_in_place() -> None:
    model, images = trained("resnet8_cifar", 32)
    folded = fold(model, images)
    assert folded is not None
    before = folded.network(images)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.mul_(1.1)
    folded.update()
    assert torch.allclose(folded.network(images), model(images), atol=1e-4)
    assert not torch.allclose(folded.network(images), before, atol=1e-2)


class ReadTwice(nn.Module):
    """A convolution whose output also goes around its BatchNorm, as in a pre-activation network's stem."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        nn.init.constant_(self.norm.weight, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        return (x + self.norm(x)).mean(dim=(2, 3))


def test_a_convolution_that_is_read_elsewhere_too_is_not_folded() -> None:
    model, images = ReadTwice().eval(), torch.rand(2, 3, 8, 8)
    assert pairs_of(model, images) == [("convolution", "norm")]
    assert fold(model, images) is None


def test_a_network_without_batchnorm_has_nothing_to_fold() -> None:
    model, images = trained("test_vit", 160)
    assert fold(model, images) is None
