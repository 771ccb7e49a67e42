"""Replay as proof: is a published merge what its lineage and its card say? Every claim is made again and compared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hfmega import folder, phases
from hfmega.data.dataset import Dataset, open_dataset
from hfmega.data.images import Split, load_splits
from hfmega.data.labels import matched_before
from hfmega.data.splits import plan_splits
from hfmega.errors import HfmegaError
from hfmega.evaluation.answers import SIGNIFICANCE, Answers, answers, compare, compare_losses, wilson
from hfmega.evaluation.checkpoint import predict_checkpoint
from hfmega.evaluation.evaluator import Evaluator
from hfmega.evaluation.network import Network
from hfmega.folder import CARD, LINEAGE, WEIGHTS
from hfmega.hub import pull
from hfmega.merging import replay
from hfmega.merging.judge import OF_SOURCES, by_class, ensembles, rivals, soup_of
from hfmega.merging.last_mile import again
from hfmega.merging.replay import Rebuilt, read_places
from hfmega.report import card, lineage, metadata, page, thumbnails
from hfmega.report.lineage import Lineage
from hfmega.search.recipe import centroid, source_alone
from hfmega.settings import SplitRequest
from hfmega.weights.checkpoint import Checkpoint, load_weights, save_weights
from hfmega.weights.tensors import read_tensors

TOLERANCE: Final = 0.001  # of accuracies, or one image if that is more: forward passes differ between processors
RETRAINED: Final = 0.01  # of the accuracy after a training, or three images: other last bits grow with every step
STATISTICS: Final = 0.01  # of a value, and of its scale: forward passes differ with the number of threads too


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


def verify(source: str, dataset: str | None, places: Path | None, retrain: bool = False) -> Iterator[Check]:
    """Check a merge (folder or Hub id) claim by claim. What cannot be checked, for want of a source, say, fails.

    dataset: the images, if they are not where the lineage says; places: where local sources lie; retrain: whether the
    last mile is trained again too, from its start.
    Raises HfmegaError when there is no merge, or its lineage cannot be read.
    """
    phases.begin("weights")
    checkpoint = pull.pull(source)
    pinned = f"{checkpoint.repo_id}@{checkpoint.revision}" if checkpoint.repo_id else source
    folder = pull.pull_merge(pinned)
    merge = Merge(checkpoint, folder, lineage.read(folder / LINEAGE))
    yield attempt("weights", lambda: same_hash(merge))
    yield attempt("numbers", lambda: consistent(merge.lineage))
    yield attempt("card", lambda: same_card(merge))
    phases.begin("sources")
    try:
        rebuilt = replay.rebuilt(merge.lineage, folder, places)
        yield Check("sources", True, f"all {len(rebuilt.checkpoints)} are what was merged")
        yield attempt("config", lambda: same_config(merge, rebuilt))
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
    calibration = len(splits.get("calibration", ()))
    shown = len(merge.lineage.references) + 1
    ahead = {"statistics": calibration, "evaluation": shown * (len(splits["test"]) + calibration // 2)}
    if retrain and (mile := merge.lineage.last_mile) and mile.stands:
        ahead["last mile"] = (phases.TRAINING + len(mile.teacher)) * mile.epochs * mile.images
    phases.plan(ahead)
    yield attempt("statistics", lambda: same_statistics(merge, network))
    yield attempt("evaluation", lambda: same_accuracies(merge, Evaluator(network), splits["test"]))
    if retrain:
        yield attempt("last mile", lambda: same_training(merge, network, rebuilt.state, splits))


def attempt(name: str, check: Callable[[], str]) -> Check:
    """A check that returns what it compared, and raises HfmegaError with what differs."""
    phases.begin(name)
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
    if made.card >= lineage.CARD_VERSION:
        consistent_gains(made)
    return f"{result.correct:,} of {result.total:,} correct"


def consistent_gains(made: Lineage) -> None:
    """What a lineage says since its second card: the verdict follows from the numbers, a source is called one."""
    result, references = made.result, {reference.name: reference for reference in made.references}
    require(result.is_source == made.held, f"result.is_source is {result.is_source!r}, the recipe is {made.held!r}")
    shown = "no difference shown"
    if result.p_value is not None and result.p_value < SIGNIFICANCE:
        shown = "better" if result.gain > 0 else "worse"
    require(result.verdict == shown, f"result.verdict is {result.verdict!r}, its numbers say {shown!r}")
    if result.loss_gain is not None and result.p_value is not None:
        lower = references[result.best_reference].loss - result.loss
        require(abs(result.loss_gain - lower) < 1e-6, "result.loss_gain is not over the best source")


def same_table(made: Lineage) -> None:
    """The gains and classes of a lineage since its second card are those of the accuracies that it lists."""
    if made.card < lineage.CARD_VERSION:
        return
    result, references = made.result, {reference.name: reference for reference in made.references}
    top = max(r.accuracy for r in made.references if r.kind in OF_SOURCES)
    require(references[result.best_reference].accuracy == top, "result.best_reference is not the best source")
    over = result.over_average
    if over is not None:
        require(over.over in references, "result.over_average is over no reference")
        gain = result.accuracy - references[over.over].accuracy
        require(abs(over.gain - gain) < 1e-9, "result.over_average.gain is not over that average")
    right = sum(entry.accuracy * entry.images for entry in result.per_class)
    require(abs(right - result.correct) < 1e-6 * result.total, "result.per_class does not add up to result.correct")
    if result.disagreements is not None:
        won, lost = result.disagreements
        require(abs(won - lost - result.gain * result.total) < 1e-3, "result.disagreements do not make result.gain")


def same_card(merge: Merge) -> str:
    """The card says what the lineage says: all of it by the same version of hfmega, else the numbers of its tables."""
    path = merge.folder / CARD
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise HfmegaError(f"there is no {CARD} that can be read: {error}") from error
    if not merge.lineage.current:
        return same_numbers(merge.lineage, found)
    published = merge.checkpoint.repo_id
    if published is not None:
        require(published == merge.lineage.repo_id, f"the card is that of {merge.lineage.repo_id}, not of {published}")
    same_eval_results(merge)
    expected = card.text(merge.lineage, merge.checkpoint.spec).splitlines()
    for number, (said, meant) in enumerate(zip(found, expected, strict=False), 1):
        require(said == meant, f"{CARD}, line {number} says {said[:200]!r}; the lineage says {meant[:200]!r}")
    require(len(found) == len(expected), f"{CARD} has {len(found)} lines, the lineage makes {len(expected)}")
    same_report(merge)
    return f"{len(found)} lines are those of the lineage"


def same_numbers(made: Lineage, found: Sequence[str]) -> str:
    """The card of another version of hfmega: the cells of its tables, its commits and its hash are the lineage's."""
    _, rows = card.comparison_rows(made)
    wanted = [cells for _, *cells in rows]
    wanted += [[source.revision[:12]] for source in made.sources if source.revision] + [[made.result.sha256]]
    for cells in wanted:
        there = any(all(cell in line for cell in cells) for line in found)
        require(there, f"{CARD} lacks the line with {', '.join(cells)}")
    return "its figures are those of the lineage"


