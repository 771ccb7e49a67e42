"""What a network is, told from how it is built, whatever its config says: its modules and their settings."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch import nn

from hfmega.models.library import Spec, outline

NOTHING: Final = ("Dropout", "Dropout2d", "Dropout3d", "DropPath", "DropBlock2d", "Identity", "PatchDropout")
# What changes no answer of a network in eval mode.
IGNORED: Final = frozenset(
    {
        "training",
        "drop_prob",
        "p",
        "prob",
        "inplace",
        "drop_rate",
        "drop_path_rate",
        "scale_by_keep",
        "grad_checkpointing",
    }
    | {"pretrained_cfg", "default_cfg", "pretrained_model_args", "momentum", "fused_attn", "num_batches_tracked"}
    | {"gamma_scale", "block_size", "with_noise", "batchwise"}
)


def difference(first: Spec, other: Spec) -> tuple[str, str, str] | None:
    """The first thing in which two networks differ as they are built, and what it is in each; None: they are one.

    Raises as `build` does.
    """
    ours, theirs = portrait(outline(first)), portrait(outline(other))
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        a, b = ours.get(key, "nothing"), theirs.get(key, "nothing")
        if a != b:
            return key, a, b
    return None


def portrait(model: nn.Module) -> dict[str, str]:
    """Every module by its name, and every setting of it that may change an answer, in words."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in NOTHING:
            continue
        found[name or "network"] = kind
        settings = ((key, spoken(value)) for key, value in vars(module).items() if key not in IGNORED)
        found |= {f"{name}.{key}".lstrip("."): said for key, said in settings if key[:1] != "_" and said is not None}
    return found


def spoken(value: Any) -> str | None:
    """A setting in words; None for what is none of that kind, a tensor say."""
    if isinstance(value, bool | int | float | str):
        return str(value)
    if isinstance(value, list | tuple):
        parts = [spoken(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if isinstance(value, partial):
        return f"{spoken(value.func)}({', '.join(f'{k}={spoken(v)}' for k, v in value.keywords.items())})"
    if isinstance(value, type) or (isinstance(value, Callable) and not isinstance(value, nn.Module)):  # type: ignore[arg-type]
        return str(getattr(value, "__qualname__", type(value).__name__))
    return None
