"""hfmega without the extra `transformers`, whether it is installed or not. A second."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from support.commands import run

from hfmega.weights.checkpoint import save_weights


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if transformers were not installed."""
    for name in list(sys.modules):
        if name.split(".")[0] == "transformers" or name.startswith("hfmega.models.transformers"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)


def source(folder: Path) -> Path:
    """What a checkpoint of transformers looks like from outside."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    save_weights({"classifier.bias": torch.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("command", ["evaluate", "merge", "inspect"])
def test_a_source_of_transformers_is_refused_with_the_name_of_the_extra(
    command: str, tmp_path: Path, missing: None
) -> None:
    sources = [source(tmp_path / name) for name in ("one", "two")][: 1 if command == "evaluate" else 2]
    output = () if command == "evaluate" else ("-o", tmp_path / "out")
    assert run(command, *sources, "--dataset", "digits", *output).complaint == (
        f"{sources[0]} is a checkpoint of transformers, which hfmega reads with an extra: "
        "pip install 'hfmega[transformers]'."
    )
