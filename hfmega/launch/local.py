"""What a job cannot reach: sources and images on this machine. Sources can be published first."""

from dataclasses import replace
from pathlib import Path

from hfmega.errors import SettingsError
from hfmega.folder import like_a_path
from hfmega.hub.pull import is_local, preview, pull
from hfmega.hub.push import Push
from hfmega.merging.publish import publish_source
from hfmega.output import Output
from hfmega.settings import MergeSettings


def check_dataset(dataset: str | None) -> None:
    """Raises SettingsError for images that lie on this machine."""
    if dataset is None or dataset == "digits" or not (Path(dataset).is_dir() or like_a_path(dataset)):
        return
    raise SettingsError(
        f"--dataset {dataset} is on this machine, and a job of the Hub cannot read it: publish it first "
        f"(`hf upload ID {dataset} --repo-type dataset`), and name its ID."
    )


def local_of(settings: MergeSettings) -> list[str]:
    """The sources on this machine. Raises SourceError for one that is not there."""
    found = [source for source in settings.pulled if is_local(source)]
    for source in found:
        preview(source)
    return found


def without_local(settings: MergeSettings, target: Push | None, output: Output) -> MergeSettings:
    """The settings with every source on the Hub. target: what the published ones are named after, ID-sources-NAME.

    Raises SettingsError for a source on this machine where there is no target.
    """
    local = local_of(settings)
    if not local:
        return settings
    if target is None:
        raise SettingsError(
            f"{local[0]} is a folder on this machine, and a job of the Hub cannot read it: publish it first "
            f"(`hfmega push {local[0]} ID`), or let --push-sources do that beside --push-to-hub ID."
        )
    named = {source: "@".join(publish_source(pull(source), target, output)) for source in local}
    sources = tuple(named.get(source, source) for source in settings.sources)
    return replace(settings, sources=sources, base=named.get(settings.base or "", settings.base))