def same_eval_results(merge: Merge) -> None:
    """The evaluation result that the Hub shows is that of the lineage."""
    path, meant = merge.folder / folder.EVAL_RESULTS, metadata.eval_results(merge.lineage)
    try:
        found = path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, ValueError) as error:
        raise HfmegaError(f"{folder.EVAL_RESULTS} cannot be read: {error}") from error
    require(found == meant, f"{folder.EVAL_RESULTS} does not say what the lineage says")


def same_report(merge: Merge) -> None:
    """A report beside the lineage is the one that it makes; its test images are known only where the merge was made."""
    path, spec = merge.folder / folder.REPORT, merge.checkpoint.spec
    if not path.exists():
        return
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise HfmegaError(f"{folder.REPORT} cannot be read: {error}") from error
    shown, plain = thumbnails.read(merge.folder), page.text(merge.lineage, spec)
    pairs = zip(page.without_images(found).splitlines(), plain.splitlines(), strict=False)
    line = next((number for number, (said, meant) in enumerate(pairs, 1) if said != meant), None)
    require(line is None, f"{folder.REPORT}, line {line}, does not say what the lineage says")
    same = found in (plain, page.text(merge.lineage, spec, shown)) if shown else page.without_images(found) == plain
    require(same, f"{folder.REPORT} does not say what the lineage says")


