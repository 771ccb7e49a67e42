"""The leaves of a merge, and that all processes agree on them. 1 second."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfmega.errors import HfmegaError
from hfmega.hub import pull
from hfmega.merging import gather


def test_what_the_main_process_could_not_get_is_taken_as_it_is_in_every_process(
    tiny_sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which is not the main one, the leaves could be had: it takes the word of the main one."""

    def said_by_the_main_process(values: list[Any]) -> None:
        values[0] = "the local source s1 was not found"

    monkeypatch.setattr(gather, "broadcast_object_list", said_by_the_main_process)
    source, other = pull.pull(str(tiny_sources[0])), SimpleNamespace(is_main_process=False, num_processes=2)
    assert gather.what_is_missing(source, other) == "the local source s1 was not found"  # type: ignore[arg-type]


def test_an_error_in_another_process_alone_is_an_error(
    tiny_sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ill(_: object) -> None:
        raise HfmegaError("the Hub is ill")

    monkeypatch.setattr(gather, "broadcast_object_list", lambda _: None)
    monkeypatch.setattr(gather.pull, "lineage_folder", ill)
    source, other = pull.pull(str(tiny_sources[0])), SimpleNamespace(is_main_process=False, num_processes=2)
    assert gather.what_is_missing(source, other) is None  # type: ignore[arg-type]
    with pytest.raises(HfmegaError, match="the Hub is ill"):
        gather.expand(source)
