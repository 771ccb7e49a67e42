"""The main job on real small data: what it writes, that it replays, resumes, and is honest about itself."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from hfmega.data.dataset import open_dataset
from hfmega.errors import HfmegaError
from hfmega.evaluation.checkpoint import evaluate_checkpoint
from hfmega.evaluation.network import Network
from hfmega.folder import PUBLISHED
from hfmega.hub import pull
from hfmega.merging.merge import merge
from hfmega.merging.replay import replay
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.report.lineage import Lineage
from hfmega.search.recipe import Recipe, source_alone, uniform_average
from hfmega.settings import PRESETS, GASettings, MergeSettings, SplitRequest
from hfmega.weights.checkpoint import sha256_of

SEARCH = replace(PRESETS["default"].search, population=5, generations=3)
FEW = SplitRequest(fitness="train[:200]", calibration="train[900:1000]", test="test[:200]")


def settings(sources: tuple[Path, ...], output: Path, **changes: Any) -> MergeSettings:
    """A small merge on the digits."""
    return replace(
        MergeSettings(tuple(map(str, sources)), output, dataset="digits", splits=FEW, search=SEARCH, seed=7), **changes
    )


def run(sources: tuple[Path, ...], output: Path, **changes: Any) -> Lineage:
    made = merge(settings(sources, output, **changes), Output(muted=True))
    assert made is not None
    return made


@pytest.fixture(scope="module")
def merged(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lineage]:
    folder = tmp_path_factory.mktemp("merge") / "out"
    return folder, run(tiny_sources, folder)


def test_the_folder_holds_weights_config_card_lineage_and_figures(merged: tuple[Path, Lineage]) -> None:
    files = {path.relative_to(merged[0]).as_posix() for path in merged[0].rglob("*") if path.is_file()}
    assert {"model.safetensors", "config.json", "README.md", "lineage.json", "figures/fitness.png"} <= files
    assert {"figures/tree.png", "figures/comparison.png", ".hfmega/places.json"} <= files
    assert not any(name.endswith(".tmp") or "progress" in name for name in files)


def test_a_merge_in_a_job_of_the_hub_says_where_it_ran(
    merged: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFMEGA_FLAVOR", "l4x4")
    made = run(tiny_sources, tmp_path / "out", method="average")
    assert made.environment["flavor"] == "l4x4"
    assert "in a job of the Hub on `l4x4`" in (tmp_path / "out" / "README.md").read_text()
    assert "flavor" not in merged[1].environment
    assert "in a job of the Hub" not in (merged[0] / "README.md").read_text()


def test_keys_dtypes_and_shapes_are_those_of_the_sources(
    merged: tuple[Path, Lineage], tiny_sources: tuple[Path, Path]
) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (merged[0], tiny_sources[0]))
    assert {k: (t.dtype, t.shape) for k, t in ours.items()} == {k: (t.dtype, t.shape) for k, t in theirs.items()}


def test_the_lineage_on_disk_is_the_one_returned(merged: tuple[Path, Lineage]) -> None:
    assert lineage.read(merged[0] / "lineage.json") == merged[1]


def test_evaluate_gives_the_accuracy_that_the_card_states(merged: tuple[Path, Lineage]) -> None:
    found = evaluate_checkpoint(pull.pull(str(merged[0])), open_dataset("digits"), "test[:200]")
    result = merged[1].result
    assert (found.correct, found.total) == (result.correct, result.total)
    assert (found.accuracy, found.loss) == (result.accuracy, result.loss)
    assert f"{result.accuracy:.4f}" in (merged[0] / "README.md").read_text()


def test_timm_loads_the_folder(merged: tuple[Path, Lineage]) -> None:
    model = timm.create_model(f"local-dir:{merged[0]}", pretrained=True)
    expected = load_file(merged[0] / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_replay_in_another_folder_finds_the_sources_by_hash(
    merged: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    for number, source in enumerate(tiny_sources):
        shutil.copytree(source, tmp_path / "elsewhere" / f"renamed{number}")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("lineage.json", "statistics.safetensors"):
        if (merged[0] / name).exists():
            shutil.copy(merged[0] / name, copy)
    with pytest.raises(HfmegaError, match="--sources DIR"):
        replay(str(copy))
    rebuilt = replay(str(copy), tmp_path / "elsewhere", tmp_path / "rebuilt")
    assert rebuilt.equal
    assert sha256_of(tmp_path / "rebuilt" / "model.safetensors") == merged[1].result.sha256


def test_replay_sees_a_recipe_that_was_changed(merged: tuple[Path, Lineage], tmp_path: Path) -> None:
    copy = shutil.copytree(merged[0], tmp_path / "copy")
    text = json.loads((copy / "lineage.json").read_text())
    text["recipe"]["coefficients"][0] += 1e-3
    (copy / "lineage.json").write_text(json.dumps(text))
    assert not replay(str(copy)).equal


def test_the_same_command_gives_the_same_bytes(
    merged: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    again = run(tiny_sources, tmp_path / "out")
    assert again.result.sha256 == merged[1].result.sha256
    assert again.nodes == merged[1].nodes


def test_an_interrupted_search_resumes_to_the_same_recipe_without_scoring_again(
    merged: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, score = [0], Network.look

    def interrupted(self: Network, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 9:  # in the third generation
            raise KeyboardInterrupt
        return score(self, *arguments, **named)

    monkeypatch.setattr(Network, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_sources, tmp_path / "out")
    assert not (tmp_path / "out" / "lineage.json").exists()
    work = tmp_path / "out" / ".hfmega"
    doing, told = json.loads((work / "phase.json").read_text()), yaml.safe_load((work / "settings.yaml").read_text())
    assert (doing["phase"], doing["generations"], doing["merges"]) == ("search", 3, 1)
    assert MergeSettings.of(*told.pop("sources"), output=tmp_path / "out", **told) == settings(
        tiny_sources, tmp_path / "out"
    )
    resumed = run(tiny_sources, tmp_path / "out")
    assert not (work / "phase.json").exists()
    assert resumed.recipe == merged[1].recipe
    assert resumed.nodes[0].history == merged[1].nodes[0].history
    assert resumed.result.sha256 == merged[1].result.sha256
    assert resumed.forward_passes == merged[1].forward_passes
    assert calls[0] < 9 + 5 + 3


def test_what_is_known_of_a_recipe_is_not_computed_again(
    tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the decision on BatchNorm to the references no images pass twice with the same weights, but for one check:
    the written folder is judged once more. What the search found is looked at again by the run-off, without folding.
    """
    judged, estimated = Counter[tuple[str, str, int]](), Counter[str]()
    load, said, moments = Network.load, Network.log_probabilities, Network.moments
    loaded = [""]

    def loading(self: Network, recipe: Recipe, statistics: Any = None) -> None:
        loaded[0] = f"{id(self)}: {recipe} {statistics is None}"
        load(self, recipe, statistics)

    def judging(self: Network, split: Any, parts: Any) -> Any:
        judged[loaded[0], split.fingerprint, parts[0].start] += 1
        return said(self, split, parts)

    def estimating(self: Network, recipe: Recipe, parts: Any, rough: bool = False) -> Any:
        if not rough and len(parts) == len(self.calibration_parts()):
            estimated[f"{recipe}"] += 1
        return moments(self, recipe, parts, rough)

    monkeypatch.setattr(Network, "load", loading)
    monkeypatch.setattr(Network, "log_probabilities", judging)
    monkeypatch.setattr(Network, "moments", estimating)
    made = run(tiny_sources, tmp_path / "out")
    assert set(judged.values()) == {1}
    plain = [uniform_average(2, calibrate=True), *(source_alone(k, 2, calibrate=True) for k in range(2))]
    assert [estimated[f"{recipe}"] for recipe in plain] == [1, 1, 1]
    assert max(estimated.values()) <= 2  # once by the search, once by the run-off
    assert len(made.references) == 7