def same_config(merge: Merge, rebuilt: Rebuilt) -> str:
    """Network, labels and preprocessing of the merge are those of its sources."""
    found, meant = merge.checkpoint.spec.identity, rebuilt.checkpoints[0].spec.identity
    for what, value in meant.items():
        require(found.get(what) == value, f"the merge and its sources differ in {what}")
    return f"network, labels and preprocessing are those of {rebuilt.checkpoints[0].name}"


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
    opened = open_dataset(name, image and str(image), label and str(label))
    labels = merge.checkpoint.spec.labels
    by_number = settings.get("labels_by_number", matched_before(opened.classes, labels))
    return replace(opened, by_number=bool(by_number))


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
            }
        )
    except ValidationError as error:
        raise HfmegaError(f"the settings of the lineage name no images: {error.errors()[0]['msg']}") from error
    plan = plan_splits(
        dataset,
        [c.record for c in rebuilt.checkpoints],
        request,
        distills="distill" in merge.lineage.data.splits,
        chooses=not merge.lineage.updates_bn,
    )
    spec, recorded = rebuilt.checkpoints[0].spec, merge.lineage.data.splits
    rows = {name: chosen for name, chosen in plan.rows.items() if len(chosen) and name in recorded}
    return load_splits(dataset, rows, spec, plan.augmented)


def same_images(made: Lineage, splits: Mapping[str, Split]) -> str:
    for purpose, entry in made.data.splits.items():
        found = splits.get(purpose)
        require(found is not None, f"there are no {purpose} images")
        assert found is not None
        require(found.fingerprint == entry.fingerprint, f"the {purpose} images are not those of the lineage")
    counts = ", ".join(f"{len(split):,} {purpose}" for purpose, split in splits.items())
    return "; ".join([counts, *dict.fromkeys(note for split in splits.values() for note in split.notes)])


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
        near = close(recorded[name].float(), tensor.float(), scale_of(name, found))
        require(near, f"{folder.STATISTICS}: {name} is not what the calibration images give")
    return f"{len(found)} tensors re-estimated"


def close(found: Tensor, expected: Tensor, scale: Tensor) -> bool:
    """Whether they differ by no more than a hundredth of themselves and of a scale."""
    bounds = STATISTICS * (expected.abs() + scale)
    return found.shape == expected.shape and bool(((found - expected).abs() <= bounds).all())


def scale_of(name: str, statistics: Mapping[str, Tensor]) -> Tensor:
    """What a statistic may differ on: a mean on the spread of its channel, others on a tenth of their largest value."""
    variance = statistics.get(name.replace("running_mean", "running_var"))
    if name.endswith("running_mean") and variance is not None:
        return variance.float().sqrt()
    return statistics[name].float().abs().max() / 10


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
    same_table(made)
    best = known.get(made.result.best_reference)
    if best:
        same_bounds("the gain", made.result.gain_interval, compare(merged, best).interval, 2 * tolerance)
        same_losses(made.result, merged, best)
        same_classes(made, test, merged, best)
    over = made.result.over_average
    if over and over.over in known:
        beside = compare(merged, known[over.over])
        same_bounds("the gain over the average", over.gain_interval, beside.interval, 2 * tolerance)
    return f"{merged.accuracy:.4f} of {len(test):,}; {len(known)} of {len(made.references)} references again"


