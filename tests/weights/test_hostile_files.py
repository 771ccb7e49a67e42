"""Files of a repository that come from anyone: refused in one sentence, before they cost memory or leave a place."""

from __future__ import annotations

import json
import shutil
import struct
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.hostile import LINEAGE
from support.hub import Hub, client
from support.specs import spec
from support.untrained import CONFIG, SPEC, checkpoint, state
from torch import Tensor

from hfmega.errors import HfmegaError
from hfmega.merging.merge import merge
from hfmega.merging.replay import read_evidence, replay
from hfmega.models.fit import resume
from hfmega.models.graph.trace import spaces_of
from hfmega.models.library import build, sizes
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.search.recipe import Recipe, Static
from hfmega.settings import MergeSettings, SplitRequest
from hfmega.weights import align
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.mergeable import check_mergeable
from hfmega.weights.permute import permute, random_permutations
from hfmega.weights.sources import mix, rebuild
from hfmega.weights.tensors import read_tensors


def entry(dtype: str = "F32", shape: Any = (4,), start: int = 0, stop: int = 16) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def content(header: Any, data: int = 16, claimed: int | None = None) -> bytes:
    """The bytes of a safetensors file. claimed: how long it says that its header is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + bytes(data)


BROKEN = {
    "a header of a terabyte": content({}, claimed=1 << 40),
    "a header of 99 megabytes": content({}, claimed=99_000_000),
    "a header of 2**64 bytes": content({}, claimed=2**64 - 1),
    "no JSON": content(b"{{{{"),
    "no UTF-8": content(b"\xff\xfe"),
    "a list": content(b"[]"),
    "nested too deep": content(b'{"a":' * 100_000),
    "overlap": content({"a": entry(), "b": entry()}),
    "hole": content({"a": entry(), "b": entry(start=32, stop=48)}, 48),
    "offset beyond the end": content({"a": entry(stop=2**62)}),
    "bytes that belong to none": content({"a": entry()}, 20),
    "negative side": content({"a": entry(shape=[-4])}),
    "sides that overflow": content({"a": entry(shape=[2**62, 2**62])}),
    "empty with sides that overflow": content({"a": entry(shape=[0, 2**62, 2**62], stop=0)}, 0),
    "empty with a side of 2**64 - 1": content({"a": entry(shape=[2**64 - 1, 0], stop=0)}, 0),
    "100 dimensions": content({"a": entry(shape=[1] * 100 + [4])}),
    "50,000 dimensions": content({"a": entry(shape=[1] * 50_000 + [4])}),
    "fp8": content({"a": entry("F8_E4M3", [16])}),
    "fp8, exponents only": content({"a": entry("F8_E8M0", [16])}),
    "fp4": content({"a": entry("F4", [32])}),
    "complex": content({"a": entry("C64", [2])}),
    "unknown type": content({"a": entry("Q99")}),
    "a name that is no text": content(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_of_tensors_is_one_sentence_and_costs_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BROKEN[kind])
    started = time.process_time()
    tracemalloc.start()
    try:
        sentence = r"^ann/a: model\.safetensors (cannot be read: |has the tensor a )"
        with pytest.raises(HfmegaError, match=sentence) as seen:
            load_weights(checkpoint("ann/a", tmp_path))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(seen.value)
    assert len(str(seen.value)) < 400
    assert most < 20e6
    assert time.process_time() - started < 5
    path.rename(tmp_path / "recipe.safetensors")
    with pytest.raises(HfmegaError, match=r"recipe\.safetensors"):
        align.read(tmp_path / "recipe.safetensors", 2)


def test_weights_of_float64_or_integers_are_refused_by_name() -> None:
    sources = [checkpoint("ann/a"), checkpoint("ann/b")]
    double = [{**state(seed), "fc.bias": torch.zeros(3, dtype=torch.float64)} for seed in (1, 2)]
    check_mergeable(sources, double)
    with pytest.raises(HfmegaError, match=r"^the tensor fc\.bias is torch\.float64: only float32, float16 and bfloat"):
        mix(sources, double)
    whole = [{**state(seed), "fc.bias": torch.zeros(3, dtype=torch.int64)} for seed in (1, 2)]
    with pytest.raises(HfmegaError, match=r"^ann/a has fc\.bias as torch\.int64: weights are floating-point numbers"):
        check_mergeable(sources, whole)


def test_a_name_of_a_tensor_is_spelled_where_a_terminal_would_obey_it(tmp_path: Path) -> None:
    save_file({**state(), "\x1b[2J\u202e\n": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(HfmegaError) as refused:
        check_mergeable([checkpoint("ann/a")], [load_weights(checkpoint("ann/a", tmp_path))])
    assert r"has the tensor \x1b[2J\u202e" in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted as Linux counts it")
@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architecture": "efficientnet_lite0", "num_classes": 1_000_000}, "lacks the tensor"),
        ({"architecture": "vit_giant_patch14_224", "num_classes": 10}, "lacks the tensor"),  # 4 GB
        (
            {"architecture": "vit_tiny_patch16_224", "num_classes": 10, "model_args": {"img_size": 4096}},
            "lacks the tensor",
        ),
    ],
)
def test_a_network_is_compared_with_its_file_before_it_has_memory(config: dict[str, Any], sentence: str) -> None:
    before = peak_memory()
    with pytest.raises(HfmegaError, match=f"^ann/a {sentence}"):
        check_mergeable([replace(checkpoint("ann/a"), spec=spec(**config))], [state()])
    assert peak_memory() - before < 200e6


def peak_memory() -> int:
    """The most bytes that this process has had at once."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_a_million_classes_do_not_fit_a_file_of_three() -> None:
    with pytest.raises(HfmegaError, match=r"^ann/a has fc\.weight of shape \(3, 64\), .* of shape \(1000000, 64\)"):
        check_mergeable([checkpoint("ann/a", num_classes=1_000_000)], [state()])


