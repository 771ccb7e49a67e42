"""Weights in several files: a source like any other, from a folder and from the Hub; what its index may not say."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from support.hub import Fault, Hub, client

from hfmega.errors import HfmegaError
from hfmega.hub import pull
from hfmega.merging.merge import merge
from hfmega.merging.replay import replay
from hfmega.merging.verify import verify
from hfmega.output import Output
from hfmega.report.lineage import Lineage
from hfmega.settings import PRESETS, MergeSettings, SplitRequest
from hfmega.weights.checkpoint import load_weights

INDEX = "model.safetensors.index.json"


def split(source: Path, folder: Path) -> Path:
    """A checkpoint of one file in several, as huggingface_hub and transformers write them."""
    folder.mkdir(parents=True)
    shutil.copy(source / "config.json", folder)
    save_torch_state_dict(load_file(source / "model.safetensors"), folder, max_shard_size=120_000)
    return folder


@pytest.fixture(scope="module")
def sharded(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two trained sources in shards."""
    place = tmp_path_factory.mktemp("sharded")
    return split(tiny_sources[0], place / "s1"), split(tiny_sources[1], place / "s2")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_shards_hold_the_tensors_of_the_one_file(sharded: tuple[Path, Path], tiny_sources: tuple[Path, Path]) -> None:
    found = pull.pull(str(sharded[0]))
    loaded, whole = load_weights(found), load_file(tiny_sources[0] / "model.safetensors")
    assert len(found.shards) == len(shards(sharded[0])) >= 3
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())


def test_the_hash_of_shards_is_that_of_their_checksums(sharded: tuple[Path, Path], tmp_path: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in shards(sharded[0])]
    before = pull.pull(str(sharded[0])).sha256
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    changed = Path(shutil.copytree(sharded[0], tmp_path / "changed"))
    last = load_file(shards(changed)[-1])
    save_file({name: tensor + 1 for name, tensor in last.items()}, shards(changed)[-1], metadata={"format": "pt"})
    assert pull.pull(str(changed)).sha256 != before