def test_an_unfinished_folder_is_not_given_to_another_command(
    tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfmega.merging.tree.search", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tiny_sources, tmp_path / "out")
    with pytest.raises(HfmegaError, match="unfinished run of other settings"):
        run(tiny_sources, tmp_path / "out", seed=8)


def test_a_finished_folder_is_only_overwritten_on_request(
    merged: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(merged[0], tmp_path / "copy")
    with pytest.raises(HfmegaError, match="finished run"):
        run(tiny_sources, copy)
    assert run(tiny_sources, copy, overwrite=True, seed=8).settings["seed"] == 8


def test_the_paper_preset_has_no_run_off_and_no_calibration(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    preset = PRESETS["paper"]
    made = run(
        tiny_sources,
        tmp_path / "out",
        preset="paper",
        search=replace(preset.search, population=4, generations=2),
        calibrate=preset.calibrate,
        splits=replace(FEW, confirm_share=preset.confirm_share),
    )
    assert (made.result.chosen, made.candidates, made.recipe.calibrate) == ("search", (), False)
    assert "confirm" not in made.data.splits
    assert not (tmp_path / "out/statistics.safetensors").exists()
    assert replay(str(tmp_path / "out")).equal


def test_three_sources_are_merged_by_two_searches_and_three_coefficients(
    tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    third = shutil.copytree(tiny_sources[0], tmp_path / "third")
    state = {name: tensor * 1.001 if tensor.is_floating_point() else tensor
             for name, tensor in load_file(third / "model.safetensors").items()}  # fmt: skip
    from safetensors.torch import save_file

    save_file(state, third / "model.safetensors")
    made = run((*tiny_sources, third), tmp_path / "out")
    assert [(node.name, node.inputs) for node in made.nodes] == [
        ("merge-1", ("s1", "s2")),
        ("merge-2", ("third", "merge-1")),
    ]
    assert len(made.recipe.coefficients) == len(made.sources) == 3
    assert sum(made.recipe.coefficients) == pytest.approx(1.0)
    assert replay(str(tmp_path / "out")).equal


def test_another_seed_searches_and_reports_on_the_same_images(
    merged: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    other = run(tiny_sources, tmp_path / "out", seed=8)
    assert other.data == merged[1].data
    assert other.nodes[0].history != merged[1].nodes[0].history


def test_the_best_reference_is_the_strongest_single_model(merged: tuple[Path, Lineage]) -> None:
    made = merged[1]
    single = {r.name: r.accuracy for r in made.references if r.kind != "ensemble"}
    if made.result.chosen == "average":
        single = {name: accuracy for name, accuracy in single.items() if "average" not in name}
    assert made.result.gain == pytest.approx(made.result.accuracy - max(single.values()))
    assert {r.kind for r in made.references} == {"source", "calibrated source", "average", "ensemble"}


def test_a_leak_is_refused_and_on_request_said_everywhere(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    leaky = replace(FEW, fitness="test[:200]")
    with pytest.raises(HfmegaError, match="200 images are in both the fitness and the test split"):
        run(tiny_sources, tmp_path / "out", splits=leaky)
    made = run(tiny_sources, tmp_path / "out", splits=replace(leaky, allow_leak=True))
    assert made.leak is not None
    assert "the test set steered the search" in made.leak
    assert "the test set steered the search" in (tmp_path / "out/README.md").read_text()


def test_no_path_of_this_machine_is_published(merged: tuple[Path, Lineage], tiny_sources: tuple[Path, Path]) -> None:
    published = [path for pattern in PUBLISHED for path in merged[0].glob(pattern)]
    needles = [str(folder.parent).encode() for folder in (*tiny_sources, merged[0])] + [b"/tmp/", b"/home/"]
    assert all(needle not in path.read_bytes() for path in published for needle in needles)


def in_half_precision(sources: tuple[Path, Path], place: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    """Copies of two sources in another dtype."""
    halves = []
    for source in sources:
        halves.append(shutil.copytree(source, place / f"half-{source.name}"))
        state = load_file(source / "model.safetensors")
        half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        save_file(half, halves[-1] / "model.safetensors")
    return halves[0], halves[1]


def test_candidates_that_overflow_score_nothing_and_are_counted(
    tiny_sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mutations of 100,000 are more than float16 holds: all three children of the second generation fail."""
    halves = in_half_precision(tiny_sources, tmp_path, torch.float16)
    search = GASettings(population=4, generations=2, anchors=True, mutation_rate=1.0, mutation_sigma=1e5)
    made = merge(settings(halves, tmp_path / "out", search=search), Output())
    assert made is not None
    assert [generation.failed for generation in made.nodes[0].history] == [0, 3]
    assert not made.recipe.noise
    said, note = capsys.readouterr().err, "NaN or Inf in weights or answers, and scored zero: 3."
    assert "images/s, 3 failed (NaN or Inf)" in said
    assert note in said
    assert note in made.notes[-1]
    assert note in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_a_lineage_from_before_failures_were_counted_is_read(merged: tuple[Path, Lineage], tmp_path: Path) -> None:
    text = (merged[0] / "lineage.json").read_text(encoding="utf-8")
    old = re.sub(r',\s*"failed": 0', "", text)
    (tmp_path / "lineage.json").write_text(old, encoding="utf-8")
    assert '"failed"' in text
    assert '"failed"' not in old
    assert lineage.read(tmp_path / "lineage.json") == merged[1]


def test_half_precision_sources_are_saved_in_their_own_dtype(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    halves = in_half_precision(tiny_sources, tmp_path, torch.bfloat16)
    made = run(halves, tmp_path / "out", search=GASettings(population=4, generations=2, anchors=True))
    saved = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16, torch.int64}
    found = evaluate_checkpoint(pull.pull(str(tmp_path / "out")), open_dataset("digits"), "test[:200]")
    assert found.correct == made.result.correct
    assert replay(str(tmp_path / "out")).equal
