"""From the flags of a command to its settings."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from hfmega.errors import HfmegaError
from hfmega.settings import PRESETS, GASettings, MergeSettings, SplitRequest
from hfmega.study.reproduce import ReproduceSettings

DATA: Final = ("dataset", "image_column", "label_column")


def merge_settings(sources: tuple[str, ...], flags: dict[str, Any]) -> MergeSettings:
    """The settings that the preset and the flags amount to."""
    preset = PRESETS[flags["preset"]]
    constants = {f.name: flags[f.name] for f in fields(GASettings) if flags.get(f.name) is not None}
    share = preset.confirm_share if flags["confirm_share"] is None else flags["confirm_share"]
    return MergeSettings(
        sources=sources,
        output=flags["output"] or default_folder(sources),
        **{name: flags[name] for name in DATA},
        splits=SplitRequest(
            fitness=flags["fitness_split"],
            fitness_images=flags["fitness_images"],
            calibration=flags["calibration_split"],
            test=flags["test_split"],
            confirm_share=share,
            allow_leak=flags["allow_leak"],
        ),
        preset=flags["preset"],
        tree=flags["tree"],
        order=flags["order"],
        method=flags["method"],
        base=flags["base"],
        scale=flags["scale"],
        density=flags["density"],
        align=flags["align"],
        search=replace(preset.search, **constants),
        calibrate=preset.calibrate if flags["calibrate"] is None else flags["calibrate"],
        exact=flags["exact"] or preset.exact,
        precision="bfloat16" if flags["bf16"] else "float16" if flags["fp16"] else "float32",
        control=flags["control"],
        seed=flags["seed"],
        overwrite=flags["overwrite"],
    )


def default_folder(sources: tuple[str, ...], parent: str = "merges") -> Path:
    """`merges/first+second`, of the sources' last names."""
    names = [Path(source.split("@")[0]).resolve().name for source in sources]
    more = [f"{len(names) - 3}-more"] if len(names) > 3 else []
    return Path(parent) / "+".join([*names[:3], *more])


def inspect_settings(sources: tuple[str, ...], flags: dict[str, Any]) -> MergeSettings:
    """What is looked at as a merge would take it, with every fitness image for the search."""
    return MergeSettings(
        sources=sources,
        output=flags["output"] or default_folder(sources, "inspections"),
        **{name: flags[name] for name in DATA},
        splits=SplitRequest(
            fitness=flags["fitness_split"],
            fitness_images=flags["fitness_images"],
            calibration=flags["calibration_split"],
            confirm_share=0.0,
        ),
    )


def reproduce_settings(table: str, flags: dict[str, Any]) -> ReproduceSettings:
    """The settings that the flags amount to; what is not named keeps its default."""
    given = {f.name: flags[f.name] for f in fields(ReproduceSettings) if flags.get(f.name)}
    if flags["fine_tune_epochs"] is not None:
        given["fine_tune_epochs"] = flags["fine_tune_epochs"]
    if flags["seeds"]:
        try:
            given["seeds"] = tuple(int(seed) for seed in flags["seeds"].split(","))
        except ValueError as error:
            raise HfmegaError(f"{flags['seeds']!r} is no list of seeds: write --seeds 44,45.") from error
    return ReproduceSettings(**given, table=table)  # type: ignore[arg-type]  # a choice of the command
