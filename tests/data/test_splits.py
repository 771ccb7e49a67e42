"""Fitness, confirm, calibration and test images share none, unless the leak is asked for by name."""

from itertools import combinations
from typing import Any

import datasets
import numpy as np
import pytest

from hfmega.data.dataset import Dataset, evaluation_split, rows_of, spell
from hfmega.data.splits import SplitPlan, plan_splits, same_dataset
from hfmega.errors import HfmegaError
from hfmega.settings import SplitRequest


def toy(name: str = "ann/toy", **lengths: int) -> Dataset:
    """A dataset of labels only: a plan reads no images."""
    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    parts = {split: datasets.Dataset.from_dict({"label": [0] * n}, features=features) for split, n in lengths.items()}
    return Dataset(name, None, datasets.DatasetDict(parts), "image", "label", ("a", "b"))


TOY = toy(train=3000, test=1000)
FOREIGN: list[dict[str, Any] | None] = [None, None]


def record(held_out: str | None, trained: str, dataset: str = "ann/toy") -> dict[str, Any]:
    return {"dataset": dataset, "held_out_split": held_out, "train_split": trained}


def plan(records: list[dict[str, Any] | None] = FOREIGN, dataset: Dataset = TOY, **request: Any) -> SplitPlan:
    return plan_splits(dataset, records, SplitRequest(**request))


def assert_nothing_is_shared(found: SplitPlan) -> None:
    parts = found.rows
    assert list(parts) == ["search", "confirm", "calibration", "test"]
    assert {(a, b) for a, b in combinations(parts, 2) if len(np.intersect1d(parts[a], parts[b]))} == set()
    assert all(len(np.unique(part)) == len(part) for part in parts.values())


@pytest.mark.parametrize(
    ("spec", "runs", "spelled"),
    [
        ("train", [(0, 3000)], "train"),
        ("train[:500]", [(0, 500)], "train[:500]"),
        ("train[2500:]", [(2500, 3000)], "train[2500:]"),
        ("train[-500:]", [(2500, 3000)], "train[2500:]"),
        ("train[:-500]", [(0, 2500)], "train[:2500]"),
        ("train[10:20]", [(10, 20)], "train[10:20]"),
        ("train[7:8]", [(7, 8)], "train[7:8]"),
        ("train[:10%]", [(0, 300)], "train[:300]"),
        ("train[10%:]", [(300, 3000)], "train[300:]"),
        ("train[-10%:]", [(2700, 3000)], "train[2700:]"),
        ("train[:5000]", [(0, 3000)], "train"),
        ("test", [(3000, 4000)], "test"),
        ("test[:50%]", [(3000, 3500)], "test[:500]"),
        ("train[:10]+test", [(0, 10), (3000, 4000)], "train[:10]+test"),
        ("train[:10]+train[90:]+test[1:2]", [(0, 10), (90, 3000), (3001, 3002)], "train[:10]+train[90:]+test[1:2]"),
        ("test[:5]+train[:5]", [(3000, 3005), (0, 5)], "train[:5]+test[:5]"),
        ("train[:10]+train[5:15]", [(0, 10), (5, 15)], "train[:15]"),
    ],
)
def test_a_slice_names_rows_and_rows_spell_a_slice(spec: str, runs: list[tuple[int, int]], spelled: str) -> None:
    found = rows_of(TOY, spec)
    assert np.array_equal(found, np.concatenate([np.arange(*run) for run in runs]))
    assert spell(TOY, found) == spelled
    assert np.array_equal(rows_of(TOY, spelled), np.unique(found))


def test_any_set_of_rows_is_spelled_and_read_back() -> None:
    chosen = np.flatnonzero(np.random.RandomState(1).rand(4000) < 0.3)
    assert np.array_equal(rows_of(TOY, spell(TOY, chosen)), chosen)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("nope", "'nope' is not a slice of ann/toy (splits: train, test): Unknown split"),
        ("train[:5", "'train[:5' is not a slice"),
        ("train[::2]", "'train[::2]' is not a slice"),
        ("train[:200%]", "'train[:200%]' is not a slice of ann/toy"),
        ("", "'' is not a slice of ann/toy"),
        ("train[5:5]", "the split 'train[5:5]' of ann/toy is empty."),
        ("train[10:5]", "the split 'train[10:5]' of ann/toy is empty."),
    ],
)
def test_a_slice_that_names_nothing_is_refused(spec: str, sentence: str) -> None:
    for request in ({"fitness": spec}, {"calibration": spec}, {"test": spec}):
        if spec:  # an empty request is no request
            with pytest.raises(HfmegaError) as refused:
                plan(**request)
            assert sentence in str(refused.value)
    with pytest.raises(HfmegaError) as refused:
        rows_of(TOY, spec)
    assert str(refused.value).startswith(sentence)


