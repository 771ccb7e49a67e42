"""What is known without an image, and what the models of a merge say of one. 6 seconds."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.hub import Hub

import hfmega
from hfmega.app import answers, look
from hfmega.data.dataset import Dataset
from hfmega.errors import HfmegaError, HubError


def png(dataset: Dataset, row: int) -> bytes:
    content = io.BytesIO()
    dataset.splits["test"][row]["image"].save(content, "PNG")
    return content.getvalue()


def test_independent_sources_are_told_so_without_an_image(tiny_sources: tuple[Path, Path]) -> None:
    seen = look.look([str(source) for source in tiny_sources])
    assert (seen.fits, seen.relation, seen.tone) == (True, "independent", "doubt")
    assert [(one.name, one.architecture, one.classes, one.place) for one in seen.sources] == [
        ("s1", "resnet8_cifar", 10, "this machine"), ("s2", "resnet8_cifar", 10, "this machine")
    ]  # fmt: skip
    assert seen.sources[0].parameters > 70_000
    assert "fall apart" in seen.advice


def test_the_same_weights_are_nothing_to_merge(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_sources[0], tmp_path / "copy")
    seen = look.look([str(tiny_sources[0]), str(tmp_path / "copy")])
    assert (seen.relation, seen.tone) == ("identical", "bad")


def test_other_classes_are_seen_in_the_configs(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_sources[1], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config |= {"num_classes": 9, "label_names": config["label_names"][:9]}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    seen = look.look([str(tiny_sources[0]), str(tmp_path / "other")])
    assert (seen.fits, seen.tone) == (False, "bad")
    assert "other and s1 differ in number of classes" in seen.advice


def test_one_source_is_no_merge_yet(tiny_sources: tuple[Path, Path]) -> None:
    seen = look.look([str(tiny_sources[0])])
    assert (seen.fits, seen.advice) == (None, "Choose at least two checkpoints.")


def test_a_source_that_changed_is_looked_at_again(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_sources[1], tmp_path / "s")
    pair = [str(tiny_sources[0]), str(tmp_path / "s")]
    assert look.look(pair).relation == "independent"
    shutil.copyfile(tiny_sources[0] / "model.safetensors", tmp_path / "s" / "model.safetensors")
    assert look.look(pair).relation == "identical"


def test_a_source_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(HfmegaError, match="there is no folder nowhere"):
        look.look(["./nowhere", "./neither"])


def test_weights_on_the_hub_are_not_fetched_to_look_at_them(hub: Hub, tiny_sources: tuple[Path, Path]) -> None:
    for name, source in zip(("ann/one", "ann/two"), tiny_sources, strict=True):
        hub.create(name)
        hub.commit_folder(name, source)
    seen = look.look(["ann/one", "ann/two"])
    assert (seen.fits, seen.relation, seen.tone) == (None, None, "plain")
    assert all(one.missing > 100_000 and one.place == "Hub" for one in seen.sources)
    assert hub.count("GET", "resolve/.*/model.safetensors") == 0


def test_the_hub_is_searched_for_image_classifiers(hub: Hub) -> None:
    card = b"---\npipeline_tag: image-classification\n---\n"
    for name, text in (("ann/resnet", card), ("ann/vit", card), ("ann/resnet-text", b"---\ntags: [text]\n---\n")):
        hub.create(name)
        hub.commit(name, {"README.md": text})
    assert look.search("resnet") == ["ann/resnet"]
    assert look.search("") == ["ann/resnet", "ann/vit"]
    assert look.user() == "ann"


def test_without_network_a_search_says_so(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="is needed, but HF_HUB_OFFLINE is set"):
        look.search("resnet")
    assert look.user() is None


def test_a_merge_answers_as_the_network_that_python_loads(merges: Path, digits: Dataset) -> None:
    told, missing = answers.ask(merges / "done", png(digits, 3))
    assert [answer.model for answer in told] == ["this merge", "s1", "s2", answers.TOGETHER]
    assert [answer.kind for answer in told] == ["merged", "source", "source", "ensemble"]
    assert missing == ()
    done = hfmega.Merge(merges / "done", hfmega.load_lineage(merges / "done"))
    with torch.inference_mode():
        expected = done.load()(done.transform()(digits.splits["test"][3]["image"])[None]).softmax(1)[0]
    name, share = told[0].probabilities[0]
    assert share == pytest.approx(float(expected.max()), abs=1e-5)
    assert name == str(int(expected.argmax()))


def test_the_ensemble_is_the_mean_of_the_sources(merges: Path, digits: Dataset) -> None:
    known = answers.models(merges / "done")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8))
    found = answers.probabilities(known, images)
    assert found.shape == (4, 5, 10)
    torch.testing.assert_close(found[3], (found[1] + found[2]) / 2)
    torch.testing.assert_close(found.sum(2), torch.ones(4, 5))


def test_disputed_images_are_disputed(merges: Path) -> None:
    found = answers.disputed(merges / "done")
    assert 0 < len(found) <= answers.SHOWN
    best = answers.models(merges / "done").best
    for one in found:
        merge, source = one.answers[0].probabilities[0][0], one.answers[best].probabilities[0][0]
        assert merge != source
        assert isinstance(one.image, Image.Image)
    assert found[0].truth in (found[0].answers[0].probabilities[0][0], found[0].answers[best].probabilities[0][0])


def test_a_file_that_is_no_image_is_a_sentence(merges: Path) -> None:
    with pytest.raises(HfmegaError, match="this file is not an image that can be read"):
        answers.ask(merges / "done", b"GIF89a but no more")


def test_a_source_that_is_gone_says_so_and_the_merge_still_answers(
    merges: Path, digits: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(merges / "done", tmp_path / "alone")
    (tmp_path / "alone" / ".hfmega" / "places.json").unlink()
    told, missing = answers.ask(tmp_path / "alone", png(digits, 0))
    assert [answer.model for answer in told] == ["this merge"]
    assert len(missing) == 2
    assert "the local source s1" in missing[0]
    with pytest.raises(HfmegaError, match="nothing to compare it with"):
        answers.disputed(tmp_path / "alone")
