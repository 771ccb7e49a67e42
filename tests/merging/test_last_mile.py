"""The last mile: taught by an ensemble or by labels, judged on what was not taught, recorded, resumed. 12 seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run as command
from support.sure import Sure, images

from hfmega.data.dataset import Dataset, rows_of
from hfmega.data.images import Split, load_split
from hfmega.errors import HfmegaError
from hfmega.evaluation.checkpoint import predict_checkpoint
from hfmega.evaluation.network import Network
from hfmega.hub import pull
from hfmega.merging import gather, last_mile, replay, verify
from hfmega.merging.lesson import Teacher, lesson_of, symmetric, views_of
from hfmega.merging.merge import merge
from hfmega.models import fit
from hfmega.models.library import Spec
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.report.lineage import FROM_BEST_SOURCE, SELF_TAUGHT, Lineage
from hfmega.search.recipe import Recipe
from hfmega.settings import DEFAULT, LastMileSettings, MergeSettings, SplitRequest
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.sources import mix

SPLITS = SplitRequest(fitness="train[:600]", calibration="train[900:]")
SEARCH = replace(DEFAULT, population=4, generations=2)
DISTILL = LastMileSettings(distill=True, epochs=30, learning_rate=0.003)


def run(sources: tuple[Path, ...], output: Path, **changes: Any) -> Lineage:
    names = tuple(map(str, sources))
    settings = MergeSettings(names, output, dataset="digits", splits=SPLITS, search=SEARCH, last=DISTILL, seed=0)
    made = merge(replace(settings, **changes), Output(muted=True))
    assert made is not None
    return made


@pytest.fixture(scope="module")
def distilled(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lineage]:
    """Two independent sources, of which one wins the run-off, and what the ensemble of both taught it."""
    folder = tmp_path_factory.mktemp("mile") / "out"
    return folder, run(tiny_sources, folder)


def test_what_the_ensemble_teaches_is_nearer_to_it_than_the_start(
    distilled: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], digits: Dataset
) -> None:
    """On the images of the lesson, in mean KL divergence from the ensemble's probabilities."""
    folder, made = distilled
    mile = made.last_mile
    assert mile is not None
    assert mile.stands
    assert (mile.images, mile.epochs, mile.learning_rate, mile.judged) == (397, 30, 0.003, 600)
    images = load_split(digits, rows_of(digits, "train[900:]"), found_spec(folder), "calibration")
    sources = [pull.pull(str(source)) for source in tiny_sources]
    states = [load_weights(source) for source in sources]
    network = Network(found_spec(folder), mix(sources, states), images)
    ensemble = torch.stack([network.predict(recipe, images).exp() for recipe in mile.teacher]).mean(0)
    start = network.predict(made.recipe, images)
    student = predict_checkpoint(pull.pull(str(folder)), images, torch.device("cpu"))
    near, far = (float(torch.nn.functional.kl_div(p, ensemble, reduction="batchmean")) for p in (student, start))
    assert near < far


def found_spec(folder: Path) -> Spec:
    return pull.pull(str(folder)).spec


def test_digits_are_not_shown_mirrored(distilled: tuple[Path, Lineage]) -> None:
    assert distilled[1].last_mile is not None
    assert not distilled[1].last_mile.mirrored


def test_the_folder_holds_the_trained_weights_and_the_lineage_the_start(distilled: tuple[Path, Lineage]) -> None:
    folder, made = distilled
    assert made.last_mile is not None
    assert pull.pull(str(folder)).sha256 == made.result.sha256 != made.last_mile.start_sha256
    assert lineage.read(folder / "lineage.json") == made
    assert made.data.splits["distill"].images == 397


def test_the_start_is_replayed_bit_for_bit(distilled: tuple[Path, Lineage]) -> None:
    found = replay.replay(str(distilled[0]))
    assert found.equal
    assert distilled[1].last_mile is not None
    assert found.expected == distilled[1].last_mile.start_sha256


def test_the_controls_stand_beside_it(distilled: tuple[Path, Lineage]) -> None:
    made = distilled[1]
    names = [control.name for control in made.controls]
    assert names in ([SELF_TAUGHT], [FROM_BEST_SOURCE, SELF_TAUGHT])
    assert made.controls[-1].remainder == pytest.approx(made.result.accuracy - made.controls[-1].accuracy)


