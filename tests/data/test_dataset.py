"""From a dataset to tensors: columns, labels, preprocessing, and what cannot be read."""

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from support.specs import spec

from hfmega.data.dataset import Dataset, open_dataset
from hfmega.data.images import Split, _decode, load_split
from hfmega.errors import HfmegaError
from hfmega.models.library import Spec, normalizer

NAMES = [str(digit) for digit in range(10)]


def config(*size: int, **changes: Any) -> Spec:
    """The spec of a timm config for images of size channels, height, width that are fed as pixels / 255."""
    cfg = {"input_size": size, "mean": [0.0] * size[0], "std": [1.0] * size[0], "crop_pct": 1.0}
    return spec(**{"pretrained_cfg": cfg, **changes})


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def wrapped(contents: Sequence[bytes], labels: Sequence[int], names: Sequence[str] = ("cat", "dog")) -> Dataset:
    """A dataset of encoded images with one split, test."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    images = [{"bytes": content, "path": None} for content in contents]
    part = datasets.Dataset.from_dict({"image": images, "label": list(labels)}, features=features)
    return Dataset("ann/pets", None, datasets.DatasetDict({"test": part}), "image", "label", tuple(names))


def pixels(count: int) -> list[np.ndarray]:
    """Real images: the first digits as 8x8 RGB."""
    return [np.repeat(np.uint8(image * 15)[..., None], 3, axis=2) for image in load_digits().images[:count]]


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(1)[0]).save(buffer, format=kind)
    return buffer.getvalue()


ENCODED = [encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX")]
FUZZ = hypothesis_settings(max_examples=2000, deadline=None, database=None)


def load(dataset: Dataset, **changes: Any) -> Split:
    given = config(3, 8, 8, **{"num_classes": len(dataset.classes) or 10, **changes})
    return load_split(dataset, np.arange(sum(dataset.lengths.values())), given, "test")


def test_digits_are_1297_and_500_images_of_ten_classes(digits: Dataset) -> None:
    assert (digits.id, digits.revision) == ("digits", None)
    assert digits.lengths == {"train": 1297, "test": 500}
    assert digits.classes == tuple(NAMES)
    assert (digits.image_column, digits.label_column) == ("image", "label")


def test_digits_are_scikit_learn_s_in_their_order(digits: Dataset) -> None:
    split = load_split(digits, np.arange(1797), config(3, 8, 8), "all")
    bunch = load_digits()
    expected = torch.from_numpy(np.rint(bunch.images * 255 / 16)).to(torch.uint8)
    assert split.images.dtype == torch.uint8
    assert split.images.shape == (1797, 3, 8, 8)
    assert torch.equal(split.images, expected[:, None].expand(-1, 3, -1, -1))
    assert torch.equal(split.labels, torch.from_numpy(bunch.target))
    assert len(split) == 1797


def test_rows_are_read_across_splits(digits: Dataset) -> None:
    some = load_split(digits, np.array([0, 1296, 1297, 1796]), config(3, 8, 8), "some")
    assert some.labels.tolist() == load_digits().target[[0, 1296, 1297, 1796]].tolist()


def test_cifar_10_is_60000_images_of_ten_classes(shared_cifar: Path) -> None:
    dataset = open_dataset(str(shared_cifar))
    assert (dataset.id, dataset.revision) == ("cifar10", None)
    assert dataset.lengths == {"train": 50_000, "test": 10_000}
    assert dataset.classes == (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    split = load_split(dataset, np.arange(50_000, 50_010), config(3, 32, 32), "test")
    assert split.images.shape == (10, 3, 32, 32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a dataset folder, and for what `datasets` makes of it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pets").mkdir()
    return tmp_path / "pets"


def write_parquet(folder: Path, **columns: Any) -> None:
    """A split of one row with columns of these features."""
    image = {"bytes": png(pixels(1)[0]), "path": None}
    row = {name: [image if isinstance(feature, datasets.Image) else 0] for name, feature in columns.items()}
    datasets.Dataset.from_dict(row, features=datasets.Features(columns)).to_parquet(folder / "train.parquet")


def test_columns_are_found_by_their_type_in_a_folder(folder: Path) -> None:
    write_parquet(folder, id=datasets.Value("int64"), photo=datasets.Image(), kind=datasets.ClassLabel(names=["cat"]))
    dataset = open_dataset(str(folder))
    assert (dataset.id, dataset.image_column, dataset.label_column) == ("pets", "photo", "kind")
    assert (dataset.classes, dataset.lengths) == (("cat",), {"train": 1})
    assert load(dataset).labels.tolist() == [0]


def test_several_columns_of_a_type_are_refused_until_one_is_named(folder: Path) -> None:
    write_parquet(folder, a=datasets.Image(), b=datasets.Image(), y=datasets.ClassLabel(names=["cat"]))
    with pytest.raises(HfmegaError) as refused:
        open_dataset(str(folder))
    assert str(refused.value) == (
        "the dataset pets has several image columns (a, b): name it with --image-column (columns: a, b, y)."
    )
    assert open_dataset(str(folder), image_column="b").image_column == "b"


def test_a_label_column_of_plain_numbers_must_be_named(folder: Path) -> None:
    write_parquet(folder, image=datasets.Image(), y=datasets.Value("int64"))
    with pytest.raises(HfmegaError, match=r"pets has no label column: name it with --label-column \(columns: image, y"):
        open_dataset(str(folder))
    named = open_dataset(str(folder), label_column="y")
    assert (named.label_column, named.classes) == ("y", ())


def test_a_dataset_without_images_is_refused(folder: Path) -> None:
    write_parquet(folder, x=datasets.Value("int64"), y=datasets.ClassLabel(names=["cat"]))
    with pytest.raises(HfmegaError, match=r"^the dataset pets has no image column: name it with --image-column"):
        open_dataset(str(folder))


def test_a_named_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(HfmegaError) as refused:
        open_dataset("digits", label_column="kind")
    assert str(refused.value) == "the dataset digits has no column 'kind', only image, label."


def test_an_empty_folder_is_refused(folder: Path) -> None:
    with pytest.raises(HfmegaError, match=r"^the dataset .*pets cannot be read: .*contain any data files"):
        open_dataset(str(folder))


def test_labels_are_loaded_as_the_network_counts() -> None:
    dataset = wrapped([png(image) for image in pixels(4)], [0, 1, 1, 2], ("cat", "dog", "owl"))
    assert load(dataset).labels.tolist() == [0, 1, 1, 2]
    assert load(dataset, label_names=["owl", "cat", "dog"]).labels.tolist() == [1, 2, 2, 0]
    assert load(replace(dataset, by_number=True), label_names=["owl", "cat", "dog"]).labels.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("size", [(3, 16, 16), (3, 32, 32), (1, 8, 8)])
def test_images_get_the_size_and_channels_of_the_config(digits: Dataset, size: tuple[int, int, int]) -> None:
    split = load_split(digits, np.arange(3), config(*size), "few")
    assert split.images.shape == (3, *size)
    assert split.images.dtype == torch.uint8


def test_grayscale_networks_see_the_luminance() -> None:
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:4, :, 0], colours[4:, :, 1] = 255, 255
    split = load_split(wrapped([png(colours)], [0]), np.arange(1), config(1, 8, 8, num_classes=2), "one")
    assert split.images[0, 0, :, 0].tolist() == [76] * 4 + [150] * 4  # ITU-R 601-2: 0.299 red, 0.587 green


def test_grayscale_files_are_fed_to_colour_networks() -> None:
    split = load(wrapped([png(pixels(1)[0][..., 0])], [0]))
    assert split.images.shape == (1, 3, 8, 8)
    assert torch.equal(split.images[0, 0], split.images[0, 2])


def test_the_normalizer_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    cfg = {"input_size": [3, 8, 8], "mean": [0.5, 0.0, 1.0], "std": [0.25, 1.0, 0.5]}
    changed = config(3, 8, 8, pretrained_cfg=cfg)
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    found = normalizer(changed, torch.device("cpu"))(images)
    expected = torch.tensor([[-2.0, -1.2, 2.0], [0.0, 0.2, 1.0], [-2.0, -1.6, 0.0]])
    assert torch.allclose(found[0, :, 0], expected, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("labels", "worst"), [([0, 1, 2], 2), ([0, -1, 1], -1)])
def test_a_label_that_the_network_has_no_output_for_is_refused(labels: list[int], worst: int) -> None:
    dataset = replace(wrapped([png(image) for image in pixels(3)], labels, ("cat", "dog", "owl")), by_number=True)
    with pytest.raises(HfmegaError) as refused:
        load(dataset, num_classes=2)
    said = f"row {labels.index(worst)} of test in ann/pets has label {worst}, but the network has 2 classes"
    hidden = ": -1 hides a label, so name another split." if worst < 0 else "."
    assert str(refused.value) == said + hidden


def test_a_label_that_is_no_number_is_refused_with_its_row() -> None:
    part = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(pixels(1)[0]), "path": None}], "label": ["cat"]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    dataset = Dataset("ann/pets", None, datasets.DatasetDict({"test": part}), "image", "label", ())
    with pytest.raises(
        HfmegaError, match=r"^row 0 of test in ann/pets has the label 'cat', which is not a class number\.$"
    ):
        load(dataset)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_an_image_that_cannot_be_read_is_refused_with_its_row(damage: str) -> None:
    contents = [png(np.random.RandomState(n).randint(0, 255, (8, 8, 3), np.uint8)) for n in range(3)]
    contents[2] = {"truncated": contents[2][:120], "text": b"<html>not found</html>", "empty": b"\x89PNG\r\n"}[damage]
    with pytest.raises(HfmegaError, match=r"^row 2 of test in ann/pets is not an image that can be read: "):
        load(wrapped(contents, [0, 1, 0]))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and holds few of them."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    packed = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ((60_000, 60_000), "decompression bomb DOS attack"),
        ((12_000, 10_000), "could be decompression bomb"),  # where PIL only warns
        ((80_000_000, 1), "80000000 x 1 pixels"),  # as 32 pixels high it would be 2.5 billion wide
        ((0, 5), "not an image"),
    ],
)
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int], why: str) -> None:
    tracemalloc.start()
    with pytest.raises(
        HfmegaError, match=rf"^row 1 of test in ann/pets is not an image that can be read: .*{why}|{why}"
    ):
        load(wrapped([png(pixels(1)[0]), png_header(*size)], [0, 1]))
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@FUZZ
@given(st.data())
def test_any_image_is_pixels_or_one_sentence(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(ENCODED))
    at, drop = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 12))
    content = whole[:at] + data.draw(st.binary(max_size=12)) + whole[at + drop :]
    with suppress(HfmegaError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PIL about EXIF and palettes
        assert _decode(content, "RGB", "row 0")[0].mode == "RGB"


def test_a_row_without_an_image_is_refused(tmp_path: Path) -> None:
    broken = ({"bytes": None, "path": None}, {"bytes": None, "path": "/dev/zero"}, {"bytes": b"", "path": "a\0b"}, None)
    for image in broken:
        with pytest.raises(HfmegaError, match=r"^row 0 of test in ann/pets (has no image|names an image file)"):
            load(replace(wrapped([png(pixels(1)[0])], [0]), splits=one_row(image)))
    (tmp_path / "a.png").write_bytes(png(pixels(1)[0]))
    named = one_row({"bytes": None, "path": str(tmp_path / "a.png")})
    assert len(load(replace(wrapped([png(pixels(1)[0])], [0]), splits=named))) == 1


def one_row(image: dict[str, Any] | None, label: int = 0, kind: Any = None) -> datasets.DatasetDict:
    """What a parquet file may hold, without what `datasets` checks when it writes one."""
    images = pa.array([image], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": images, "label": pa.array([label], kind or pa.int64())})
    return datasets.DatasetDict({"test": datasets.Dataset(table)})


def test_a_label_beyond_64_bits_is_refused_with_its_row() -> None:
    splits = one_row({"bytes": png(pixels(1)[0]), "path": None}, 2**64 - 1, pa.uint64())
    with pytest.raises(HfmegaError, match=r"^row 0 of test in ann/pets has label 18446744073709551615, but"):
        load(replace(wrapped([], []), splits=splits))


def test_a_dataset_with_a_script_does_not_run_it(folder: Path) -> None:
    (folder / "pets.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    with pytest.raises(HfmegaError, match=r"^the dataset .* cannot be read"):
        open_dataset(str(folder))
    write_parquet(folder, image=datasets.Image(), y=datasets.ClassLabel(names=["cat"]))
    with suppress(HfmegaError):
        assert open_dataset(str(folder)).classes == ("cat",)
    assert not (folder / "ran").exists()


def test_the_fingerprint_changes_with_a_label_a_pixel_or_the_rows() -> None:
    images = pixels(3)
    brighter = [image.copy() for image in images]
    brighter[1][3, 3, 0] ^= 1
    original = load(wrapped([png(image) for image in images], [0, 1, 0])).fingerprint
    relabelled = load(wrapped([png(image) for image in images], [0, 1, 1])).fingerprint
    repainted = load(wrapped([png(image) for image in brighter], [0, 1, 0])).fingerprint
    fewer = load(wrapped([png(image) for image in images[:2]], [0, 1])).fingerprint
    assert len({original, relabelled, repainted, fewer}) == 4
    assert original == load(wrapped([png(image) for image in images], [0, 1, 0])).fingerprint
    assert len(original) == 64


def test_the_fingerprint_does_not_depend_on_the_network() -> None:
    dataset = wrapped([png(image) for image in pixels(3)], [0, 1, 0])
    small, large = config(3, 8, 8, num_classes=2), config(1, 32, 32, num_classes=2, label_names=["dog", "cat"])
    prints = {load_split(dataset, np.arange(3), given, "name").fingerprint for given in (small, large)}
    assert len(prints) == 1
