"""`--control`: what the best source gains alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.sure import Sure, images

from hfmega.evaluation.answers import answers
from hfmega.merging.controls import FINE_TUNING, SEARCH_ALONE, knows_most
from hfmega.search.recipe import Recipe

IMAGES = images("confirm")


@pytest.fixture(scope="module")
def merged(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A small merge with both controls."""
    folder = tmp_path_factory.mktemp("control") / "merged"
    merge = [
        "merge",
        *tiny_sources,
        "--dataset",
        "digits",
        "--population",
        4,
        "--generations",
        3,
        "--control",
        "--json",
    ]
    return folder, run(*merge, "-o", folder).json


def test_both_controls_stand_in_json_lineage_and_card(merged: tuple[Path, dict[str, object]]) -> None:
    folder, found = merged
    lineage = json.loads((folder / "lineage.json").read_text())
    assert [control["name"] for control in found["controls"]] == [SEARCH_ALONE, FINE_TUNING]  # type: ignore[attr-defined]
    assert lineage["controls"] == found["controls"]
    card = (folder / "README.md").read_text()
    assert "## Controls" in card
    assert all(
        f"{control['name']} reaches {control['accuracy']:.1%}".replace("%", " %") in card
        for control in lineage["controls"]
    )
    gained = found["verdict"] == "better" and all(control["remainder"] > 0 for control in lineage["controls"])
    assert ("points come from the other sources" in card) == gained
    assert "--control" in card


def test_what_is_left_is_merge_minus_control(merged: tuple[Path, dict[str, object]]) -> None:
    folder, found = merged
    result = json.loads((folder / "lineage.json").read_text())["result"]
    for control in found["controls"]:  # type: ignore[attr-defined]
        assert control["remainder"] == pytest.approx(result["accuracy"] - control["accuracy"])
        assert control["start"] in [reference["accuracy"] for reference in found["references"]]  # type: ignore[attr-defined]
        assert control["gain"] == pytest.approx(control["accuracy"] - control["start"])


def test_controls_take_no_more_forward_passes_than_the_search(merged: tuple[Path, dict[str, object]]) -> None:
    _, found = merged
    alone, tuned = found["controls"]  # type: ignore[misc]
    assert 0 < tuned["forward_passes"] <= found["forward_passes"]
    assert 0 < alone["forward_passes"] <= found["forward_passes"]


def test_fine_tuning_undertrained_sources_gains_and_the_merge_is_not_credited_with_it(
    merged: tuple[Path, dict[str, object]],
) -> None:
    alone, tuned = merged[1]["controls"]  # type: ignore[misc]
    assert tuned["gain"] > 0.02
    assert tuned["accuracy"] > alone["accuracy"]
    assert tuned["remainder"] < 0


def test_fine_tuning_is_judged_by_what_it_knows_and_not_by_how_sure_it_is() -> None:
    recipe, tried = Recipe((1.0,)), [Sure(70, 0.8), Sure(80, 9.0), Sure(75, 1.0)]
    pairs: Any = [(network, recipe) for network in tried]
    losses = [answers(network.predict(recipe, IMAGES), IMAGES.labels).mean_loss for network in tried]
    assert max(losses) == losses[1]
    assert knows_most(pairs, IMAGES)[0] is tried[1]


def test_without_the_flag_there_are_none(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    merge = ["merge", *tiny_sources, "--dataset", "digits", "--population", 2, "--generations", 1, "--tournament", 2]
    found = run(
        *merge, "--fitness-split", "train[:50]", "--test-split", "test[:50]", "-o", tmp_path / "m", "--json"
    ).json
    assert found["controls"] == []
    assert "## Controls" not in (tmp_path / "m" / "README.md").read_text()
