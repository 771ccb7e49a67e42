"""Whether two networks are one function of their weights: each difference named as itself, or taken from the first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from hfmega.errors import SourceError
from hfmega.models.label_names import fold, telling
from hfmega.models.library import Spec, is_native
from hfmega.models.portrait import difference

NETWORK: Final = "only checkpoints of one network can be merged."
CLASSES: Final = "only checkpoints with the same classes in the same order can be merged."
PIXELS: Final = "a merge has one preprocessing, and these networks were trained on pixels scaled differently."
NEAR: Final = 0.002  # of a mean or a standard deviation: more than rounding


def compare(first: Spec, other: Spec, names: tuple[str, str]) -> list[str]:
    """What the user should know of two networks that can be merged. names: of both checkpoints.

    Raises SourceError with the first difference that stops a merge.
    """
    who = f"{names[1]} and {names[0]} differ in"
    for what, a, b, why in obstacles(first, other):
        raise SourceError(f"{who} {what} ({short(b)} and {short(a)}): {why}")
    notes = [
        f"{who} {what} ({short(b)} and {short(a)}): that of {names[0]} is taken."
        for what, a, b in harmless(first, other)
    ]
    if bool(telling(first.labels)) != bool(telling(other.labels)):
        named, unnamed = names if telling(first.labels) else names[::-1]
        notes.append(f"{unnamed} does not name its classes: those of {named} are taken.")
    return notes


def obstacles(first: Spec, other: Spec) -> list[tuple[str, Any, Any, str]]:
    """What stops a merge of two networks, in the order of how much it says: what, in each, and why."""
    if first.library != other.library:
        return [("library", first.library, other.library, NETWORK)]
    if first.classes != other.classes:
        if first.architecture != other.architecture:
            return [("architecture", first.architecture, other.architecture, NETWORK)]
        return [("number of classes", first.classes, other.classes, CLASSES)]
    found = [*networks(first, other), *classes(first, other)]
    ours, theirs = first.preprocessing, other.preprocessing
    if ours.input_size[0] != theirs.input_size[0]:
        found.append(("channels of their images", ours.input_size[0], theirs.input_size[0], NETWORK))
    for what, a, b in (("mean", ours.mean, theirs.mean), ("std", ours.std, theirs.std)):
        if len(a) != len(b) or any(abs(x - y) > NEAR for x, y in zip(a, b, strict=False)):
            found.append((what, a, b, PIXELS))
    return found


def networks(first: Spec, other: Spec) -> list[tuple[str, Any, Any, str]]:
    """The first difference of two networks as they are built, if their configs do not say the same."""
    ours, theirs = dict(first.arguments), dict(other.arguments)
    if first.architecture == other.architecture and ours == theirs:
        return []
    if first.library != "timm":  # whose arguments are the whole config
        if first.architecture != other.architecture:
            return [("architecture", first.architecture, other.architecture, NETWORK)]
        return [(*first_difference("model arguments", ours, theirs), NETWORK)]
    found = difference(first, other)
    if found is None:
        return []
    if first.architecture != other.architecture:
        return [("architecture", first.architecture, other.architecture, NETWORK)]
    where, a, b = found
    return [(f"how they are built, {where}", a, b, NETWORK)]


def classes(first: Spec, other: Spec) -> list[tuple[str, Any, Any, str]]:
    """Where both networks name their classes, whether they are the same ones in the same order."""
    a, b = telling(first.labels), telling(other.labels)
    ours, theirs = list(map(fold, a)), list(map(fold, b))
    if not a or not b or ours == theirs:
        return []
    what = "label order" if sorted(ours) == sorted(theirs) else "labels"
    return [(what, list(a), list(b), CLASSES)]


def harmless(first: Spec, other: Spec) -> list[tuple[str, Any, Any]]:
    """In what two networks differ that a merge may take from the first: how large images are, and how they are cut."""
    ours, theirs = first.preprocessing, other.preprocessing
    a, b = ({"image size": p.input_size[1:], **p.resize} for p in (ours, theirs))
    return [(key, a.get(key), b.get(key)) for key in [*a, *(k for k in b if k not in a)] if a.get(key) != b.get(key)]


def first_difference(what: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """The first key of two dictionaries, at any depth, whose values differ, and the values."""
    key = min(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
    a, b = first.get(key), other.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
        return first_difference(f"{what}, {key}", a, b)
    return f"{what}: {key}", a, b


def named(specs: Sequence[Spec]) -> Spec:
    """The first spec, with the names of the classes of the first one that names them."""
    known = next((spec.labels for spec in specs if telling(spec.labels)), None)
    if known is None or telling(specs[0].labels):
        return specs[0]
    config = dict(specs[0].config)
    if "id2label" in config or is_native(config):
        config["id2label"] = {str(k): name for k, name in enumerate(known)}
        config["label2id"] = {name: k for k, name in enumerate(known)}
    else:
        config["label_names"] = list(known)
    return replace(specs[0], labels=known, config=config)


def short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