def same_training(merge: Merge, network: Network, start: dict[str, Tensor], splits: Mapping[str, Split]) -> str:
    """The last mile, trained again from its start, is as accurate on the test images, within a tolerance."""
    mile, result, test = merge.lineage.last_mile, merge.lineage.result, splits["test"]
    require(mile is not None, "there was no last mile: remove --retrain")
    assert mile is not None
    if not mile.stands:
        return "it did not replace its start"
    with TemporaryDirectory() as scratch:
        student = again(mile, network, start, splits, splits.get("calibration"), Path(scratch))
        found = student.judged(test).accuracy
        sha256 = save_weights(student.state, Path(scratch) / WEIGHTS)
    near("the last mile trained again", result.accuracy, found, max(RETRAINED, 3.5 / len(test)))
    same = "the same weights, bit for bit" if sha256 == result.sha256 else "other last bits of the weights"
    return f"{mile.epochs} epochs again: {found:.4f}, the lineage says {result.accuracy:.4f}; {same}"


def same_bounds(what: str, claimed: lineage.Interval, found: lineage.Interval, tolerance: float) -> None:
    for which, said, bound in zip(("lower", "upper"), claimed, found, strict=True):
        near(f"the {which} bound of {what}", said, bound, tolerance)


def same_losses(result: lineage.Result, merged: Answers, best: Answers) -> None:
    """The paired interval of the mean loss comes out again, within a hundredth of the loss."""
    found = compare_losses(merged, best)
    if result.loss_gain_interval is not None and found is not None:
        same_bounds("the gain of the loss", result.loss_gain_interval, found[1], 0.001 + 0.01 * result.loss)


def same_classes(made: Lineage, test: Split, merged: Answers, best: Answers) -> None:
    """The accuracies of each class come out again, but for one image or two."""
    found = by_class((), test.labels, merged, best)
    if not made.result.per_class:
        return
    require(len(found) == len(made.result.per_class), "the test images have other classes than the lineage")
    for claimed, entry in zip(made.result.per_class, found, strict=True):
        tolerance = max(TOLERANCE, 1.5 / entry.images)
        require(claimed.images == entry.images, f"the class {claimed.name} has {entry.images:,} images")
        near(f"the class {claimed.name}", claimed.accuracy, entry.accuracy, tolerance)
        near(f"the class {claimed.name} of the best source", claimed.best_source, entry.best_source, tolerance)


def near(what: str, claimed: float, found: float, tolerance: float) -> None:
    require(abs(claimed - found) <= tolerance, f"{what}: the lineage says {claimed:.4f}, it is {found:.4f}")


def references(made: Lineage, evaluator: Evaluator, test: Split) -> dict[str, Answers]:
    """What the references say of the test images. The average of a merge of merges is not known from its lineage."""
    leaves = {source.name: source_alone(k, len(made.sources)) for k, source in enumerate(made.sources)}
    earlier = {node.name: node.recipe for node in made.nodes if lineage.is_earlier(node)}
    averaged = list(leaves.values())[: -1 if made.settings.get("base") else None]
    single = rivals(leaves | earlier, centroid(averaged), made.recipe.calibrate, evaluator.network.can_calibrate)
    shown = {reference.name for reference in made.references}
    single = [rival for rival in single if rival.name in shown and not (earlier and rival.kind == "average")]
    named = leaves | earlier
    soups = [r.members for r in made.references if r.members and all(name in named for name in r.members)]
    single += [soup_of({name: named[name] for name in members}, evaluator.network.can_calibrate) for members in soups]
    together = {} if made.updates_bn else dict(ensembles(evaluator, len(leaves), test))  # what knows each leaf, too
    judged = dict(zip((r.name for r in single), evaluator.answers([r.recipe for r in single], test), strict=True))
    return judged | together
