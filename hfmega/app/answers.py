"""What the models of a merge say of an image: each source, the merge, and the sources together."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from hfmega.errors import HfmegaError
from hfmega.folder import CONFIG, LINEAGE

MERGE: Final = "this merge"
TOGETHER: Final = "ensemble"
LOOKED: Final = 1000  # test images among which disagreement is looked for
SHOWN: Final = 12  # images that are shown of them


@dataclass(frozen=True)
class Answer:
    """What one model says: probabilities by class, the highest first. kind: of `report.lineage`, for its colour."""

    model: str
    kind: str
    probabilities: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Disputed:
    """A test image on which merge and best source disagree, with its class and what each model says."""

    image: Any
    truth: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Models:
    """The networks of a merge, with the same classes and preprocessing. alone: sources whose weights are here."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    networks: tuple[Any, ...]
    spec: Any
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    best: int


def models(folder: Path) -> Models:
    """Load the models of a finished merge. Raises HfmegaError when they cannot be had."""
    return loaded(folder, (folder / LINEAGE).stat().st_mtime)


@lru_cache(maxsize=2)
def loaded(folder: Path, _: float) -> Models:
    from hfmega.hub.pull import pull
    from hfmega.merging.replay import find_source
    from hfmega.models import library
    from hfmega.report import lineage

    made = lineage.read(folder / LINEAGE)
    named, missing = [(MERGE, "merged", pull(str(folder)))], []
    for entry in made.sources:
        try:
            named.append((entry.name, "source", find_source(entry, folder, None)))
        except HfmegaError as error:
            missing.append(str(error))
    networks = [network_of(checkpoint) for _, _, checkpoint in named]
    spec = library.read(folder / CONFIG, str(folder))
    names = tuple(name for name, _, _ in named)
    best = max(made.sources, key=lambda entry: entry.accuracy).name
    classes = spec.labels or tuple(entry.name for entry in made.result.per_class)
    if len(classes) != spec.classes:
        classes = tuple(map(str, range(spec.classes)))
    at = names.index(best) if best in names else 0
    return Models(names, tuple(k for _, k, _ in named), tuple(networks), spec, tuple(classes), tuple(missing), at)


def network_of(checkpoint: Any) -> Any:
    """A checkpoint as a network that answers, as `hfmega evaluate` makes it."""
    from hfmega.evaluation.network import Network
    from hfmega.weights.checkpoint import load_weights
    from hfmega.weights.sources import mix

    return Network(checkpoint.spec, mix([checkpoint], [load_weights(checkpoint)]), calibration=None)


def probabilities(known: Models, images: Any) -> Any:
    """float32 [models, images, classes] of uint8 images; behind the models, where there are two sources, their mean."""
    import torch

    from hfmega.data.images import Split
    from hfmega.search.recipe import Recipe

    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    split = Split("asked", images, torch.zeros(len(images), dtype=torch.int64), digest)
    found = torch.stack([network.predict(Recipe((1.0,)), split).exp() for network in known.networks])
    together = found[1:].mean(0, keepdim=True) if len(known.networks) > 2 else found[:0]
    return torch.cat([found, together])


def answers(known: Models, found: Any, image: int = 0, most: int = 3) -> tuple[Answer, ...]:
    """What each model says of one image, the likeliest classes first."""
    names = (*known.names, *([TOGETHER] if len(found) > len(known.names) else []))
    kinds = (*known.kinds, "ensemble")
    told = []
    for name, kind, row in zip(names, kinds, found[:, image], strict=False):
        top = row.topk(min(most, len(row)))
        shares = tuple((known.classes[k], v) for v, k in zip(top.values.tolist(), top.indices.tolist(), strict=True))
        told.append(Answer(name, kind, shares))
    return tuple(told)


def ask(folder: Path, content: bytes) -> tuple[tuple[Answer, ...], tuple[str, ...]]:
    """What the models of a merge say of an image file; and how it was read, and why some of them say nothing.

    Raises HfmegaError for an image that cannot be read.
    """
    from hfmega.data.images import _decode
    from hfmega.models import library

    known = models(folder)
    image, remarks = _decode(content, known.spec.preprocessing.mode, "this file")
    pixels = library.transform(known.spec)(image)[None]
    return answers(known, probabilities(known, pixels)), (
        *(f"This image has {remark}." for remark in remarks),
        *known.missing,
    )


def disputed(folder: Path) -> tuple[Disputed, ...]:
    """Test images of a merge on which it and its best source disagree, where one of them is right first.

    Raises HfmegaError when the images, or the best source, cannot be had.
    """
    from hfmega.data.dataset import open_dataset, rows_of
    from hfmega.data.images import load_split
    from hfmega.merging.replay import read_places
    from hfmega.report import lineage

    known, made = models(folder), lineage.read(folder / LINEAGE)
    if known.best == 0:
        raise HfmegaError("the sources of this merge are not on this machine: there is nothing to compare it with.")
    dataset = open_dataset(
        read_places(folder).get("dataset", made.data.id),
        made.settings.get("image_column"),
        made.settings.get("label_column"),
    )
    rows = rows_of(dataset, made.data.splits["test"].slice)[:LOOKED]
    split = load_split(dataset, rows, known.spec, "test")
    found = probabilities(known, split.images)
    said = found.argmax(2)
    differ = (said[0] != said[known.best]).nonzero()[:, 0].tolist()
    truth = split.labels.tolist()
    right = [k for k in differ if truth[k] in (said[0, k], said[known.best, k])]
    ordered = [*right, *(k for k in differ if k not in right)][:SHOWN]
    return tuple(
        Disputed(original(dataset, int(rows[k])), known.classes[truth[k]], answers(known, found, k)) for k in ordered
    )


def original(dataset: Any, row: int) -> Any:
    """A row's image as it is, for people."""
    place = row
    for name, length in dataset.lengths.items():
        if place < length:
            return dataset.splits[name][place][dataset.image_column]
        place -= length
    raise HfmegaError(f"{dataset.id} has no row {row}.")