def test_with_records_fitness_is_what_no_source_saw_and_calibration_what_all_saw() -> None:
    found = plan([record("train[:600]", "train[600:]"), record("train[200:800]", "train[:200]+train[800:]")])
    assert (found.fitness, found.calibration, found.test) == ("train[200:600]", "train[800:]", "test")
    assert np.array_equal(np.union1d(found.search_rows, found.confirm_rows), np.arange(200, 600))
    assert (len(found.search_rows), len(found.confirm_rows), len(found.calibration_rows)) == (240, 160, 1000)
    assert found.calibration_rows.min() >= 800
    assert found.calibration_rows.max() < 3000
    assert np.array_equal(found.test_rows, np.arange(3000, 4000))
    assert (found.notes, found.leak) == ((), None)
    assert_nothing_is_shared(found)


def test_calibration_takes_no_more_than_there_is() -> None:
    found = plan([record("train[100:]", "train[:100]"), record("train[100:]", "train[:100]")])
    assert np.array_equal(found.calibration_rows, np.arange(100))


def test_sources_that_share_no_trained_images_calibrate_on_all_but_the_fitness_images() -> None:
    found = plan([record("train[2900:]", "train[:1000]"), record("train[2900:]", "train[1000:2900]")])
    assert (found.fitness, found.calibration) == ("train[2900:]", "train[:2900]")
    assert_nothing_is_shared(found)


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([None, None], "the sources have no training record for this dataset"),
        ([record("train[:600]", "train[600:]"), None], "the sources have no training record for this dataset"),
        (
            [record("train[:600]", "train[600:]", "bob/other")] * 2,
            "the sources have no training record for this dataset",
        ),
        ([record("train[:600]", "train[600:]"), record(None, "train")], "the sources share no held-out images"),
        (
            [record("train[:600]", "train[600:]"), record("train[600:]", "train[:600]")],
            "the sources share no held-out images",
        ),
    ],
)
def test_sources_without_common_held_out_images_get_half_of_test_each_and_a_note(
    records: list[dict[str, Any] | None], why: str
) -> None:
    found = plan(records)
    assert (found.fitness, found.test) == ("test[:500]", "test[500:]")
    assert found.notes == (f"{why}: test[:50%] is used for fitness, the rest of test for the report.",)
    assert len(found.calibration_rows) == 1000
    assert found.calibration_rows.max() < 3000
    assert_nothing_is_shared(found)


def test_a_dataset_without_a_test_split_reports_on_its_validation_split() -> None:
    found = plan(dataset=toy(train=100, validation=40))
    assert (found.fitness, found.test) == ("validation[:20]", "validation[20:]")


def test_a_dataset_without_any_evaluation_split_asks_for_the_images() -> None:
    with pytest.raises(HfmegaError, match=r"^the dataset ann/toy has only the split\(s\) train: name the images"):
        plan(dataset=toy(train=100))
    with pytest.raises(HfmegaError, match="name the images to report on"):
        evaluation_split(toy(train=100, extra=3))


def test_a_dataset_without_a_train_split_is_not_calibrated_on() -> None:
    found = plan(dataset=toy(test=1000))
    assert len(found.calibration_rows) == 0
    assert found.calibration == ""


def test_slices_of_the_user_are_taken_as_they_are() -> None:
    records = [record("train[:600]", "train[600:]")] * 2
    found = plan(records, fitness="train[:50]+train[90:140]", calibration="train[200:1500]", test="test[-100:]")
    assert (found.fitness, found.calibration, found.test) == (
        "train[:50]+train[90:140]",
        "train[200:1500]",
        "test[900:]",
    )
    assert (len(found.search_rows), len(found.confirm_rows)) == (60, 40)
    assert np.array_equal(found.calibration_rows, np.arange(200, 1500))
    assert np.array_equal(found.test_rows, np.arange(3900, 4000))
    assert (found.notes, found.leak) == ((), None)


