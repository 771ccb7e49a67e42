"""Whatever stands in a source's name, a slice, a config, a lineage or a recipe: a value, or HfmegaError.

Some hundred inputs for each parser by Hypothesis; in the tier `fuzz` 10,000, and as many that are led by coverage
(atheris) where that is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from support import parsers
from support.hostile import FUZZ, GOOD, LINEAGE, NUMBERS_ODD, ODD, TEXTS, VALUES

from hfmega.errors import HfmegaError
from hfmega.report import lineage


def near(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same kind, which a schema lets through more often than any."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, str):
        return st.one_of(st.sampled_from(TEXTS), st.text(max_size=9))
    if isinstance(value, int | float):
        return st.one_of(st.sampled_from(NUMBERS_ODD), st.integers(), st.floats())
    if isinstance(value, list):
        return st.integers(0, 3).map(lambda times: (value * times)[:50])
    return VALUES


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON document."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield from places(child, (*at, key))


PLACES = [at for at in places(LINEAGE) if at and "history" not in at[:-1]]


def packed(document: object) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


@dataclass
class Tally:
    """What a parser was given: how much, how much of it was accepted, and the seconds of all."""

    inputs: int = 0
    accepted: int = 0
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def count(self, parse: Callable[[], None]) -> None:
        self.inputs += 1
        with suppress(HfmegaError):
            parse()
            self.accepted += 1
        self.seconds = time.perf_counter() - self.started


@pytest.fixture(scope="module")
def tallies(request: pytest.FixtureRequest) -> Iterator[dict[str, Tally]]:
    """Parser to tally, printed at the end."""
    found: dict[str, Tally] = {}
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print()
        for name, tally in found.items():
            print(f"{name:20} {tally.inputs:7,} inputs, {tally.accepted:6,} accepted, {tally.seconds:5.1f} s")


@pytest.fixture
def tally(request: pytest.FixtureRequest, tallies: dict[str, Tally]) -> Tally:
    return tallies.setdefault(request.node.name.removeprefix("test_any_"), Tally())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


NAMES = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="abc/@:.-_~%#?* hf\\\n\0", max_size=40),
    st.builds("{}/{}@{}".format, st.text(max_size=9), st.text(max_size=9), st.text(max_size=9)),
    st.builds("hf://{}".format, st.text(max_size=30)),
)


@FUZZ
@given(name=NAMES)
def test_any_source(name: str, tally: Tally) -> None:
    tally.count(lambda: parsers.read_source(name))


SLICES = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="trainest[:]%+-0129 (pct1dropemainder)", max_size=24),
    st.lists(
        st.builds(
            "{}[{}:{}{}]".format,
            st.sampled_from(["train", "test", "all", "x"]),
            st.one_of(st.just(""), st.integers(), st.integers(-100, 100)),
            st.one_of(st.just(""), st.integers(), st.integers(-100, 100)),
            st.sampled_from(["", "%", "shard", "%](pct1_dropremainder)"]),
        ),
        max_size=4,
    ).map("+".join),
)


@FUZZ
@given(spec=SLICES)
def test_any_slice(spec: str, tally: Tally) -> None:
    tally.count(lambda: parsers.read_slice(spec))


NESTED = {key: st.one_of(st.just(value), near(value), VALUES) for key, value in GOOD["pretrained_cfg"].items()}
CONFIGS = st.one_of(
    VALUES,
    st.fixed_dictionaries({}, optional={key: st.one_of(st.just(value), VALUES) for key, value in GOOD.items()}),
    *[
        st.fixed_dictionaries(
            {"architecture": st.just("resnet8_cifar"), "num_classes": st.just(10)},
            optional={"pretrained_cfg": st.fixed_dictionaries({}, optional=NESTED)},
        )
    ]
    * 2,
)


@FUZZ
@given(content=st.one_of(CONFIGS.map(packed), st.binary(max_size=40)))
def test_any_config(folder: Path, content: bytes, tally: Tally) -> None:
    tally.count(lambda: parsers.read_config(content, folder))


@st.composite
def damaged_lineages(draw: st.DrawFn) -> bytes:
    """A real lineage in which some values are others or gone, or whose text is cut or changed."""
    document = deepcopy(LINEAGE)
    for _ in range(draw(st.integers(0, 3))):
        *above, last = draw(st.sampled_from(PLACES))
        with suppress(KeyError, IndexError, TypeError):  # a change before has taken it away
            parent = document
            for key in above:
                parent = parent[key]
            kind = draw(st.integers(0, 7))
            if kind:
                parent[last] = draw(VALUES if kind == 1 else near(parent[last]))
            else:
                del parent[last]
    text = packed(document)
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=8)) + text[at + draw(st.integers(0, 8)) :]
    return text


@FUZZ
@given(content=st.one_of(*[damaged_lineages()] * 8, st.binary(max_size=60), VALUES.map(packed)))
def test_any_lineage(folder: Path, content: bytes, tally: Tally) -> None:
    tally.count(lambda: parsers.read_lineage(content, folder))


SHARES = st.one_of(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(-2, 2), st.sampled_from([0, 1]))
NUMBERS = st.one_of(SHARES, SHARES, SHARES, SHARES, ODD)
NOISE = st.fixed_dictionaries(
    {
        "seed": st.one_of(st.integers(), st.integers(), ODD),
        "rate": NUMBERS,
        "sigma": NUMBERS,
        "unit": st.sampled_from(["element", "tensor", "element", "tensor", "x"]),
    },
    optional={"weight": NUMBERS},
)
STATIC = st.fixed_dictionaries(
    {"method": st.sampled_from(["slerp", "ties", "dare-linear", "dare-ties", "fisher", "regmean", "x"])},
    optional={
        "base": st.sampled_from([None, 0, 1, 2, -1]),
        "scale": NUMBERS,
        "density": NUMBERS,
        "seed": st.integers(),
    },
)
RECIPES = st.fixed_dictionaries(
    {
        "coefficients": st.one_of(
            st.sampled_from([[0.5, 0.5], [0, 0], [1, 0]]), st.lists(NUMBERS, min_size=2, max_size=2)
        )
    },
    optional={
        "noise": st.lists(NOISE, max_size=2),
        "static": st.one_of(st.none(), STATIC),
        "genome": st.sampled_from(["model", "model", "model", "stage", "layer", "tensor", "channel", "x"]),
        "offsets": st.sampled_from([[], [], [], [0.5]]),
        "calibrate": st.booleans(),
    },
)
TENSORS = st.dictionaries(
    st.one_of(
        st.sampled_from(
            ["offsets", "offsets/merge", "permutation/1/conv1.weight", "permutation/x/", "evidence/0/fc.bias"]
        ),
        st.builds("evidence/{}/{}".format, st.integers(0, 2), st.sampled_from(["conv1.weight", "fc.weight", "x"])),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ),
    st.builds(
        lambda shape, kind, value: torch.full(shape, value).to(kind),
        st.one_of(
            st.sampled_from([(3, 2), (4, 2), (7, 2), (8, 2), (2, 2), (4, 4)]), st.lists(st.integers(0, 4), max_size=4)
        ),
        st.sampled_from([torch.float64, torch.float32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]),
        st.sampled_from([0.0, 1.0, -1.0, 1e30, float("nan"), float("inf")]),
    ),
    max_size=3,
)


@st.composite
def recipes(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A lineage with a recipe of any shape, in which the nodes say the same or not, and what lies beside it."""
    recipe = draw(st.one_of(RECIPES, RECIPES, RECIPES, RECIPES, VALUES))
    nodes = [{**LINEAGE["nodes"][0], "history": [], "recipe": draw(st.sampled_from([recipe, LINEAGE["recipe"]]))}]
    aligned = draw(st.sampled_from(["none", "weights"]))
    document = {**LINEAGE, "recipe": recipe, "nodes": nodes, "settings": {**LINEAGE["settings"], "align": aligned}}
    tensors = save(draw(TENSORS))
    if draw(st.integers(0, 7)) == 0:
        at = draw(st.integers(0, len(tensors)))
        tensors = tensors[:at] + draw(st.binary(max_size=8)) + tensors[at + draw(st.integers(0, 8)) :]
    return packed(document), tensors


@FUZZ
@given(files=recipes())
def test_any_recipe(folder: Path, files: tuple[bytes, bytes], tally: Tally) -> None:
    tally.count(lambda: parsers.read_recipe(*files, folder))


def test_what_is_nested_too_deep_is_no_lineage(folder: Path) -> None:
    path = folder / "lineage.json"
    path.write_bytes(b"[" * 1_000_000)
    with pytest.raises(HfmegaError, match="is not a lineage"):
        lineage.read(path)


@pytest.mark.fuzz
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is for Linux and some versions of Python")
def test_10000_inputs_that_coverage_leads_to_give_a_value_or_our_error(tmp_path: Path) -> None:
    """The same parsers. The process must have done them all, which it says of each."""
    script = Path(__file__).with_name("fuzz_parsers.py")
    command = [sys.executable, str(script), str(tmp_path), "10000"]
    quick = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, env=quick, capture_output=True, text=True, errors="replace", timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("Done 10000 runs in ") == done.stderr.count("fuzzing ") == 5, done.stderr[-4000:]
