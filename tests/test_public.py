"""The public API: what it is, that it is light, and that it does what the commands do. 6 seconds."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import hfmega

NAMES = ["HfmegaError", "HubError", "Lineage", "Merge", "MergeSettings", "Recipe", "SettingsError", "SourceError",
         "convert", "evaluate", "inspect", "load_lineage", "merge", "push", "replay", "train", "update_bn",
         "verify"]  # fmt: skip
FEW = {"dataset": "digits", "fitness_split": "train[:300]", "test_split": "test[:200]", "population": 4}


@pytest.fixture(scope="module")
def merged(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> hfmega.Merge:
    return hfmega.merge(*tiny_sources, **FEW, generations=2, output=tmp_path_factory.mktemp("api") / "out")


def test_the_public_names_are_these() -> None:
    assert sorted(hfmega.__all__) == sorted(NAMES)
    assert all(getattr(hfmega, name) for name in NAMES)
    assert set(NAMES) <= set(dir(hfmega))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hfmega.nothing


def test_every_public_name_says_what_it_is() -> None:
    assert all(inspect.getdoc(getattr(hfmega, name)) for name in NAMES)


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, hfmega; hfmega.merge, hfmega.HfmegaError, hfmega.MergeSettings\n"
    code += "print({'torch', 'numpy', 'timm', 'datasets', 'huggingface_hub', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_errors_are_of_one_family() -> None:
    for kind in (hfmega.SettingsError, hfmega.SourceError, hfmega.HubError):
        assert issubclass(kind, hfmega.HfmegaError)
    assert issubclass(hfmega.SettingsError, ValueError)
    with pytest.raises(hfmega.SettingsError, match="one source cannot be merged"):
        hfmega.merge("a")
    with pytest.raises(hfmega.SettingsError, match="population"):
        hfmega.merge("a", "b", populaton=4)
    with pytest.raises(hfmega.SourceError, match="no folder"):
        hfmega.merge("./a", "./b")


def test_a_merge_is_what_its_lineage_says(merged: hfmega.Merge) -> None:
    assert merged.lineage == hfmega.load_lineage(merged.folder)
    result = merged.lineage.result
    assert (merged.verdict, merged.accuracy, merged.gain) == (result.verdict, result.accuracy, result.gain)
    assert {reference.kind for reference in merged.references} >= {"source", "average", "ensemble"}
    assert merged.lineage.settings["population"] == 4
    assert f"{merged.accuracy:.4f}" in repr(merged) or f"{100 * merged.accuracy:.1f} %" in repr(merged)


def test_a_loaded_merge_has_the_accuracy_of_its_lineage(merged: hfmega.Merge) -> None:
    from hfmega.data.dataset import open_dataset

    model, transform = merged.load(), merged.transform()
    rows = open_dataset("digits").splits["test"].select(range(200))
    with torch.inference_mode():
        answers = model(torch.stack([transform(row["image"]) for row in rows])).argmax(1)
    right = (answers == torch.tensor(rows["label"])).float().mean().item()
    assert right == pytest.approx(merged.accuracy, abs=0.5 / 200)
    assert not model.training
    assert transform(Image.new("L", (40, 20))).shape == (3, 8, 8)


def test_a_notebook_shows_verdict_table_and_picture(merged: hfmega.Merge) -> None:
    shown = merged._repr_markdown_()
    assert shown.startswith("**")
    assert "| model | accuracy |" in shown
    assert "(data:image/png;base64,iVBOR" in shown


def test_evaluate_replay_and_verify_agree(merged: hfmega.Merge) -> None:
    assert hfmega.evaluate(merged.folder).accuracy == merged.accuracy
    assert hfmega.replay(merged.folder).equal
    assert all(check.ok for check in hfmega.verify(merged.folder))


def test_train_and_inspect(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    held_out = hfmega.train("resnet8_cifar", output=tmp_path / "s", dataset="digits", train_split="train[1000:]",
                            epochs=1, image_size=8)  # fmt: skip
    assert held_out is not None
    assert held_out.total == 1000
    found = hfmega.inspect(*tiny_sources, dataset="digits", fitness_images=100, output=tmp_path / "seen")
    assert found.relation == "independent"
