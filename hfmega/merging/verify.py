"""Replay as proof: is a published merge what its lineage and its card say? Every claim is made again and compared."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hfmega import __version__, folder
from hfmega.data.dataset import Dataset, open_dataset
from hfmega.data.images import Split, load_split
from hfmega.data.splits import plan_splits
from hfmega.errors import HfmegaError
from hfmega.evaluation.answers import Answers, answers, compare, wilson
from hfmega.evaluation.checkpoint import predict_checkpoint
from hfmega.evaluation.evaluator import Evaluator
from hfmega.evaluation.network import Network
from hfmega.folder import CARD, LINEAGE, WEIGHTS
from hfmega.hub import pull
from hfmega.merging import replay
from hfmega.merging.judge import ensembles, rivals
from hfmega.merging.replay import Rebuilt, read_places
from hfmega.report import card, lineage
from hfmega.report.lineage import Lineage
from hfmega.search.recipe import centroid, source_alone
from hfmega.settings import SplitRequest
from hfmega.weights.checkpoint import Checkpoint, load_weights, save_weights
from hfmega.weights.tensors import read_tensors

TOLERANCE: Final = 0.001  # of accuracies, or one image if that is more: forward passes differ between processors
STATISTICS: Final = {"rtol": 0.01, "atol": 0.001}  # atol: of the largest value of a tensor


@dataclass(frozen=True)
class Check:
    """One claim, whether it holds, and what was compared, or the first thing that differs."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Merge:
    """A published merge on this disk."""

    checkpoint: Checkpoint
    folder: Path
    lineage: Lineage


def verify(source: str, dataset: str | None, places: Path | None) -> Iterator[Check]:
    """Check a merge (folder or Hub id) claim by claim. What cannot be checked, for want of a source, say, fails.

    dataset: the images, if they are not where the lineage says; places: where local sources lie.
    Raises HfmegaError when there is no merge, or its lineage cannot be read.
    """
    checkpoint = pull.pull(source)
    pinned = f"{checkpoint.repo_id}@{checkpoint.revision}" if checkpoint.repo_id else source
    folder = pull.pull_merge(pinned)
    merge = Merge(checkpoint, folder, lineage.read(folder / LINEAGE))
    yield attempt("weights", lambda: same_hash(merge))
    yield attempt("numbers", lambda: consistent(merge.lineage))
    yield attempt("card", lambda: same_card(merge))
    try:
        rebuilt = replay.rebuilt(merge.lineage, folder, places)
        yield Check("sources", True, f"all {len(rebuilt.checkpoints)} are what was merged")
        yield attempt("replay", lambda: same_tensors(merge, rebuilt))
    except HfmegaError as error:
        yield Check("sources", False, str(error))
        return
    try:
        opened = open_merge_dataset(merge, dataset)
        splits = replanned(merge, rebuilt, opened)
    except HfmegaError as error:
        yield Check("images", False, str(error))
        return
    yield attempt("images", lambda: same_images(merge.lineage, splits))
    network = Network(checkpoint.spec, rebuilt.sources, splits.get("calibration"))
    yield attempt("statistics", lambda: same_statistics(merge, network))
    yield attempt("evaluation", lambda: same_accuracies(merge, Evaluator(network), splits["test"]))


def attempt(name: str, check: Callable[[], str]) -> Check:
    """A check that returns what it compared, and raises HfmegaError with what differs."""
    try:
        return Check(name, True, check())
    except HfmegaError as error:
        return Check(name, False, str(error))


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise HfmegaError(sentence)


def same_hash(merge: Merge) -> str:
    found, promised = merge.checkpoint.sha256, merge.lineage.result.sha256
    require(found == promised, f"{WEIGHTS} has sha256 {found[:12]}..., the lineage promises {promised[:12]}...")
    return f"sha256 {found[:12]}..."


