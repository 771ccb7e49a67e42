"""`hfmega list`: the merges below a folder, one row each, of their lineages."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfmega.errors import HfmegaError
from hfmega.folder import LINEAGE
from hfmega.report import wording
from hfmega.report.lineage import Lineage, read
from hfmega.report.markdown import percent


@dataclass(frozen=True)
class Listed:
    """One merge. date: when it was made (UTC); None in lineages that are older than that."""

    folder: str
    sources: tuple[str, ...]
    method: str
    dataset: str
    accuracy: float
    gain: float
    verdict: str
    is_source: str | None
    date: str | None
    repo_id: str | None


def merges(below: Path) -> tuple[list[Listed], list[str]]:
    """The merges below a folder, oldest first, and a sentence for each lineage that cannot be read.

    Raises HfmegaError when there is no such folder.
    """
    if not below.is_dir():
        raise HfmegaError(f"{below} is not a folder.")
    found, problems = [], []
    for folder in folders(below):
        try:
            found.append(listed(folder, below, read(folder / LINEAGE)))
        except HfmegaError as error:
            problems.append(str(error))
    return sorted(found, key=lambda one: (one.date or "", one.folder)), problems


def folders(below: Path) -> Iterator[Path]:
    """Folders with a lineage; what begins with a dot is not looked into."""
    for place, inside, files in os.walk(below):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if LINEAGE in files:
            yield Path(place)


def listed(folder: Path, below: Path, made: Lineage) -> Listed:
    """The row of one merge. A lineage of an older card says what it is only by its recipe."""
    result, method = made.result, made.settings.get("method", "mega")
    return Listed(
        folder=folder.relative_to(below).as_posix(),
        sources=tuple(source.name for source in made.sources),
        method=str(method),
        dataset=made.data.id,
        accuracy=result.accuracy,
        gain=result.gain,
        verdict=result.verdict,
        is_source=made.held,
        date=made.date,
        repo_id=made.repo_id,
    )


def table(found: list[Listed]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows for people."""
    rows = [
        [
            one.folder,
            brief(one.sources),
            one.method,
            percent(one.accuracy),
            wording.points(one.gain, 1),
            f"kept {one.is_source}" if one.is_source else one.verdict,
            (one.date or "-")[:10],
        ]
        for one in found
    ]
    return ["folder", "sources", "method", "accuracy", "gain", "verdict", "date"], rows


def brief(sources: Sequence[str]) -> str:
    """The first source and how many follow: the folder is what a row is known by."""
    return f"{sources[0]} + {len(sources) - 1}" if len(sources) > 1 else sources[0]


def summary(found: list[Listed]) -> dict[str, Any]:
    """What `hfmega list --json` prints."""
    return {"merges": [asdict(one) for one in found]}
