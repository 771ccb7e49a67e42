"""`hfmega update-bn`: one checkpoint with re-estimated BatchNorm statistics, recorded and judged as a merge is."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hfmega.errors import SettingsError
from hfmega.folder import LINEAGE
from hfmega.hub import pull
from hfmega.merging.merge import merge
from hfmega.merging.replay import read_places
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.report.lineage import Lineage
from hfmega.settings import UPDATE_BN, MergeSettings, SplitRequest, default_folder, understood, unknown
from hfmega.settings.words import spelled

NAMES: Final = (
    "dataset",
    "image_column",
    "label_column",
    "labels_by_number",
    "calibration_split",
    "test_split",
    "no_images",
    "overwrite",
)


def update_bn(settings: MergeSettings, output: Output) -> Lineage | None:
    """Re-estimate the statistics, judge them on the test images against the source, write folder, card and lineage.

    A source that is a merge is judged on the test images of its own report: others may have steered its search.
    Raises HfmegaError for anything that stands in the way, such as a network without BatchNorm.
    """
    return merge(as_reported(settings), output)


def settings_of(source: str | Path, output: str | Path | None = None, **named: Any) -> MergeSettings:
    """The settings of a merge of one source, in which no image steers or chooses anything. named: some of `NAMES`.

    Raises SettingsError for a name or a value that there is not.
    """
    for name in named:
        if name not in NAMES:
            raise SettingsError(unknown(name, list(NAMES), "a setting of update-bn"))
    given = understood(named)
    calibration, test = given.pop("calibration_split", None), given.pop("test_split", None)
    return MergeSettings(
        (spelled(str(source)),),
        Path(output) if output is not None else default_folder(source, parent="updated"),
        method=UPDATE_BN,
        calibrate=True,
        splits=SplitRequest(confirm_share=0.0, calibration=calibration, test=test),
        **given,
    )


def as_reported(settings: MergeSettings) -> MergeSettings:
    """The settings with the dataset and the test images of the source's own report, where it has one."""
    folder = pull.lineage_folder(pull.pull(settings.sources[0]))
    if folder is None:
        return settings
    made = lineage.read(folder / LINEAGE)
    dataset = settings.dataset or read_places(folder).get("dataset", made.data.id)
    reported = made.data.splits["test"].slice if settings.dataset in (None, made.data.id) else None
    return replace(settings, dataset=dataset, splits=replace(settings.splits, test=settings.splits.test or reported))