def consistent(made: Lineage) -> str:
    """The numbers of a lineage that follow from others of it."""
    result = made.result
    require(result.total == made.data.splits["test"].images, "result.total is not the number of test images")
    require(0 <= result.correct <= result.total and result.total > 0, "result.correct is no number of images")
    require(result.accuracy == result.correct / result.total, "result.accuracy is not correct / total")
    low, high = wilson(result.correct, result.total)
    near = abs(result.interval[0] - low) < 1e-9 and abs(result.interval[1] - high) < 1e-9
    require(near, "result.interval is not that of its accuracy")
    best = [r for r in made.references if r.name == result.best_reference]
    require(len(best) == 1, f"result.best_reference {result.best_reference!r} is not among the references")
    require(abs(result.gain - (result.accuracy - best[0].accuracy)) < 1e-9, "result.gain is not over that reference")
    return f"{result.correct:,} of {result.total:,} correct"


def same_card(merge: Merge) -> str:
    """The card says what the lineage says: all of it by the same version of hfmega, else its tables and its verdict."""
    path = merge.folder / CARD
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise HfmegaError(f"there is no {CARD} that can be read: {error}") from error
    expected = card.text(merge.lineage, merge.checkpoint.spec).splitlines()
    if merge.lineage.hfmega_version != __version__:
        present = set(found)
        lost = [line for line in expected if any(c.isdigit() for c in line) and line not in present]
        require(not lost, f"{CARD} lacks the line {lost[:1]}")
        return "its figures are those of the lineage"
    for number, (said, meant) in enumerate(zip(found, expected, strict=False), 1):
        require(said == meant, f"{CARD}, line {number} says {said[:200]!r}; the lineage says {meant[:200]!r}")
    require(len(found) == len(expected), f"{CARD} has {len(found)} lines, the lineage makes {len(expected)}")
    return f"{len(found)} lines are those of the lineage"


def same_tensors(merge: Merge, rebuilt: Rebuilt) -> str:
    """Every tensor of the weights is the one that the recipe makes of the sources, bit for bit."""
    if merge.lineage.last_mile and merge.lineage.last_mile.stands:
        with TemporaryDirectory() as scratch:
            sha256 = save_weights(rebuilt.state, Path(scratch) / WEIGHTS)
        promised = merge.lineage.last_mile.start_sha256
        require(sha256 == promised, "the start of the last mile is not what the recipe makes of the sources")
        return f"the start of the last mile, {len(rebuilt.state)} tensors; what followed is a training"
    state = load_weights(merge.checkpoint)
    require(state.keys() == rebuilt.state.keys(), "the weights have other tensors than the sources")
    for name, tensor in rebuilt.state.items():
        found = state[name]
        equal = found.dtype == tensor.dtype and found.shape == tensor.shape and torch.equal(found, tensor)
        require(equal, f"the tensor {name} is not what the recipe makes of the sources")
    return f"{len(state)} tensors"


def open_merge_dataset(merge: Merge, dataset: str | None) -> Dataset:
    settings = merge.lineage.settings
    name = dataset or read_places(merge.folder).get("dataset") or merge.lineage.data.id
    image, label = (settings.get(key) for key in ("image_column", "label_column"))
    return open_dataset(name, image and str(image), label and str(label))


def replanned(merge: Merge, rebuilt: Rebuilt, dataset: Dataset) -> dict[str, Split]:
    """The images of each purpose, chosen again by the recorded settings."""
    settings = merge.lineage.settings
    try:
        request = TypeAdapter(SplitRequest).validate_python(
            {
                "fitness": settings.get("fitness_split"),
                "fitness_images": settings.get("fitness_images"),
                "calibration": settings.get("calibration_split"),
                "test": settings.get("test_split"),
                "confirm_share": settings.get("confirm_share", 0.0),
                "allow_leak": settings.get("allow_leak", False),
                "distill": settings.get("distill_split"),
                "distills": settings.get("distill", False),
            }
        )
    except ValidationError as error:
        raise HfmegaError(f"the settings of the lineage name no images: {error.errors()[0]['msg']}") from error
    plan = plan_splits(dataset, [c.record for c in rebuilt.checkpoints], request)
    spec, recorded = rebuilt.checkpoints[0].spec, merge.lineage.data.splits
    return {
        name: load_split(dataset, rows, spec, name)
        for name, rows in plan.rows.items()
        if len(rows) and name in recorded
    }


