"""What reads files and words of anyone, each with what follows once it was accepted: a value, or HfmegaError."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import datasets
import torch

from hfmega.data.dataset import Dataset, rows_of
from hfmega.folder import RECIPE
from hfmega.hub import pull
from hfmega.merging.gather import spread
from hfmega.merging.replay import read_evidence
from hfmega.models import library
from hfmega.report import card, lineage
from hfmega.weights import align
from hfmega.weights.checkpoint import Checkpoint
from hfmega.weights.sources import Sources, rebuild
from support.specs import spec

DATASET = Dataset(
    "pets",
    None,
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"x": range(n)}) for name, n in (("train", 90), ("test", 9))}
    ),
    "image",
    "label",
    (),
)
CONFIG = {"architecture": "resnet8_cifar", "num_classes": 10}
SPEC = spec()


@cache
def tiny_sources(count: int) -> Sources:
    """Networks of one convolution, its BatchNorm and a head: 23 numbers."""
    torch.manual_seed(0)
    names = {
        "conv1.weight": (2, 1, 2, 2),
        "bn1.weight": (2,),
        "bn1.running_var": (2,),
        "fc.weight": (2, 2),
        "fc.bias": (),
    }
    states = [
        {name: torch.rand(shape) for name, shape in names.items()} | {"bn1.num_batches_tracked": torch.tensor(count)}
        for _ in range(count)
    ]
    return Sources(states, [name for name in names if "running" not in name])


def read_source(name: str) -> None:
    repo_id, revision = pull.parse(name)
    assert ".." not in repo_id
    assert repo_id.count("/") <= 1
    assert revision is None or revision


def read_slice(spec: str) -> None:
    rows = rows_of(DATASET, spec)
    assert len(rows) > 0
    assert 0 <= rows.min() <= rows.max() < 99


def read_config(content: bytes, folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(content)
    found = library.read(path, "here")
    assert 1 <= found.classes <= 1_000_000
    card.loading(found)
    assert Checkpoint("here", None, None, folder, "", found).record or True


def read_lineage(content: bytes, folder: Path) -> None:
    path = folder / "lineage.json"
    path.write_bytes(content)
    made = lineage.read(path)
    assert len(made.recipe.coefficients) == len(made.sources) > 0
    assert card.text(made, SPEC)


def read_recipe(content: bytes, tensors: bytes, folder: Path) -> None:
    """A lineage with its recipe.safetensors: the recipe over more sources, and its weights over tiny ones."""
    path, beside = folder / "lineage.json", folder / RECIPE
    path.write_bytes(content)
    beside.write_bytes(tensors)
    made = lineage.read(path)
    sources = tiny_sources(len(made.sources))
    hashes = [str(k) for k in range(len(sources))]
    wider = spread(made.recipe, hashes, ["first", *hashes])
    assert len(wider.coefficients) == len(sources) + 1
    if made.aligned:
        align.read(beside, len(sources))
    if made.recipe.static:
        sources.evidence = read_evidence(beside, made.recipe.static, sources)
    state = rebuild(sources, made.recipe, {})
    assert state["conv1.weight"].shape == (2, 1, 2, 2)
