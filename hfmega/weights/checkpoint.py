"""A checkpoint on this disk: its folder, config and hash; reading and writing its tensors."""

import hashlib
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import (
    metadata_load,
)
from huggingface_hub.utils.sha import sha_fileobj
from safetensors.torch import save
from torch import Tensor
from yaml import YAMLError

from hfmega.errors import SourceError
from hfmega.folder import CARD, CONFIG, WEIGHTS, write_atomically
from hfmega.models.library import Spec
from hfmega.models.library import read as read_spec
from hfmega.weights.fitting import fitted
from hfmega.weights.shards import INDEX, read_index, shards_of
from hfmega.weights.tensors import read_tensors

MAYBE_ID: Final = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """Weights and config of one network on this disk. `revision` is a commit sha; both are None for a folder.

    shards: the files of its weights where they are not one; sha256: see `sha256_of_weights`.
    """

    name: str
    repo_id: str | None
    revision: str | None
    folder: Path
    sha256: str
    spec: Spec
    license: str | None = None
    shards: tuple[str, ...] = ()

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def record(self) -> Mapping[str, Any] | None:
        """How hfmega trained this source, if it did."""
        return self.spec.record


def from_folder(folder: Path) -> Checkpoint:
    if folder.is_file():
        raise SourceError(f"{folder} is a file: a source is the folder of its {CONFIG} and {WEIGHTS}.")
    if not folder.is_dir():
        hub = f"; the repository of that name on the Hub is hf://{folder.as_posix()}"
        raise SourceError(
            f"there is no folder {folder}"
            + (hub if MAYBE_ID.fullmatch(folder.as_posix()) else ", and it is not a Hub id (user/name)")
            + "."
        )
    files = {path.name for path in folder.iterdir()}
    if CONFIG not in files and (inside := checkpoints_in(folder)):
        raise SourceError(f"{folder} is a folder of checkpoints: name them, e.g. {' '.join(inside)}.")
    require_safetensors(str(folder), files)
    spec = read_spec(folder / CONFIG, str(folder))
    shards = shards_in(folder, files)
    sha256 = sha256_of_weights(folder, shards)
    return Checkpoint(name_of(folder), None, None, folder.resolve(), sha256, spec, license_of(folder / CARD), shards)


def checkpoints_in(folder: Path) -> list[str]:
    """The folders inside one that hold a checkpoint, at most five."""
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    return [str(path) for path in found if (path / WEIGHTS).is_file() or (path / INDEX).is_file()][:5]


def shards_in(folder: Path, files: Collection[str]) -> tuple[str, ...]:
    """The shards of the weights in a folder of some files; none where the weights are one file.

    Raises SourceError for an index that cannot be read, or names a shard that is not among the files.
    """
    return () if WEIGHTS in files else named_shards(folder / INDEX, files, str(folder))


def named_shards(index: Path, files: Collection[str], where: str) -> tuple[str, ...]:
    """The shards that an index names, if all of them are there."""
    shards = shards_of(read_index(index, where))
    if missing := [shard for shard in shards if shard not in files]:
        raise SourceError(f"{where} lacks {missing[0]}, which its {INDEX} names ({len(missing)} missing).")
    return shards


def sha256_of_weights(folder: Path, shards: Collection[str]) -> str:
    """The sha256 of the weights in a folder: that of their file, or of what `sha256sum` prints of their shards.

    Of each shard, sorted by name, that is a line of its sha256, two spaces and its name; in a shell
    `sha256sum model-*.safetensors | sha256sum` gives the same.
    """
    if not shards:
        return sha256_of(folder / WEIGHTS)
    lines = [f"{sha256_of(folder / shard)}  {shard}\n" for shard in sorted(shards)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def name_of(folder: Path) -> str:
    """The name of a folder as text that can be written into a file, whatever bytes it has on the disk."""
    return os.fsencode(folder.resolve().name).decode("utf-8", "replace")


def license_of(card: Path) -> str | None:
    """The license that a card states; None when there is no card, or none that can be parsed."""
    try:
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return None
    found = metadata.get("license")
    return found if isinstance(found, str) and found.isprintable() else None


PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".tar", ".pkl", ".pickle", ".th", ".pytorch")
PARTLY: Final = re.compile(r"mp_rank_\d+_model_states")


def conversion(where: str, file: str) -> str:
    """How a person gets safetensors from a pickle. where: a folder, or a repository on the Hub."""
    name = where.rpartition("/")[2]
    here = Path(where).is_dir()
    path = str(Path(where if here else name) / file)
    first = "" if here else f"download it with `hf download {where} --local-dir {name}`, then "
    return (
        f"{first}convert its weights with `hfmega convert {shlex.quote(path)}` (in Python: "
        f'`python -c "import hfmega; hfmega.convert({path!r})"`), which runs nothing of it.'
    )


def require_safetensors(where: str, files: Iterable[str]) -> None:
    names = set(files)
    pickles = sorted(n for n in names if n.endswith(PICKLES) or PARTLY.fullmatch(n))
    if not names & {WEIGHTS, INDEX} and pickles:
        raise SourceError(
            f"{where} has only a pickle checkpoint ({pickles[0]}), which can run code when it is loaded: "
            + conversion(where, pickles[0])
        )
    for needed in ({CONFIG}, {WEIGHTS, INDEX}):
        if not names & needed:
            raise SourceError(
                f"{where} has no {min(needed)}: a source needs {CONFIG} and {WEIGHTS}, as timm and transformers write "
                f"them, or the shards of its weights with {INDEX}."
            )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


STATISTICS: Final = ("running_mean", "running_var")


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a checkpoint, brought to what its network has (see `fitted`).

    Raises SourceError for a broken file, a NaN or Inf in it, or a wrong index.
    """
    return fitted(checkpoint.spec, _read(checkpoint))


def _read(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors as the files of a checkpoint have them."""
    if not checkpoint.shards:
        return read_tensors(checkpoint.weights, f"{checkpoint.name}: {WEIGHTS}")
    index = read_index(checkpoint.folder / INDEX, checkpoint.name)
    state: dict[str, Tensor] = {}
    for shard in shards_of(index):
        where = f"{checkpoint.name}: {shard}"
        tensors = read_tensors(checkpoint.folder / shard, where)
        _check_shard(where, tensors, index, shard)
        state |= tensors
    return state


def load_each(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Tensor]]:
    """The tensors of several checkpoints, by the names that the first one gives them. Raises as `load_weights`."""
    states = [load_weights(checkpoint) for checkpoint in checkpoints]
    first = checkpoints[0].spec.names
    return [c.spec.names.brought(state, first, states[0]) for c, state in zip(checkpoints, states, strict=True)]


def _check_shard(where: str, tensors: Collection[str], index: Mapping[str, str], shard: str) -> None:
    """Raises SourceError unless a shard holds the tensors that the index puts there and no others."""
    for name in tensors:
        if name not in index:
            raise SourceError(f"{where} has the tensor {name}, which {INDEX} does not name.")
        if index[name] != shard:
            raise SourceError(f"{where} has the tensor {name}, which {INDEX} puts into {index[name]}.")
    if missing := sorted(name for name in index if index[name] == shard and name not in tensors):
        raise SourceError(f"{where} lacks the tensor {missing[0]}, which {INDEX} puts there ({len(missing)} missing).")


def save_weights(state: dict[str, Tensor], path: Path) -> str:
    """Write tensors as safetensors, whole or not at all; returns the sha256 of the file."""
    content = save(state, metadata={"format": "pt"})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()
