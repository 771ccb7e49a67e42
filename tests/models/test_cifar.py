"""The paper's networks, exactly, and building any network from its timm config."""

import subprocess
import sys

import pytest
import timm
import torch
from support.specs import spec
from torch import nn

from hfmega.errors import HfmegaError
from hfmega.models.library import build

config = spec


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])


@pytest.mark.parametrize(
    ("architecture", "floats"),
    [
        ("resnet8_cifar", 79_050),
        ("resnet20_cifar", 274_826),
        ("resnet56_cifar", 862_154),
        ("resnet110_cifar", 1_743_146),
        ("resnet152_cifar", 3_512_426),
        ("xception_cifar", 22_969_906),
        ("densenet121", 7_047_754),
        ("densenet169", 12_659_530),
    ],
)
def test_networks_have_as_many_floats_as_the_paper_counts(architecture: str, floats: int) -> None:
    with torch.device("meta"):
        state = build(config(architecture)).state_dict()
    assert sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()) == floats


def test_resnet8_has_the_tensor_names_of_its_checkpoints() -> None:
    def norm(name: str) -> set[str]:
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{name}.{kind}" for kind in kinds}

    def linear(name: str) -> set[str]:
        return {f"{name}.weight", f"{name}.bias"}

    expected = linear("conv1") | norm("bn1") | linear("fc")
    for stage in ("layer1.0", "layer2.0", "layer3.0"):
        for number in (1, 2):
            expected |= linear(f"{stage}.conv{number}") | norm(f"{stage}.bn{number}")
    for stage in ("layer2.0", "layer3.0"):
        expected |= linear(f"{stage}.downsample.0") | norm(f"{stage}.downsample.1")
    assert set(build(config()).state_dict()) == expected


@pytest.mark.parametrize("architecture", ["resnet20_cifar", "xception_cifar"])
def test_the_defaults_are_those_of_keras(architecture: str) -> None:
    with torch.device("meta"):
        modules = list(build(config(architecture)).modules())
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert len(norms) == {"resnet20_cifar": 21, "xception_cifar": 40}[architecture]


def test_every_convolution_of_the_resnets_has_a_bias() -> None:
    convolutions = [module for module in build(config()).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 9
    assert all(convolution.bias is not None for convolution in convolutions)


def test_kernels_are_glorot_uniform_and_biases_zero() -> None:
    model = build(config(), seed=3)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            area = module.weight[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
            bound = (6 / (area * (module.weight.shape[0] + module.weight.shape[1]))) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert module.bias is not None
            assert not module.bias.any()
    stem = model.get_parameter("conv1.weight")
    assert stem.std().item() == pytest.approx((6 / (9 * 19)) ** 0.5 / 3**0.5, rel=0.1)


def test_a_resnet_halves_the_image_twice_and_answers_with_its_classes() -> None:
    model = build(config(num_classes=7))
    images = torch.zeros(2, 3, 32, 32)
    assert model.forward_features(images).shape == (2, 64, 8, 8)  # type: ignore[operator]
    assert model(images).shape == (2, 7)
    assert not model.training


def test_xception_has_the_paper_s_head() -> None:
    with torch.device("meta"):
        head = build(config("xception_cifar")).get_submodule("fc")
    assert isinstance(head, nn.Sequential)
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Linear"]
    assert [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)] == [(1024, 2048), (10, 1024)]


@pytest.mark.parametrize(
    "program",
    [
        "import sys, hfmega; assert 'torch' not in sys.modules; import timm",
        "import timm; import hfmega",
    ],
)
def test_importing_hfmega_registers_the_networks_before_and_after_timm(program: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", f"{program}; print(*timm.list_models('*_cifar'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == [
        "resnet8_cifar",
        "resnet20_cifar",
        "resnet56_cifar",
        "resnet110_cifar",
        "resnet152_cifar",
        "xception_cifar",
    ]


def test_the_networks_take_pixels_over_255_and_nothing_else() -> None:
    cfg = timm.create_model("resnet20_cifar").pretrained_cfg
    assert (cfg["input_size"], cfg["mean"], cfg["std"]) == ((3, 32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert cfg["crop_pct"] == 1.0


def test_weights_follow_the_seed() -> None:
    one, again, other = weights(build(config(), 1)), weights(build(config(), 1)), weights(build(config(), 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_building_leaves_the_global_generator_where_it_was() -> None:
    before = torch.random.get_rng_state()
    build(config(), seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_model_args_reach_the_network() -> None:
    model = build(config(num_classes=7, model_args={"num_classes": 7, "in_chans": 1}))
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 7)


def test_an_architecture_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(HfmegaError) as refused:
        build(config("resnet9000"))
    assert str(refused.value) == f"the architecture 'resnet9000' is unknown to timm {timm.__version__}: update timm."


def test_arguments_that_the_network_does_not_take_are_refused() -> None:
    with pytest.raises(HfmegaError, match=r"^the config of resnet8_cifar has the constructor argument 'depth'"):
        build(config(model_args={"depth": 3}))
