"""What forward passes are computed in: float32, or half precision where a device has it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from hfmega.errors import HfmegaError

Precision = Literal["float32", "bfloat16", "float16"]


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """What convolutions and products of scores are computed in. Raises HfmegaError where the device has no such."""
    if precision == "float32":
        return torch.float32
    if device.type == "cpu":
        known = torch.ops.mkldnn
        has = known._is_mkldnn_bf16_supported() if precision == "bfloat16" else known._is_mkldnn_fp16_supported()
    else:
        has = precision == "float16" or device.type != "cuda" or torch.cuda.is_bf16_supported()
    if not has:
        raise HfmegaError(f"this {device.type} does not compute in {precision}: leave the flag away.")
    return torch.bfloat16 if precision == "bfloat16" else torch.float16


def rough_precision(precision: Precision, device: torch.device) -> Precision:
    """What only ranks is computed in: bfloat16 if the device has instructions for it, unless something else is asked.

    Not where it is emulated: there it would be slower.
    """
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known: Mapping[str, object] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        has = device.type == "cpu" and any(there for name, there in known.items() if name.endswith("bf16"))
    return "bfloat16" if has and precision == "float32" else precision


def computing(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Convolutions and products in a type."""
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
