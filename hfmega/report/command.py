"""The command that makes a merge again."""

import shlex
from dataclasses import asdict
from typing import Final

import yaml

from hfmega.report.lineage import Lineage, SourceEntry
from hfmega.settings import PRESETS

FLAGS: Final = (
    "population",
    "generations",
    "parents",
    "tournament",
    "mutation_rate",
    "mutation_sigma",
    "mutation_unit",
    "fitness",
    "tree",
    "order",
    "method",
    "genome",
    "scale",
    "density",
    "align",
    "seed",
    "confirm_share",
    "fitness_split",
    "fitness_images",
    "calibration_split",
    "test_split",
    "image_column",
    "label_column",
)


def command(lineage: Lineage) -> str:
    """The command that makes the merge again, for a shell: sources at their commits, and what its preset does not say.

    Local sources stand there by the names of their folders.
    """
    settings, preset = lineage.settings, lineage.settings["preset"]
    named = [argument(source) for source in lineage.sources]
    base = ["--base", named.pop()] if settings.get("base") else []
    words = ["hfmega", "merge", *named, *base, "--dataset", lineage.data.id]
    words += ["--preset", preset] if preset != "default" else []
    known = PRESETS.get(preset, PRESETS["default"])
    defaults = {
        "seed": 0,
        "tree": "pairs",
        "order": "given",
        "method": "mega",
        "scale": 1.0,
        "density": 0.5,
        "align": "none",
        **asdict(known.search),
        "confirm_share": known.confirm_share,
    }
    for flag in FLAGS:
        value = settings.get(flag)
        if value is not None and value != defaults.get(flag):
            words += [f"--{flag.replace('_', '-')}", str(value)]
    words.append("--calibrate" if settings["calibrate"] else "--no-calibrate")
    words += ["--exact"] if settings.get("exact", True) and not known.exact else []
    words += {"bfloat16": ["--bf16"], "float16": ["--fp16"]}.get(settings.get("precision", ""), [])
    words += ["--control"] if settings.get("control") else []
    words += ["--allow-leak"] if settings.get("allow_leak") else []
    processes = lineage.environment.get("num_processes", 1)
    return shlex.join(words + (["--num-processes", str(processes)] if processes > 1 else []))


def configuration(lineage: Lineage) -> str:
    """The recorded settings as the YAML that `hfmega merge --config` reads: sources, and the flags by their names."""
    settings = lineage.settings
    named = [argument(source) for source in lineage.sources]
    base = {"base": named.pop()} if settings.get("base") else {}
    known = {flag.replace("_", "-"): settings.get(flag) for flag in FLAGS}
    switches = {name: True for name in ("exact", "control", "allow-leak") if settings.get(name.replace("-", "_"))}
    precision = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}}.get(settings.get("precision", ""), {})
    found = {
        "sources": named,
        **base,
        "dataset": lineage.data.id,
        "preset": settings["preset"],
        **{name: value for name, value in known.items() if value is not None},
        **({} if settings["calibrate"] is None else {"calibrate": settings["calibrate"]}),
        **switches,
        **precision,
    }
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=10**6))


def argument(source: SourceEntry) -> str:
    """A source as it is written on a command line; a folder's name never reads as a flag."""
    if source.repo_id:
        return f"{source.repo_id}@{source.revision}"
    folder = source.path or source.name
    return f"./{folder}" if folder.startswith("-") else folder
