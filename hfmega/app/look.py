"""What is known of checkpoints without an image: whether they fit, how they are related, their licenses."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

from hfmega.errors import HfmegaError
from hfmega.folder import CARD, CONFIG, WEIGHTS

Tone = Literal["good", "doubt", "bad", "plain"]
TONES: Final[dict[str, Tone]] = {"identical": "bad", "shared trunk": "good", "independent": "doubt"}
LIMIT: Final = 20  # ids that a search shows


@dataclass(frozen=True)
class Fact:
    """One source. missing: bytes of its weights that are not on this disk."""

    name: str
    architecture: str
    classes: int
    parameters: int
    license: str | None
    place: str
    missing: int


@dataclass(frozen=True)
class Facts:
    """Several sources. fits: None while weights are missing; advice: what to expect of a merge, and its tone."""

    sources: tuple[Fact, ...]
    fits: bool | None
    relation: str | None
    advice: str
    tone: Tone


def look(sources: Sequence[str]) -> Facts:
    """Look at configs, and at the weights that are on this disk. Raises HfmegaError for a source that cannot be had."""
    return looked(tuple(sources), tuple(stamp(source) for source in sources))


def stamp(source: str) -> float:
    """When a folder changed: what was seen of it before holds until then."""
    times = [path.stat().st_mtime for path in (Path(source) / CONFIG, Path(source) / WEIGHTS) if path.is_file()]
    return max(times, default=0.0)


@lru_cache(maxsize=32)
def looked(sources: tuple[str, ...], _: tuple[float, ...]) -> Facts:
    from hfmega.hub import pull

    previews = [pull.preview(source) for source in sources]
    found = tuple(fact(preview) for preview in previews)
    if len(sources) < 2:
        return Facts(found, None, None, "Choose at least two checkpoints.", "plain")
    checkpoints = [preview.checkpoint for preview in previews]
    if problem := difference(checkpoints):
        return Facts(found, False, None, problem, "bad")
    missing = sum(one.missing for one in found)
    if missing:
        said = f"{missing / 1e6:,.1f} MB of weights are not on this machine yet: Draw the paths fetches them."
        return Facts(found, None, None, said, "plain")
    return related(found, [pull.pull(source) for source in sources])


def fact(preview: Any) -> Fact:
    """What a config says of a source."""
    from hfmega.models.library import sizes

    checkpoint = preview.checkpoint
    return Fact(
        name=checkpoint.name,
        architecture=checkpoint.spec.architecture,
        classes=checkpoint.spec.classes,
        parameters=sum(prod(shape) for shape in sizes(checkpoint.spec).values()),
        license=checkpoint.license or license_on_hub(checkpoint),
        place="Hub" if checkpoint.repo_id else "this machine",
        missing=preview.download_bytes,
    )


def license_on_hub(checkpoint: Any) -> str | None:
    """The license that the card of a source on the Hub states; None for a folder."""
    from hfmega.hub.client import pin
    from hfmega.weights.checkpoint import license_of

    if checkpoint.repo_id is None:
        return None
    card = pin(checkpoint.repo_id, checkpoint.revision).fetch_if_there(CARD)
    return license_of(card) if card else None


def difference(checkpoints: Sequence[Any]) -> str | None:
    """Why configs alone say that no merge is possible."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for what in ("architecture", "number of classes", "label order"):
            mine, theirs = first.spec.identity.get(what), other.spec.identity.get(what)
            if mine != theirs:
                return (
                    f"{other.name} and {first.name} differ in {what}: only checkpoints of one architecture with the "
                    "same classes can be merged."
                )
    return None


def related(found: tuple[Fact, ...], checkpoints: Sequence[Any]) -> Facts:
    """What the weights say. Tensors that do not fit are an answer, not an error."""
    from hfmega.models.library import has_statistics
    from hfmega.weights.checkpoint import load_each
    from hfmega.weights.mergeable import check_mergeable
    from hfmega.weights.relation import loosest, outlook

    states = load_each(checkpoints)
    try:
        check_mergeable(checkpoints, states)
    except HfmegaError as error:
        return Facts(found, False, None, str(error), "bad")
    kinship = loosest(states)
    said = outlook(kinship, has_statistics(checkpoints[0].spec)).removeprefix("relation: ")
    said = said.removesuffix(" (more: hfmega inspect)")
    return Facts(found, True, kinship.relation, said, TONES[kinship.relation])


def search(text: str) -> list[str]:
    """Image classifiers on the Hub whose names or tags have some words. Raises HubError without one to ask."""
    from hfmega.hub.client import api
    from hfmega.hub.problems import CLIENT_ERRORS, explained

    try:
        found = api().list_models(filter="image-classification", search=text or None, sort="downloads", limit=LIMIT)
        return [model.id for model in found]
    except CLIENT_ERRORS as error:
        raise explained(error, "the list of models") from error


def user() -> str | None:
    """Who is logged in by the token that `hf auth login` stored; None if nobody is, or the Hub does not answer."""
    from hfmega.hub.client import api
    from hfmega.hub.problems import CLIENT_ERRORS

    try:
        return str(api().whoami()["name"])
    except CLIENT_ERRORS:
        return None
