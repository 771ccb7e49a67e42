"""Datasets as others store them: words as labels, images as bytes, configurations, hidden labels. 4 seconds."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support.commands import run

from hfmega.data.columns import find_columns
from hfmega.data.dataset import open_dataset, split_config
from hfmega.errors import HfmegaError

DIGITS = load_digits()
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PETS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pets").mkdir()
    return tmp_path / "pets"


def png(k: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.rint(DIGITS.images[1297 + k] * (255 / 16)))).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def table(
    folder: Path, image: Any, labels: list[Any], names: tuple[str, str] = ("image", "label"), split: str = "test"
) -> Path:
    pq.write_table(pa.table({names[0]: image, names[1]: labels}), folder / f"{split}.parquet")
    return folder


IMAGES, LABELS = [png(k) for k in range(30)], DIGITS.target[1297:1327].tolist()
STRUCTS = [{"bytes": content, "path": None} for content in IMAGES]
NAMED = [WORDS[label] for label in LABELS]
# As they are stored; each holds the first test images of digits.
STORED: dict[str, tuple[Any, list[Any], tuple[str, str]]] = {
    "bytes beside a path": (STRUCTS, LABELS, ("image", "label")),
    "bytes alone": (IMAGES, LABELS, ("image", "label")),
    "large bytes": (pa.array(IMAGES, pa.large_binary()), LABELS, ("png", "cls")),
    "words": (STRUCTS, NAMED, ("image", "label")),
    "large words": (STRUCTS, pa.array(NAMED, pa.large_string()), ("image", "category")),
    "numerals as words": (STRUCTS, [str(label) for label in LABELS], ("picture", "target")),
    "numbers as floats": (STRUCTS, [float(label) for label in LABELS], ("image", "Label")),
    "small integers": (STRUCTS, pa.array(LABELS, pa.uint8()), ("img", "labels")),
    "padded numerals": (STRUCTS, [f"0{label}" for label in LABELS], ("image", "class")),
}  # fmt: skip


@pytest.mark.parametrize("kind", STORED)
def test_columns_of_other_writers_are_found_and_read(kind: str, folder: Path, tiny_sources: tuple[Path, Path]) -> None:
    images, labels, names = STORED[kind]
    expected = run("evaluate", tiny_sources[0], "--dataset", "digits", "--split", "test[:30]", "--json").json
    found = run("evaluate", tiny_sources[0], "--dataset", table(folder, images, labels, names), "--json").json
    assert found["correct"] == expected["correct"]
    assert found["total"] == 30


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves the file open
def test_labels_of_a_metadata_file_are_words(folder: Path, tiny_sources: tuple[Path, Path]) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "label"])
        for k, (content, word) in enumerate(zip(IMAGES, NAMED, strict=True)):
            (folder / f"{k:02}.png").write_bytes(content)
            rows.writerow([f"{k:02}.png", word])
    assert run("evaluate", tiny_sources[0], "--dataset", folder, "--split", "train", "--json").json["total"] == 30


def test_other_classes_are_refused_until_the_user_insists(folder: Path, tiny_sources: tuple[Path, Path]) -> None:
    table(folder, STRUCTS, [PETS[label] for label in LABELS])
    words = ["evaluate", tiny_sources[0], "--dataset", folder]
    assert "are none of the network's (0, 1, 2, ...)" in run(*words).complaint
    insisted = run(*words, "--labels-by-number", "--json")
    assert "labels are matched by their number, as asked." in insisted.stderr
    assert set(insisted.json["per_class"]) == {PETS[label] for label in LABELS}
    merge = ["merge", *tiny_sources, "--dataset", folder, "--method", "average", "-o", folder.parent / "out"]
    splits = ["--fitness-split", "test[:15]", "--test-split", "test[15:]"]
    assert "are none of the network's" in run(*merge, *splits).complaint
    assert run(*merge, *splits, "--labels-by-number").code == 0
    verified = run("verify", folder.parent / "out", "--dataset", folder)
    assert verified.code == 0, verified.stderr
    assert "labels are matched by their number" in verified.stderr


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"x": "int64"}, "has no image column and no label column: name them with --image-column and --label-column"),
        (
            {"x": "binary", "y": "binary", "label": "int64"},
            r"has several image columns \(x, y\): name it with --image-c",
        ),
        ({"x": "binary", "label": "int64", "class": "string"}, r"several label columns \(label, class\): name it with"),
        ({"x": "binary", "y": "int64"}, "has no label column: name it with --label-column"),
        ({"image": "string", "label": "int64"}, "has no image column: name it with --image-column"),
    ],
)
def test_what_is_not_certain_is_asked_for_at_once(features: dict[str, str], said: str) -> None:
    columns = datasets.Features({name: datasets.Value(kind) for name, kind in features.items()})
    empty = datasets.Dataset.from_dict({name: [] for name in features}, features=columns)
    with pytest.raises(HfmegaError, match=said):
        find_columns("pets", datasets.DatasetDict(test=empty), None, None)


def test_a_configuration_is_named_behind_a_colon(folder: Path) -> None:
    for config in ("small", "large"):
        (folder / config).mkdir()
        table(folder / config, STRUCTS[: 3 if config == "small" else 9], LABELS[: 3 if config == "small" else 9])
    configs = "".join(f"- config_name: {c}\n  data_files: {c}/test.parquet\n" for c in ("small", "large"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(
        HfmegaError, match=r"has several configurations \(small, large\): name one with --dataset .*:small"
    ):
        open_dataset(str(folder))
    opened = open_dataset(f"{folder}:large")
    assert (opened.id, sum(opened.lengths.values())) == ("pets:large", 9)
    with pytest.raises(HfmegaError, match=r"cannot be read: .*huge"):
        open_dataset(f"{folder}:huge")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("digits", ("digits", None)),
        ("ann/pets", ("ann/pets", None)),
        ("ann/pets:small", ("ann/pets", "small")),
        ("./pets:small", ("./pets", "small")),
        ("C:/pets", ("C:/pets", None)),
        ("ann/pets:a.b-c", ("ann/pets", "a.b-c")),
    ],
)
def test_a_name_with_a_colon_has_a_configuration(name: str, parts: tuple[str, str | None]) -> None:
    assert split_config(name) == parts


@pytest.mark.parametrize("name", ["./pets", "../pets", "/none/pets", "a/b/c", "pets/", "~/pets", "data/photos", "a\\b"])
def test_a_missing_folder_is_never_asked_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_sources: tuple[Path, Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert f"there is no folder {name}" in run("evaluate", tiny_sources[0], "--dataset", name).complaint
    assert "there is no folder" in run("evaluate", name).complaint


def test_a_test_split_that_hides_its_labels_steps_aside(folder: Path, tiny_sources: tuple[Path, Path]) -> None:
    table(folder, STRUCTS[:5], [-1] * 5)
    table(folder, STRUCTS[5:], LABELS[5:], split="validation")
    found = run("evaluate", tiny_sources[0], "--dataset", folder, "--json").json
    assert (found["split"], found["total"]) == ("validation", 25)
    assert "-1 hides a label" in run("evaluate", tiny_sources[0], "--dataset", folder, "--split", "test").complaint
