"""The tensors of checkpoints: reading them, whether they can be merged, mixing, writing."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from hfmega import HfmegaError, hub
from hfmega.data import preprocessing_of
from hfmega.hub import Checkpoint
from hfmega.models import build, sizes
from hfmega.recipe import Recipe, Sources
from hfmega.run import write_atomically
from hfmega.shards import INDEX, read_index, shards_of
from hfmega.tensors import read_tensors

STATISTICS: Final = ("running_mean", "running_var")


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a checkpoint. Raises HfmegaError for a broken file, a NaN or Inf in it, or a wrong index."""
    if not checkpoint.shards:
        return read_tensors(checkpoint.weights, f"{checkpoint.name}: {hub.WEIGHTS}")
    index = read_index(checkpoint.folder / INDEX, checkpoint.name)
    state: dict[str, Tensor] = {}
    for shard in shards_of(index):
        where = f"{checkpoint.name}: {shard}"
        tensors = read_tensors(checkpoint.folder / shard, where)
        _check_shard(where, tensors, index, shard)
        state |= tensors
    return state


def _check_shard(where: str, tensors: Collection[str], index: Mapping[str, str], shard: str) -> None:
    """Raises HfmegaError unless a shard holds the tensors that the index puts there and no others."""
    for name in tensors:
        if name not in index:
            raise HfmegaError(f"{where} has the tensor {name}, which {INDEX} does not name.")
        if index[name] != shard:
            raise HfmegaError(f"{where} has the tensor {name}, which {INDEX} puts into {index[name]}.")
    if missing := sorted(name for name in index if index[name] == shard and name not in tensors):
        raise HfmegaError(f"{where} lacks the tensor {missing[0]}, which {INDEX} puts there ({len(missing)} missing).")


def check_mergeable(checkpoints: Sequence[Checkpoint], states: Sequence[dict[str, Tensor]]) -> None:
    """Raises HfmegaError unless architecture, classes, label order, tensor names, shapes and dtypes are equal."""
    first, state = checkpoints[0], states[0]
    _same_tensors(first.name, state, f"timm's {first.config['architecture']}", sizes(first.config))
    for other, tensors in zip(checkpoints[1:], states[1:], strict=True):
        theirs = _identity(other.config)
        for what, a in _identity(first.config).items():
            if a != (b := theirs[what]):
                raise HfmegaError(
                    f"{other.name} and {first.name} differ in {what} ({_short(b)} and {_short(a)}): only checkpoints "
                    "of one architecture with the same classes in the same order can be merged."
                )
        _same_tensors(other.name, tensors, first.name, {name: tuple(t.shape) for name, t in state.items()})
        for name, tensor in tensors.items():
            if tensor.dtype != state[name].dtype:
                raise HfmegaError(f"{other.name} has {name} as {tensor.dtype}, {first.name} as {state[name].dtype}.")


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What of two configs must be equal for their networks to be one function of their weights."""
    arguments = {name: value for name, value in config.get("model_args", {}).items() if name != "num_classes"}
    return {
        "architecture": config["architecture"],
        "number of classes": config["num_classes"],
        "label order": config.get("label_names"),
        "model arguments": arguments,
        **preprocessing_of(config),
    }


def _same_tensors(name: str, state: dict[str, Tensor], expected_of: str, expected: dict[str, tuple[int, ...]]) -> None:
    if missing := sorted(expected.keys() - state.keys()):
        raise HfmegaError(f"{name} lacks the tensor {missing[0]} that {expected_of} has ({len(missing)} missing).")
    if surplus := sorted(state.keys() - expected.keys()):
        raise HfmegaError(f"{name} has the tensor {surplus[0]} that {expected_of} has not ({len(surplus)} more).")
    for key, tensor in state.items():
        if not tensor.is_floating_point() and key.endswith((".weight", ".bias", *STATISTICS)):
            raise HfmegaError(f"{name} has {key} as {tensor.dtype}: weights are floating-point numbers.")
        if tuple(tensor.shape) != expected[key]:
            raise HfmegaError(
                f"{name} has {key} of shape {tuple(tensor.shape)}, {expected_of} of shape {expected[key]}."
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def mix(
    checkpoints: Sequence[Checkpoint], states: Sequence[dict[str, Tensor]], device: torch.device | str = "cpu"
) -> Sources:
    """The checkpoints ready to be mixed; what their network calls parameters may get noise."""
    with torch.device("meta"):  # only the names are needed
        parameters = dict(build(checkpoints[0].config).named_parameters())
    return Sources(states, parameters, device)


def rebuild(sources: Sources, recipe: Recipe, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a recipe with its re-estimated BatchNorm statistics: the weights of the merged model.

    Raises HfmegaError for anything else that is called statistics.
    """
    flat = torch.empty(sources.layout.size, device=sources.device)
    sources.materialize(recipe, flat)
    state = sources.state_dict(flat)
    for name, tensor in statistics.items():
        known = name.endswith(STATISTICS) and name in state and tensor.is_floating_point()
        if not known or tensor.shape != state[name].shape:
            raise HfmegaError(f"{hub.STATISTICS} has {name} of shape {tuple(tensor.shape)}: the network has no such.")
    return {**state, **{name: tensor.to(state[name].dtype) for name, tensor in statistics.items()}}


def save_weights(state: dict[str, Tensor], path: Path) -> str:
    """Write tensors as safetensors, whole or not at all; returns the sha256 of the file."""
    content = save(state, metadata={"format": "pt"})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()