def place(name: str, shard: str) -> Callable[[Path], None]:
    """A fault in an index: a tensor somewhere else."""

    def fault(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        content["weight_map"][name] = shard
        (folder / INDEX).write_text(json.dumps(content))

    return fault


def add(name: str) -> Callable[[Path], None]:
    """A fault in the last shard: one more tensor."""

    def fault(folder: Path) -> None:
        save_file({**load_file(folder / LAST), name: torch.zeros(16)}, folder / LAST)

    return fault


FIRST, LAST = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda f: shards(f)[1].unlink(), f"lacks model-00002-of-00003.safetensors, which its {INDEX}"),
    "neither file nor index": (lambda f: (f / INDEX).unlink(), "has no model.safetensors: a source needs config.json"),
    "an index that is cut": (lambda f: (f / INDEX).write_text('{"weight_map": {'), "cannot be read: Invalid JSON"),
    "a list": (lambda f: (f / INDEX).write_text("[]"), "cannot be read: Input should be an object"),
    "no map": (lambda f: (f / INDEX).write_text('{"metadata": {}}'), "cannot be read: Field required"),
    "an empty map": (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "cannot be read: Dictionary should have"),
    "a way out": (place("conv1.bias", "../x.safetensors"), "names '../x.safetensors': that is no plain name"),
    "an absolute name": (place("conv1.bias", "/etc/x.safetensors"), "names '/etc/x.safetensors'"),
    "a way out of Windows": (place("conv1.bias", "..\\x.safetensors"), "that is no plain name"),
    "a pickle": (place("conv1.bias", "pytorch_model.bin"), "names 'pytorch_model.bin'"),
    "a line end": (place("conv1.bias", "x.safetensors\n"), "that is no plain name"),
    "a tensor in two shards": (add("conv1.bias"), f"{LAST} has the tensor conv1.bias, which {INDEX} puts into"),
    "a surplus tensor": (add("ema"), f"{LAST} has the tensor ema, which {INDEX} does not name."),
    "a tensor not there": (place("ema", FIRST), f"{FIRST} lacks the tensor ema, which {INDEX} puts there (1 missing)."),
    "a shard that is cut": (lambda f: os.truncate(f / FIRST, 90_000), f"{FIRST} cannot be read"),
    "a NaN": (lambda f: save_file({n: t / 0 for n, t in load_file(f / LAST).items()}, f / LAST),
              f"{LAST}: the tensor "),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_an_index_or_a_shard_that_is_wrong_is_one_sentence(
    sharded: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    fault, sentence = FAULTS[name]
    folder = Path(shutil.copytree(sharded[0], tmp_path / "source"))
    fault(folder)
    with pytest.raises(HfmegaError) as refused:
        load_weights(pull.pull(str(folder)))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def merged(sources: tuple[Path, ...], folder: Path) -> Lineage:
    """A small merge on the digits."""
    search = replace(PRESETS["default"].search, population=4, generations=2)
    images = SplitRequest(fitness="train[:100]", test="test[:100]", confirm_share=0.4)
    settings = MergeSettings(tuple(map(str, sources)), folder, dataset="digits", splits=images, search=search)
    made = merge(settings, Output(muted=True))
    assert made is not None
    return made


def test_a_merge_of_shards_is_replayed_and_verified_wherever_they_lie(
    sharded: tuple[Path, Path], tmp_path: Path
) -> None:
    here = tuple(Path(shutil.copytree(folder, tmp_path / "here" / folder.name)) for folder in sharded)
    made = merged(here, tmp_path / "out")
    assert [source.sha256 for source in made.sources] == [pull.pull(str(source)).sha256 for source in sharded]
    assert replay(str(tmp_path / "out")).equal
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(HfmegaError, match="was not found: name its place"):
        replay(str(tmp_path / "out"))
    checks = list(verify(str(tmp_path / "out"), None, tmp_path / "there"))
    assert [check.name for check in checks if not check.ok] == []


@pytest.fixture
def server(sharded: tuple[Path, Path], tmp_path: Path) -> Iterator[Hub]:
    """ann/s1 in shards, among other files."""
    with Hub(tmp_path / "hub") as server:
        server.create("ann/s1")
        server.commit_folder("ann/s1", sharded[0])
        server.commit("ann/s1", {"model-00004-of-00004.safetensors": b"of another", "onnx/model.onnx": b"of another"})
        yield server


PULL = "from hfmega.hub import pull\nfound = pull.pull('ann/s1')\nvalue = [found.sha256, list(found.shards)]"


def test_the_hub_gives_the_index_and_the_shards_that_it_names_and_the_cache_is_enough_offline(
    server: Hub, sharded: tuple[Path, Path], tmp_path: Path
) -> None:
    environment = server.environment(tmp_path / "home")
    preview = "from hfmega.hub import pull\nvalue = pull.preview('ann/s1').download_bytes"
    size = client.ask(environment, preview, {}).value
    fetched = {path.rsplit("/", 1)[-1] for method, path in server.requests if "/resolve/" in path and method == "GET"}
    assert size == sum(path.stat().st_size for path in shards(sharded[0]))
    assert fetched == {"config.json", INDEX}
    reply = client.ask(environment, PULL, {})
    fetched = {path.rsplit("/", 1)[-1] for method, path in server.requests if "/resolve/" in path and method == "GET"}
    assert reply.value == [pull.pull(str(sharded[0])).sha256, [path.name for path in shards(sharded[0])]], reply
    assert fetched - {"README.md"} == {"config.json", INDEX, *reply.value[1]}
    assert client.ask({**environment, "HF_HUB_OFFLINE": "1"}, PULL, {}).value == reply.value


def test_a_damaged_shard_is_fetched_again_and_then_refused_and_a_missing_one_is_named(
    server: Hub, tmp_path: Path
) -> None:
    fault: dict[str, Any] = {"path": f"/ann/s1/resolve/.*/{LAST}", "method": "GET", "flip_byte": 9000}
    server.inject(Fault(**fault, times=1))
    healed = client.ask(server.environment(tmp_path / "one"), PULL, {})
    server.inject(Fault(**fault, times=2))
    refused = client.ask(server.environment(tmp_path / "two"), PULL, {})
    server.clear_faults()
    server.commit("ann/s1", {INDEX: b'{"weight_map": {"fc.bias": "model-00009-of-00009.safetensors"}}'})
    missing = client.ask(server.environment(tmp_path / "two"), PULL, {})
    assert healed.error is None, healed
    assert (refused.error, "damaged twice" in refused.text) == ("SourceError", True), refused
    assert missing.text == f"ann/s1 lacks model-00009-of-00009.safetensors, which its {INDEX} names (1 missing)."
