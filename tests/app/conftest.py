"""A finished merge and an unfinished one of the tiny sources, and a Hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.hub import Hub
from support.surroundings import surroundings

import hfmega
from hfmega.evaluation.network import Network

FEW: Final[dict[str, Any]] = {
    "dataset": "digits", "fitness_split": "train[:200]", "test_split": "test[:200]", "population": 4, "seed": 3
}  # fmt: skip


@pytest.fixture(scope="session")
def merges(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the merges `done` and `half`: the second was interrupted in its third generation of five."""
    base = tmp_path_factory.mktemp("app") / "merges"
    hfmega.merge(*tiny_sources, **FEW, generations=2, output=base / "done")
    calls, look = [0], Network.look

    def interrupted(self: Network, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return look(self, *arguments, **named)

    Network.look = interrupted  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            hfmega.merge(*tiny_sources, **FEW, generations=5, patience=0, output=base / "half")
    finally:
        Network.look = look  # type: ignore[method-assign]
    return base


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Its environment is that of this process: `ann` may write, and is logged in."""
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ann", "hf_ann")
        hub.add_user("bob", "hf_reader", role="read")
        with surroundings(hub.environment(tmp_path / "home", "hf_ann")):
            yield hub
