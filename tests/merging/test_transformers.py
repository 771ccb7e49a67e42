"""Checkpoints of transformers through the commands: merged by id, pushed, loaded by the pipeline. 15 seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import run
from support.families import write
from support.hub import Hub, client

TOKEN = "hf_ann"
SMALL = ("--population", 4, "--generations", 2, "--fitness-split", "train[:60]", "--test-split", "test[:60]", "--json")
DIGITS = ("--dataset", "digits")


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny vision transformers, untrained."""
    folder = tmp_path_factory.mktemp("vit")
    return write("vit", folder / "v1", 1), write("vit", folder / "v2", 2)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, vits: tuple[Path, Path]) -> Iterator[Hub]:
    """A Hub with two vision transformers, two ResNets, and some digits as a dataset, all of ann."""
    from hfmega.data.dataset import open_dataset

    data, nets = tmp_path_factory.mktemp("digits"), tmp_path_factory.mktemp("resnet")
    (data / "data").mkdir()
    for name, split in open_dataset("digits").splits.items():
        split.select(range(150)).to_parquet(data / "data" / f"{name}-00000-of-00001.parquet")
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("ann", TOKEN)
        hub.create("ann/digits", kind="dataset")
        hub.commit_folder("ann/digits", data, kind="dataset")
        sources = {"v1": vits[0], "v2": vits[1]}
        sources |= {f"r{seed}": write("resnet", nets / f"r{seed}", seed) for seed in (1, 2)}
        for name, source in sources.items():
            hub.create(f"ann/{name}")
            hub.commit_folder(f"ann/{name}", source)
        yield hub


@pytest.fixture(scope="module")
def environment(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return hub.environment(tmp_path_factory.mktemp("home"), TOKEN)


PIPELINE = """
import numpy, torch
from datasets import load_dataset
from transformers import AutoModelForImageClassification, pipeline
_, said = AutoModelForImageClassification.from_pretrained(NAME, output_loading_info=True)
classify = pipeline("image-classification", model=NAME)
rows = load_dataset("ann/digits", split="test[:60]")
found = classify([row["image"].convert("RGB") for row in rows], top_k=1)
right = [answer[0]["label"] == str(row["label"]) for answer, row in zip(found, rows)]
value = [sum(right) / len(rows), sorted(key for key in said if said[key])]
"""


@pytest.mark.parametrize("kind", ["v", "r"])
def test_a_merge_by_id_is_loaded_by_the_pipeline_with_the_accuracy_of_its_card(
    kind: str, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    push = ("--push-to-hub", f"ann/{kind}-merged", "--push-anyway")
    made = run("merge", f"ann/{kind}1", f"ann/{kind}2", "--dataset", "ann/digits", *SMALL, "-o", "out", *push,
               cwd=tmp_path, environment=environment).json  # fmt: skip
    reply = client.ask(environment, PIPELINE.replace("NAME", repr(f"ann/{kind}-merged")), {})
    assert reply.value == [pytest.approx(made["accuracy"], abs=1e-12), []], reply.text
    lineage = json.loads((tmp_path / "out/lineage.json").read_text())
    assert {"transformers", "torchvision"} <= lineage["environment"].keys()
    assert "timm" not in lineage["environment"]
    card = (tmp_path / "out/README.md").read_text()
    assert "library_name: transformers" in card
    assert f'pipeline("image-classification", model="ann/{kind}-merged")' in card
    checks = run("verify", f"ann/{kind}-merged", "--json", cwd=tmp_path, environment=environment)
    assert checks.code == 0, checks.stdout