@pytest.mark.parametrize("network", ["resnet8_cifar", "vit_tiny_patch16_224", "densenet121", "convnext_atto"])
def test_sizes_are_those_of_the_network(network: str) -> None:
    config = spec(network, num_classes=7)
    assert sizes(config) == {name: tuple(t.shape) for name, t in build(config).state_dict().items()}


@pytest.mark.parametrize(
    "order",
    [
        torch.tensor([0, 1, 2, 16, *range(4, 16)]),
        torch.tensor([-1, *range(1, 16)]),
        torch.tensor([0, 0, *range(2, 16)]),
        torch.arange(16).int(),
        torch.arange(16).float(),
        torch.arange(16)[None],
        torch.tensor(0),
    ],
    ids=["out of range", "negative", "repeated", "int32", "float32", "a matrix", "a number"],
)
def test_what_is_no_permutation_is_refused_by_its_name(tmp_path: Path, order: Tensor) -> None:
    path = tmp_path / "recipe.safetensors"
    save_file({"permutation/1/conv1.weight": order}, path)
    with pytest.raises(HfmegaError, match=r"recipe\.safetensors holds permutation/1/conv1\.weight, which is no"):
        align.read(path, 2)


@pytest.mark.parametrize("leaf", ["2", "-1", "\u00b2", "", "01", "x/1"])
def test_a_permutation_of_no_source_is_refused(tmp_path: Path, leaf: str) -> None:
    path = tmp_path / "recipe.safetensors"
    save_file({f"permutation/{leaf}/conv1.weight": torch.arange(16)}, path)
    with pytest.raises(HfmegaError, match="which is no permutation of one of 2 sources"):
        align.read(path, 2)


def test_a_permutation_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.safetensors"
    save_file({"permutation/1/conv1.weight": torch.arange(15)}, path)
    with pytest.raises(HfmegaError, match=r"the permutation of conv1\.weight is not one of 16 channels"):
        align.apply(SPEC, [state(1), state(2)], align.read(path, 2))
    spaces = spaces_of(SPEC)
    good = random_permutations(spaces, 1)
    save_file({f"permutation/1/{name}": order for name, order in good.items()}, path)
    turned = permute(state(2), spaces, good)
    found = align.apply(SPEC, [state(1), state(2)], align.read(path, 2))[1]
    assert all(torch.equal(found[name], turned[name]) for name in turned)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("fc.weight", torch.zeros(3, 64)),  # weights in the place of statistics would be no merge of the sources
        ("bn1.running_mean", torch.zeros(1)),
        ("bn1.running_mean", torch.zeros(16, dtype=torch.int64)),
        ("nowhere.running_mean", torch.zeros(16)),
    ],
)
def test_only_statistics_are_taken_as_statistics(name: str, tensor: Tensor) -> None:
    sources = mix([checkpoint("ann/a"), checkpoint("ann/b")], [state(1), state(2)])
    with pytest.raises(HfmegaError, match=rf"^statistics\.safetensors has {name} of shape"):
        rebuild(sources, Recipe((0.5, 0.5), calibrate=True), {name: tensor})


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_evidence_must_fit_the_sources(tmp_path: Path, method: Any) -> None:
    sources = mix([checkpoint("ann/a"), checkpoint("ann/b")], [state(1), state(2)])
    path, static = tmp_path / "recipe.safetensors", Static(method)
    good = torch.ones(3, 64) if method == "fisher" else torch.eye(64)
    save_file({f"evidence/{leaf}/fc.weight": good.clone() for leaf in (0, 1)}, path)
    assert set(read_evidence(path, static, sources)) == {"0/fc.weight", "1/fc.weight"}
    for key, tensor in (
        ("0/fc.weight", torch.ones(5)),
        ("2/fc.weight", good),
        ("0/x", good),
        ("0/fc.weight", good > 0),
    ):
        save_file({f"evidence/{key}": tensor}, path)
        with pytest.raises(HfmegaError, match=f"holds evidence/{key}, which is no {method}"):
            read_evidence(path, static, sources)