def test_fitness_from_test_leaves_the_rest_of_test_for_the_report() -> None:
    found = plan(fitness="test[:300]", calibration="test[300:400]")
    assert np.array_equal(found.test_rows, np.arange(3400, 4000))
    assert_nothing_is_shared(found)


def test_fitness_from_train_is_left_out_of_calibration() -> None:
    found = plan(fitness="train[:2500]")
    assert np.array_equal(found.calibration_rows, np.arange(2500, 3000))


def test_fitness_that_takes_every_test_image_is_refused() -> None:
    with pytest.raises(HfmegaError, match=r"^fitness and calibration take every test image: name fewer"):
        plan(fitness="test")


@pytest.mark.parametrize(
    ("request_", "shared", "first", "second"),
    [
        ({"fitness": "test[:600]", "test": "test[500:]"}, 100, "fitness", "test"),
        ({"fitness": "train[:600]", "calibration": "train[590:]"}, 10, "fitness", "calibration"),
        ({"calibration": "test[900:]", "test": "test[500:]"}, 100, "calibration", "test"),
    ],
)
def test_an_overlap_is_refused_with_the_names_of_both_splits(
    request_: dict[str, str], shared: int, first: str, second: str
) -> None:
    with pytest.raises(HfmegaError) as refused:
        plan(**request_)
    sentence = f"{shared} images are in both the {first} and the {second} split: name others, or --allow-leak."
    assert str(refused.value) == sentence


def test_a_leak_asked_for_by_name_is_told() -> None:
    found = plan(fitness="test", test="test", allow_leak=True)
    assert found.leak == (
        "LEAK, as asked: the test set steered the search (1000 images are in both the fitness and the test split)."
    )
    overlap = plan(fitness="train[:100]", calibration="train", allow_leak=True).leak
    assert overlap == (
        "LEAK, as asked: the splits overlap (100 images are in both the fitness and the calibration split)."
    )


def test_allowing_a_leak_makes_none() -> None:
    assert plan(allow_leak=True).leak is None


def test_confirm_share_zero_gives_all_fitness_images_to_the_search() -> None:
    found = plan(confirm_share=0.0)
    assert (len(found.search_rows), len(found.confirm_rows)) == (500, 0)
    assert np.array_equal(found.search_rows, np.arange(3000, 3500))


def test_confirm_share_one_is_refused() -> None:
    with pytest.raises(HfmegaError, match=r"^--confirm-share must be at least 0 and below 1, not 1\.0\.$"):
        plan(confirm_share=1.0)


def test_the_same_request_draws_the_same_images() -> None:
    found, again = plan(), plan()
    for purpose, rows in found.rows.items():
        assert np.array_equal(rows, again.rows[purpose])
    # The draws themselves: a release that changes them compares its searches with other images than the last one's.
    assert found.search_rows[:6].tolist() == [3003, 3005, 3006, 3008, 3009, 3010]
    assert found.confirm_rows[:6].tolist() == [3000, 3001, 3002, 3004, 3007, 3011]
    assert found.calibration_rows[:6].tolist() == [1, 4, 7, 9, 11, 12]


def test_the_images_are_drawn_from_all_over_the_slice() -> None:
    found = plan()
    assert found.confirm_rows.mean() == pytest.approx(3249.5, abs=30)  # 200 of 3000 to 3500: three standard errors
    assert found.calibration_rows.mean() == pytest.approx(1499.5, abs=82)  # 1000 of 0 to 3000


@pytest.mark.parametrize(
    ("name", "recorded", "same"),
    [
        ("uoft-cs/cifar10", "uoft-cs/cifar10", True),
        ("cifar10", "uoft-cs/cifar10", True),
        ("uoft-cs/cifar10", "cifar10", True),
        ("digits", "digits", True),
        ("ann/cifar10", "uoft-cs/cifar10", False),
        ("cifar100", "uoft-cs/cifar10", False),
        ("10", "uoft-cs/cifar10", False),
    ],
)
def test_a_folder_stands_for_the_hub_dataset_of_its_name(name: str, recorded: str, same: bool) -> None:
    assert same_dataset(name, recorded) is same


def test_records_are_used_for_a_folder_of_the_same_dataset() -> None:
    found = plan([record("train[:600]", "train[600:]")] * 2, toy("toy", train=3000, test=1000))
    assert (found.fitness, found.notes) == ("train[:600]", ())


