"""Checkpoints of transformers through the commands: merged by id, pushed, loaded by the pipeline. 15 seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

import transformers
from support import third_library
from support.commands import run
from support.families import edit, rename, write
from support.hub import Hub, client
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import ImageClassifierOutput

from hfmega.folder import PREPROCESSOR
from hfmega.models import library
from hfmega.models.transformers import library as transformers_library
from hfmega.weights.checkpoint import from_folder, load_weights, save_weights

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


AVERAGE = (*DIGITS, "--fitness-split", "train[:60]", "--test-split", "test[:60]", "--method", "average", "--json")


def test_a_replay_does_not_depend_on_what_a_version_calls_its_modules(
    vits: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ("--preset", "paper", "--population", 4, "--generations", 2)  # the best individual as it is: with noise
    made = run("merge", *vits, *DIGITS, *SMALL, *search, "-o", tmp_path / "out")
    assert made.code == 0, made.stderr
    assert json.loads((tmp_path / "out/lineage.json").read_text())["recipe"]["noise"]
    before = from_folder(vits[0]).spec.names
    transformers_library._NAMES.clear()
    monkeypatch.setattr(transformers, "ViTForImageClassification", Renamed)
    renamed = [WeightRenaming("classifier", "decision"), *(get_checkpoint_conversion_mapping("vit") or [])]
    register_checkpoint_conversion_mapping("Renamed", renamed, overwrite=True)
    after = from_folder(vits[0]).spec.names
    assert after.keys.keys() - before.keys.keys() == {"network.decision.weight", "network.decision.bias"}
    assert run("replay", tmp_path / "out").code == 0
    transformers_library._NAMES.clear()


class Renamed(transformers.ViTForImageClassification):  # type: ignore[misc]
    """A vision transformer of another version, which calls its classifier otherwise."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.decision = self.classifier
        del self.classifier

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return ImageClassifierOutput(logits=self.decision(self.vit(pixel_values).last_hidden_state[:, 0]))


def wrapped(folder: Path, seed: int, prefix: bool) -> Path:
    """A network of timm as transformers writes it, with or without its prefix."""
    names = {str(k): k for k in range(10)}
    images = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = transformers.TimmWrapperConfig(
        architecture="test_resnet", label2id=names, id2label={k: n for n, k in names.items()}, pretrained_cfg=images
    )
    torch.manual_seed(seed)
    transformers.TimmWrapperForImageClassification(config).save_pretrained(folder)
    edit(folder, lambda document: document.pop("model_args", None))
    if not prefix:
        rename(folder, lambda name: name.removeprefix("timm_model."))
    return folder


def test_networks_of_timm_with_and_without_the_prefix_of_transformers_merge(tmp_path: Path) -> None:
    sources = [wrapped(tmp_path / "with", 1, prefix=True), wrapped(tmp_path / "without", 2, prefix=False)]
    for order in (sources, sources[::-1]):
        out = tmp_path / f"out-{order[0].name}"
        made = run("merge", *order, *AVERAGE, "-o", out)
        assert made.code == 0, made.stderr
        assert run("replay", out).code == 0
        state = load_file(out / "model.safetensors")
        assert state.keys() == load_file(order[0] / "model.safetensors").keys()
        loaded, said = transformers.AutoModelForImageClassification.from_pretrained(out, output_loading_info=True)
        assert not said["missing_keys"]
        assert not said["unexpected_keys"]
        middle = [load_file(source / "model.safetensors") for source in sources]
        bias = "timm_model.fc.bias"
        mean = (middle[0][bias] + middle[1]["fc.bias"]) / 2
        assert torch.allclose(loaded.state_dict()[bias], mean)


def test_training_goes_on_from_a_checkpoint_of_transformers(vits: tuple[Path, Path], tmp_path: Path) -> None:
    flags = (*DIGITS, "--train-split", "train[:64]", "--epochs", 1, "--batch-size", 32, "--lr", 0.001)
    done = run("train", vits[0], "--init", vits[0], *flags, "-o", tmp_path / "out")
    assert done.code == 0, done.stderr
    checkpoint = from_folder(tmp_path / "out")
    assert checkpoint.record is not None
    assert checkpoint.spec.identity == from_folder(vits[0]).spec.identity
    assert load_weights(checkpoint).keys() == load_weights(from_folder(vits[0])).keys()
    assert "pipeline(" in (tmp_path / "out/README.md").read_text()
    assert transformers.pipeline("image-classification", model=str(tmp_path / "out"))


