"""What a job installs: the version of this machine, from PyPI or as a wheel that goes along."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from huggingface_hub import Volume

import hfmega
from hfmega.errors import HfmegaError
from hfmega.hub.push import Push, push

REPOSITORY: Final = "hfmega-wheels"  # of the user, private
MOUNT: Final = "/wheels"  # where it lies in a job
DIRECT: Final = "direct_url.json"  # what an installer notes of a package that came from no index (PEP 610)


@dataclass(frozen=True)
class Installed:
    """What a job installs, and the volumes that it needs for that."""

    requirement: str
    volumes: tuple[Volume, ...] = ()


def installed(owner: str, dataset: str | None) -> Installed:
    """The requirement of a job for hfmega as it is installed here.

    A version that came from an index is asked for by its number; any other (a clone, a folder, a commit) is built as a
    wheel and goes into a private repository that the job mounts. Raises HfmegaError where no wheel can be built.
    """
    name = f"hfmega{extras(dataset)}"
    place = origin()
    if place is None:
        return Installed(f"{name}=={hfmega.__version__}")
    with TemporaryDirectory() as folder:
        wheel = build(place, Path(folder))
        named = f"{hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]}/{wheel.name}"
        repository = Push(f"{owner}/{REPOSITORY}", private=True, commit_message="Wheel of hfmega for a job")
        push(Path(folder), repository, {named: wheel})
    volume = Volume(type="model", source=repository.repo_id, mount_path=MOUNT, read_only=True)
    return Installed(f"{name} @ file://{MOUNT}/{named}", (volume,))


def extras(dataset: str | None) -> str:
    """The extras that the merge may need: those whose packages are here."""
    wanted = {"digits": dataset == "digits", "transformers": find_spec("transformers") is not None}
    found = [name for name, needed in wanted.items() if needed]
    return f"[{','.join(found)}]" if found else ""


def origin() -> str | None:
    """Where the wheel is built from: the clone that runs, or what it was installed from; None: an index has it."""
    tree = Path(hfmega.__file__).parents[1]
    if (tree / "pyproject.toml").is_file():
        return str(tree)
    try:
        noted = distribution("hfmega").read_text(DIRECT)
    except PackageNotFoundError:
        noted = None
    if noted is None:
        return None
    found = json.loads(noted)
    commit = found.get("vcs_info", {})
    return f"{commit['vcs']}+{found['url']}@{commit['commit_id']}" if commit else str(found["url"])


def build(place: str, folder: Path) -> Path:
    """A wheel in a folder. Raises HfmegaError with the last line of pip."""
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), place]
    done = subprocess.run(words, capture_output=True, text=True)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        said = (done.stderr.strip() or done.stdout.strip() or "pip made none").splitlines()[-1]
        raise HfmegaError(
            f"hfmega {hfmega.__version__} is not from PyPI, and no wheel of it can be built from {place} ({said}): "
            "install a released version, or build where that works."
        )
    return found[0]
