"""A `config.json` from anyone: read and brought to one layout, or refused in one sentence; nothing of it is run."""

from __future__ import annotations

import ast
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hostile import FUZZ, GOOD, VALUES
from support.specs import spec

import hfmega
from hfmega.errors import HfmegaError
from hfmega.models import library
from hfmega.models.library import Spec, build, sizes
from hfmega.weights.checkpoint import license_of, name_of


def spec_at(folder: Path, content: object) -> Spec:
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return library.read(folder / "config.json", "here")


def read(folder: Path, content: object) -> dict[str, Any]:
    return dict(spec_at(folder, content).config)


def test_a_config_is_kept_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == GOOD


def test_the_older_layout_is_brought_to_the_newer(tmp_path: Path) -> None:
    flat = {"architecture": "resnet8_cifar", "num_classes": 10, "input_size": [3, 32, 32], "label_names": ["a"]}
    found = read(tmp_path, flat)
    assert (found["num_classes"], found["label_names"], found["pretrained_cfg"]) == (10, ["a"], flat)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"architecture": ["resnet18"]}, "architecture"),
        ({"num_classes": 10**12}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"num_classes": "10"}, "num_classes"),
        ({"label_names": [["a"], 2]}, "label_names"),
        ({"label_names": {"x": "a"}}, "label_names"),
        ({"id2label": {"10": "a"}, "label_names": None}, "id2label"),
        ({"model_args": ["in_chans"]}, "model_args"),
        ({"model_args": {"img_size": []}}, "model_args.img_size"),
        ({"model_args": {"global_pool": True}}, "model_args.global_pool"),
        ({"model_args": {"drop_rate": 2}}, "model_args.drop_rate"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg"),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}}, "pretrained_cfg.input_size"),
        ({"pretrained_cfg": {"mean": [float("nan")]}}, "pretrained_cfg.mean"),
        ({"pretrained_cfg": {"crop_pct": -1}}, "pretrained_cfg.crop_pct"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_place(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    with pytest.raises(HfmegaError, match=f"config.json of here makes no sense: .* \\(at {place}"):
        read(tmp_path, {**GOOD, **change})


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe", b"[]", b"null", b'{"num_classes": 3}'])
def test_what_is_no_config_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(HfmegaError, match=r"^config\.json of here (cannot be read|is not a timm config)"):
        read(tmp_path, content)


@pytest.mark.parametrize("argument", ["checkpoint_path", "norm_layer", "block", "pretrained_cfg_overlay", "depth"])
def test_a_constructor_argument_off_the_list_does_not_reach_timm(argument: str) -> None:
    with pytest.raises(HfmegaError, match=f"has the constructor argument '{argument}', which hfmega does not pass on"):
        build(spec(**{**GOOD, "model_args": {argument: "/etc/passwd"}}))


def test_nothing_that_names_a_file_reaches_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    create = timm.create_model
    monkeypatch.setattr("timm.create_model", lambda *a, **k: seen.update(k) or create(*a, **k))
    hostile = {"url": "http://x", "file": "/etc/passwd", "hf_hub_id": "a/b", "custom_load": True, "state_dict": {}}
    build(spec(**{**GOOD, "pretrained_cfg": {**GOOD["pretrained_cfg"], **hostile}}))
    assert not seen["pretrained"]
    assert not hostile.keys() & seen["pretrained_cfg"].keys()
    assert seen["pretrained_cfg"]["input_size"] == [1, 8, 8]


NETWORKS = ["resnet8_cifar", "resnet18", "vit_tiny_patch16_224"]
ARGUMENTS = {"in_chans": 1, "img_size": 64, "global_pool": "avg", "drop_rate": 0.1, "drop_path_rate": 0.1, "x": 1}
SIDES = st.lists(st.integers(1, 64), min_size=2, max_size=2).map(lambda sides: [1, *sides])


@settings(FUZZ, max_examples=200)
@given(
    network=st.sampled_from(NETWORKS),
    arguments=st.fixed_dictionaries({}, optional={k: st.one_of(st.just(v), VALUES) for k, v in ARGUMENTS.items()}),
    size=SIDES,
)
def test_any_accepted_config_is_a_network_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, network: str, arguments: dict[str, Any], size: list[int]
) -> None:
    pretrained = {**GOOD["pretrained_cfg"], "input_size": size}
    document = {**GOOD, "architecture": network, "model_args": arguments, "pretrained_cfg": pretrained}
    with suppress(HfmegaError):
        assert sizes(spec_at(tmp_path_factory.getbasetemp(), document))


def test_the_package_loads_no_pickle_and_runs_no_text() -> None:
    """torch.load only with weights_only=True; no pickle, eval, exec, remote code."""
    calls = [
        (path.name, node)
        for path in Path(hfmega.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    for name, call in calls:
        function = ast.unparse(call.func)
        assert function not in ("eval", "exec", "compile", "__import__"), name
        assert "pickle" not in function, name
        safe = [k for k in call.keywords if k.arg == "weights_only" and getattr(k.value, "value", None) is True]
        assert function != "torch.load" or safe, name
        assert all(k.arg != "trust_remote_code" for k in call.keywords), name
    imported = "\n".join(p.read_text(encoding="utf-8") for p in Path(hfmega.__file__).parent.rglob("*.py"))
    assert "import pickle" not in imported
    assert sum(ast.unparse(call.func) == "torch.load" for _, call in calls) == 2
    assert torch.load  # what is looked for exists


def test_text_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    """Half of a surrogate pair is JSON, but would end a merge when its lineage is written."""
    with pytest.raises(HfmegaError, match=r"^config\.json of here cannot be read: unexpected end of hex escape"):
        read(tmp_path, {**GOOD, "label_names": ["\ud800", "b"]})


@pytest.mark.skipif(not hasattr(os, "posix_spawn"), reason="only POSIX names folders in bytes")
def test_a_folder_whose_name_is_no_text_has_a_name_that_is(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b"))
    assert name_of(odd) == "\ufffd\x1b"


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\eb"', "[mit]", "!!python/object/apply:os.getpid []"])
def test_a_license_that_is_no_line_of_text_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {text}\n---\n")
    assert license_of(tmp_path / "README.md") is None