def test_shards_of_bfloat16_come_out_as_bfloat16(vits: tuple[Path, Path], tmp_path: Path) -> None:
    sources = []
    for place in vits:
        model = transformers.AutoModelForImageClassification.from_pretrained(place, dtype=torch.bfloat16)
        model.save_pretrained(tmp_path / place.name, max_shard_size="20KB")
        (tmp_path / place.name / PREPROCESSOR).write_bytes((place / PREPROCESSOR).read_bytes())
        sources.append(tmp_path / place.name)
    assert (sources[0] / "model.safetensors.index.json").exists()
    assert run("merge", *sources, *AVERAGE, "-o", tmp_path / "out").code == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    assert run("verify", tmp_path / "out").code == 0


def test_a_third_library_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = library.Home("support.third_library", lambda document: "third" in document)
    monkeypatch.setitem(library.LIBRARIES, "third", home)
    sources = [third_library.write(tmp_path / str(seed), seed) for seed in (1, 2)]
    assert run("merge", *sources, *DIGITS, *SMALL, "-o", tmp_path / "out").code == 0
    assert run("verify", tmp_path / "out").code == 0


@pytest.mark.system
@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "learned", "--genome", "stage"),
        ("--method", "cmaes", "--population", 4, "--generations", 2),
        ("--genome", "layer"),
        ("--genome", "stage"),
        ("--method", "fisher"),
        ("--method", "regmean"),
        ("--method", "greedy-soup"),
        ("--method", "ties", "--base", "BASE"),
        ("--align", "weights"),
        ("--align", "activations", "--method", "average"),
        ("--control",),
        ("--distill", "--distill-split", "train[200:300]"),
        ("--fine-tune",),
    ],
)
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_every_method_merges_and_is_verified(family: str, flags: tuple[str | int, ...], tmp_path: Path) -> None:
    sources = [write(family, tmp_path / str(seed), seed) for seed in (1, 2, 3)]
    given = [str(sources[2]) if flag == "BASE" else flag for flag in flags]
    small = SMALL[:-1] if "--genome" in flags or not {"--method", "--align"} & set(flags) else SMALL[4:-1]
    made = run("merge", *sources[:2], *DIGITS, *small, *given, "-o", tmp_path / "out")
    assert made.code == 0, made.stderr
    checks = run("verify", tmp_path / "out")
    assert checks.code == 0, checks.stdout


@pytest.mark.system
def test_a_source_of_timm_imports_no_transformers(tiny_sources: tuple[Path, Path]) -> None:
    code = (
        "import sys; from hfmega.cli import main; sys.argv = ['hfmega', 'evaluate', sys.argv[1], '--dataset', 'digits',"
        " '--split', 'test[:20]']\ntry:\n    main()\nfinally:\n    print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_sources[0])], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr


@pytest.mark.system
def test_a_pretrained_network_in_the_format_of_transformers_merges_with_one_of_timm(
    shared_checkpoints: Path, shared_cifar: Path, tmp_path: Path
) -> None:
    """EfficientNet-Lite0 from ImageNet, fine-tuned twice: one as timm writes it, one as transformers does."""
    first, second = (shared_checkpoints / f"effnet-ft{number}" for number in (1, 2))
    other = tmp_path / "wrapped"
    other.mkdir()
    config = json.loads((second / "config.json").read_text())
    config |= {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"], "model_args": None}
    (other / "config.json").write_text(json.dumps(config))
    state = load_file(second / "model.safetensors")
    save_weights({f"timm_model.{name}": tensor for name, tensor in state.items()}, other / "model.safetensors")
    few = ("--dataset", shared_cifar, "--split", "test[:100]", "--json")
    assert run("evaluate", other, *few).json["correct"] == run("evaluate", second, *few).json["correct"] > 50
    merge = ["--dataset", shared_cifar, "--method", "average", "--no-calibrate", "--test-split", "test[:50]"]
    merge += ["--fitness-split", "train[:50]", "--calibration-split", "train[50:150]"]
    for source, out in ((second, "plain"), (other, "mixed")):
        done = run("merge", first, source, *merge, "-o", tmp_path / out)
        assert done.code == 0, done.stderr
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "mixed/model.safetensors").read_bytes()
    assert run("replay", tmp_path / "mixed").code == 0
    assert transformers.pipeline("image-classification", model=str(other)).model.num_labels == 10
