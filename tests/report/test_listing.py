"""`hfmega list`: one row for each merge, and a sentence for what is none. 1 second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import run
from support.places import ROOT

CARDS = ROOT / "cards"


@pytest.fixture
def below(tmp_path: Path) -> Path:
    """Two merges in folders of different depth, one of them dated, and a copy that is hidden."""
    shutil.copytree(CARDS / "resnet8-distilled", tmp_path / "first")
    shutil.copytree(CARDS / "reproduction" / "cards" / "table1-resnet8_cifar-honest", tmp_path / "deep" / "er")
    shutil.copytree(CARDS / "resnet8-distilled", tmp_path / ".cache")
    path = tmp_path / "deep" / "er" / "lineage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "date": "2026-11-25T22:00:00+00:00"}))
    return tmp_path


def test_each_merge_is_a_row(below: Path) -> None:
    done = run("list", below, "--json")
    one, other = sorted(done.json["merges"], key=lambda merge: merge["folder"], reverse=True)
    made = json.loads((below / "first" / "lineage.json").read_text())
    assert (one["folder"], one["method"], one["verdict"]) == ("first", "mega", "better")
    assert one["sources"] == [source["name"] for source in made["sources"]]
    assert (one["accuracy"], one["gain"]) == (made["result"]["accuracy"], made["result"]["gain"])
    assert (other["folder"], other["date"]) == ("deep/er", "2026-11-25T22:00:00+00:00")
    assert f"{100 * one['accuracy']:.1f} %" in done.stderr
    assert "2026-11-25" in done.stderr
    assert ".cache" not in done.stdout + done.stderr


def test_a_lineage_that_cannot_be_read_is_said_and_left_out(below: Path) -> None:
    (below / "first" / "lineage.json").write_text("{}")
    done = run("list", below)
    assert done.stdout == "1 merge\n"
    assert "left out: " in done.stderr
    assert run("list", below / "deep" / "er" / "figures").stdout == "0 merges\n"
    assert run("list", below / "nowhere").complaint.endswith("nowhere is not a folder.")
