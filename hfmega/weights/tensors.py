"""A safetensors file as it may come from anyone: read whole, or refused in one sentence."""

import math
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hfmega.errors import SourceError

# float64 is for coefficients; weights of it are refused when they are laid out.
READ: Final = ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL")
DIMENSIONS: Final = 8
ELEMENTS: Final = 2**40  # also of a tensor that is empty: its other sides would overflow elsewhere


def read_tensors(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU views of it in mapped memory. where: what it is called to the user.

    Raises SourceError for a file that cannot be read, a type or shape that no network has, or a NaN or Inf.
    """
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                check_header(name, file.get_slice(name), where)
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise SourceError(f"{where} cannot be read: {error}") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not finite(tensor):
            raise SourceError(f"{where}: the tensor {name} has NaN or Inf.")
    return state


def finite(tensor: Tensor) -> bool:
    """Whether a float tensor has neither NaN nor Inf, found without memory for another one of its size."""
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in map(float, tensor.aminmax()))


def check_header(name: str, entry: Any, where: str) -> None:
    """Raises SourceError for what a header says of a tensor that no network has."""
    shape, dtype = entry.get_shape(), entry.get_dtype()
    if dtype not in READ:
        raise SourceError(f"{where} has the tensor {name} as {dtype}: hfmega reads {', '.join(READ)}.")
    if len(shape) > DIMENSIONS or math.prod(max(side, 1) for side in shape) > ELEMENTS:
        raise SourceError(f"{where} has the tensor {name} of {len(shape)} sides up to {max(shape)}: no network has it.")