def same_images(made: Lineage, splits: Mapping[str, Split]) -> str:
    for purpose, entry in made.data.splits.items():
        found = splits.get(purpose)
        require(found is not None, f"there are no {purpose} images")
        assert found is not None
        require(found.fingerprint == entry.fingerprint, f"the {purpose} images are not those of the lineage")
    return ", ".join(f"{len(split):,} {purpose}" for purpose, split in splits.items())


def same_statistics(merge: Merge, network: Network) -> str:
    """BatchNorm statistics that were re-estimated come out again, within a tolerance."""
    made, path = merge.lineage, merge.folder / folder.STATISTICS
    if not made.recipe.calibrate:
        require(not path.exists(), f"there is a {folder.STATISTICS}, but the recipe asks for none")
        return "none were re-estimated"
    recorded = read_tensors(path, str(path))
    found = network.statistics(made.recipe)
    require(found.keys() == recorded.keys(), f"{folder.STATISTICS} has other tensors than the network")
    for name, tensor in found.items():
        near = close(recorded[name].float(), tensor.float())
        require(near, f"{folder.STATISTICS}: {name} is not what the calibration images give")
    return f"{len(found)} tensors re-estimated"


def close(found: Tensor, expected: Tensor) -> bool:
    atol = STATISTICS["atol"] * float(expected.abs().max()) if expected.numel() else 0.0
    return found.shape == expected.shape and torch.allclose(found, expected, STATISTICS["rtol"], atol)


def same_accuracies(merge: Merge, evaluator: Evaluator, test: Split) -> str:
    """The merged model and every reference that can be rebuilt, on the test images again."""
    made = merge.lineage
    merged = answers(predict_checkpoint(merge.checkpoint, test, evaluator.state.device), test.labels)
    tolerance = max(TOLERANCE, 1.5 / len(test))
    near("the merged model", made.result.accuracy, merged.accuracy, tolerance)
    known = references(made, evaluator, test)
    for reference in made.references:
        if reference.name in known:
            near(reference.name, reference.accuracy, known[reference.name].accuracy, tolerance)
    best = known.get(made.result.best_reference)
    if best:
        bounds = zip(("lower", "upper"), made.result.gain_interval, compare(merged, best).interval, strict=True)
        for which, claimed, found in bounds:
            near(f"the {which} bound of the gain", claimed, found, 2 * tolerance)
    return f"{merged.accuracy:.4f} of {len(test):,}; {len(known)} of {len(made.references)} references again"


def near(what: str, claimed: float, found: float, tolerance: float) -> None:
    require(abs(claimed - found) <= tolerance, f"{what}: the lineage says {claimed:.4f}, it is {found:.4f}")


def references(made: Lineage, evaluator: Evaluator, test: Split) -> dict[str, Answers]:
    """What the references say of the test images. The average of a merge of merges is not known from its lineage."""
    leaves = {source.name: source_alone(k, len(made.sources)) for k, source in enumerate(made.sources)}
    earlier = {node.name: node.recipe for node in made.nodes if not node.chosen}
    averaged = list(leaves.values())[: -1 if made.settings.get("base") else None]
    single = rivals(leaves | earlier, centroid(averaged), made.recipe.calibrate, evaluator.network.can_calibrate)
    single = [rival for rival in single if not (earlier and rival.kind == "average")]
    judged = dict(zip((r.name for r in single), evaluator.answers([r.recipe for r in single], test), strict=True))
    return judged | dict(ensembles(evaluator, len(leaves), test))
