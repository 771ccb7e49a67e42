"""What `inspect` says of other merges is what cards/quality holds. Well under a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfmega.report.expectations import EXPECTED, Case, Expectation, rows, situation

QUALITY = Path(__file__).resolve().parents[2] / "cards" / "quality"


def measured() -> dict[tuple[str, str], dict[str, float]]:
    """Family and row to its numbers."""
    found = json.loads((QUALITY / "quality.json").read_text(encoding="utf-8"))
    return {(row["family"], row["method"]): row for row in found}


@pytest.mark.parametrize("where", EXPECTED)
def test_every_figure_is_a_row_of_the_card(where: str) -> None:
    known = measured()
    cases = [case for one in EXPECTED[where] for case in one.cases]  # type: ignore[index]
    assert cases or where == "identical"
    for case in cases:
        row = known[case.family, case.row]
        for said, found in ((case.gain, row["gain"]), (case.low, row["low"]), (case.high, row["high"])):
            assert said == pytest.approx(100 * found, abs=0.051), case


def test_the_table_names_the_command_and_the_points_with_their_interval() -> None:
    one = Expectation("unlabelled images", "--distill", (Case("four", "mega", 1.74, 1.2, 2.22),))
    assert rows([one])[1] == [["unlabelled images", "hfmega merge ... --distill", "+1.7 (1.2 to 2.2)", "four"]]


def test_related_sources_whose_average_is_behind_are_fine_tunes_of_one_start() -> None:
    assert situation("shared trunk", average_gains=True) == "one trunk"
    assert situation("shared trunk", average_gains=False) == "one start"
    assert situation("independent", average_gains=True) == "independent"
    assert situation("identical", average_gains=False) == "identical"
