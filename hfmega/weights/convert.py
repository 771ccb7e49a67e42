"""`hfmega convert`: the weights in a pickle as safetensors, without running any code that the pickle names."""

import argparse
import io
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hfmega.errors import HfmegaError, SourceError
from hfmega.folder import CONFIG, WEIGHTS
from hfmega.models.library import read as read_spec
from hfmega.weights.checkpoint import save_weights
from hfmega.weights.fitting import COUNTER, Expected, expected_of, fitted, only_prefix, without_wrappers

# Where training programs keep weights, in the order in which they are taken: averaged ones first, as timm does.
ENTRIES: Final = (
    *(
        "state_dict_ema",
        "model_ema",
        "ema_state_dict",
        "ema",
        "state_dict",
        "model_state_dict",
        "model",
        "net",
        "network",
    ),
    *("module", "weights", "params_ema", "params", "teacher", "student"),
)
UNKNOWN: Final = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")  # as torch says it
FILLED: Final = re.compile(r"Can only (SET|append).*, but got <class '[\w.]*?(\w+)'>")
MOST_GLOBALS: Final = 200


@dataclass(frozen=True)
class Converted:
    """What was written. entry: where in the file the weights lay, empty for its top; others: where more weights are.

    prefix: what was taken off the names; left_out: tensors that the network has not, or entries that are no tensors.
    """

    output: str
    entry: str
    others: tuple[str, ...]
    prefix: str
    tensors: int
    left_out: tuple[str, ...]
    config: bool
    sha256: str


class Inert:
    """Stands for an object whose class is not loaded: nothing of it is run, and nothing is in it."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def convert(file: Path, output: Path | None = None, entry: str | None = None, overwrite: bool = False) -> Converted:
    """Write the weights in a pickle (.pt, .pth, .pth.tar, .ckpt, .bin) as model.safetensors, contiguous, on the CPU.

    output: the folder, by default that of the file; entry: where the weights lie, if not where training programs keep
    them. A config.json beside the file goes with them, and says which tensors the network has.
    Raises HfmegaError for a file without weights, or that holds code instead of them.
    """
    folder = output or file.parent
    target = folder / WEIGHTS
    if target.exists() and not overwrite:
        raise HfmegaError(f"{target} is there already: name another folder with -o, or --overwrite it.")
    found = dict(candidates(load(file)))
    taken = choose(file, found, entry)
    beside = file.parent / CONFIG
    spec = read_spec(beside, str(file.parent)) if beside.is_file() else None
    state, prefix = plain(found[taken], expected_of(spec) if spec else None)
    kept = fitted(spec, state) if spec else state
    if spec and not spec.names.own:
        kept = {name: tensor for name, tensor in kept.items() if name in expected_of(spec).tensors}
    folder.mkdir(parents=True, exist_ok=True)
    if spec and folder != file.parent:
        (folder / CONFIG).write_bytes(beside.read_bytes())
    sha256 = save_weights({name: tensor.detach().contiguous().clone() for name, tensor in kept.items()}, target)
    others = tuple(name for name in found if name != taken)
    used = {id(tensor) for tensor in kept.values()}
    left_out = tuple(n for n, t in found[taken].items() if id(t) not in used and not n.endswith(COUNTER))
    return Converted(str(folder), taken, others, prefix, len(kept), left_out, (folder / CONFIG).is_file(), sha256)


def load(file: Path) -> Any:
    """What a pickle holds, with `weights_only=True`: whatever is of a class that torch does not know is inert.

    Raises HfmegaError for a file that is none.
    """
    if not file.is_file():
        raise HfmegaError(f"there is no file {file}: name the checkpoint file itself, e.g. model_best.pth.tar.")
    content = file.read_bytes()
    classes: dict[str, Any] = {"argparse.Namespace": argparse.Namespace}
    for _ in range(MOST_GLOBALS):
        try:
            with allowed(classes):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch's readers of archives raise whatever they come upon
            more = stand_in(str(error), classes)
            if more is None:
                raise unreadable(file, error) from error
            classes |= more
    raise HfmegaError(f"{file} names more than {MOST_GLOBALS} classes: it is no checkpoint of weights.")


def stand_in(said: str, classes: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to let the unpickler make of a class that it refused, by its full name; None where nothing helps.

    An inert object, or where the pickle puts items into it, a plain dictionary or list.
    """
    unknown, filled = UNKNOWN.search(said), FILLED.search(said)
    if unknown and unknown[1] not in classes:
        return {unknown[1]: type(unknown[1].rpartition(".")[2], (Inert,), {})}
    if filled:
        names = [name for name, kind in classes.items() if getattr(kind, "__name__", "") == filled[2]]
        kinds = [classes[name] for name in names]
        if names and all(isinstance(kind, type) and issubclass(kind, Inert) for kind in kinds):
            return dict.fromkeys(names, OrderedDict if filled[1] == "SET" else type("Items", (list,), {}))
    return None


