"""Tensors as other programs save them, brought to what a network has: wrappers, counters, buffers, tied tensors."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from hfmega.models.library import Spec, outline

# What torch wraps a network in: a part of a tensor's name that is not the network's.
WRAPPERS: Final = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTER: Final = "num_batches_tracked"
UNSAVED: Final = ("relative_position_index", "attention_bias_idxs", "attn_mask", "position_ids", COUNTER)


@dataclass(frozen=True)
class Expected:
    """The tensors of a network: on no device, by name. unsaved: buffers that are in no file; twins: further names of a
    tensor, each to the first one.
    """

    tensors: Mapping[str, Tensor]
    unsaved: frozenset[str]
    twins: Mapping[str, str]

    @property
    def needed(self) -> list[str]:
        """What a file cannot lack."""
        return [name for name, tensor in self.tensors.items() if tensor.is_floating_point() and name not in self.twins]


def expected_of(spec: Spec) -> Expected:
    """The tensors of the network of a spec. Raises as `build` does."""
    model = outline(spec)
    tensors = model.state_dict(keep_vars=True)
    firsts: dict[int, str] = {}
    twins = {name: firsts[id(t)] for name, t in tensors.items() if firsts.setdefault(id(t), name) != name}
    unsaved = frozenset(name for name, _ in model.named_buffers() if name not in tensors)
    return Expected(tensors, unsaved, twins)


def fitted(spec: Spec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the tensors of a network, where it is sure which they are; whoever checks it says what is not.

    Wrappers' prefixes are taken off. Counters that are missing are zero, and whole numbers of the network's type
    otherwise; buffers that are not saved are left out; of tied tensors one is enough. Weights stay what they are.
    """
    if spec.names.own:  # by its own loader
        return dict(state)
    expected = expected_of(spec)
    found = {name: t for name, t in unwrapped(state, expected).items() if not droppable(name, t, expected)}
    for name, twin in expected.twins.items():
        one = found.get(name, found.get(twin))
        if one is not None:
            found |= {name: one, twin: found.get(twin, one)}
    for name, meant in expected.tensors.items():
        if meant.is_floating_point():
            continue
        if name not in found and name.endswith(COUNTER):
            found[name] = torch.zeros(meant.shape, dtype=meant.dtype)
        elif name in found and found[name].dtype != meant.dtype and found[name].dtype != torch.bool:
            found[name] = (
                found[name].round().to(meant.dtype) if found[name].is_floating_point() else found[name].to(meant.dtype)
            )
        if name.endswith(COUNTER) and name in found and found[name].numel() == meant.numel() == 1:
            found[name] = found[name].reshape(meant.shape)
    return found


def droppable(name: str, tensor: Tensor, expected: Expected) -> bool:
    """Whether a tensor that the network has not is a buffer that nobody saves any more."""
    if name in expected.tensors:
        return False
    return (
        name in expected.unsaved
        or (not tensor.is_floating_point() and name.endswith(UNSAVED))
        or name.endswith(COUNTER)
    )


def unwrapped(state: Mapping[str, Tensor], expected: Expected) -> dict[str, Tensor]:
    """A state dict without the names of what its network was wrapped in; as it is where that is not certain."""
    names = set(expected.needed)
    if names <= state.keys():
        return dict(state)
    plain = without_wrappers(state, expected.tensors)
    if names <= plain.keys():
        return plain
    prefix = only_prefix(plain, names)
    if prefix is None:
        return dict(state)
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items()}


def without_wrappers(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """A state dict without the parts of names that are WRAPPERS; as it is where two tensors would have one name.

    names: of the network, whose own parts stay.
    """
    own = {part for name in names for part in name.split(".")}
    surplus = [wrapper for wrapper in WRAPPERS if wrapper not in own]
    plain = {".".join(part for part in name.split(".") if part not in surplus): t for name, t in state.items()}
    return plain if len(plain) == len(state) else dict(state)


def only_prefix(state: Collection[str], names: Collection[str]) -> str | None:
    """The prefix under which all names are, if there is one, and only one."""
    seen: defaultdict[str, int] = defaultdict(int)
    for key in state:
        parts = key.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in names:
                seen[".".join(parts[:cut]) + "."] += 1
    whole = [prefix for prefix, count in seen.items() if count == len(names)]
    return whole[0] if len(whole) == 1 and names else None
