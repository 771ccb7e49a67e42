"""What images say of a source: Fisher information of its weights, Gram matrices of its layers' inputs."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfmega import phases
from hfmega.data.images import Split
from hfmega.evaluation.network import Network
from hfmega.models.library import buffers_of, call, parameters_of
from hfmega.search.recipe import Recipe

IMAGES: Final = 500  # at most, of those that steer a search: the first ones
GRADIENTS: Final = 1 << 24  # floats that are held at once: gradients of as many images as fit


def evidence_of(method: str, network: Network, leaves: Sequence[Recipe], images: Split) -> dict[str, Tensor]:
    """What `fisher` and `regmean` need, as it lies in `recipe.safetensors`: `<leaf>/<tensor>` to float32.

    leaves: the recipe of each leaf alone. Layers that a method does not cover have none.
    """
    gather = {"fisher": fisher, "regmean": grams}[method]
    found: dict[str, Tensor] = {}
    for leaf, recipe in enumerate(leaves):
        found |= {f"{leaf}/{name}": tensor for name, tensor in gather(network, recipe, images).items()}
    return found


def fisher(network: Network, recipe: Recipe, images: Split) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: the mean over images of squared gradients of log p(label).

    (Matena and Raffel 2022, arXiv 2111.09832, section 3.) float32, in the shape of each parameter.
    """
    spec, model = network.spec, network.prepared(recipe)
    parameters = {name: p.detach() for name, p in parameters_of(spec, model).items()}
    buffers = {name: b.detach() for name, b in buffers_of(spec, model).items()}

    def log_likelihood(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = call(spec, model, {**weights, **buffers}, image[None])
        return -nn.functional.cross_entropy(logits.float(), label[None])

    gradients: Callable[..., Any] = vmap(grad(log_likelihood), in_dims=(None, 0, 0))
    pixels, labels = (part[:IMAGES].to(network.sources.device) for part in network.resident(images))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    chunk = max(1, GRADIENTS // sum(p.numel() for p in parameters.values()))
    for x, y in zip(pixels.split(chunk), labels.split(chunk), strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # the other ways of attention know no batch of gradients
            found = gradients(parameters, network.normalized(x), y)
        for name, gradient in found.items():
            total[name] += gradient.square().sum(0)
    network.images_seen += 3 * len(pixels)  # a backward pass costs two forward ones
    phases.passed(3 * len(pixels))
    return {name: (squares / len(pixels)).cpu() for name, squares in total.items()}


def grams(network: Network, recipe: Recipe, images: Split) -> dict[str, Tensor]:
    """X^T X / n of the inputs of each linear layer and of each ungrouped convolution (its patches), float32 [in, in].

    (Jin et al. 2023, arXiv 2212.09849, section 3.)
    """
    model = network.prepared(recipe)
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = patches(layer, inputs[0]).double()
            sums[name] = sums.get(name, 0) + rows.T @ rows / len(rows)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    try:
        pixels = network.resident(images)[0][:IMAGES].to(network.sources.device)
        with torch.inference_mode():
            batches = pixels.split(network.batch_size)
            for x in batches:
                model(network.normalized(x))
        network.images_seen += len(pixels)
        phases.passed(len(pixels))
    finally:
        for handle in handles:
            handle.remove()
    return network.spec.names.in_file({name: (gram / len(batches)).float().cpu() for name, gram in sums.items()})


def patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs of a layer as rows that its weight, flat, is multiplied with: float [rows, in]."""
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding if isinstance(layer.padding, tuple) else _same(layer)
        columns = nn.functional.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
        return columns.transpose(1, 2).flatten(0, 1)
    return inputs.flatten(0, -2)


def _same(layer: nn.Conv2d) -> tuple[int, ...]:
    """Padding that is given in words."""
    if layer.padding == "valid":
        return (0, 0)
    return tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
