"""The merges below a folder as they are on disk: whoever started them, in a window or in a terminal."""

import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hfmega.app import command
from hfmega.errors import HfmegaError
from hfmega.folder import CONFIG, FINGERPRINT, HOLDER, LINEAGE, PHASE, PROGRESS, SETTINGS, WEIGHTS, WORK

OWN: Final = ".app"  # what the page keeps, below the folder of the merges
DEPTH: Final = 3  # folders below the folder of the merges that are looked at
NAME: Final = re.compile(r"[\w+][\w.+@ -]{0,99}")
HELD: Final = re.compile(r"process (\d+) on (.*)")
PHASES: Final = {
    "statistics": "BatchNorm",
    "search": "Search",
    "controls": "Controls",
    "last mile": "Last mile",
    "test": "Test and report",
}
Status = Literal["new", "running", "stopped", "finished"]


@dataclass(frozen=True)
class Generation:
    """Best and mean fitness of one generation, in the numbers of the run's own file."""

    best: float
    mean: float


@dataclass(frozen=True)
class Live:
    """How far an unfinished merge has come. searches: name to its generations; planned: generations of each."""

    phase: str = ""
    searches: tuple[tuple[str, tuple[Generation, ...]], ...] = ()
    planned: int = 0
    merges: int = 0
    by_loss: bool = False
    images: int = 0
    seconds: float = 0.0


def merge_folder(base: Path, name: str) -> Path:
    """The folder of a merge by its name. Raises HfmegaError for a name that would lead out of the base."""
    parts = name.split("/")
    if not name or len(parts) > DEPTH or not all(NAME.fullmatch(part) for part in parts):
        raise HfmegaError(f"{name!r} is not a name for a merge: use letters, digits and + - _ . only.")
    return base / name


def place_of(base: Path, name: str) -> Path:
    """Where the page keeps the command of a merge, its log and its settings."""
    return base / OWN / name


def names(base: Path) -> dict[str, Status]:
    """Every merge below a folder, finished or not, newest first."""
    found = {path.relative_to(base).as_posix(): path for path in below(base, DEPTH) if is_merge(path)}
    own = base / OWN
    for place in below(own, DEPTH) if own.is_dir() else ():
        name = place.relative_to(own).as_posix()
        if (place / command.COMMAND).is_file() and name not in found and command.running(place):
            found[name] = place
    ordered = sorted(found, key=lambda name: -newest(found[name]))
    return {name: status(base, name) for name in ordered}


def newest(folder: Path) -> float:
    """When a merge last changed."""
    times = [path.stat().st_mtime for path in (folder / LINEAGE, folder / WORK, folder) if path.exists()]
    return max(times[:1] or [0.0])


def below(base: Path, depth: int) -> Iterator[Path]:
    """The folders below a folder; not hidden ones, and no links, which may lead anywhere."""
    try:
        inside = sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith(".") and not p.is_symlink())
    except OSError:
        return
    for path in inside:
        yield path
        if depth > 1:
            yield from below(path, depth - 1)


def is_merge(folder: Path) -> bool:
    return (folder / LINEAGE).is_file() or (folder / WORK / FINGERPRINT).is_file()


def checkpoints(base: Path) -> list[str]:
    """The folders below a folder that may be sources."""
    return [str(path) for path in below(base, DEPTH) if (path / CONFIG).is_file() and (path / WEIGHTS).is_file()]


def status(base: Path, name: str) -> Status:
    """What is to be said of a merge."""
    folder, place = base / name, place_of(base, name)
    if command.running(place) or holder(folder) is not None:
        return "running"
    if (folder / LINEAGE).is_file() and not (folder / WORK / FINGERPRINT).exists():
        return "finished"
    return "stopped" if (folder / WORK / FINGERPRINT).exists() else "new"


def holder(folder: Path) -> int | None:
    """The process on this machine that works in a folder; None if there is none."""
    path = folder / WORK / HOLDER
    try:
        found, since = HELD.fullmatch(path.read_text(encoding="utf-8")), path.stat().st_mtime
    except (OSError, ValueError):
        return None
    if not found or found[2] != platform.node():
        return None
    pid = int(found[1])
    begun = command.created(pid)
    return pid if 0 < begun <= since + 1 and command.alive(pid, begun) else None


def stop(base: Path, name: str) -> None:
    """Stop a merge, started here or in a terminal."""
    place, pid = place_of(base, name), holder(base / name)
    if command.running(place):
        command.stop(place)
    elif pid is not None:
        command.terminate(pid)


def settings_of(base: Path, name: str) -> str | None:
    """The settings of a merge that was started, as YAML: those of its work folder, else those that were typed here."""
    for path in (base / name / WORK / SETTINGS, place_of(base, name) / SETTINGS):
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return None


def live(folder: Path) -> Live:
    """How far a merge has come, of its own files; a file that is not there, or is half written, says nothing."""
    phase, progress = command.parsed(folder / WORK / PHASE), command.parsed(folder / WORK / PROGRESS)
    doing: Mapping[str, Any] = phase if isinstance(phase, dict) else {}
    done: Mapping[str, Any] = progress if isinstance(progress, dict) else {}
    by_loss = doing.get("fitness", "accuracy") != "accuracy"
    scores = done.get("scores", {})
    return Live(
        phase=str(doing.get("phase", "search" if scores else "")),
        searches=tuple((name, tuple(generation(g, by_loss) for g in told)) for name, told in scores.items()),
        planned=int(doing.get("generations", 0)),
        merges=int(doing.get("merges", 0)),
        by_loss=by_loss,
        images=int(done.get("forward_passes", 0)),
        seconds=float(done.get("seconds", 0.0)),
    )


def generation(scores: list[dict[str, Any]], by_loss: bool) -> Generation:
    """Best of those that saw all images, and mean of all, as the search tells them itself."""
    value = (lambda s: float(s["loss"])) if by_loss else (lambda s: s["correct"] / s["total"])
    finite = [value(s) for s in scores if float(s["loss"]) < float("inf")]
    exact = [value(s) for s in scores if s.get("exact", True) and float(s["loss"]) < float("inf")] or finite
    if not finite:
        return Generation(0.0, 0.0)
    return Generation((min if by_loss else max)(exact), sum(finite) / len(finite))
