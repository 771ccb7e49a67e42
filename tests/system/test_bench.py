"""`make bench` in small: the rows of its table are the same search, and count what they say they count."""

from pathlib import Path
from typing import Any

import pytest
from support.places import ROOT

from hfmega.output import Output

pytestmark = pytest.mark.system

POPULATION, GENERATIONS = 4, 2

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_sources: tuple[Path, Path]) -> tuple[Rows, Path]:
    """Way of searching to what was measured (in this process, to save time), and the folder of the results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import measure
        import speed

        folder, found = tmp_path_factory.mktemp("bench"), Rows()

        def here(asked: dict[str, Any]) -> dict[str, Any]:
            found[asked["way"]] = measure.measure(measure.Ask(**asked))
            return found[asked["way"]]

        numbers = f"--population {POPULATION} --generations {GENERATIONS} --images 150 --threads 1".split()
        asked = ["--pair", *map(str, tiny_sources), "--dataset", "digits", "-o", str(folder), *numbers]
        options = speed.parser().parse_args([*asked, "--only", "rows", "--blocks", "calibrate"])
        speed.run(options, Output(muted=True), here)
        again = speed.parser().parse_args([*asked, "--only", "rows", "--blocks", "calibrate"])
        speed.run(again, Output(muted=True), lambda _: pytest.fail("what is measured was measured again"))
    return found, folder / "results"


def test_every_row_scores_as_many_populations_and_has_accuracies(bench: tuple[Rows, Path]) -> None:
    rows, _ = bench
    assert list(rows) == ["default", "exact", "plain", "torchga", "bare"]
    assert {row["generations"] for row in rows.values()} == {GENERATIONS}
    assert all(row["seconds"] > 0 and row["peak_mb"] > 0 for row in rows.values())
    assert all(0.05 < row["fitness"] <= 1 and 0.05 < row["test"] <= 1 for row in rows.values())


def test_exact_scores_and_both_baselines_pass_the_same_number_of_images(bench: tuple[Rows, Path]) -> None:
    """All score the first population, and of later ones all but the elite."""
    rows, _ = bench
    individuals = POPULATION + (GENERATIONS - 1) * (POPULATION - 1)
    assert [rows[way]["individuals"] for way in ("exact", "plain", "torchga", "bare")] == [individuals] * 4
    assert len({rows[way]["images"] for way in ("exact", "plain", "torchga", "bare")}) == 1
    assert rows["default"]["images"] <= rows["exact"]["images"]


def test_all_ways_start_from_one_population(bench: tuple[Rows, Path]) -> None:
    """Its best is as good whoever scores it, and no search ends below it."""
    rows, _ = bench
    assert min(rows[way]["fitness"] for way in ("exact", "plain", "torchga")) >= rows["bare"]["fitness"]


def test_the_page_names_sources_and_no_place_of_this_machine(bench: tuple[Rows, Path]) -> None:
    _, results = bench
    page, numbers = ((results / name).read_text() for name in ("README.md", "results.json"))
    assert "s1 and s2 on digits" in page
    assert all(f"\n| {way} | " in page for way in ("hfmega", "hfmega --exact", "plain PyTorch", "PyGAD (torchga)"))
    assert str(results.parent.parent) not in page + numbers


def test_the_projection_cuts_whole_batches_and_never_does_better_than_one_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    projection = __import__("projection")
    costs = projection.Costs(0.1, 0.002, 0.001, 0.004, 0.003, 0.0, gathering=0.5, calibration_batch=50, batch=100)
    phases = projection.raced(11, 900, 0, costs)
    assert [(phase.individuals, phase.images) for phase in phases] == [(11, 300), (3, 900)]
    alone, three, many = (projection.generation(phases, costs, workers) for workers in (1, 3, 64))
    assert alone == pytest.approx(11 * (0.1 + 0.9) + 3 * (0.1 + 0.9))
    assert three == pytest.approx((5 * 0.1 + 11 * 0.3) + (0.1 + 9 * 0.1) + 2 * 0.5)
    assert many == pytest.approx((0.1 + 0.3) + (0.1 + 0.1) + 2 * 0.5)
    calibrated = projection.raced(11, 900, 90, costs)
    assert [(phase.individuals, phase.images, phase.calibrates) for phase in calibrated] == [
        *((11, 45, True), (11, 300, False), (3, 90, True), (3, 900, False)),
    ]
    assert projection.calibrating(calibrated, costs, 64) == pytest.approx((0.1 + 0.18) + (0.1 + 0.09) + 2 * 0.5)


def test_a_verdict_is_measured_from_the_command_to_the_card(tmp_path: Path, tiny_sources: tuple[Path, Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import verdict

        flags = "--fitness-split train[:300] --test-split test --population 4 --generations 2"
        asked = ["--pair", *map(str, tiny_sources), "--dataset", "digits", "--flags", flags, "-o", str(tmp_path)]
        page = verdict.run(verdict.parser().parse_args(asked), Output(muted=True)).read_text()
        again = verdict.parser().parse_args(asked)
        patch.setattr(verdict, "measured", lambda *_, **__: pytest.fail("what is measured was measured again"))
        verdict.run(again, Output(muted=True))
    assert page.count("| forward passes | ") == 1
    counts = next(line for line in page.splitlines() if line.startswith("| all | "))
    first, following = counts.removeprefix("| all | ").removesuffix(" |").split(" | ")
    assert first == following  # decoded images of an earlier run change nothing


def test_what_grows_with_sources_and_sets_is_measured(tmp_path: Path, tiny_sources: tuple[Path, Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import scale

        patch.setattr(scale, "FAMILIES", {"ResNet-8": (["s1", "s2"], (2, 3))})
        patch.setattr(scale, "SOME", {"ResNet-8": (200, 60, 60)})
        patch.setattr(scale, "LARGE", {"ResNet-50": "resnet18"})
        asked = ["--sources", str(tiny_sources[0].parent), "--dataset", "digits", "--only", "sources,sets"]
        options = scale.parser().parse_args([*asked, "--sets", "20,40", "-o", str(tmp_path)])
        page = scale.run(options, Output(muted=True)).read_text()
    found = scale.Kept(tmp_path / "results" / "scale.json").found
    assert len(found) == 2 + 2 + 2  # flat with 2 and 3, tree and soup with 3; both sets
    assert "| the same images again | yes | yes |" in page
    assert "| soup: new evaluations | 0 | " in page
    assert str(tmp_path) not in page + (tmp_path / "results" / "scale.json").read_text()
