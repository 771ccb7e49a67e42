"""Whether checkpoints can be merged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from hfmega.errors import SourceError
from hfmega.models.compare import compare, named
from hfmega.models.library import sizes
from hfmega.weights.checkpoint import STATISTICS, Checkpoint, load_each


@dataclass(frozen=True)
class Opened:
    """Checkpoints that can be merged, with their tensors. The first spec is that of the merge.

    notes: what was taken from the first one where they differ.
    """

    checkpoints: list[Checkpoint]
    states: list[dict[str, Tensor]]
    notes: tuple[str, ...]


def open_sources(checkpoints: Sequence[Checkpoint]) -> Opened:
    """Load checkpoints, and check that they can be merged. Raises SourceError for what stands in the way."""
    states = load_each(checkpoints)
    notes = check_mergeable(checkpoints, states)
    first = replace(checkpoints[0], spec=named([checkpoint.spec for checkpoint in checkpoints]))
    return Opened([first, *checkpoints[1:]], states, tuple(notes))


def check_mergeable(checkpoints: Sequence[Checkpoint], states: Sequence[dict[str, Tensor]]) -> list[str]:
    """What the user should know of checkpoints that can be merged.

    Raises SourceError unless networks, classes, tensor names and shapes are equal.
    """
    first, state = checkpoints[0], states[0]
    known = {name: tensor for name, tensor in state.items() if name not in first.spec.names.surplus}
    _same_tensors(first.name, known, f"{first.spec.library}'s {first.spec.architecture}", sizes(first.spec))
    notes: list[str] = []
    for other, tensors in zip(checkpoints[1:], states[1:], strict=True):
        notes += compare(first.spec, other.spec, (first.name, other.name))
        _same_tensors(other.name, tensors, first.name, {name: tuple(t.shape) for name, t in state.items()})
        unlike = [name for name, tensor in tensors.items() if tensor.dtype != state[name].dtype]
        for name in unlike:
            a, b = tensors[name].dtype, state[name].dtype
            if not (a.is_floating_point and b.is_floating_point):
                raise SourceError(f"{other.name} has {name} as {a}, {first.name} as {b}.")
        if unlike:
            what = f"{tensors[unlike[0]].dtype} and {state[unlike[0]].dtype}".replace("torch.", "")
            notes.append(
                f"{other.name} and {first.name} store {what}: they are merged in float32, and saved as {first.name} is."
            )
    return list(dict.fromkeys(notes))


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
