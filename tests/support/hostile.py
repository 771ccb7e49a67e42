"""Values that no file should hold, and files as they should be."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from support.places import CARDS

FUZZ = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

TEXTS = [
    "",
    "x",
    "../..",
    "/etc/passwd",
    "{{ 7 * 7 }}",
    "<script>|`",
    "\x1b[2J",
    "a\nb\0",
    "NaN",
    "1e999",
    "\ud800",
    "模型",
]
NUMBERS_ODD = [
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    1e38,
    -1e39,
    1e308,
    1e-320,
    2**31,
    2**63,
    2**70,
    10**40,
    float("nan"),
    float("inf"),
]
ODD = st.sampled_from([None, True, False, [], {}, [[]], {"x": {}}, [0] * 9, ["x", 1], *TEXTS, *NUMBERS_ODD])
VALUES = st.one_of(
    ODD,
    ODD,
    st.recursive(
        st.one_of(ODD, st.integers(), st.floats(), st.text(max_size=9)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
        max_leaves=4,
    ),
)

LINEAGE = json.loads((CARDS / "resnet8-s44-s45" / "lineage.json").read_text())

GOOD: dict[str, Any] = {
    "architecture": "resnet8_cifar",
    "num_classes": 10,
    "label_names": ["a", "b"],
    "model_args": {"in_chans": 1},
    "pretrained_cfg": {"input_size": [1, 8, 8], "mean": [0.0], "std": [1.0], "crop_pct": 1, "tag": "x", "url": ""},
    "hfmega": {"seed": 1},
}
