"""`--report-to`: what a tracker hears, and that a merge does not depend on one. 5 seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.commands import run

from hfmega.merging import trackers
from hfmega.report import lineage

FEW = ("--dataset", "digits", "--fitness-split", "train[:200]", "--population", 4, "--no-calibrate", "--json")


@pytest.mark.filterwarnings("ignore")  # tensorboard's own
def test_tensorboard_holds_each_generation_the_settings_and_the_table(
    tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = run("merge", *tiny_sources, *FEW, "--generations", 3, "--report-to", "tensorboard", "-o", tmp_path / "out")
    made = lineage.read(tmp_path / "out" / "lineage.json")
    (folder,) = (tmp_path / "out" / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(folder)).Reload()

    def values(name: str) -> list[float]:
        return [event.value for event in events.Scalars(name)]

    history = made.nodes[0].history
    for name in ("best", "mean", "spread"):
        assert values(f"merge/{name}") == pytest.approx([getattr(g, name) for g in history], rel=1e-6)
    assert values("merge/generation") == [1, 2, 3]
    assert min(values("merge/images_per_second")) > 0
    assert values("test/accuracy") == pytest.approx([done.json["accuracy"]])
    (table,) = events.Tensors("test/comparison/text_summary")
    assert "uniform average" in table.tensor_proto.string_val[0].decode()
    (settings,) = folder.rglob("hparams.yml")
    assert "population: 4" in settings.read_text()
    assert "sources: " in settings.read_text()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_pulled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    refused = run("merge", "ann/a", "ann/b", "--report-to", "wandb", "-o", tmp_path / "out")
    assert refused.complaint == "--report-to wandb needs a package that is not installed: pip install wandb."
    assert not (tmp_path / "out").exists()


class Broken:
    """A tracker whose server has gone."""

    name, requires_logging_directory = "wandb", False

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def start(self) -> None: ...
    def store_init_configuration(self, values: dict[str, Any]) -> None: ...
    def finish(self) -> None: ...

    def log(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("the server is gone\nforever")


def test_a_tracker_that_fails_costs_the_merge_nothing(
    monkeypatch: pytest.MonkeyPatch, tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", {"wandb": Broken})
    monkeypatch.setattr(trackers, "check", lambda _: None)
    monkeypatch.setattr("hfmega.merging.merge.check", lambda _: None)
    done = run("merge", *tiny_sources, *FEW, "--generations", 2, "--report-to", "wandb", "-o", tmp_path / "out")
    assert done.code == 0
    assert done.stderr.count("wandb failed, and hears no more: the server is gone") == 1


def test_a_tracker_that_cannot_be_started_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    def start(_: Broken) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(Broken, "start", start)
    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", {"wandb": Broken})
    monkeypatch.setattr("hfmega.merging.merge.check", lambda _: None)
    done = run("merge", *tiny_sources, *FEW, "--generations", 2, "--report-to", "wandb", "-o", tmp_path / "out")
    assert done.complaint == "--report-to wandb could not be started: no API key"
