"""`hfmega convert`: what training programs write becomes safetensors that hfmega reads; no code of it runs. 4 s."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.commands import run
from support.untrained import CONFIG, SPEC, State, state
from torch import nn

import hfmega
from hfmega.errors import HfmegaError
from hfmega.models.library import build
from hfmega.weights.checkpoint import require_safetensors
from hfmega.weights.convert import convert

WEIGHTS, OTHER = state(1), state(2)


class AttributeDict(dict[str, Any]):
    """As Lightning pickles hyperparameters."""


class Callbacks(list[Any]):
    """A list of a class of its own."""


@dataclass
class Plan:
    """An object of a class that only the training program has."""

    lr: float
    path: Path


class Attack:
    """Would make a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def prefixed(prefix: str, tensors: State = WEIGHTS) -> State:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def channels_last(tensors: State) -> State:
    return {k: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for k, t in tensors.items()}


TIMM = {"epoch": 3, "arch": "resnet8_cifar", "args": argparse.Namespace(lr=0.1), "metric": 0.5,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}}  # fmt: skip
LIGHTNING = {"epoch": 1, "pytorch-lightning_version": "2.5", "callbacks": Callbacks([1]), "loops": {},
             "hyper_parameters": AttributeDict(lr=0.1, plan=Plan(0.1, Path("x")))}  # fmt: skip
# What is saved, the entry that is taken, the prefix that is taken off, and what is left out.
WRITTEN: dict[str, tuple[Any, str, str, list[str]]] = {
    "a state dict": (WEIGHTS, "", "", []),
    "an OrderedDict": (OrderedDict(WEIGHTS), "", "", []),
    "timm's train.py": ({**TIMM, "state_dict": WEIGHTS}, "state_dict", "", []),
    "timm's train.py with EMA": ({**TIMM, "state_dict": OTHER, "state_dict_ema": WEIGHTS}, "state_dict_ema", "", []),
    "Lightning": (
        {**LIGHTNING, "state_dict": {**prefixed("model."), "criterion.weight": torch.ones(3)}},
        "state_dict",
        "model.",
        ["criterion.weight"],
    ),
    "Lightning's EMA weights": (
        {**LIGHTNING, "state_dict": prefixed("ema_model.")},
        "state_dict",
        "ema_model.",
        [],
    ),
    "torchvision's references": ({"model": WEIGHTS, "args": argparse.Namespace(x=1)}, "model", "", []),
    "torchvision's references with EMA": (
        {"model": OTHER, "model_ema": {"n_averaged": torch.tensor(9), **prefixed("module.")}},
        "model_ema",
        "",
        ["n_averaged"],
    ),
    "DataParallel": ({"state_dict": prefixed("module.")}, "state_dict", "", []),
    "torch.compile": (prefixed("_orig_mod."), "", "", []),
    "DataParallel of torch.compile": (prefixed("module._orig_mod."), "", "", []),
    "transformers' wrapper": (prefixed("timm_model."), "", "timm_model.", []),
    "channels_last": (channels_last(WEIGHTS), "", "", []),
    "parameters that need gradients": (dict(build(SPEC, 1).state_dict(keep_vars=True)), "", "", []),
    "shared memory": ({**WEIGHTS, "fc.bias": torch.cat([WEIGHTS["fc.bias"]] * 2)[3:]}, "", "", []),
    "an entry in an entry": ({"model": {"state_dict": WEIGHTS, "step": 5}}, "model.state_dict", "", []),
    "an entry of another name": ({"best": WEIGHTS, "config": AttributeDict(a=1)}, "best", "", []),
}  # fmt: skip


def save(folder: Path, content: Any, name: str = "model_best.pth.tar", **how: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.save(content, folder / name, **how)
    return folder / name


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_programs_write_is_converted(tmp_path: Path, kind: str, zipped: bool) -> None:
    content, entry, prefix, left_out = WRITTEN[kind]
    found = convert(save(tmp_path, content, _use_new_zipfile_serialization=zipped))
    assert (found.entry, found.prefix, list(found.left_out)) == (entry, prefix, left_out)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == WEIGHTS.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in WEIGHTS.items())
    build(SPEC).load_state_dict(written)


