"""Merge checkpoints from the Hugging Face Hub into one, and prove what was gained.

    import hfmega

    result = hfmega.merge("user/a", "user/b", dataset="uoft-cs/cifar10")
    result.verdict, result.accuracy, result.gain
    model, transform = result.load(), result.transform()

Every function takes the flags of its command as keywords, raises `HfmegaError` for what goes wrong, and is quiet
unless `progress=True`. Nothing heavy is imported before a function is called. `import hfmega` also registers the
paper's networks (`resnet20_cifar`, ...) with timm, so that `timm.create_model("hf-hub:user/name")` loads a merge.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wrapt import register_post_import_hook

from hfmega.errors import HfmegaError, HubError, SettingsError, SourceError

if TYPE_CHECKING:
    from hfmega.evaluation.checkpoint import Evaluation
    from hfmega.merging.replay import Replay
    from hfmega.merging.result import Merge
    from hfmega.merging.verify import Check
    from hfmega.report.inspection import Inspection
    from hfmega.report.lineage import Lineage
    from hfmega.search.recipe import Recipe
    from hfmega.settings import MergeSettings
    from hfmega.weights.convert import Converted

__version__ = "0.1.0"
__all__ = [
    "HfmegaError",
    "HubError",
    "Lineage",
    "Merge",
    "MergeSettings",
    "Recipe",
    "SettingsError",
    "SourceError",
    "convert",
    "evaluate",
    "inspect",
    "load_lineage",
    "merge",
    "push",
    "replay",
    "train",
    "update_bn",
    "verify",
]

LAZY: Final = {
    "Lineage": "hfmega.report.lineage",
    "Merge": "hfmega.merging.result",
    "MergeSettings": "hfmega.settings",
    "Recipe": "hfmega.search.recipe",
}


def merge(*sources: str | Path, progress: bool = False, **options: Any) -> Merge:
    """Merge two or more checkpoints: `user/name[@revision]` or folders. options: the flags of `hfmega merge`.

    The same call on an unfinished folder resumes it. Raises HfmegaError for anything that stands in the way.
    """
    from hfmega.settings import MergeSettings

    settings = MergeSettings.of(*sources, **options)
    from hfmega.merging.merge import merge as run
    from hfmega.merging.result import Merge

    with _output(progress) as watched:
        made = run(settings, watched)
    return Merge(settings.output, made or load_lineage(settings.output))


def inspect(*sources: str | Path, progress: bool = False, **options: Any) -> Inspection:
    """Look at how checkpoints are related, and whether a merge is likely to help. options: of `hfmega inspect`."""
    from hfmega.settings import MergeSettings, default_folder

    settings = MergeSettings.of(
        *sources,
        output=options.pop("output", None) or default_folder(*sources, parent="inspections"),
        confirm_share=0.0,
        **{"fitness_images": 2000, **options},
    )
    from hfmega.merging.inspect import inspect as look

    with _output(progress) as watched:
        return look(settings, watched)


def train(network: str, *, output: str | Path, progress: bool = False, **options: Any) -> Evaluation | None:
    """Train a source into a folder; returns how it does on the held-out images, if there are any.

    network: an architecture, or a checkpoint to start from; options: of `hfmega train` (`learning_rate` for --lr).
    """
    from hfmega.study.train import TrainSettings
    from hfmega.study.train import train as run

    with _output(progress) as watched:
        return run(TrainSettings(network, Path(output), **options), watched).held_out


def update_bn(source: str | Path, *, progress: bool = False, **options: Any) -> Merge:
    """Re-estimate the BatchNorm statistics of one checkpoint. options: the flags of `hfmega update-bn`.

    The result is judged against the source as it is. Raises HfmegaError for anything that stands in the way.
    """
    from hfmega.merging.update_bn import settings_of

    settings = settings_of(source, **options)
    from hfmega.merging.result import Merge
    from hfmega.merging.update_bn import update_bn as run

    with _output(progress) as watched:
        made = run(settings, watched)
    return Merge(settings.output, made or load_lineage(settings.output))


def evaluate(
    source: str | Path,
    *,
    dataset: str | Path | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    labels_by_number: bool = False,
) -> Evaluation:
    """Evaluate one checkpoint: accuracy with its interval, loss, accuracy per class; a merge on its test images."""
    from hfmega.evaluation.checkpoint import evaluate_checkpoint
    from hfmega.merging.evaluate import evaluation_target

    named = None if dataset is None else str(dataset)
    columns = (image_column, label_column, labels_by_number)
    return evaluate_checkpoint(*evaluation_target(str(source), named, split, *columns))


def replay(merge: str | Path, *, sources: str | Path | None = None, output: str | Path | None = None) -> Replay:
    """Rebuild a merge from its lineage and its pinned sources. sources: where local ones lie."""
    from hfmega.merging.replay import replay as run

    return run(str(merge), _path(sources), _path(output))


def verify(
    merge: str | Path,
    *,
    dataset: str | Path | None = None,
    sources: str | Path | None = None,
    retrain: bool = False,
) -> list[Check]:
    """Check every claim of a merge: all of the checks are `ok`, or the merge is not what it says.

    retrain: whether its last mile is trained again too.
    """
    from hfmega.merging.verify import verify as run

    return list(run(str(merge), None if dataset is None else str(dataset), _path(sources), retrain))


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    commit_message: str | None = None,
    push_anyway: bool = False,
    push_sources: bool = False,
    push_report: bool = False,
    push_images: bool = False,
) -> str | None:
    """Publish a finished folder as `user/name`, in one commit; returns its URL. HF_TOKEN or `hf auth login` is used.

    A merge that is one of its sources as it is, is not published (None), unless `push_anyway`. push_report: publish
    report.html too, without the test images that it shows; push_images: with them.
    """
    from hfmega.hub.push import Push
    from hfmega.merging.publish import publish

    target = Push(repo_id, private, create_pr, commit_message)
    report: Any = "with images" if push_images else "without images" if push_report else "no"
    return publish(Path(folder), target, _output(progress=False), push_anyway, push_sources, report)


def convert(
    file: str | Path, *, output: str | Path | None = None, entry: str | None = None, overwrite: bool = False
) -> Converted:
    """Write the weights in a pickle as model.safetensors, beside it or into a folder, without running any of its code.

    entry: where in the file the weights lie, if not where training programs keep them.
    """
    from hfmega.weights.convert import convert as run

    return run(Path(file), _path(output), entry, overwrite)


def load_lineage(merge: str | Path) -> Lineage:
    """Read what a merge (folder or Hub id) was made of, how, and what came out."""
    from hfmega.folder import LINEAGE
    from hfmega.hub.pull import pull_merge
    from hfmega.report.lineage import read

    return read(pull_merge(str(merge)) / LINEAGE)


def _output(progress: bool) -> Any:
    from hfmega.output import Output

    return Output(muted=not progress)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def __getattr__(name: str) -> Any:
    """The public classes, imported when they are first asked for."""
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module 'hfmega' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY])


# Registering needs timm, and timm needs seconds: wait until somebody else imports it (or did so already).
register_post_import_hook(lambda _: importlib.import_module("hfmega.models.cifar"), "timm")
