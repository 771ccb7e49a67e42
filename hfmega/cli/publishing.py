"""How a command ends that made something: what is shown of it, and where it is published, if anywhere."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfmega import phases
from hfmega.output import FLAVOR
from hfmega.settings.words import spelled


def shown(make: Callable[[], Any], folder: Path, output: Any, flags: dict[str, Any]) -> None:
    """Make a merge, show its comparison and verdict, publish it if asked. Processes but the main one make no result."""
    from hfmega.hub.push import repository
    from hfmega.report import card, lineage, wording

    with repository(push_target(flags["push_to_hub"], flags)) as target:
        made = make()
        if made is None:
            return
        if target is None:
            output.close()
        else:
            phases.begin("publishing")
        output.table("On the test images", *card.comparison_rows(made))
        output.say(wording.verdict(made))
        url = publish(folder, target, output, flags)
        output.finish(*after_merge(folder, made, url))
    output.result(folder, lineage.summary(made, folder, url))


def after_merge(folder: Path, made: Any, url: str | None) -> tuple[str, list[str]]:
    """What a merge left behind, and commands to try next."""
    from hfmega.folder import CARD, REPORT

    files = (("card", CARD), ("report", REPORT))
    there = [f"{what} {folder / name}" for what, name in files if (folder / name).is_file()]
    if FLAVOR in os.environ:  # nobody types anything in a job
        return ", ".join(there), []
    steps = [f"hfmega verify {folder}", f"hfmega evaluate {folder}"]
    publishes = url is None and not made.stands
    return ", ".join(there), [*steps, *([f"hfmega push {folder} user/name"] if publishes else [])]


def push_target(repo_id: str | None, flags: dict[str, Any]) -> Any:
    """Where to publish, if anywhere."""
    from hfmega.hub.push import Push

    if repo_id is None:
        return None
    repo_id = spelled(repo_id).removeprefix("hf://")
    return Push(repo_id, flags["private"], flags["create_pr"], flags["commit_message"])


def publish(folder: Path, target: Any, output: Any, flags: dict[str, Any]) -> str | None:
    """Push a folder if there is a target; where it went, if anywhere."""
    from hfmega.merging.publish import publish as publish_folder

    if target is None:
        return None
    anyway, sources = flags.get("push_anyway", False), flags.get("push_sources", False)
    return publish_folder(folder, target, output, anyway, sources, report_wanted(flags))


def report_wanted(flags: dict[str, Any]) -> Any:
    """Whether report.html is published, and with the test images that it shows."""
    if flags.get("push_images"):
        return "with images"
    return "without images" if flags.get("push_report") else "no"
