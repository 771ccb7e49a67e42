"""The command that makes a merge again."""

import shlex

from hfmega.report.lineage import Lineage, SourceEntry
from hfmega.settings import OFFERED, PRESETS, standard


def command(lineage: Lineage) -> str:
    """The command that makes the merge again, for a shell: sources at their commits, and what its preset does not say.

    Local sources stand there by the names of their folders.
    """
    settings, preset = lineage.settings, lineage.settings["preset"]
    named = [argument(source) for source in lineage.sources]
    base = ["--base", named.pop()] if settings.get("base") else []
    words = ["hfmega", "merge", *named, *base, "--dataset", lineage.data.id]
    words += ["--preset", preset] if preset != "default" else []
    known, switches = standard(preset if preset in PRESETS else "default"), []
    settings = {"exact": True, **settings, "preset": None, "base": None}  # said above; early lineages were all exact
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


def argument(source: SourceEntry) -> str:
    """A source as it is written on a command line; a folder's name never reads as a flag."""
    if source.repo_id:
        return f"{source.repo_id}@{source.revision}"
    folder = source.path or source.name
    return f"./{folder}" if folder.startswith("-") else folder
