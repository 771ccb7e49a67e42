"""Whether checkpoints can be merged."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hfmega.errors import SourceError
from hfmega.models.library import sizes
from hfmega.weights.checkpoint import STATISTICS, Checkpoint


def check_mergeable(checkpoints: Sequence[Checkpoint], states: Sequence[dict[str, Tensor]]) -> None:
    """Raises SourceError unless architecture, classes, label order, tensor names, shapes and dtypes are equal."""
    first, state = checkpoints[0], states[0]
    known = {name: tensor for name, tensor in state.items() if name not in first.spec.names.surplus}
    _same_tensors(first.name, known, f"{first.spec.library}'s {first.spec.architecture}", sizes(first.spec))
    for other, tensors in zip(checkpoints[1:], states[1:], strict=True):
        theirs = other.spec.identity
        for what, a in first.spec.identity.items():
            b = theirs[what]
            if isinstance(a, dict) and isinstance(b, dict) and a != b:
                what, a, b = first_difference(what, a, b)
            if a != b:
                raise SourceError(
                    f"{other.name} and {first.name} differ in {what} ({_short(b)} and {_short(a)}): only checkpoints "
                    "of one architecture with the same classes in the same order can be merged."
                )
        _same_tensors(other.name, tensors, first.name, {name: tuple(t.shape) for name, t in state.items()})
        for name, tensor in tensors.items():
            if tensor.dtype != state[name].dtype:
                raise SourceError(f"{other.name} has {name} as {tensor.dtype}, {first.name} as {state[name].dtype}.")


def first_difference(what: str, first: dict[str, Any], other: dict[str, Any]) -> tuple[str, Any, Any]:
    """The first key of two dictionaries, at any depth, whose values differ, and the values."""
    key = min(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
    a, b = first.get(key), other.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
        return first_difference(f"{what}, {key}", a, b)
    return f"{what}: {key}", a, b


def _same_tensors(name: str, state: dict[str, Tensor], expected_of: str, expected: dict[str, tuple[int, ...]]) -> None:
    if missing := sorted(expected.keys() - state.keys()):
        raise SourceError(f"{name} lacks the tensor {missing[0]} that {expected_of} has ({len(missing)} missing).")
    if surplus := sorted(state.keys() - expected.keys()):
        raise SourceError(f"{name} has the tensor {surplus[0]} that {expected_of} has not ({len(surplus)} more).")
    for key, tensor in state.items():
        if not tensor.is_floating_point() and key.endswith((".weight", ".bias", *STATISTICS)):
            raise SourceError(f"{name} has {key} as {tensor.dtype}: weights are floating-point numbers.")
        if tuple(tensor.shape) != expected[key]:
            raise SourceError(
                f"{name} has {key} of shape {tuple(tensor.shape)}, {expected_of} of shape {expected[key]}."
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
