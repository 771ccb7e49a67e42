"""Whatever stands in a source's name or in a lineage: a value, or HfmegaError. 10,000 inputs for each parser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfmega import HfmegaError, hub, lineage

CARDS = Path(__file__).parents[1] / "cards"
FUZZ = settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["../..", "/etc/passwd", "{{ 7 * 7 }}", "<script>", "NaN", "Infinity", "1e999", 2**70, -1, ""]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON document."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield from places(child, (*at, key))


LINEAGE = json.loads((CARDS / "resnet8-s44-s45" / "lineage.json").read_text())
PLACES = [at for at in places(LINEAGE) if at]


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
            if draw(st.booleans()):
                parent[last] = draw(VALUES)
            else:
                del parent[last]
    text = json.dumps(document).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=8)) + text[at + draw(st.integers(0, 8)) :]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@given(content=st.one_of(damaged_lineages(), st.binary(max_size=60), VALUES.map(lambda v: json.dumps(v).encode())))
def test_any_lineage(folder: Path, content: bytes) -> None:
    path = folder / "lineage.json"
    path.write_bytes(content)
    with suppress(HfmegaError):
        made = lineage.read(path)
        assert len(made.recipe.coefficients) == len(made.sources) > 0


NAMES = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="abc/@:.-_~%#?* hf\\\n\0", max_size=40),
    st.builds("{}/{}@{}".format, st.text(max_size=9), st.text(max_size=9), st.text(max_size=9)),
    st.builds("hf://{}".format, st.text(max_size=30)),
)


@FUZZ
@given(name=NAMES)
def test_any_name_of_a_source(name: str) -> None:
    with suppress(HfmegaError):
        repo_id, revision = hub.parse(name)
        assert ".." not in repo_id
        assert repo_id.count("/") <= 1
        assert revision is None or revision


def test_what_is_nested_too_deep_is_no_lineage(folder: Path) -> None:
    path = folder / "lineage.json"
    path.write_bytes(b"[" * 1_000_000)
    with pytest.raises(HfmegaError, match="is not a lineage"):
        lineage.read(path)
