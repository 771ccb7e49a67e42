"""`hfmega evaluate`: on which images a checkpoint is evaluated."""

from hfmega.data.dataset import DEFAULT_DATASET, Dataset, evaluation_split, open_dataset
from hfmega.folder import LINEAGE
from hfmega.hub import pull
from hfmega.merging.replay import read_places
from hfmega.report.lineage import read
from hfmega.weights.checkpoint import Checkpoint


def evaluation_target(
    source: str,
    dataset: str | None,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    labels_by_number: bool = False,
) -> tuple[Checkpoint, Dataset, str]:
    """Find a checkpoint, and the dataset and slice to evaluate it on: of a merge those of its report, unless named.

    Raises HfmegaError for a merge whose lineage cannot be read: other images may have steered its search.
    """
    checkpoint = pull.pull(source)
    folder = pull.lineage_folder(checkpoint)
    made = read(folder / LINEAGE) if folder else None
    if dataset is None:
        recorded = made.data.id if made else (checkpoint.record or {}).get("dataset", DEFAULT_DATASET)
        dataset = read_places(checkpoint.folder).get("dataset", recorded) if made else recorded
    opened = open_dataset(dataset, image_column, label_column, labels_by_number)
    if split is None:
        split = made.data.splits["test"].slice if made and opened.id == made.data.id else evaluation_split(opened)
    return checkpoint, opened, split
