"""The folder of a run: the names of its files, made, locked, resumed, finished.

Unfinished work lies in `.hfmega/` inside it.
"""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from hfmega import __version__
from hfmega.errors import HfmegaError

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"  # of weights in several files
PREPROCESSOR: Final = "preprocessor_config.json"  # where the library keeps what it does to images in a file of its own
LINEAGE: Final = "lineage.json"
STATISTICS: Final = "statistics.safetensors"
RECIPE: Final = "recipe.safetensors"
CARD: Final = "README.md"
EVAL_RESULTS: Final = ".eval_results/hfmega.yaml"
REPORT: Final = "report.html"  # for the user; published only when asked for
PUBLISHED: Final = (CARD, CONFIG, PREPROCESSOR, WEIGHTS, LINEAGE, STATISTICS, RECIPE, EVAL_RESULTS, "figures/*.png")
WORK: Final = ".hfmega"
FINGERPRINT: Final = "fingerprint"
PLACES: Final = "places.json"
DISAGREEMENTS: Final = "disagreements.json"
HOLDER: Final = "holder"  # who has the lock, for the one that does not get it
PROGRESS: Final = "progress.json"  # the scores so far
PHASE: Final = "phase.json"  # what a run is doing
SETTINGS: Final = "settings.yaml"  # what `--config` reads to go on with an unfinished merge
NO_CACHE: Final = "HFMEGA_NO_CACHE"  # in the environment: no decoded images of other runs
TEMPORARY: Final = ".tmp"  # what a file is called until it is whole
# On Windows a file that another program is reading (a virus scanner, say) cannot be replaced for a moment.
BUSY: Final = Retrying(
    stop=stop_after_attempt(5), wait=wait_fixed(0.1), retry=retry_if_exception_type(PermissionError), reraise=True
)


def like_a_path(text: str) -> bool:
    """Whether a name is written like a folder on this disk: `./x`, `a/b/c`, or `a/b` where there is a folder `a`."""
    if text.startswith((".", "/", "~")) or text.endswith("/") or "\\" in text or text.count("/") > 1:
        return True
    return "/" in text and Path(text).parent.is_dir()


def check_output(folder: Path, done: str, overwrite: bool) -> None:
    """Raises HfmegaError when a run may not write here: a finished run, or a folder that is not hfmega's."""
    if folder.exists() and not folder.is_dir():
        raise HfmegaError(f"{folder} is a file: name a folder with -o.")
    if overwrite or not folder.exists():
        return
    if (folder / done).exists() and not (folder / WORK / FINGERPRINT).exists():
        raise HfmegaError(
            f"{folder} holds a finished run: name another folder with -o, or start again with --overwrite."
        )
    if any(folder.iterdir()) and not (folder / WORK).is_dir():
        raise HfmegaError(f"{folder} is not empty: name another folder with -o, or --overwrite what is in it.")


def other_settings(folder: Path) -> HfmegaError:
    """What to say of a folder whose finished run is not the one that was asked for."""
    return HfmegaError(f"{folder} holds a run of other settings: name another folder with -o, or remove that one.")


@contextmanager
def open_run(folder: Path, fingerprint: str, overwrite: bool) -> Iterator[Path]:
    """Hold the folder's lock and give its work folder; work of the same fingerprint is kept, so that it resumes.

    fingerprint: whatever identifies the run (settings, hashes of sources and data).
    Raises HfmegaError when another process works here, when the unfinished work is of another run, or when the folder
    cannot be made or written.
    """
    work = folder / WORK
    with _locked(folder):
        _claim(folder, fingerprint, overwrite)
        write_atomically(work / HOLDER, f"process {os.getpid()} on {platform.node()}".encode())
        try:
            yield work
        finally:
            (work / HOLDER).unlink(missing_ok=True)


def _locked(folder: Path) -> AbstractContextManager[object]:
    """The lock of a folder, held: the system frees it however this process ends."""
    work = folder / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        return FileLock(work / "lock", timeout=0).acquire()
    except Timeout as error:
        raise HfmegaError(
            f"another hfmega is working in {folder} ({_holder(work)}): wait for it, or name another folder with -o."
        ) from error
    except OSError as error:
        raise HfmegaError(
            f"{folder} cannot be written ({error.strerror or error}): name another folder with -o."
        ) from error


def _holder(work: Path) -> str:
    try:
        return (work / HOLDER).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "it has just begun"


def _claim(folder: Path, fingerprint: str, overwrite: bool) -> None:
    mark = folder / WORK / FINGERPRINT
    ours = {"hfmega": __version__, "fingerprint": fingerprint}
    if overwrite:
        clear(folder)
    elif mark.exists():
        found = _claimed(mark)
        if found.get("hfmega") != __version__:
            raise HfmegaError(
                f"{mark} is of hfmega {found.get('hfmega', '(unknown)')}, this is {__version__}: finish that run with "
                "that version, or start anew with --overwrite."
            )
        if found != ours:
            raise HfmegaError(
                f"{folder} holds an unfinished run of other settings or sources: run that command again to finish it, "
                "or start anew with --overwrite."
            )
    write_atomically(mark, json.dumps(ours).encode())


def _claimed(mark: Path) -> dict[str, object]:
    """Which version and which run left the work that is here; nothing, where that cannot be read."""
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def clear(folder: Path) -> None:
    """Remove what hfmega writes, and nothing else."""
    for pattern in (*PUBLISHED, REPORT):
        for path in (*folder.glob(pattern), *folder.glob(pattern + TEMPORARY)):
            path.unlink()
    for path in (folder / WORK).iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def finish(folder: Path) -> None:
    """The run is complete: forget the unfinished work. The places of local sources stay, and the report's images.

    The fingerprint goes last: until then the same command finds an unfinished run, and finishes it.
    """
    work = folder / WORK
    for path in work.iterdir():
        if path.name not in ("lock", PLACES, DISAGREEMENTS, FINGERPRINT):
            path.unlink()
    (work / FINGERPRINT).unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old one or the new one, never half of it."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        BUSY(temporary.replace, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Let the new names in a folder outlive a power cut; Windows cannot be asked to, nor can some network disks."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            os.fsync(handle)
        os.close(handle)
