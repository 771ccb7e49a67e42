"""Settings, said once: methods, presets, fields, and what follows from them. No torch, half a second."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from hfmega.errors import HfmegaError, HubError, SettingsError, SourceError
from hfmega.settings import (
    AUTHOR,
    DEFAULT,
    METHODS,
    OFFERED,
    PAPER,
    PRESETS,
    SETTINGS,
    SOME_USE,
    SWITCHES,
    GASettings,
    Group,
    MergeSettings,
    Method,
    SplitRequest,
    configured,
    recorded,
    standard,
)

CARDS = Path(__file__).parents[1] / "cards"
KEYS = [
    "preset", "method", "seed", "tree", "order", "align", "population", "generations", "patience", "parents",
    "tournament", "mutation_rate", "mutation_sigma", "mutation_unit", "anchors", "redraw_parents", "break_ties",
    "fitness", "genome",
    "calibrate", "exact", "precision", "control", "confirm_share", "fitness_split", "fitness_images",
    "calibration_split", "test_split", "allow_leak", "image_column", "label_column", "labels_by_number",
]  # fmt: skip


def settings(**named: Any) -> MergeSettings:
    return MergeSettings.of("a", "b", **named)


def refusal(**named: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        settings(**named)
    return str(refused.value)


def test_every_method_has_facts() -> None:
    assert tuple(METHODS) == get_args(Method)
    assert [name for name, facts in METHODS.items() if facts.searches] == ["mega", "cmaes", "random", "learned"]
    assert [name for name, facts in METHODS.items() if facts.genomes] == ["mega", "learned"]
    assert [name for name, facts in METHODS.items() if facts.images] == ["fisher", "regmean"]
    assert [name for name, facts in METHODS.items() if facts.sources] == ["slerp"]
    assert {name for name, facts in METHODS.items() if "base" in facts.flags} == {
        name for name, facts in METHODS.items() if facts.base != "no"
    }
    assert OFFERED.keys() >= SOME_USE


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_its_constants_to_everyone(preset: str) -> None:
    known, found = PRESETS[preset], settings(preset=preset)
    assert found.search == known.search == {"default": DEFAULT, "paper": PAPER, "author": AUTHOR}[preset]
    assert (found.calibrate, found.exact, found.splits.confirm_share) == (
        known.calibrate,
        known.exact,
        known.confirm_share,
    )
    named = settings(preset=preset, population=9, calibrate=True, confirm_share=0.3)
    assert named.search == replace(known.search, population=9)
    assert (named.calibrate, named.exact, named.splits.confirm_share) == (True, known.exact, 0.3)


def test_a_preset_with_the_constants_of_another_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^the constants are not those of the preset paper: use MergeSettings\.of"):
        MergeSettings(("a", "b"), Path("out"), preset="paper")


def test_named_values_reach_their_fields() -> None:
    found = settings(
        method="learned", genome="channel", fitness_split="train[:10]+train[20:30%]", fitness_images=np.int64(5),
        dataset=Path("photos"), scale=None, bf16=True, fp16=False, seed=3, output="out", order="given",
    )  # fmt: skip
    assert (found.method, found.search.genome, found.splits.fitness) == (
        "learned", "channel", "train[:10]+train[20:30%]",
    )  # fmt: skip
    assert (found.dataset, found.precision, found.output) == ("photos", "bfloat16", Path("out"))
    assert (type(found.splits.fitness_images), found.scale, found.seed) == (int, 1.0, 3)
    paths = MergeSettings.of(Path("x/one"), "ann/two@main")
    assert (paths.sources, paths.output) == (("x/one", "ann/two@main"), Path("merges/one+two"))


@pytest.mark.parametrize(
    "named",
    [{}, {"preset": "paper", "population": 9, "patience": 2},
     {"method": "learned", "genome": "layer", "calibrate": False, "bf16": True},
     {"method": "ties", "base": "ann/start", "density": 0.2, "fitness_split": "train[:10]"},
     {"distill": True, "last_epochs": 2, "control": True, "seed": 3, "dataset": "digits"}],
)  # fmt: skip
def test_settings_as_a_file_are_the_settings(named: dict[str, Any]) -> None:
    asked = MergeSettings.of("ann/one", "ann/two", output="out", **named)
    written = json.loads(json.dumps(configured(asked)))
    assert MergeSettings.of(*written.pop("sources"), output="out", **written) == asked
    assert not written.keys() & {"output", "overwrite"}


def test_folders_in_a_file_of_settings_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path)
    assert configured(MergeSettings.of("one", "ann/two"))["sources"] == [str(tmp_path / "one"), "ann/two"]


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"populaton": 3}, "populaton is not a setting: did you mean population?"),
        ({"redraw_parents": True}, "redraw_parents is not a setting: did you mean parents?"),
        ({"zzz": 1}, "zzz is not a setting."),
        ({"population": "many"}, "--population must be a whole number, not many."),
        ({"population": True}, "--population must be a whole number, not True."),
        ({"population": 9.5}, "--population must be a whole number, not 9.5."),
        ({"exact": 1}, "--exact must be true or false, not 1."),
        ({"method": "mean"}, f"--method must be one of {', '.join(METHODS)}, not mean."),
        ({"preset": "papers"}, "--preset must be one of default, paper, author, not papers."),
        ({"preset": "paper", "exact": False}, "--preset paper scores every individual on every image: remove exact."),
        ({"bf16": True, "fp16": True}, "--bf16 and --fp16 exclude each other: remove one."),
        ({"generations": 0}, "--generations must be at least 1, not 0."),
        ({"patience": -1}, "--patience must be at least 0, not -1."),
        ({"population": 2}, "--tournament must be between 1 and the population (2), not 3."),
        ({"density": 0.0}, "--density must be above 0 and at most 1, not 0.0."),
        ({"scale": float("nan")}, "--scale must be a finite number, not nan."),
        ({"confirm_share": 1.0}, "--confirm-share must be at least 0 and below 1, not 1.0."),
        ({"fitness_images": 1}, "--fitness-images must be at least 2, not 1."),
        ({"base": "c"}, "--method mega does not use a base: remove --base."),
        ({"method": "ties"}, "--method ties needs the common start of the sources: name it with --base."),
        ({"method": "cmaes", "genome": "layer"}, "--method cmaes does not use --genome: remove it."),
        ({"method": "average", "population": 9}, "--method average does not use --population: remove it."),
        ({"method": "average", "exact": True}, "--method average does not use --exact: remove it."),
        ({"method": "greedy-soup", "fitness": "loss"}, "--method greedy-soup does not use --fitness: remove it."),
        ({"method": "random", "mutation_rate": 0.1}, "--method random does not use --mutation-rate: remove it."),
        ({"method": "task-arithmetic", "base": "c", "density": 0.2},
         "--method task-arithmetic does not use --density: remove it."),
        ({"density": 0.2}, "--method mega does not use --density: remove it."),
    ],
)  # fmt: skip
def test_what_makes_no_merge_is_one_sentence(named: dict[str, Any], sentence: str) -> None:
    assert refusal(**named) == sentence


def test_the_control_of_a_method_is_a_search() -> None:
    assert settings(method="average", control=True, population=9).search.population == 9
    assert "--tree" in refusal(method="average", control=True, tree="flat")


def test_sources_are_counted() -> None:
    with pytest.raises(SettingsError, match=r"^one source cannot be merged: name two or more\.$"):
        MergeSettings.of("a")
    with pytest.raises(SettingsError, match=r"^--method slerp merges 2 sources, not 3\.$"):
        MergeSettings.of("a", "b", "c", method="slerp")


@pytest.mark.parametrize(
    "text",
    ["train", "train[:5000]", "train[10%:]", "train[-5_0:]", "a.b[1:2]+test", "train[:10%](pct1_dropremainder) + test"],
)
def test_slices_are_read_as_datasets_reads_them(text: str) -> None:
    assert SplitRequest(test=text).test == text


@pytest.mark.parametrize(
    "text", ["", "train[", "train[:5", "train[5]", "train[::2]", "train +", "tr ain", "train[a:b]"]
)
def test_text_that_is_no_slice_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a slice: write train, train"):
        SplitRequest(calibration=text)


def test_a_lineage_records_the_keys_that_it_always_did() -> None:
    assert sorted(recorded(settings())) == sorted(KEYS)
    for method in [name for name, facts in METHODS.items() if facts.base != "needed"]:
        assert sorted(recorded(settings(method=method))) == sorted(KEYS)
    assert recorded(settings())["confirm_share"] == 0.4
    ties = recorded(settings(method="ties", base="x/start/", density=0.2))
    assert (ties["base"], ties["scale"], ties["density"]) == ("start", 1.0, 0.2)
    assert sorted(ties) == sorted([*KEYS, "base", "scale", "density"])
    assert "density" not in recorded(settings(method="task-arithmetic", base="x/start"))
    assert recorded(settings(method="learned", base="ann/start"))["base"] == "start"
    assert recorded(settings(bf16=True))["precision"] == "bfloat16"


def test_what_is_recorded_says_how_to_make_the_settings_again() -> None:
    for path in sorted(CARDS.rglob("lineage.json")):
        old = json.loads(path.read_text(encoding="utf-8"))["settings"]
        known = standard(old["preset"])
        again = settings(
            preset=old["preset"], **{n: v for n, v in old.items() if n in OFFERED and n != "preset" and v != known[n]}
        )
        assert recorded(again) | old == recorded(again), path


def test_every_setting_is_offered_with_help_or_set_by_a_preset_alone() -> None:
    assert SETTINGS.keys() - OFFERED.keys() == {"anchors", "redraw_parents", "break_ties"}
    assert {one.group for one in OFFERED.values()} <= set(get_args(Group))
    assert all(one.text.endswith((".", "{}, on devices that have it.")) for one in OFFERED.values())
    assert {f.name for f in fields(GASettings)} <= SETTINGS.keys()
    assert asdict(GASettings()) == {name: standard("paper")[name] for name in asdict(GASettings())}
    assert SWITCHES == {"bf16": ("precision", "bfloat16"), "fp16": ("precision", "float16")}


def test_errors_say_what_is_wrong() -> None:
    assert issubclass(SettingsError, ValueError)
    for kind in (SettingsError, SourceError, HubError):
        assert issubclass(kind, HfmegaError)
    assert not issubclass(SourceError, (SettingsError, HubError))
