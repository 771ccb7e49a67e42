"""Every command and method on sources in half precision, and on two precisions at once. 8 s; most is `system`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run

from hfmega.evaluation.network import Network
from hfmega.weights import align

KINDS: Final = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PAIRS: Final = [("f16", "f16"), ("bf16", "bf16"), ("f16", "f32"), ("f32", "bf16"), ("bf16", "f16")]
FEW: Final = ["--dataset", "digits", "--fitness-split", "train[:200]", "--calibration-split", "train[900:1000]"]
LITTLE: Final = [*FEW, "--test-split", "test[:60]"]
SEARCH: Final = [*LITTLE, "--population", 4, "--generations", 2]
WAYS: Final[dict[str, list[object]]] = {
    **{method: ["merge", *SEARCH, "--method", method] for method in ("mega", "cmaes", "learned", "random")},
    **{method: ["merge", *LITTLE, "--method", method] for method in ("greedy-soup", "average", "slerp")},
    **{method: ["merge", *LITTLE, "--method", method] for method in ("fisher", "regmean")},
    **{genome: ["merge", *SEARCH, "--genome", genome] for genome in ("stage", "layer", "tensor", "channel")},
    "task vectors": ["merge", *LITTLE, "--method", "ties", "--base", "BASE"],
    "dare": ["merge", *LITTLE, "--method", "dare-linear", "--base", "BASE"],
    "weights": ["merge", *LITTLE, "--method", "average", "--align", "weights"],
    "activations": ["merge", *LITTLE, "--method", "average", "--align", "activations"],
    "control": ["merge", *SEARCH, "--control"],
    "last mile": ["merge", *SEARCH, "--distill", "--fine-tune", "--last-epochs", 1, "--last-lr", 0.001],
    "inspect": ["inspect", *FEW, "--fitness-images", 60],
}  # fmt: skip
FAST: Final = [("inspect", "f16", "f16"), ("activations", "f16", "f32"), ("fisher", "bf16", "f16")]


@pytest.fixture(scope="module")
def stored(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`1-f16`, `2-bf16`, ...: both sources in each precision."""
    folder = tmp_path_factory.mktemp("stored")
    for number, source in enumerate(tiny_sources, 1):
        for kind, dtype in KINDS.items():
            copy = shutil.copytree(source, folder / f"{number}-{kind}")
            state = load_file(source / "model.safetensors")
            halves = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
            save_file(halves, copy / "model.safetensors", {"format": "pt"})
    return folder


def slow_ones() -> list[object]:
    every = [(way, *pair) for way in WAYS for pair in PAIRS]
    marked = [pytest.param(*one, marks=pytest.mark.system) for one in every if one not in FAST]
    return [*FAST, *marked]


@pytest.mark.parametrize(("way", "first", "second"), slow_ones())
def test_every_way_works_in_every_precision(way: str, first: str, second: str, stored: Path, tmp_path: Path) -> None:
    command, *flags = WAYS[way]
    given = [stored / "1-f32" if flag == "BASE" else flag for flag in flags]
    sources = [stored / f"1-{first}", stored / f"2-{second}"]
    if "BASE" in flags:
        sources = [stored / f"2-{first}", stored / f"2-{'f32' if first != 'f32' else second}"]
    done = run(command, *sources, *given, "-o", tmp_path / "out", "--cpu")
    assert (done.code, "Traceback" in done.stderr) == (0, False), done.stderr
    if first != second:
        assert "they are merged in float32, and saved as" in done.stderr
    if command == "merge":
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert {t.dtype for t in written.values() if t.is_floating_point()} == {KINDS[first]}
        assert run("replay", tmp_path / "out").code == 0


@pytest.mark.parametrize("kind", ["f16", pytest.param("bf16", marks=pytest.mark.system)])
def test_one_source_is_evaluated_trained_on_and_updated(kind: str, stored: Path, tmp_path: Path) -> None:
    whole, half = (run("evaluate", stored / f"1-{k}", "--split", "test[:200]", "--json").json for k in ("f32", kind))
    assert half["accuracy"] == pytest.approx(whole["accuracy"], abs=0.02)
    words = ["--dataset", "digits", "--train-split", "train[900:1000]", "--epochs", 1, "--lr", 0.0001]
    done = run("train", "resnet8_cifar", "--init", stored / f"1-{kind}", *words, "-o", tmp_path / "branch", "--cpu")
    assert done.code == 0, done.stderr
    updated = tmp_path / "updated"
    assert run("update-bn", stored / f"1-{kind}", "-o", updated, "--test-split", "test[:60]", "--cpu").code == 0
    assert run("verify", updated, "--sources", stored, "--cpu").code == 0


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("match_activations", "--align activations of source 2 to source 1 (resnet8_cifar) failed with what hfmega"),
        ("log_probabilities", "merging "),
    ],
)
def test_what_torch_raises_is_one_sentence_with_the_step_and_the_source(
    place: str, said: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("\nInput type and weight type should be the same\n\nSet TORCH_LOGS for more")

    monkeypatch.setattr(align if place == "match_activations" else Network, place, fails)
    words = ["merge", stored / "1-f16", stored / "2-f16", *LITTLE, "--method", "average", "--align", "activations"]
    complaint = run(*words, "-o", tmp_path / "out", "--cpu").complaint
    assert complaint.startswith(said)
    assert "(RuntimeError: Input type and weight type should be the same): --debug shows where" in complaint
    assert "TORCH_LOGS" not in complaint
    assert "Traceback" in run(*words, "-o", tmp_path / "out", "--cpu", "--debug").stderr
