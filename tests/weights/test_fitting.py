"""Tensors as other programs save them: what is sure is brought to the network, what is not is refused. 3 seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.specs import spec
from support.untrained import CONFIG, SPEC, State, checkpoint, state
from timm.utils.model import freeze

from hfmega.errors import HfmegaError
from hfmega.models.library import build, sizes
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.fitting import COUNTER, Expected, fitted, only_prefix
from hfmega.weights.mergeable import check_mergeable, open_sources
from hfmega.weights.relation import relate
from hfmega.weights.sources import mix

WEIGHTS = state(1)


def renamed(change: Callable[[str], str]) -> State:
    return {change(name): tensor for name, tensor in WEIGHTS.items()}


def counters(change: Callable[[torch.Tensor], torch.Tensor]) -> State:
    return {name: change(t) if name.endswith(COUNTER) else t for name, t in WEIGHTS.items()}


def frozen() -> State:
    model = build(SPEC, 1)
    freeze(model, include_bn_running_stats=True)
    return model.state_dict()


# The networks of all of these are the same, and their weights are those of WEIGHTS.
SAME: dict[str, Callable[[], State]] = {
    "as it is": lambda: WEIGHTS,
    "no counters": lambda: {k: t for k, t in WEIGHTS.items() if not k.endswith(COUNTER)},
    "one counter missing": lambda: {k: t for k, t in WEIGHTS.items() if k != f"bn1.{COUNTER}"},
    "counters in float32": lambda: counters(lambda t: t.float()),
    "averaged counters": lambda: counters(lambda t: t.double() + 0.25),
    "counters in int32": lambda: counters(lambda t: t.int()),
    "counters of one element": lambda: counters(lambda t: t.reshape(1)),
    "a counter that the network has not": lambda: {**WEIGHTS, f"fc.{COUNTER}": torch.tensor(3)},
    "frozen by timm": frozen,
    "DataParallel": lambda: renamed(lambda n: f"module.{n}"),
    "torch.compile": lambda: renamed(lambda n: f"_orig_mod.{n}"),
    "both": lambda: renamed(lambda n: f"module._orig_mod.{n}"),
    "one layer compiled": lambda: renamed(lambda n: n.replace("layer1.", "layer1._orig_mod.")),
    "FSDP": lambda: renamed(lambda n: f"_fsdp_wrapped_module.{n.replace('.0.', '.0._fsdp_wrapped_module.')}"),
    "Lightning": lambda: renamed(lambda n: f"model.{n}"),
    "transformers": lambda: renamed(lambda n: f"timm_model.{n}"),
    "a prefix of somebody's own": lambda: renamed(lambda n: f"classifier.backbone.{n}"),
    "a prefix, and no counters": lambda: {f"net.{k}": t for k, t in WEIGHTS.items() if not k.endswith(COUNTER)},
    "an old index": lambda: {**WEIGHTS, "layer1.0.relative_position_index": torch.arange(4)},
}


@pytest.mark.parametrize("kind", SAME)
def test_what_is_sure_is_brought_to_the_network(kind: str) -> None:
    found = fitted(SPEC, SAME[kind]())
    assert {name: tuple(t.shape) for name, t in found.items()} == sizes(SPEC)
    assert all(torch.equal(found[name], t) for name, t in WEIGHTS.items() if t.is_floating_point())
    assert {found[name].dtype for name in WEIGHTS if name.endswith(COUNTER)} == {torch.int64}
    check_mergeable([checkpoint("ann/a"), checkpoint("bob/b")], [found, WEIGHTS])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: {**renamed(lambda n: f"model.{n}"), **renamed(lambda n: f"teacher.{n}")}, "lacks the tensor"),
        (lambda: {**renamed(lambda n: f"model.{n}"), "loss.weight": torch.ones(3)}, "has the tensor loss.weight"),
        (lambda: {k: t for k, t in renamed(lambda n: f"module.{n}").items() if "fc" not in k}, "lacks the tensor"),
        (lambda: {**WEIGHTS, "head.weight": torch.ones(3, 3)}, "has the tensor head.weight"),
        (lambda: {k: t for k, t in WEIGHTS.items() if k != "bn1.running_var"}, "lacks the tensor bn1.running_var"),
        (lambda: {**WEIGHTS, "fc.bias": torch.zeros(3, dtype=torch.int8)}, "has fc.bias as torch.int8"),
        (lambda: renamed(lambda n: n.replace("weight", "weight_v")), "lacks the tensor"),
        (lambda: {**WEIGHTS, "module.fc.weight": torch.ones(3, 64)}, "has the tensor module.fc.weight"),
    ],
)
def test_what_is_not_sure_is_refused(change: Callable[[], State], sentence: str) -> None:
    with pytest.raises(HfmegaError, match=f"^ann/a {sentence}"):
        check_mergeable([checkpoint("ann/a")], [fitted(SPEC, change())])


def test_a_prefix_is_one_only_if_it_is_the_only_one() -> None:
    assert only_prefix(["a.x", "a.y", "b.x"], ["x", "y"]) == "a."
    assert only_prefix(["a.x", "a.y", "b.x", "b.y"], ["x", "y"]) is None
    assert only_prefix(["x", "y"], ["x", "y"]) is None
    assert only_prefix([], []) is None


def test_buffers_that_are_not_saved_any_more_are_left_out() -> None:
    given = spec("tiny_vit_5m_224", num_classes=3)
    model = timm.create_model("tiny_vit_5m_224", num_classes=3)
    saved = model.state_dict()
    older = {**saved, **{name: b.clone() for name, b in model.named_buffers() if name not in saved}}
    assert len(older) > len(saved)
    assert fitted(given, older).keys() == saved.keys()


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_precisions_are_merged_in_float32_and_saved_as_the_first(tmp_path: Path, first: str, second: str) -> None:
    sources = []
    for name, kind, seed in (("a", first, 1), ("b", second, 2)):
        (tmp_path / name).mkdir()
        tensors = {n: t.to(DTYPES[kind]) if t.is_floating_point() else t for n, t in state(seed).items()}
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
        sources.append(checkpoint(name, tmp_path / name))
    opened = open_sources(sources)
    said = f"b and a store {second} and {first}: they are merged in float32, and saved as a is."
    assert opened.notes == (() if first == second else (said,))
    sources_ = mix(opened.checkpoints, opened.states)
    assert {slot.dtype for slot in sources_.layout.slots} == {DTYPES[first]}
    assert relate(*opened.states).relation == "independent"
    assert load_weights(sources[1])["fc.weight"].dtype == DTYPES[second]


class Tied(torch.nn.Module):
    """Two names of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("lacking", ["first.weight", "second.weight", None])
def test_of_tied_tensors_one_is_enough(monkeypatch: pytest.MonkeyPatch, lacking: str | None) -> None:
    model = Tied()
    saved = {name: t for name, t in model.state_dict().items() if name != lacking}
    tensors = model.state_dict(keep_vars=True)
    known = Expected(tensors, frozenset(), {"second.weight": "first.weight"})
    monkeypatch.setattr("hfmega.weights.fitting.expected_of", lambda _: known)
    found = fitted(SPEC, saved)
    assert found.keys() == tensors.keys()
    assert torch.equal(found["first.weight"], found["second.weight"])
