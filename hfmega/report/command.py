"""The command that makes a merge again."""

import shlex
from collections.abc import Mapping
from typing import Any, Final

import yaml

from hfmega.report.lineage import Lineage, SourceEntry
from hfmega.settings import EARLIER, METHODS, OFFERED, PRESETS, UPDATE_BN, standard

UPDATING: Final = ("calibration_split", "test_split", "image_column", "label_column")


def command(lineage: Lineage) -> str:
    """The command that makes the merge again, for a shell: sources at their commits, and what its preset does not say.

    Local sources stand there by the names of their folders.
    """
    settings, preset = lineage.settings, lineage.settings["preset"]
    named = [argument(source) for source in lineage.sources]
    if lineage.updates_bn:
        given = [word for name in UPDATING if settings.get(name) for word in (OFFERED[name].flag, str(settings[name]))]
        return shlex.join(["hfmega", UPDATE_BN, *named, "--dataset", lineage.data.id, *given])
    base = ["--base", named.pop()] if settings.get("base") else []
    words = ["hfmega", "merge", *named, *base, "--dataset", lineage.data.id]
    words += ["--preset", preset] if preset != "default" else []
    known, switches = standard(preset if preset in PRESETS else "default"), []
    settings = {**meant(settings), "preset": None, "base": None}  # said above
    for name, one in OFFERED.items():
        value = settings.get(name)
        if name == "calibrate":
            switches.append(one.flag if value else "--no-calibrate")
        elif one.kind is bool and value and not known[name]:
            switches.append(one.flag)
        elif one.switches:
            switches += [f"--{switch}" for switch, meant in one.switches.items() if meant == value]
        elif one.kind is not bool and value is not None and value != known[name]:
            words += [one.flag, str(value)]
    processes = lineage.environment.get("num_processes", 1)
    return shlex.join(words + switches + (["--num-processes", str(processes)] if processes > 1 else []))


def configuration(lineage: Lineage) -> str:
    """The recorded settings as the YAML that `hfmega merge --config` reads: sources, and the flags by their names."""
    settings = meant(lineage.settings)
    named = [argument(source) for source in lineage.sources]
    base = {"base": named.pop()} if settings.get("base") else {}
    known: dict[str, Any] = {"sources": named, **base, "dataset": lineage.data.id}
    preset = settings["preset"]
    usual = standard(preset if preset in PRESETS else "default")
    for name, one in OFFERED.items():
        value, flag = settings.get(name), name.replace("_", "-")
        if name == "base" or value is None or (one.kind is bool and not one.optional and value == usual[name]):
            continue
        if one.switches:
            known |= {switch: True for switch, meant in one.switches.items() if meant == value}
        else:
            known[flag] = value
    return str(yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=10**6))


def meant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings, and what older lineages mean where they say nothing."""
    method = settings.get("method", "mega")
    used = METHODS[method].flags if isinstance(method, str) and method in METHODS else frozenset()
    return {**{name: value for name, value in EARLIER.items() if name in used}, **settings}


def argument(source: SourceEntry) -> str:
    """A source as it is written on a command line; a folder's name never reads as a flag."""
    if source.repo_id:
        return f"{source.repo_id}@{source.revision}"
    folder = source.path or source.name
    return f"./{folder}" if folder.startswith("-") else folder