def test_it_is_verified_and_tampering_is_found(distilled: tuple[Path, Lineage], tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(distilled[0], tmp_path / "copy")
    assert all(check.ok for check in verify.verify(str(copy), None, None))
    state = load_file(copy / "model.safetensors")
    state["fc.bias"] += 0.01
    save_file(state, copy / "model.safetensors")
    assert next(check.name for check in verify.verify(str(copy), None, None) if not check.ok) == "weights"
    shutil.copy(distilled[0] / "model.safetensors", copy)
    text = json.loads((copy / "lineage.json").read_text())
    text["recipe"]["coefficients"] = [0.5, 0.5]
    (copy / "lineage.json").write_text(json.dumps(text))
    failed = {check.name: check.detail for check in verify.verify(str(copy), None, None) if not check.ok}
    assert "the start of the last mile is not what the recipe makes" in failed["replay"]


def test_trained_again_it_comes_to_the_same_weights(
    distilled: tuple[Path, Lineage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine that trained it; elsewhere to the same accuracy, within a tolerance. The display knows it all."""
    passed, planned = [0.0], [0.0]
    monkeypatch.setattr("hfmega.phases.passed", lambda images: passed.__setitem__(0, passed[0] + images))
    monkeypatch.setattr("hfmega.phases.plan", lambda images: planned.__setitem__(0, sum(images.values())))
    *checks, last = verify.verify(str(distilled[0]), None, None, retrain=True)
    assert planned[0] == pytest.approx(passed[0], rel=0.2)
    assert all(check.ok for check in checks)
    assert (last.name, last.ok) == ("last mile", True)
    assert last.detail.endswith("the same weights, bit for bit")


def test_another_training_than_the_recorded_one_is_found(distilled: tuple[Path, Lineage], tmp_path: Path) -> None:
    """One epoch at a rate that ruins the start does not come to the accuracy that the lineage states."""
    import shutil

    copy = shutil.copytree(distilled[0], tmp_path / "copy")
    text = json.loads((copy / "lineage.json").read_text())
    text["last_mile"] |= {"epochs": 1, "learning_rate": 0.5}
    (copy / "lineage.json").write_text(json.dumps(text))
    *_, last = verify.verify(str(copy), None, None, retrain=True)
    assert not last.ok
    assert "the last mile trained again: the lineage says" in last.detail


def test_retrain_without_a_last_mile_says_so(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    run(tiny_sources, tmp_path / "out", method="average", last=LastMileSettings())
    done = command("verify", tmp_path / "out", "--retrain")
    assert done.code == 1
    assert "FAILED last mile: there was no last mile: remove --retrain" in done.stderr


def test_a_trained_merge_is_a_leaf_of_the_next_one(distilled: tuple[Path, Lineage]) -> None:
    found = pull.pull(str(distilled[0]))
    assert gather.expand(found)[1] == [found]


def test_killed_in_the_middle_it_resumes_to_the_same_weights(
    distilled: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, epochs = fit.save_state, []

    def killed(*arguments: Any) -> None:
        save(*arguments)
        epochs.append(arguments[2])
        if len(epochs) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_sources, tmp_path / "out")
    made = run(tiny_sources, tmp_path / "out")
    assert epochs[:30] == list(range(1, 31))
    assert made.result.sha256 == distilled[1].result.sha256
    assert made.controls == distilled[1].controls


def test_labels_of_the_search_images_teach_too(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    last = LastMileSettings(fine_tune=True, epochs=8, learning_rate=0.003)
    made = run(tiny_sources, tmp_path / "out", last=last)
    assert made.last_mile is not None
    assert (made.last_mile.images, made.last_mile.teacher) == (360, ())
    assert made.result.accuracy > made.last_mile.accuracy_of_start
    assert "distill" not in made.data.splits


def test_both_lessons_are_one_training(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    last = LastMileSettings(distill=True, fine_tune=True, epochs=4, learning_rate=0.003)
    made = run(tiny_sources, tmp_path / "out", last=last)
    assert made.last_mile is not None
    assert made.last_mile.images == 397 + 360


def test_a_training_that_helps_nothing_leaves_the_start_as_it_is(
    tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    made = run(tiny_sources, tmp_path / "out", last=replace(DISTILL, epochs=1, learning_rate=0.5))
    assert made.last_mile is not None
    assert not made.last_mile.stands
    assert made.result.sha256 == made.last_mile.start_sha256
    assert made.result.accuracy == made.last_mile.accuracy_of_start


def test_images_of_the_test_or_the_search_may_not_teach(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    for split, other in (("test[:9]", "test"), ("train[:9]", "fitness")):
        named = replace(SPLITS, fitness="train[:400]", test="test[:200]", distill=split)
        with pytest.raises(HfmegaError, match=f"9 images are in both the .*{other}"):
            run(tiny_sources, tmp_path / "out", splits=named)


def test_a_last_mile_needs_confirm_images_and_constants_that_train() -> None:
    with pytest.raises(HfmegaError, match="need confirm images"):
        MergeSettings(("a", "b"), Path("x"), splits=replace(SPLITS, confirm_share=0.0), last=DISTILL)
    with pytest.raises(HfmegaError, match="--last-epochs must be at least 1, not 0"):
        LastMileSettings(distill=True, epochs=0)
    with pytest.raises(HfmegaError, match="add --distill or --fine-tune"):
        LastMileSettings(epochs=3)


@pytest.mark.parametrize(("lost", "shown"), [(0, True), (4, True), (30, False)])
def test_mirrored_images_are_shown_where_the_teacher_is_about_as_right_about_them(lost: int, shown: bool) -> None:
    """Of 100 images it is right about all as they are, and about all but `lost` of them mirrored."""
    images = torch.zeros(100, 1, 2, 2, dtype=torch.uint8)
    images[..., 0] = 1  # the left side is bright
    split = Split("search", images, torch.zeros(100, dtype=torch.int64), "search")

    def predict(_: Recipe, seen: Split) -> torch.Tensor:
        wrong = lost if int(seen.images[0, 0, 0, 1]) else 0  # the right side is bright: mirrored
        return torch.nn.functional.one_hot((torch.arange(100) < wrong).long(), 2).float().log_softmax(1)

    network: Any = SimpleNamespace(predict=predict)
    assert symmetric(network, [Recipe((1.0,))], split) is shown


@pytest.mark.parametrize("views", ["flips", "flips and crops"])
def test_the_teacher_answers_about_images_as_the_student_sees_them(
    views: Any, tiny_sources: tuple[Path, Path], digits: Dataset, tmp_path: Path
) -> None:
    """In each epoch about what that epoch shows, with the mean probability; labels have their share of it."""
    checkpoint = pull.pull(str(tiny_sources[0]))
    images = load_split(digits, rows_of(digits, "train[900:960]"), checkpoint.spec, "distill")
    sources = mix([checkpoint] * 2, [load_weights(pull.pull(str(source))) for source in tiny_sources])
    network, recipes = Network(checkpoint.spec, sources, None), (Recipe((1.0, 0.0)), Recipe((0.0, 1.0)))
    learned = lesson_of(Teacher(network, recipes, tmp_path / "teacher"), images, images, views)
    schedule = learned.schedule(2, 0.001, 0)
    for epoch in (0, 1):
        shown = torch.cat(list(schedule.shows(learned.images, epoch).parts(learned.images)))
        seen = replace(images, images=shown, labels=torch.zeros(120, dtype=torch.int64), fingerprint=f"epoch {epoch}")
        wanted = torch.stack([network.predict(recipe, seen).exp() for recipe in recipes]).mean(0)
        labels = torch.nn.functional.one_hot(images.labels, 10)
        found = learned.targets(schedule, epoch, 10)
        assert torch.allclose(found[:60], wanted[:60], atol=1e-6)
        assert torch.allclose(found[60:], (wanted[60:] + labels) / 2, atol=1e-6)


def test_the_command_distills_and_says_what_it_did(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    few = ["--dataset", "digits", "--fitness-split", "train[:200]", "--population", 4, "--generations", 2, "--json"]
    last = ["--distill", "--distill-split", "train[900:1000]", "--last-epochs", 2, "--last-lr", 0.002]
    found = command("merge", *tiny_sources, *few, *last, "-o", tmp_path / "out").json
    mile, card = found["last_mile"], (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (mile["distill"], mile["fine_tune"], mile["images"], mile["epochs"]) == (True, False, 100, 2)
    assert mile["learning_rate"] == 0.002
    assert "After the merge came a training of 2 epochs on 100 images" in card
    assert " before the training.\n" in card
    assert "--distill" in card
    assert SELF_TAUGHT in [control["name"] for control in found["controls"]]


def test_images_are_shown_as_the_training_of_the_sources_did() -> None:
    assert views_of(flips=True, shifts=True) == "flips and crops"
    assert views_of(flips=True, shifts=False) == "flips"
    assert views_of(flips=False, shifts=True) == "none"


@pytest.mark.parametrize(("fine_tune", "judged"), [(False, 200), (True, 100)])
def test_a_student_is_judged_on_all_labelled_images_that_it_was_not_taught(fine_tune: bool, judged: int) -> None:
    last = LastMileSettings(distill=True, fine_tune=fine_tune)
    search, confirm = images("search"), replace(images("confirm"), labels=torch.ones(100, dtype=torch.int64))
    job: Any = SimpleNamespace(search=search, confirm=confirm, settings=SimpleNamespace(last=last))
    unseen = last_mile.unseen(job)
    assert (len(unseen), len(unseen.images), int(unseen.labels.sum())) == (judged, judged, 100)


@pytest.mark.parametrize(("fine_tune", "judged"), [(False, 600), (True, 240)])
def test_students_are_compared_on_nothing_but_those_images(
    tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fine_tune: bool, judged: int
) -> None:
    sizes, judge = set[int](), last_mile.judge_tempered

    def seen(network: Network, recipe: Recipe, split: Split) -> Any:
        sizes.add(len(split))
        return judge(network, recipe, split)

    monkeypatch.setattr(last_mile, "judge_tempered", seen)
    run(tiny_sources, tmp_path / "out", last=replace(DISTILL, epochs=1, fine_tune=fine_tune))
    assert sizes == {judged}


@pytest.mark.parametrize(("right", "margin", "more"), [(80, 1.0, False), (70, 0.8, False), (95, 9.0, True)])
def test_a_student_replaces_its_start_by_what_it_knows(right: int, margin: float, more: bool) -> None:
    """The start is right 80 times of 100 and too sure of it: one that is only less sure has a lower plain loss."""
    split = images("confirm")
    network: Any = Sure(80, 9.0)
    start = last_mile.Student(network, Recipe((1.0,)), 0.0)
    taught: Any = Sure(right, margin)
    student = last_mile.Student(taught, Recipe((1.0,)), 0.1)
    assert student.judged(split).mean_loss < start.judged(split).mean_loss
    assert student.knows_more_than(start, split) is more