@contextmanager
def allowed(classes: Mapping[str, Any]) -> Iterator[None]:
    """Let the unpickler make these objects, by the full name that a pickle has for each."""
    with torch.serialization.safe_globals([(kind, name) for name, kind in classes.items()]):
        yield


def unreadable(file: Path, error: Exception) -> SourceError:
    if "TorchScript" in str(error):
        return SourceError(
            f"{file} is a program of TorchScript, which hfmega does not run: save the state_dict() of the network."
        )
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SourceError(f"{file} cannot be read as a checkpoint: {said[:200]}")


def candidates(content: Any) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Where in a checkpoint weights lie, and the tensors there by name; those that are taken first come first."""
    if not isinstance(content, Mapping):
        return
    known = [key for key in ENTRIES if key in content]
    for key in [*known, *(key for key in content if key not in known)]:
        if isinstance(inner := content[key], Mapping):
            yield from ((f"{key}.{more}".rstrip("."), found) for more, found in _inside(inner))
    if top := weights_of(content):
        yield "", top


def _inside(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The weights of an entry, or of the entries in it that hold some."""
    if found := weights_of(content):
        yield "", found
        return
    for key in ENTRIES:
        if isinstance(inner := content.get(key), Mapping) and (found := weights_of(inner)):
            yield key, found


def weights_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dictionary by name, if it holds weights: several, most of its entries, some with two sides."""
    found = {str(key): value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    tensors = {name: t for name, t in found.items() if t.layout == torch.strided and not t.is_quantized}
    enough = len(tensors) >= 2 and len(tensors) > len(content) / 2 and any(t.dim() > 1 for t in tensors.values())
    return tensors if enough else {}


def choose(file: Path, found: Mapping[str, Any], entry: str | None) -> str:
    """The entry whose weights are taken. Raises HfmegaError where there is none."""
    if entry is not None and entry not in found:
        have = ", ".join(name or "the top level" for name in found) or "none"
        raise HfmegaError(f"{file} has no weights in {entry!r}: weights are in {have}.")
    if not found:
        raise SourceError(
            f"{file} holds no weights by name, but perhaps a network as an object, whose code hfmega does not run: "
            "save its state_dict() with the program that made it."
        )
    return entry if entry is not None else next(iter(found))


def plain(state: Mapping[str, Tensor], expected: Expected | None) -> tuple[dict[str, Tensor], str]:
    """Weights by the names of the network, and the prefix that was taken off.

    Without a config, a prefix that only wrappers and training programs use, and that all weights share.
    """
    bare = without_wrappers(state, set() if expected is None else set(expected.tensors))
    if expected is not None:
        names = set(expected.needed)
        prefix = "" if names <= bare.keys() else only_prefix(bare, names) or ""
        return {name.removeprefix(prefix): t for name, t in bare.items() if name.startswith(prefix)}, prefix
    for prefix in ("model.", "net.", "network.", "timm_model.", "encoder."):
        inside = {name: tensor for name, tensor in bare.items() if name.startswith(prefix)}
        if inside and all(name in inside or tensor.dim() < 2 for name, tensor in bare.items()):
            return {name.removeprefix(prefix): tensor for name, tensor in inside.items()}, prefix
    return bare, ""


def spoken(found: Converted) -> list[str]:
    """What was converted, in sentences."""
    where = f"the entry {found.entry!r}" if found.entry else "the top level of the file"
    lines = [
        f"{found.tensors} tensors were taken from {where}" + (f", without {found.prefix!r}" if found.prefix else "")
    ]
    if found.others:
        names = ", ".join(name or "the top level" for name in found.others)
        lines.append(f"weights are also in {names}: --entry takes them instead")
    if found.left_out:
        lines.append(f"left out: {', '.join(found.left_out[:5])}" + (", ..." if len(found.left_out) > 5 else ""))
    if not found.config:
        lines.append(f"a source also needs a {CONFIG}, as timm writes it: there is none beside the weights")
    return lines
