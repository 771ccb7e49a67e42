"""BatchNorm folded into the convolution before it: one pass over the activations less for each of them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

TOLERANCE: Final = 1e-3  # of the largest answer: more than rounding means that a convolution is read elsewhere too


@dataclass(frozen=True)
class Pair:
    """A convolution, the BatchNorm behind it, and the convolution that does the work of both."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    both: nn.Conv2d

    def update(self) -> None:
        """gamma / sqrt(variance + epsilon) goes into the kernels, what is left of the shift into the bias."""
        norm, convolution = self.norm, self.convolution
        assert norm.running_var is not None
        assert norm.running_mean is not None
        assert self.both.bias is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        before = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        torch.mul(convolution.weight, scale.view(-1, 1, 1, 1), out=self.both.weight.data)
        torch.addcmul(norm.bias, before, scale, out=self.both.bias.data)


class Folded:
    """A twin of a network in eval mode without the BatchNorms that follow a convolution; all else it shares.

    `update` brings the twin to the network's present weights and statistics.
    """

    def __init__(self, model: nn.Module, names: Sequence[tuple[str, str]]) -> None:
        self.network = deepcopy(model).eval()
        shared = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, tensor in [*self.network.named_parameters(), *self.network.named_buffers()]:
            tensor.data = shared[name].data
        self._pairs = [self._fold(model, *pair) for pair in names]

    def _fold(self, model: nn.Module, convolution: str, norm: str) -> Pair:
        original, behind = model.get_submodule(convolution), model.get_submodule(norm)
        both = self.network.get_submodule(convolution)
        assert isinstance(original, nn.Conv2d)
        assert isinstance(behind, nn.BatchNorm2d)
        assert isinstance(both, nn.Conv2d)
        both.weight = nn.Parameter(torch.empty_like(original.weight), requires_grad=False)
        both.bias = nn.Parameter(torch.empty_like(behind.bias), requires_grad=False)
        twin = self.network.get_submodule(norm)
        rest = nn.Sequential(twin.drop, twin.act) if isinstance(twin, BatchNormAct2d) else nn.Identity()
        parent, _, child = norm.rpartition(".")
        setattr(self.network.get_submodule(parent), child, rest)
        return Pair(original, behind, both)

    def __len__(self) -> int:
        return len(self._pairs)

    @torch.no_grad()
    def update(self) -> None:
        for pair in self._pairs:
            pair.update()


@torch.no_grad()
def fold(model: nn.Module, images: Tensor) -> Folded | None:
    """The folded twin of a network in eval mode; None where there is nothing to fold, or where it answers otherwise.

    images: float32 [n, channels, height, width], any: they show which BatchNorm reads which convolution.
    """
    names = pairs_of(model, images)
    if not names:
        return None
    folded = Folded(model, names)
    folded.update()
    expected, found = model(images), folded.network(images)
    near = (found - expected).abs().max() <= TOLERANCE * expected.abs().max()  # NaN: no
    return folded if near else None


def pairs_of(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The names of each convolution and of the BatchNorm that reads its output, each of them run once."""
    outputs: dict[int, tuple[str, Tensor]] = {}
    calls: list[str] = []
    found: list[tuple[str, str]] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hear(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append(name)
            if isinstance(module, nn.Conv2d):
                outputs[id(output)] = (name, output)  # kept, so that no other tensor gets its id
            elif id(inputs[0]) in outputs:
                found.append((outputs[id(inputs[0])][0], name))

        return module.register_forward_hook(hear)

    handles = [watch(name, module) for name, module in model.named_modules() if foldable(module)]
    model(images)
    for handle in handles:
        handle.remove()
    return [pair for pair in found if all(calls.count(name) == 1 for name in pair)]


def foldable(module: nn.Module) -> bool:
    """Whether a module may be one of a pair: a convolution, or a plain BatchNorm with weights and statistics."""
    if type(module) in (nn.BatchNorm2d, BatchNormAct2d):
        return bool(module.affine and module.track_running_stats)
    return isinstance(module, nn.Conv2d)
