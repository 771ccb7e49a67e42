"""What the benchmarks say of what they measured. Under a second; `tests/system/test_bench.py` runs them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from support.places import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("clocks", "verdict", "scale", "bench", "speed", "tables", "projection"):
        sys.modules.pop(name, None)


def test_the_seconds_of_a_step_inside_another_one_count_once() -> None:
    import clocks

    clock = clocks.Clock()
    inner = clock.timed("inner", lambda: time.sleep(0.05))
    outer = clock.timed("outer", lambda: [time.sleep(0.02), inner()])
    started = time.perf_counter()
    outer()
    clock.turn()
    whole = time.perf_counter() - started
    assert 0.05 <= clock.seconds["inner"] < clock.seconds["inner"] + clock.seconds["outer"] <= whole + 0.005
    assert 0.02 <= clock.seconds["outer"] < 0.05


def test_every_step_that_a_clock_stands_at_is_there() -> None:
    from importlib import import_module

    import clocks

    for places in clocks.STEPS.values():
        for place in places:
            module, _, name = place.partition(":")
            owner = import_module(f"hfmega.{module}")
            for part in name.split("."):
                owner = getattr(owner, part)
    for name, modules in clocks.NAMES.items():
        assert all(hasattr(import_module(f"hfmega.{module}"), name) for module in modules), name


def test_the_table_of_steps_says_what_is_no_forward_pass() -> None:
    import verdict

    found = {"seconds": {"imports": 9.0, "forward passes": 6.0, "figures": 2.0}, "images": {"search": 1000, "test": 24}}
    page = verdict.page([("abc, first run", found)], {"pair": ["a", "b"], "dataset": "d", "flags": ""}, 2)
    assert "| imports | 9.00 | - |" in page
    assert "| forward passes | 6.00 | 75.0% |" in page
    assert "| **all but imports** | **8.00** | 100.0% |" in page
    assert "| **of it no forward pass** | **2.00** | **25.0%** |" in page
    assert "| all | 1,024 |" in page


def test_an_exponent_is_that_of_the_larger_sizes() -> None:
    import scale

    assert scale.slope([2, 8, 20, 50], [7.0, 64.0, 400.0, 2500.0]) == "2.00"
    assert scale.slope([2, 8], [1.0, 4.0]) == "1.00"
    assert scale.slope([2, 8, 50], [1.0, 0.0, 4.0]) == "-"
    assert scale.slope([2], [1.0]) == "-"
