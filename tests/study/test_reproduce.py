"""The paper's tables and figure as runs: what is trained and merged, by which protocol, and what the tables say."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import timm

from hfmega.data.dataset import digits, open_dataset
from hfmega.errors import HfmegaError
from hfmega.evaluation.checkpoint import evaluate_checkpoint
from hfmega.hub import pull
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.study import paper, reproduce, results
from hfmega.study.reproduce import ReproduceSettings
from hfmega.study.results import Run

QUIET = Output(muted=True)


def settings(output: Path, **changes: Any) -> ReproduceSettings:
    """The smallest study: digits, one epoch, two generations of four."""
    small = ReproduceSettings(
        "table2",
        output,
        networks=("resnet8_cifar",),
        seeds=(1, 2, 3),
        dataset="digits",
        train_split="train[900:]",
        epochs=1,
        searches=2,
        population=4,
        generations=2,
        fitness_images=100,
        fine_tune_epochs=1,
    )
    return replace(small, **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReproduceSettings, list[Run]]:
    asked = settings(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "PIXELS", 8)  # the paper's 32 are of the slower tier
        runs = reproduce.reproduce(asked, QUIET)
    results.write("table2", runs, asked.output)
    return asked, runs


def test_there_is_a_run_for_each_protocol_and_a_merge_for_each_search(
    study: tuple[ReproduceSettings, list[Run]],
) -> None:
    assert [run.protocol for run in study[1]] == ["honest", "paper", "author"]
    assert [[made.settings["seed"] for made in run.merges] for run in study[1]] == [[0, 1]] * 3
    assert all(len(made.nodes) == 2 for run in study[1] for made in run.merges)


def test_the_searches_of_a_row_see_the_same_images(study: tuple[ReproduceSettings, list[Run]]) -> None:
    for run in study[1]:
        one, other = run.merges
        assert one.data == other.data


def test_only_the_author_steers_by_test_images_and_it_is_said(study: tuple[ReproduceSettings, list[Run]]) -> None:
    honest, printed, author = study[1]
    for run in (honest, printed):
        assert all(made.leak is None for made in run.merges)
        assert {split.slice.split("[")[0] for p, split in run.merges[0].data.splits.items() if p != "test"} == {"train"}
    assert all("the test set steered the search" in (made.leak or "") for made in author.merges)
    assert results.row(author, "table2").leaks == "test images steered the search"
    assert results.row(honest, "table2").leaks == ""


def test_the_protocols_differ_as_the_paper_and_its_program_do(study: tuple[ReproduceSettings, list[Run]]) -> None:
    honest, printed, author = (run.merges[0].settings for run in study[1])
    assert (honest["preset"], printed["preset"], author["preset"]) == ("default", "paper", "author")
    assert (printed["mutation_unit"], author["mutation_unit"]) == ("element", "tensor")
    assert (printed["confirm_share"], author["confirm_share"]) == (0.0, 0.0)
    assert study[1][0].merges[0].candidates != ()


def test_only_the_author_is_fine_tuned_and_the_best_source_beside_it(
    study: tuple[ReproduceSettings, list[Run]],
) -> None:
    asked, (honest, printed, author) = study
    assert (honest.fine_tuned, printed.fine_tuned) == ((), ())
    tuned = asked.output / "fine-tuned" / "resnet8_cifar"
    digits = open_dataset("digits")
    found = {name: evaluate_checkpoint(pull.pull(str(tuned / name)), digits, "test").accuracy
             for name in ("source", "search-0", "search-1")}  # fmt: skip
    assert author.fine_tuned == (found["search-0"], found["search-1"])
    assert author.source_fine_tuned == found["source"]
    record = pull.pull(str(tuned / "source")).record
    assert record is not None
    best = max(author.merges[0].sources, key=lambda entry: entry.accuracy)
    assert (record["init"], record["train_split"], record["batch_size"]) == (best.sha256, "train", 128)
    merge = pull.pull(str(tuned / "search-1")).record
    assert merge is not None
    assert merge["init"] == author.merges[1].result.sha256


def test_a_row_is_what_its_lineages_say(study: tuple[ReproduceSettings, list[Run]]) -> None:
    for run in study[1]:
        row, accuracies = results.row(run, "table2"), [made.result.accuracy for made in run.merges]
        assert row.merged == pytest.approx(fmean(accuracies))
        assert row.deviation == pytest.approx(stdev(accuracies))
        assert row.low < row.merged < row.high
        assert row.best_source == max(entry.accuracy for entry in run.merges[0].sources)
        calibrated = [entry.calibrated_accuracy or 0.0 for entry in run.merges[0].sources]
        assert row.best_source_calibrated == max(calibrated)
        assert (row.test_images, row.fitness_images, row.seeds, row.epochs) == (500, 100, (1, 2, 3), 1)


def test_the_uniform_average_of_a_row_is_never_the_soup(study: tuple[ReproduceSettings, list[Run]]) -> None:
    run = study[1][0]
    first = run.merges[0]
    averages = [one for one in first.references if one.name.startswith("uniform average")]
    soup = replace(averages[0], name="greedy soup", accuracy=1.0)
    souped = replace(run, merges=(replace(first, references=(*first.references, soup)), *run.merges[1:]))
    assert results.row(souped, "table2").uniform_average == max(one.accuracy for one in averages)


def test_the_three_files_of_a_table_agree(study: tuple[ReproduceSettings, list[Run]]) -> None:
    folder = study[0].output / "results"
    rows = json.loads((folder / "table2.json").read_text())
    with (folder / "table2.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    page = (folder / "table2.md").read_text()
    assert [row["protocol"] for row in rows] == [line["protocol"] for line in lines] == ["honest", "paper", "author"]
    for row, line in zip(rows, lines, strict=True):
        assert float(line["merged"]) == row["merged"]
        assert f"{row['merged']:.4f} ± {row['deviation']:.4f}" in page
        assert f"{row['low']:.4f} to {row['high']:.4f}" in page
    for protocol in ("honest", "paper", "author"):
        card = folder / "cards" / f"table2-resnet8_cifar-{protocol}"
        assert (card / "README.md").is_file()
        assert (card / "figures/tree.png").is_file()
        assert not (card / "model.safetensors").exists()
        assert lineage.read(card / "lineage.json") == study[1][["honest", "paper", "author"].index(protocol)].merges[0]


def test_a_second_call_does_nothing_again_and_writes_the_same_bytes(
    study: tuple[ReproduceSettings, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("this was done before")

    for place in ("study.reproduce.train", "merging.merge.prepare", "merging.merge.carry_out"):
        monkeypatch.setattr(f"hfmega.{place}", never)
    page = study[0].output / "results" / "table2.md"
    before = page.read_bytes()
    assert results.write("table2", reproduce.reproduce(study[0], QUIET), study[0].output) == page
    assert page.read_bytes() == before


@pytest.mark.parametrize("changes", [{"epochs": 2}, {"population": 5}, {"fitness_images": 99}])
def test_a_folder_of_other_settings_is_refused(
    study: tuple[ReproduceSettings, list[Run]], changes: dict[str, Any]
) -> None:
    with pytest.raises(HfmegaError, match="holds a run of other settings"):
        reproduce.reproduce(replace(study[0], **changes), QUIET)


def test_trained_sources_are_taken_and_only_missing_ones_trained(
    study: tuple[ReproduceSettings, list[Run]], tmp_path: Path
) -> None:
    asked = settings(tmp_path, seeds=(3, 4), sources=(str(study[0].output / "sources"),))
    assert reproduce.source(asked, "resnet8_cifar", 3, QUIET) == str(study[0].output / "sources" / "resnet8-s3")
    assert not (tmp_path / "sources").exists()
    assert reproduce.source(asked, "resnet8_cifar", 4, QUIET) == str(tmp_path / "sources" / "resnet8-s4")
    assert (tmp_path / "sources/resnet8-s4/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("prefix", "repo_id"), [("ann", "ann/resnet56-s44"), ("ann/", "ann/resnet56-s44"), ("ann/x-", "ann/x-resnet56-s44")]
)
def test_sources_may_be_a_prefix_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, repo_id: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("hfmega.study.reproduce.exists", lambda name: bool(asked.append(name)) or name == repo_id)
    assert reproduce.given_source(settings(tmp_path, sources=(prefix,)), "resnet56-s44") == repo_id
    assert reproduce.given_source(settings(tmp_path, sources=(prefix,)), "resnet56-s45") is None
    assert asked[0] == repo_id


def test_the_figure_shows_the_searches_of_table_1_without_searching_again(
    study: tuple[ReproduceSettings, list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = settings(
        tmp_path, table="table1", seeds=(1, 2), protocols=("paper",), sources=(str(study[0].output / "sources"),)
    )
    monkeypatch.setattr(paper, "PIXELS", 8)
    reproduce.reproduce(small, QUIET)
    monkeypatch.setattr("hfmega.merging.merge.carry_out", lambda *_: pytest.fail("searched again"))
    runs = reproduce.reproduce(replace(small, table="figure2"), QUIET)
    results.write("figure2", runs, tmp_path)
    (line,) = json.loads((tmp_path / "results/figure2.json").read_text())
    histories = [made.nodes[-1].history for made in runs[0].merges]
    assert line["last"] == pytest.approx(fmean(history[-1].best for history in histories))
    assert (line["generations"], line["searches"]) == (2, 2)
    assert (tmp_path / "results/figure2.png").read_bytes()[:4] == b"\x89PNG"
    assert "figure2.png" in (tmp_path / "results/figure2.md").read_text()


def test_the_paper_s_numbers_stand_beside_ours(study: tuple[ReproduceSettings, list[Run]]) -> None:
    run = replace(study[1][1], network="resnet56_cifar")
    assert (results.row(run, "table1").paper_best_source, results.row(run, "table1").paper_merged) == (0.809, 0.822)
    assert (results.row(run, "table2").paper_best_source, results.row(run, "table2").paper_merged) == (0.806, 0.822)
    assert (results.curve(run).paper_first, results.curve(run).paper_last) == (0.8042, 0.8224)


def test_the_tables_of_the_paper_are_accepted_by_name() -> None:
    table1 = {"resnet56_cifar", "resnet110_cifar", "resnet152_cifar", "xception_cifar", "densenet121", "densenet169"}
    assert set(ReproduceSettings("table1", Path("x")).architectures) == table1
    assert set(ReproduceSettings("table2", Path("x")).architectures) == table1 & set(paper.TABLE2)
    assert ReproduceSettings("table1", Path("x"), networks=("xception",)).architectures == ("xception_cifar",)
    assert ReproduceSettings("table2", Path("x")).source_seeds == (44, 45, 46, 47, 48, 49, 50, 51)
    import hfmega.models  # noqa: F401  registers the networks

    assert all(timm.is_model(name) for name in table1)
    assert all(len(printed.sources) == 8 for printed in paper.TABLE2.values())


def test_one_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match="one source cannot be merged"):
        settings(tmp_path, seeds=(1,))


def test_an_estimate_is_images_over_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "training_rate", lambda *_: 10.0)
    monkeypatch.setattr(reproduce, "evaluation_rate", lambda *_: 100.0)
    asked = settings(tmp_path, seeds=(1, 2), searches=3, protocols=("author",))
    (hours,) = reproduce.estimate(asked)
    assert hours.training == pytest.approx(2 * 1 * 397 / 10)
    assert hours.fine_tuning == pytest.approx((3 + 1) * 1 * 1297 / 10)
    evaluations = 4 + 3  # the elite is not scored again
    shown = (2 * 2 + 1 + 1) * 500 + (2 + 1) * 397
    assert hours.merging == pytest.approx((3 * evaluations * 100 + shown) / 100)
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 160 digits to train and to hold out, and 60 to test."""
    folder = tmp_path_factory.mktemp("few-digits")
    for split, count in (("train", 160), ("test", 60)):
        digits()[split].select(range(count)).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.system
@pytest.mark.parametrize("network", ["resnet56_cifar", "resnet110_cifar", "resnet152_cifar", "xception", "densenet121",
                                     "densenet169"])  # fmt: skip
def test_every_network_of_the_paper_trains_and_merges(network: str, few_digits: str, tmp_path: Path) -> None:
    asked = settings(
        tmp_path,
        dataset=few_digits,
        table="table1",
        networks=(network,),
        seeds=(56, 57),
        protocols=("honest",),
        train_split="train[80:]",
        searches=1,
        population=3,
        fitness_images=40,
    )
    (run,) = reproduce.reproduce(asked, QUIET)
    results.write("table1", [run], tmp_path)
    (row,) = json.loads((tmp_path / "results/table1.json").read_text())
    printed = paper.TABLE1[paper.ALIASES.get(network, network)]
    assert (row["paper_best_source"], row["paper_merged"]) == (max(printed.sources), printed.merged)
    assert (row["epochs"], row["seeds"], row["test_images"], row["fitness_images"]) == (1, [56, 57], 60, 40)
    config = pull.pull(str(run.folders[0])).spec.config
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert len(run.merges[0].nodes[0].history) == 2