def test_without_a_config_wrappers_are_taken_off_and_the_config_is_asked_for(tmp_path: Path) -> None:
    content = {"state_dict": {**prefixed("model."), "step": torch.tensor(3)}}
    file = save(tmp_path, content)
    (tmp_path / "config.json").unlink()
    done = run("convert", file, "-o", tmp_path / "out", "--json")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == WEIGHTS.keys()
    assert (done.json["entry"], done.json["config"]) == ("state_dict", False)
    assert "a source also needs a config.json" in done.stderr


def test_another_entry_is_taken_by_its_name(tmp_path: Path) -> None:
    file = save(tmp_path, {"state_dict": OTHER, "state_dict_ema": WEIGHTS})
    done = run("convert", file)
    assert "taken from the entry 'state_dict_ema'" in done.stderr
    assert "weights are also in state_dict: --entry takes them instead" in done.stderr
    assert "is there already" in run("convert", file, "--entry", "state_dict").complaint
    assert run("convert", file, "--entry", "state_dict", "--overwrite").code == 0
    assert torch.equal(load_file(tmp_path / "model.safetensors")["fc.weight"], OTHER["fc.weight"])
    assert "weights are in state_dict_ema, state_dict." in run("convert", file, "--entry", "x", "--overwrite").complaint


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"not a pickle", "cannot be read as a checkpoint"),
        (b"PK\x03\x04" + bytes(40), "cannot be read as a checkpoint"),
        ({"epoch": 3, "metric": 0.5}, "holds no weights by name"),
        ([WEIGHTS], "holds no weights by name"),
        ({"a": torch.ones(3)}, "holds no weights by name"),
        (nn.Linear(2, 2), "holds no weights by name"),
        (torch.ones(3, 3), "holds no weights by name"),
    ],
)
def test_what_holds_no_weights_is_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    file = tmp_path / "model.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(HfmegaError, match=sentence):
        convert(file)


def test_no_code_of_a_pickle_runs(tmp_path: Path) -> None:
    file = save(tmp_path, {"state_dict": WEIGHTS, "extra": Attack(tmp_path / "ran")})
    with pytest.raises(HfmegaError, match="cannot be read as a checkpoint"):
        convert(file)
    assert not (tmp_path / "ran").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have been


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "model_best.pth.tar", "checkpoint-3.pth.tar", "net.pkl",
     "weights.th", "checkpoint.tar", "it's a \"model\".pth"],
)  # fmt: skip
def test_the_advice_names_a_command_that_works(tmp_path: Path, name: str) -> None:
    file = save(tmp_path, {**TIMM, "state_dict": WEIGHTS}, name)
    with pytest.raises(HfmegaError, match="only a pickle checkpoint") as refused:
        require_safetensors(str(tmp_path), [name, "config.json"])
    command = re.search(r"`hfmega (convert .*?)` \(in Python", str(refused.value))
    assert command is not None
    words = shlex.split(command[1])
    assert words == ["convert", str(file)]
    assert run(*words).code == 0
    assert load_file(tmp_path / "model.safetensors").keys() == WEIGHTS.keys()
    with pytest.raises(HfmegaError, match=r"`hf download ann/net --local-dir net`, then convert .*net/"):
        require_safetensors("ann/net", [name])


@pytest.mark.system
def test_the_advised_line_of_python_works(tmp_path: Path) -> None:
    save(tmp_path, {**TIMM, "state_dict": WEIGHTS})
    with pytest.raises(HfmegaError) as refused:
        require_safetensors(str(tmp_path), ["model_best.pth.tar"])
    line = re.search(r"`python -c \"(.*)\"`", str(refused.value))
    assert line is not None
    subprocess.run([sys.executable, "-c", line[1]], check=True, cwd=tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_python_converts_too(tmp_path: Path) -> None:
    found = hfmega.convert(save(tmp_path, WEIGHTS), output=tmp_path / "out")
    assert found.tensors == len(WEIGHTS)
    shutil.rmtree(tmp_path / "out")