@pytest.mark.parametrize("table", [torch.ones(0, 2), torch.ones(4, 3), torch.ones(4), torch.full((4, 2), torch.nan)])
def test_offsets_must_fit_the_recipe(tmp_path: Path, table: Tensor) -> None:
    made = json.loads(json.dumps(LINEAGE))
    made["recipe"]["genome"] = "stage"
    (tmp_path / "lineage.json").write_text(json.dumps(made))
    save_file({"offsets": table}, tmp_path / "recipe.safetensors")
    with pytest.raises(HfmegaError, match=r"recipe\.safetensors lacks the coefficients of each stage|NaN or Inf"):
        lineage.read(tmp_path / "lineage.json")
    save_file({"offsets": torch.ones(4, 2)}, tmp_path / "recipe.safetensors")
    assert lineage.read(tmp_path / "lineage.json").recipe.offsets == (1.0,) * 8


def test_a_file_that_is_whole_is_read(tmp_path: Path) -> None:
    save_file(state(1), tmp_path / "model.safetensors")
    found = read_tensors(tmp_path / "model.safetensors", "here")
    assert found.keys() == state(1).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state(1).items())


class Attack:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_beside_the_weights_is_never_loaded(
    tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.load

    def careful(*arguments: Any, **options: Any) -> Any:
        assert options.get("weights_only") is True
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", careful)
    folders = [Path(shutil.copytree(source, tmp_path / source.name)) for source in tiny_sources]
    for folder in folders:
        for name in ("pytorch_model.bin", "model.pt", "model.pth", "checkpoint.ckpt", "data.pkl"):
            torch.save(Attack(tmp_path / "ran"), folder / name)
    splits = SplitRequest(fitness="train[:200]", test="test[:100]")
    names = tuple(map(str, folders))
    merge(MergeSettings(names, tmp_path / "out", "digits", splits=splits, method="average"), Output(muted=True))
    assert replay(str(tmp_path / "out")).equal
    assert not (tmp_path / "ran").exists()


def test_the_state_of_a_training_is_no_program(tmp_path: Path) -> None:
    model = build(SPEC)
    torch.save(Attack(tmp_path / "ran"), tmp_path / "training.pt")
    with pytest.raises(
        HfmegaError, match=r"training\.pt is no state of this training, so it cannot go on: --overwrite"
    ):
        resume(model, torch.optim.Adam(model.parameters()), tmp_path / "training.pt", torch.device("cpu"))
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "training.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have been


OUTSIDE = (
    "../escaped.txt",
    "../../../../escaped.txt",
    "a/../../../escaped.txt",
    "..\\escaped.txt",
    "/tmp/hfmega-escaped",
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A merge whose repository also lists names that lead out of a folder."""
    files = tmp_path / "files"
    files.mkdir()
    save_file(state(), files / "model.safetensors")
    (files / "config.json").write_text(json.dumps(CONFIG))
    (files / "lineage.json").write_text(json.dumps(LINEAGE))
    with Hub(tmp_path / "hub") as hub:
        hub.create("ann/model")
        hub.commit_folder("ann/model", files)
        hub.commit("ann/model", dict.fromkeys(OUTSIDE, b"escaped"))
        yield hub


def test_names_that_lead_out_of_a_folder_are_never_asked_for(hub: Hub, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "hub" not in path.relative_to(tmp_path).parts[:1]}
    code = """
    from hfmega.hub import pull
    found = pull.pull('ann/model')
    pull.pull_merge('ann/model')
    pull.lineage_folder(found)
    pull.preview('ann/model')
    value = [s.rfilename for s in api.model_info('ann/model').siblings]
    """
    reply = client.ask(hub.environment(tmp_path / "home"), code, {})
    assert set(OUTSIDE) < set(reply.value), reply  # the Hub does list them
    asked = {path.rsplit("/", 1)[-1] for _, path in hub.requests if "/resolve/" in path}
    assert asked <= {"config.json", "model.safetensors", "README.md", "lineage.json", "statistics.safetensors",
                     "recipe.safetensors"}  # fmt: skip
    written = {path for path in tmp_path.rglob("*") if path.relative_to(tmp_path).parts[0] not in ("hub", "home")}
    assert written == before
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/hfmega-escaped").exists()


def test_a_dataset_on_the_hub_with_a_script_does_not_run_it(hub: Hub, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hub.create("ann/pets", kind="dataset")
    hub.commit("ann/pets", {"pets.py": f"open({str(ran)!r}, 'w')".encode()}, kind="dataset")
    code = "from hfmega.data.dataset import open_dataset\nopen_dataset('ann/pets')"
    reply = client.ask(hub.environment(tmp_path / "home"), code, {})
    assert reply.error == "HfmegaError", reply
    assert reply.text.startswith("the dataset ann/pets cannot be read: "), reply
    assert not ran.exists()
