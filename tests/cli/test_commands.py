"""The command line as a user meets it: help, one-sentence problems, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run, run_all

import hfmega
from hfmega.cli import commands

Spoil = Callable[[Path, Path], list[object]]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nsys.argv = ['hfmega', '--help']\nimport hfmega.cli\ntry:\n    hfmega.cli.main()\n"
    code += "finally:\n    print({'torch', 'timm', 'datasets', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("command", ["merge", "train", "evaluate", "replay", "push"])
def test_every_command_explains_its_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    text = capsys.readouterr().out
    assert text.split()[:3] == ["Usage:", "hfmega", command]
    assert "--debug" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"hfmega, version {hfmega.__version__}\n"


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("merge") == 2
    assert call("merge", "a/b", "c/d", "--population", "many") == 2
    assert "not a valid integer" in capsys.readouterr().err


def call(*arguments: object) -> int:
    """A command in this process; its exit code."""
    before = sys.argv
    sys.argv = ["hfmega", *map(str, arguments)]
    try:
        commands.main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv = before
    return 0


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")


def put_nan(state: dict[str, torch.Tensor]) -> None:
    state["fc.bias"][3] = float("nan")


BAD_INPUT: dict[str, tuple[Spoil, str]] = {
    "one source": (lambda a, _: [a], "one source cannot be merged"),
    "the same twice": (lambda a, _: [a, a], "name each source once"),
    "no such folder": (lambda a, _: [a, a / "nowhere"], "there is no folder"),
    "pickle only": (
        lambda a, b: [a, b, (b / "model.safetensors").rename(b / "pytorch_model.bin")][:2],
        "only a pickle",
    ),
    "no config": (lambda a, b: [a, b, (b / "config.json").unlink()][:2], "has no config.json"),
    "another architecture": (
        lambda a, b: [a, b, edit_config(b, architecture="resnet20_cifar")][:2],
        "differ in architecture",
    ),
    "another class count": (lambda a, b: [a, b, edit_config(b, num_classes=9)][:2], "differ in number of classes"),
    "another label order": (
        lambda a, b: [a, b, edit_config(b, label_names=list("9876543210"))][:2],
        "differ in label order",
    ),
    "unknown architecture": (
        lambda a, b: [a, b, edit_config(a, architecture="resnet9_moon")][:2],
        "'resnet9_moon' is unknown",
    ),
    "missing key": (lambda a, b: [a, b, edit_weights(b, lambda s: s.pop("fc.bias"))][:2], "lacks the tensor fc.bias"),
    "another shape": (
        lambda a, b: [a, b, edit_weights(b, lambda s: s.update({"fc.bias": torch.zeros(7)}))][:2],
        "fc.bias of shape (7,)",
    ),
    "NaN weights": (lambda a, b: [a, b, edit_weights(b, put_nan)][:2], "fc.bias has NaN or Inf"),
    "broken weights": (lambda a, b: [a, b, (b / "model.safetensors").write_bytes(b"\0" * 40)][:2], "cannot be read"),
    "no dataset": (lambda a, b: [a, b, "--dataset", "./nowhere"], "nowhere"),
    "no such column": (lambda a, b: [a, b, "--image-column", "picture"], "no column 'picture'"),
    "label out of range": (
        lambda a, b: [a, b, *nine_classes(a, b)],
        "has 10 classes (0, 1, 2, ...), but the network has 9 and names none",
    ),
    "overlap": (
        lambda a, b: [a, b, "--fitness-split", "test[:100]", "--test-split", "test"],
        "100 images are in both the fitness and the test split",
    ),
    "empty split": (lambda a, b: [a, b, "--fitness-split", "train[5:5]"], "'train[5:5]' of digits is empty"),
    "no such split": (lambda a, b: [a, b, "--test-split", "exam"], "exam"),
    "population 1": (lambda a, b: [a, b, "--population", 1], "--population must be at least 2, not 1"),
    "tournament": (
        lambda a, b: [a, b, "--population", 4, "--tournament", 5],
        "--tournament must be between 1 and the population (4), not 5",
    ),
    "rate": (lambda a, b: [a, b, "--mutation-rate", 1.5], "--mutation-rate must be between 0 and 1"),
    "output not empty": (lambda a, b: [a, b, fill(a.parent / "never")][:2], "is not empty"),
}


def nine_classes(*folders: Path) -> list[object]:
    """Both sources cut to nine classes."""

    def cut(state: dict[str, torch.Tensor]) -> None:
        state["fc.weight"], state["fc.bias"] = state["fc.weight"][:9].clone(), state["fc.bias"][:9].clone()

    for folder in folders:
        edit_config(folder, num_classes=9, label_names=None, model_args={})
        edit_weights(folder, cut)
    return []


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    case: str, tiny_sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = BAD_INPUT[case]
    copies = [shutil.copytree(source, tmp_path / source.name) for source in tiny_sources]
    arguments = spoil(*copies)
    given = ["--dataset", "digits"] if "--dataset" not in arguments else []
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert call("merge", *arguments, *given, "-o", tmp_path / "never") == 1
    out, err = capsys.readouterr()
    (complaint,) = [line for line in err.splitlines() if line.startswith("hfmega: ")]
    assert expected in complaint
    assert (out, "Traceback" in err) == ("", False)
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("replay", tmp_path, "--debug")
    assert done.code == 1
    assert "Traceback" in done.stderr
    assert "HfmegaError" in done.stderr or "SourceError" in done.stderr


def test_a_full_disk_is_one_sentence(
    tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("hfmega.folder.write_atomically", full)
    assert call("merge", *tiny_sources, "--dataset", "digits", "-o", tmp_path / "out") == 1
    assert "the disk is full; free some space, and the same command resumes" in capsys.readouterr().err


def test_an_interrupt_is_130_and_says_that_the_same_command_resumes(
    tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hfmega.merging.tree.search", interrupted)
    done = run("merge", *tiny_sources, "--dataset", "digits", "--fitness-split", "train[:100]", "-o", tmp_path / "out")
    assert (done.code, done.stdout) == (130, "")
    assert done.stderr.endswith("hfmega: interrupted; the same command resumes where it stopped.\n")


@pytest.mark.system
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_is_130_and_the_same_command_resumes(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hfmega", "merge", *map(str, tiny_sources), "--dataset", "digits", "-o", "out"]
    command += ["--population", "4", "--generations", "400", "--fitness-split", "train[:100]"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A job in the background of a shell ignores SIGINT, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    progress = tmp_path / "out" / ".hfmega" / "progress.json"
    deadline = time.monotonic() + 120
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "interrupted; the same command resumes where it stopped." in err
    assert "Traceback" not in err
    assert progress.exists()


def test_plain_output_without_a_terminal_and_json_alone_on_stdout(
    tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    merge = ["merge", *tiny_sources, "--dataset", "digits", "--population", 4, "--generations", 2]
    merge += ["--fitness-split", "train[:200]", "--test-split", "test[:200]"]
    plain, as_json = run_all([[*merge, "-o", "plain"], [*merge, "-o", "json", "--json"]], tmp_path)
    assert plain.stdout == "plain\n"
    assert "generation 2/2: best 0." in plain.stderr
    assert "\x1b" not in plain.stderr
    found = as_json.json
    assert found["output"] == "json"
    assert found["verdict"] in ("better", "no difference shown", "worse")
    keys = {"accuracy", "interval", "gain", "p_value", "references", "fitness", "chosen", "controls", "forward_passes",
            "seconds", "sha256"}  # fmt: skip
    assert keys <= set(found)
    assert found["interval"][0] < found["accuracy"] < found["interval"][1]
    assert {"name", "kind", "accuracy"} == set(found["references"][0])


def test_evaluate_prints_the_contract(tiny_sources: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", tiny_sources[0], "--split", "test[:100]", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["total"], found["split"]) == (100, "test[:100]")
    assert found["accuracy"] == found["correct"] / 100
    assert set(found["per_class"]) == set("0123456789")
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]


def test_a_command_says_its_name_before_anything_heavy_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", "./nowhere").stderr.splitlines()[0] == f"hfmega {hfmega.__version__}: evaluate"
    assert run("evaluate", "--help").stderr == ""
    monkeypatch.setenv("WORLD_SIZE", "2")  # in one of several processes that a first one started
    commands.say_start(["merge", "a", "b"])
    assert capsys.readouterr().err == ""