ONE = toy(train=200)
BOTH = r"--fitness-split and those of the report with --test-split"


@pytest.mark.parametrize(
    ("dataset", "request_", "expected"),
    [
        (TOY, {"test": "test[:100]"}, {"search": (3100, 3500), "test": (3000, 3100)}),
        (TOY, {"test": "test[:600]"}, {"search": (3600, 4000), "test": (3000, 3600)}),
        (TOY, {"calibration": "test[:500]"}, {"search": (3500, 3750), "test": (3750, 4000)}),
        (TOY, {"distill": "test[250:750]"}, {"search": (3000, 3250), "test": (3250, 4000)}),
        (TOY, {"fitness": "test[:500]", "test": "train[:2500]"}, {"calibration": (2500, 3000)}),
        (ONE, {"fitness": "train[:50%]", "test": "train[50%:]"}, {"search": (0, 100), "test": (100, 200)}),
        (ONE, {"fitness": "train[:20]", "test": "train[50:]"}, {"calibration": (20, 50), "test": (50, 200)}),
        (toy(test=90), {"test": "test[:30]"}, {"search": (30, 45), "test": (0, 30)}),
    ],
)
def test_what_is_chosen_never_overlaps_what_is_named(
    dataset: Dataset, request_: dict[str, str], expected: dict[str, tuple[int, int]]
) -> None:
    if "distill" in request_:
        expected = {"search": (3000, 3250)}
    found = plan_splits(dataset, FOREIGN, SplitRequest(confirm_share=0.0, **request_), distills="distill" in request_)
    for purpose, (first, last) in expected.items():
        assert np.array_equal(found.rows[purpose], np.arange(first, last)), purpose
    assert found.leak is None


@pytest.mark.parametrize(
    ("dataset", "request_", "asked"),
    [
        (ONE, {}, BOTH),
        (ONE, {"calibration": "train[:9]"}, BOTH),
        (ONE, {"test": "train[50%:]"}, r"--fitness-split \(those of the report are named\)\.$"),
        (ONE, {"fitness": "train[:50%]"}, r"name the images of the report with --test-split\.$"),
        (TOY, {"test": "test"}, r"leave none of test to steer the search: name some with --fitness-split\.$"),
        (TOY, {"calibration": "test"}, r"leave none of test to steer the search"),
    ],
)
def test_only_what_is_missing_is_asked_for(dataset: Dataset, request_: dict[str, str], asked: str) -> None:
    with pytest.raises(HfmegaError, match=asked):
        plan(dataset=dataset, **request_)


def with_labels(**labels: list[int | None]) -> Dataset:
    parts = {name: datasets.Dataset.from_dict({"label": values}) for name, values in labels.items()}
    return Dataset("ann/toy", None, datasets.DatasetDict(parts), "image", "label", ("a", "b"))


@pytest.mark.parametrize("hidden", [[-1] * 4, [None] * 4])
def test_a_split_that_hides_its_labels_is_not_reported_on(hidden: list[int | None]) -> None:
    seen = with_labels(train=[0, 1], test=hidden, validation=[0, 1, 1])
    assert evaluation_split(seen) == "validation"
    assert plan(dataset=seen).test.startswith("validation")
    with pytest.raises(HfmegaError, match=r"split\(s\) train, test \(the labels of test are hidden\): name the images"):
        evaluation_split(with_labels(train=[0, 1], test=hidden))
    assert evaluation_split(with_labels(test=[-1, 0])) == "test"


def test_without_a_report_no_test_images_are_asked_for() -> None:
    found = plan_splits(ONE, FOREIGN, SplitRequest(fitness="train[:50]"), tests=False)
    assert (len(found.test_rows), len(found.search_rows) + len(found.confirm_rows)) == (0, 50)


@pytest.mark.parametrize(
    ("ways", "expected"), [((True, True), True), ((True, False), False), ((False, False), False), ((True, None), False)]
)
def test_calibration_images_are_augmented_where_all_sources_were_trained_so(
    ways: tuple[bool | None, ...], expected: bool
) -> None:
    records = [None if way is None else record("train[:100]", "train[100:]") | {"augment": way} for way in ways]
    found = plan(records)
    assert found.augmented == expected
    assert any("mirrored and shifted" in note for note in found.notes) == expected
