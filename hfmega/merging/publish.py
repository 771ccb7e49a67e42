"""A finished folder on the Hub: its card with the id of its repository, and its local sources beside it if asked for.

Local sources go into repositories of their own: a base model, a commit to replay from and a source of the next merge
are all repositories for the Hub and for hfmega, a folder inside another one is none of them.
"""

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from hfmega.errors import HfmegaError
from hfmega.folder import CARD, CONFIG, LINEAGE, REPORT, write_atomically
from hfmega.hub.push import Push, check_finished, files_of, newest, open_repository, push
from hfmega.merging.replay import find_source
from hfmega.models.library import read as read_spec
from hfmega.output import Output
from hfmega.report import card, lineage, page
from hfmega.report.lineage import Lineage, SourceEntry
from hfmega.report.wording import listed
from hfmega.weights.checkpoint import Checkpoint

Report = Literal["no", "without images", "with images"]


def publish(
    folder: Path, target: Push, output: Output, anyway: bool = False, sources: bool = False, report: Report = "no"
) -> str | None:
    """Publish a finished folder; returns the URL of the commit, or None for a source that was kept as it is.

    anyway: publish that too; sources: publish local sources first, so that anybody can replay the merge; report:
    publish report.html, without the test images that it may show, or with them.
    Raises HfmegaError with the way out.
    """
    check_finished(folder)
    made = lineage.read(folder / LINEAGE) if (folder / LINEAGE).is_file() else None
    if made is not None and made.stands and not anyway:
        output.say(
            f"not published: the result is the source {made.held} as it is, and nothing new (--push-anyway insists)."
        )
        return None
    try:
        target, _ = open_repository(target)
    except HfmegaError as error:
        retry = f"{folder} is complete: `hfmega push {folder} {target.repo_id}` finishes the job."
        raise HfmegaError(f"{error} {retry}") from error
    local = [source.name for source in made.sources if source.repo_id is None] if made else []
    if made is not None and local and sources:
        made = with_sources(made, folder, target, output)
    elif local:
        output.say(
            f"the sources {listed(local)} are not published: nobody else can replay or verify this merge "
            "(--push-sources publishes them too)."
        )
    rename(folder, target.repo_id, made, again=bool(local) and sources)
    with TemporaryDirectory() as scratch:
        url = push(folder, target, files_of(folder) | report_file(folder, report, Path(scratch)))
    output.say(f"published: {url}")
    return url


def report_file(folder: Path, report: Report, scratch: Path) -> dict[str, Path]:
    """The report of a merge as it is published, made in a scratch folder; nothing unless it is asked for."""
    if report == "no" or not (folder / LINEAGE).is_file():
        return {}
    made = lineage.read(folder / LINEAGE)
    return {REPORT: page.write(made, folder, images=report == "with images", target=scratch / REPORT)}


def rename(folder: Path, repo_id: str, made: Lineage | None, again: bool) -> None:
    """Put the id of the repository into lineage and card. A card that this hfmega did not make is only edited.

    again: make it again all the same, because the lineage changed.
    """
    if made is not None and (made.current or again):
        made = replace(made, repo_id=repo_id)
        lineage.write(made, folder / LINEAGE)
        card.write_text(made, read_spec(folder / CONFIG, str(folder)), folder)
        page.write_again(made, folder)
    elif (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8")
        write_atomically(folder / CARD, card.published_as(repo_id, text).encode())


def with_sources(made: Lineage, folder: Path, target: Push, output: Output) -> Lineage:
    """The lineage after its local sources were published, each at its commit."""
    return replace(made, sources=tuple(s if s.repo_id else published(s, folder, target, output) for s in made.sources))


def published(source: SourceEntry, folder: Path, target: Push, output: Output) -> SourceEntry:
    """A local source of a merge, published."""
    repo_id, revision = publish_source(find_source(source, folder, None), target, output)
    return replace(source, repo_id=repo_id, revision=revision, path=None)


def publish_source(source: Checkpoint, target: Push, output: Output) -> tuple[str, str]:
    """Put a local source into a repository of its own, `ID-sources-NAME`; its id and commit. Its folder stays as is."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip("-.") or source.sha256[:8]
    owner, _, merge = target.repo_id.rpartition("/")
    repo_id = f"{owner}/{merge[:40]}-sources-{name[:40]}".strip("/-.")
    own = Push(repo_id, target.private, commit_message=f"Source of {target.repo_id}")
    with TemporaryDirectory() as scratch:
        files = files_of(source.folder, source.shards)
        if CARD in files:
            files[CARD] = Path(scratch) / CARD
            text = (source.folder / CARD).read_text(encoding="utf-8", errors="replace")
            files[CARD].write_text(card.published_as(repo_id, text), encoding="utf-8")
        output.say(f"published: {push(source.folder, own, files)}")
    return repo_id, newest(repo_id)
