"""`hfmega verify` passes an untouched merge and finds each kind of tampering."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run_all
from support.hub import Hub

from hfmega.errors import HfmegaError
from hfmega.hub import pull
from hfmega.merging import verify
from hfmega.merging.merge import merge
from hfmega.models.library import read
from hfmega.output import Output
from hfmega.report import card, lineage, page, thumbnails
from hfmega.settings import GASettings, MergeSettings, SplitRequest

TOKEN = "hf_ann"


@pytest.fixture(scope="module")
def merged(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated merge of two local sources."""
    settings = MergeSettings(
        tuple(map(str, tiny_sources)),
        tmp_path_factory.mktemp("merge") / "out",
        dataset="digits",
        splits=SplitRequest(fitness="train[:200]"),
        search=GASettings(population=4, generations=2, parents=2, anchors=True, mutation_sigma=0.01),
        calibrate=True,
    )
    merge(settings, Output(muted=True))
    return settings.output


@pytest.fixture
def folder(merged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(merged, tmp_path / "out")


def failed(folder: Path) -> dict[str, str]:
    """Name to detail of the checks that do not hold."""
    checks = list(verify.verify(str(folder), None, None))
    return {check.name: check.detail for check in checks if not check.ok}


def edit(folder: Path, change: Callable[[Any], None]) -> None:
    """Change a lineage, and write the card that goes with it."""
    content = json.loads((folder / "lineage.json").read_text())
    change(content)
    (folder / "lineage.json").write_text(json.dumps(content))
    spec = read(folder / "config.json", "here")
    made = lineage.read(folder / "lineage.json")
    (folder / "README.md").write_text(card.text(made, spec))
    page.write(made, folder)


def test_an_untouched_merge_is_verified(folder: Path) -> None:
    checks = list(verify.verify(str(folder), None, None))
    names = ["weights", "numbers", "card", "sources", "config", "replay", "images", "statistics", "evaluation"]
    assert [(check.name, check.ok) for check in checks] == [(name, True) for name in names], checks


def test_an_edited_number_in_the_card_is_named_with_its_line(folder: Path) -> None:
    path = folder / "README.md"
    accuracy = f"{lineage.read(folder / 'lineage.json').result.accuracy:.4f}"
    path.write_text(path.read_text().replace(accuracy, "0.9999", 1))
    found = failed(folder)
    assert list(found) == ["card"]
    assert "README.md, line " in found["card"]
    assert "0.9999" in found["card"]


def test_a_touched_weight_is_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["layer2.0.conv1.weight"][0, 0, 0, 0] += 1e-6
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    found = failed(folder)
    assert list(found) == ["weights", "replay"]
    assert "the tensor layer2.0.conv1.weight is not what the recipe makes" in found["replay"]


def test_weights_and_lineage_touched_together_are_found_by_the_replay(folder: Path) -> None:
    from hfmega.weights.checkpoint import sha256_of

    state = load_file(folder / "model.safetensors")
    state["fc.bias"] += 0.01
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    sha256 = sha256_of(folder / "model.safetensors")
    edit(folder, lambda made: made["result"].update(sha256=sha256))
    assert "the tensor fc.bias" in failed(folder)["replay"]


def test_a_better_accuracy_in_card_and_lineage_is_found_by_the_evaluation(folder: Path) -> None:
    def better(made: Any) -> None:
        from hfmega.evaluation.answers import wilson

        result = made["result"]
        result["correct"] += 5
        gained = result["correct"] / result["total"]
        result["gain"] += gained - result["accuracy"]
        result["accuracy"], result["interval"] = gained, wilson(result["correct"], result["total"])

    edit(folder, better)
    found = failed(folder)
    assert list(found) == ["evaluation"]
    assert "the merged model: the lineage says" in found["evaluation"]


def test_a_reference_that_was_made_worse_is_found(folder: Path) -> None:
    def worse(made: Any) -> None:
        name = made["result"]["best_reference"]
        (reference,) = [r for r in made["references"] if r["name"] == name]
        reference["accuracy"] -= 0.05
        made["result"]["gain"] += 0.05

    edit(folder, worse)
    found = failed(folder)
    assert list(found) == ["evaluation"]


@pytest.mark.parametrize(("off", "near"), [(0.008, True), (0.02, False)])
def test_a_mean_is_compared_on_the_spread_of_its_channel(off: float, near: bool) -> None:
    """Means of a projection are near zero: what another number of threads changes in them is large only beside them."""
    found = {"bn.running_mean": torch.tensor([0.0, 0.001]), "bn.running_var": torch.tensor([0.04, 4.0])}
    recorded = found["bn.running_mean"] + off * found["bn.running_var"].sqrt()
    assert verify.close(recorded, found["bn.running_mean"], verify.scale_of("bn.running_mean", found)) is near


def test_statistics_that_no_image_gave_are_named(folder: Path) -> None:
    state, statistics = (load_file(folder / f"{name}.safetensors") for name in ("model", "statistics"))
    for tensors in (state, statistics):
        tensors["bn1.running_mean"] += 1.0
        save_file(tensors, folder / f"{'model' if tensors is state else 'statistics'}.safetensors")
    assert "bn1.running_mean is not what the calibration images give" in failed(folder)["statistics"]


def test_another_recipe_is_found(folder: Path) -> None:
    def other(made: Any) -> None:
        made["recipe"]["coefficients"] = [0.25, 0.75]

    edit(folder, other)
    assert "replay" in failed(folder)


def test_a_source_that_is_another_is_named(folder: Path, tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(tiny_sources[0], tmp_path / "s1")
    state = load_file(other / "model.safetensors")
    state["fc.bias"] += 1
    save_file(state, other / "model.safetensors")
    places = json.loads((folder / ".hfmega" / "places.json").read_text())
    places = {sha: str(other) if path.endswith("s1") else path for sha, path in places.items()}
    (folder / ".hfmega" / "places.json").write_text(json.dumps(places))
    assert "the local source s1" in failed(folder)["sources"]


@pytest.fixture
def hub(tmp_path: Path, tiny_sources: tuple[Path, Path]) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ann", TOKEN)
        hub.add_models("ann", tiny_sources)
        yield hub


def test_a_merge_on_the_hub_is_verified_until_a_source_is_force_pushed(
    hub: Hub, tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    environment = hub.environment(tmp_path / "home", TOKEN)
    few = ["--dataset", "digits", "--fitness-split", "train[:200]", "--population", 4, "--generations", 1, "--json"]
    made, good = run_all(
        [
            ["merge", "ann/s1", "ann/s2", *few, "-o", tmp_path / "out", "--push-to-hub", "ann/merged"],
            ["verify", "ann/merged", "--json"],
        ],
        tmp_path,
        environment,
    )
    assert made.code == 0, made.stderr
    assert good.json["verified"], good.json
    shutil.rmtree(tmp_path / "hub" / "models" / "ann" / "s2")  # its history is another now
    hub.create("ann/s2")
    hub.commit_folder("ann/s2", tiny_sources[0])
    (bad,) = run_all([["verify", "ann/merged", "--json"]], tmp_path, hub.environment(tmp_path / "other", TOKEN))
    assert bad.code == 1
    report = json.loads(bad.stdout)
    assert not report["verified"]
    (check,) = [check for check in report["checks"] if not check["ok"]]
    assert check["name"] == "sources"
    assert "ann/s2 has no revision" in check["detail"]


def test_a_verdict_that_the_numbers_do_not_bear_is_named(folder: Path) -> None:
    made = lineage.read(folder / "lineage.json")
    other = "better" if made.result.verdict != "better" else "worse"
    edit(folder, lambda content: content["result"].update(verdict=other))
    assert "result.verdict" in failed(folder)["numbers"]


def test_a_class_that_was_made_better_is_found(folder: Path) -> None:
    def better(made: Any) -> None:
        first, second = made["result"]["per_class"][:2]
        first["accuracy"] += 5 / first["images"]  # and the sum stays what it was
        second["accuracy"] -= 5 / second["images"]

    edit(folder, better)
    assert "the class 0" in failed(folder)["evaluation"]


def test_an_evaluation_result_that_was_put_beside_the_card_is_named(folder: Path) -> None:
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "hfmega.yaml").write_text("- dataset: {id: a/b, task_id: default}\n  value: 0.99\n")
    assert ".eval_results/hfmega.yaml does not say" in failed(folder)["card"]


def test_a_number_in_the_report_is_named_with_its_line(folder: Path) -> None:
    path = folder / "report.html"
    accuracy = f"{100 * lineage.read(folder / 'lineage.json').result.accuracy:.1f} %"
    assert accuracy in path.read_text()
    path.write_text(path.read_text().replace(accuracy, "99.9 %", 1))
    found = failed(folder)
    assert list(found) == ["card"]
    assert "report.html, line " in found["card"]


def test_an_image_in_the_report_is_held_against_those_that_the_merge_kept(folder: Path) -> None:
    image = thumbnails.thumbnail(torch.zeros(3, 8, 8, dtype=torch.uint8), "RGB")
    thumbnails.write([thumbnails.Disagreement("1", "1", "7", image)], folder)
    made = lineage.read(folder / "lineage.json")
    path = page.write(made, folder)
    merge = verify.Merge(pull.pull(str(folder)), folder, made)
    verify.same_card(merge)
    text = path.read_text()
    path.write_text(text.replace("base64,iVBOR", "base64,AAAAA", 1))
    with pytest.raises(HfmegaError, match=r"report\.html does not say"):
        verify.same_card(merge)
    path.write_text(page.without_images(text))  # left out: as the user likes
    verify.same_card(merge)


def test_disagreements_that_make_another_gain_are_found(folder: Path) -> None:
    edit(folder, lambda made: made["result"].update(disagreements=[400, 1]))
    assert "result.disagreements do not make result.gain" in failed(folder)["evaluation"]


def test_a_lineage_from_before_the_second_card_is_verified_by_its_numbers(folder: Path) -> None:
    path = folder / "lineage.json"
    content = json.loads(path.read_text())
    for name in ("loss_gain", "loss_gain_interval", "over_average", "is_source", "per_class", "disagreements"):
        del content["result"][name]
    for name in ("parameters", "repo_id", "card", "date"):
        del content[name]
    content["result"]["p_value"] = content["result"]["p_value"] or 1.0
    path.write_text(json.dumps(content))
    assert failed(folder) == {}
    accuracy = f"{lineage.read(path).result.accuracy:.4f}"
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace(accuracy, "0.9999"))
    assert "README.md lacks the line" in failed(folder)["card"]
