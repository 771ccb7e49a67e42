"""The model card and its figures, from a lineage written by hand."""

from __future__ import annotations

import html
import json
import re
import shlex
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import save_model
from support.hub.cards import FRONT_MATTER, check
from support.specs import spec

from hfmega import phases
from hfmega.errors import printable
from hfmega.evaluation.answers import wilson
from hfmega.evaluation.checkpoint import Evaluation
from hfmega.models.library import build
from hfmega.output import Output
from hfmega.phases import duration
from hfmega.report import card, figures, tree_figure, wording
from hfmega.report.command import command
from hfmega.report.lineage import (
    FROM_BEST_SOURCE,
    SELF_TAUGHT,
    Candidate,
    ClassEntry,
    Control,
    DataEntry,
    Gain,
    Lineage,
    NodeEntry,
    Reference,
    Result,
    SourceEntry,
    SplitEntry,
)
from hfmega.report.markdown import short
from hfmega.report.metadata import split_name
from hfmega.search import Generation
from hfmega.search.recipe import Noise, Recipe, source_alone, uniform_average
from hfmega.settings import DEFAULT, PAPER

COMMIT, DATA_COMMIT = "a1" * 20, "d2" * 20
HOSTILE = "a|b<script>{{7*7}}"
SETTINGS = {
    "preset": "default",
    "seed": 0,
    "tree": "pairs",
    "order": "given",
    **asdict(DEFAULT),
    "calibrate": True,
    "exact": False,
    "confirm_share": 0.4,
    "fitness_split": None,
    "calibration_split": None,
    "test_split": None,
    "allow_leak": False,
    "image_column": None,
    "label_column": None,
}
CONFIG: dict[str, Any] = {
    "architecture": "resnet8_cifar",
    "num_classes": 10,
    "pretrained_cfg": {
        "tag": "merged",
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "num_classes": 10,
        "first_conv": "conv1",
        "classifier": "fc",
    },
}
RECORD = {
    "dataset": "uoft-cs/cifar10",
    "train_split": "train[5000:]",
    "held_out_split": "train[:5000]",
    "seed": 44,
    "epochs": 8,
    "batch_size": 256,
    "learning_rate": 0.01,
    "optimizer": "adam",
    "init": None,
}


def source(name: str, **changes: Any) -> SourceEntry:
    """A source on the Hub if its name has an owner, else a local folder."""
    repo_id, path = (name, None) if "/" in name else (None, name)
    revision = COMMIT if repo_id else None
    return replace(SourceEntry(name, repo_id, path, revision, "5" * 64, 44, "apache-2.0", 0.7481, 0.7604), **changes)


def reference(name: str, kind: Any, accuracy: float) -> Reference:
    return Reference(name, kind, accuracy, wilson(round(accuracy * 10_000), 10_000), 0.75)


def lineage(names: tuple[str, ...] = ("ann/a", "ann/b"), average: float = 0.7012, **changes: Any) -> Lineage:
    """A merge that was better than its sources; `average` is what the uniform average reached."""
    single = [reference(name, "source", 0.7481 - 0.002 * k) for k, name in enumerate(names)]
    single += [
        reference(f"{name}, calibrated", "calibrated source", 0.7604 - 0.002 * k) for k, name in enumerate(names)
    ]
    others = [reference("uniform average", "average", average), reference("ensemble", "ensemble", 0.7803)]
    shares = tuple((k + 1) / sum(range(len(names) + 1)) for k in range(len(names)))
    recipe = Recipe(shares, (Noise(7, 0.02, 0.1, "element"),), calibrate=True)
    history = tuple(Generation(0.75 + 0.001 * g, 0.72 + 0.002 * g, 0.03 * 0.9**g) for g in range(20))
    made = Lineage(
        format_version=1,
        hfmega_version="0.1.0",
        architecture="resnet8_cifar",
        sources=tuple(source(name) for name in names),
        nodes=(NodeEntry("merge", names, recipe, 0.7712, 0.7641, history),),
        recipe=recipe,
        settings=SETTINGS,
        data=DataEntry(
            "uoft-cs/cifar10",
            DATA_COMMIT,
            {
                "search": SplitEntry("train[:5000]", 3000, "1" * 64),
                "confirm": SplitEntry("train[:5000]", 2000, "2" * 64),
                "calibration": SplitEntry("train[5000:]", 1000, "3" * 64),
                "test": SplitEntry("test", 10_000, "4" * 64),
            },
        ),
        environment={"python": "3.11.4", "torch": "2.9.0", "device": "cpu", "num_processes": 1, "threads": 2},
        references=(*single, *others),
        candidates=(Candidate("average", 5000, 0.7033, 0.91), Candidate("search", 2000, 0.7702, 0.68)),
        result=Result(
            sha256="f" * 64,
            accuracy=0.7641,
            interval=(0.75568, 0.77232),
            loss=0.6901,
            correct=7641,
            total=10_000,
            chosen="search",
            best_reference=f"{names[0]}, calibrated",
            gain=0.016,
            gain_interval=(0.0101, 0.0219),
            p_value=0.0003,
            verdict="better",
        ),
        forward_passes=1_200_000,
        seconds=61.2,
    )
    return replace(made, **changes)


def chosen(made: Lineage, name: str, recipe: Recipe, **changes: Any) -> Lineage:
    return replace(made, recipe=recipe, result=replace(made.result, chosen=name, **changes))


def written(made: Lineage, folder: Path) -> str:
    card.write(made, spec(**CONFIG), folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert check(text) == ([], [])
    return text


def test_metadata_says_where_the_model_comes_from_and_how_good_it_is(tmp_path: Path) -> None:
    made = lineage(("ann/a", "bob/b", "local"))
    written(made, tmp_path)
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == {
        "base_model": ["ann/a", "bob/b"],
        "base_model_relation": "merge",
        "datasets": ["uoft-cs/cifar10"],
        "library_name": "hfmega",
        "license": "apache-2.0",
        "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "hfmega", "merge"],
        "model-index": [
            {
                "name": "resnet8_cifar.merged",
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image Classification"},
                        "dataset": {
                            "name": "uoft-cs/cifar10",
                            "type": "uoft-cs/cifar10",
                            "split": "test",
                            "revision": DATA_COMMIT,
                        },
                        "metrics": [{"type": "accuracy", "value": 0.7641, "name": "Accuracy"}],
                    }
                ],
            }
        ],
    }


def test_metadata_names_nothing_that_is_not_on_the_hub(tmp_path: Path) -> None:
    data = replace(lineage().data, id="my photos (2024)", revision=None)
    written(lineage(("one", "two"), data=data), tmp_path)
    metadata = ModelCard.load(tmp_path / "README.md").data
    assert metadata.base_model is None
    assert metadata.datasets is None
    assert metadata.eval_results[0].dataset_type == "my-photos-2024"
    assert metadata.eval_results[0].dataset_name == "my photos (2024)"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0"), "other"),
        (("mit", None), "other"),
        ((None, None), "other"),
        (("Apache License 2.0", "Apache License 2.0"), "other"),
    ],
)
def test_license_is_inherited_when_all_sources_state_the_same(
    tmp_path: Path, stated: tuple[str | None, str | None], expected: str
) -> None:
    names = ("ann/a", "ann/b")
    sources = tuple(source(name, license=one) for name, one in zip(names, stated, strict=True))
    text = written(lineage(names, sources=sources), tmp_path)
    data = ModelCard(text).data
    assert data.license == expected
    assert ((data.license_name, data.license_link) == (None, None)) == (expected != "other")
    for one in stated:
        assert f"| {one or 'none stated'} |" in text
    assert ("do not all state the same license" in text) == (expected == "other" and any(stated))
    assert ("none of the sources states one" in text) == (not any(stated))


MEASURED = "(+1.6 points, 95 % interval 1.0 to 2.2, 10,000 test images)"


def test_verdict_of_a_better_merge() -> None:
    assert wording.verdict(lineage()) == f"Better than each of its sources: 76.4 % against 76.0 % {MEASURED}."
    assert wording.statistics(lineage()) == (
        "Accuracy 0.7641 (95 % interval 0.7557 to 0.7723), mean loss 0.6901 nats. "
        "Over ann/a, BN re-estimated: +1.60 points [+1.01, +2.19], McNemar p = 0.0003."
    )


def test_the_second_gain_is_over_plain_averaging() -> None:
    over = Gain("greedy soup", 0.012, (0.006, 0.018), 0.01, 0.03, (0.02, 0.04))
    made = lineage()
    made = replace(made, result=replace(made.result, over_average=over))
    assert wording.verdict(made).endswith(
        f"{MEASURED}. Over plain averaging (greedy soup): +1.2 points (95 % interval 0.6 to 1.8)."
    )
    assert "mean loss -0.0300 nats [-0.0400, -0.0200]." in wording.statistics(made)


@pytest.mark.parametrize(
    ("verdict", "left", "credit"),
    [
        ("better", 0.004, " At least +0.4 points come from the other sources."),
        ("better", 0.026, " At least +1.6 points come from the other sources."),  # the gain, over another source
        ("better", -0.004, ""),
        ("no difference shown", 0.004, ""),
    ],
)
def test_a_gain_is_credited_to_the_sources_only_where_it_is_shown(verdict: Any, left: float, credit: str) -> None:
    control = Control("fine-tuning of the best source", "ann/a", 0.761, (0.75, 0.77), 0.76, 0.0, left, (0, 0), 0.1, 9)
    made = lineage()
    made = replace(made, controls=(control,), result=replace(made.result, verdict=verdict))
    said = wording.verdict(made)
    assert said.endswith(
        f"With the same images and budget, the fine-tuning of the best source reaches 76.1 %.{credit}"
    ), said


@pytest.mark.parametrize(
    ("name", "left", "low", "said"),
    [
        (SELF_TAUGHT, 0.018, 0.012, "the same start reaches 76.1 %: +1.8 points come from the other sources."),
        (SELF_TAUGHT, 0.002, -0.001, "the same start reaches 76.1 %: no gain from the other sources is shown."),
        (FROM_BEST_SOURCE, 0.018, 0.012, "ann/a, reaches 76.1 %: +1.8 points come from the merge before it."),
        (FROM_BEST_SOURCE, -0.001, -0.002, "ann/a, reaches 76.1 %: no gain from the merge before it is shown."),
    ],
)
def test_what_stands_beside_a_last_mile_is_credited_only_where_it_is_shown(
    name: str, left: float, low: float, said: str
) -> None:
    control = Control(name, "ann/a", 0.761, (0.75, 0.77), 0.76, 0.0, left, (low, 0.03), 0.1, 9)
    assert wording.verdict(replace(lineage(), controls=(control,))).endswith(said)


@pytest.mark.parametrize(
    ("verdict", "gain", "interval", "p_value", "opening", "words"),
    [
        ("no difference shown", 0.001, (-0.004, 0.006), 0.71, "No difference shown to the best", "+0.1 points"),
        ("no difference shown", -0.0, (-0.0, 0.0), 1.0, "No difference shown to the best", "+0.0 points"),
        ("worse", -0.614, (-0.62, -0.608), 1e-300, "Worse than the best", "-61.4 points"),
    ],
)
def test_verdict_of_a_merge_that_is_not_better(
    verdict: Any, gain: float, interval: tuple[float, float], p_value: float, opening: str, words: str
) -> None:
    made = lineage()
    result = replace(made.result, verdict=verdict, gain=gain, gain_interval=interval, p_value=p_value)
    said = wording.verdict(replace(made, result=result))
    assert said.startswith(f"{opening} source, ann/a, BN re-estimated: 76.4 % against 76.0 % ({words}")
    assert ("use ann/a, BN re-estimated" in said) == (verdict == "worse")


@pytest.mark.parametrize(("calibrate", "how"), [(True, "BatchNorm statistics re-estimated"), (False, "as it is")])
def test_a_kept_source_is_called_one_everywhere(tmp_path: Path, calibrate: bool, how: str) -> None:
    made = chosen(lineage(), "ann/a", source_alone(0, 2, calibrate), gain=0.0, gain_interval=(0.0, 0.0), p_value=None,
                  verdict="no difference shown")  # fmt: skip
    said = wording.verdict(made)
    assert said.startswith("No merge of ann/a and ann/b beat ann/a. It is the best source on the test images too")
    assert said.endswith(f"This folder holds ann/a {'with ' if calibrate else ''}{how}.")
    text = written(made, tmp_path)
    data = ModelCard(text).data
    assert (data.base_model, data.get("base_model_relation")) == (["ann/a"], "finetune" if calibrate else None)
    assert data.model_name == f"resnet8_cifar.{'derived' if calibrate else 'kept'}"
    assert "merge" not in data.tags
    assert "# No merge of ann/a and ann/b beat ann/a" in text
    assert f"| **kept: ann/a{', BN re-estimated' if calibrate else ''}** |" in text
    assert "best source:" not in text
    assert "McNemar" not in text


def test_the_worse_model_is_never_advised() -> None:
    """The run-off kept ann/b, which is worse than ann/a on the test images."""
    made = chosen(lineage(), "ann/b", source_alone(1, 2), gain=-0.053, gain_interval=(-0.1, -0.006), p_value=0.044,
                  verdict="worse")  # fmt: skip
    said = wording.verdict(made)
    assert "The run-off and the test images disagree" in said
    assert "--fitness-images" in said
    assert said.endswith("until then use ann/a, BN re-estimated.")


def test_verdict_does_not_speak_of_a_run_off_that_was_none() -> None:
    made = lineage(candidates=())
    assert "run-off" not in wording.verdict(chosen(made, "search", source_alone(1, 2)))
    assert "run-off" not in wording.verdict(chosen(made, "search", source_alone(1, 2), verdict="worse"))
    assert "run-off" not in wording.verdict(chosen(made, "search", uniform_average(2)))


def test_verdict_gives_the_average_the_credit_when_it_won() -> None:
    made = chosen(lineage(), "average", uniform_average(2, True))
    assert wording.verdict(made).endswith("It is the plain uniform average: the search added nothing to it.")


def test_only_sources_with_weight_are_bases(tmp_path: Path) -> None:
    names = ("ann/a", "ann/b", "ann/c")
    text = written(lineage(names, recipe=Recipe((0.5, 0.0, 0.5))), tmp_path)
    assert ModelCard(text).data.base_model == ["ann/a", "ann/c"]
    assert "merged from 2 checkpoints" in text


def test_the_evaluation_result_is_one_that_the_hub_s_client_reads(tmp_path: Path) -> None:
    written(lineage(), tmp_path)
    content = yaml.safe_load((tmp_path / ".eval_results" / "hfmega.yaml").read_text())
    (entry,) = parse_eval_result_entries(content)
    assert (entry.dataset_id, entry.value, entry.dataset_revision) == ("uoft-cs/cifar10", 0.7641, DATA_COMMIT)
    data = replace(lineage().data, id="my photos", revision=None)
    written(lineage(data=data), tmp_path / "local")
    assert not (tmp_path / "local" / ".eval_results").exists()


@pytest.mark.parametrize(
    ("spelled", "name"),
    [("test", "test"), ("test[5000:]", "test"), ("train[:9]+test[:50%]+train[20:]", "train+test"), ("a [b", "a [b")],
)
def test_the_split_of_an_evaluation_is_its_name(spelled: str, name: str) -> None:
    assert split_name(spelled) == name


def test_sources_that_are_not_published_are_named(tmp_path: Path) -> None:
    assert "Sources that are not published: one" in written(lineage(("one", "ann/b")), tmp_path)
    assert "not published" not in written(lineage(), tmp_path)


def test_a_published_card_loads_from_its_repository(tmp_path: Path) -> None:
    text = written(lineage(repo_id="me/merged"), tmp_path)
    assert 'timm.create_model("hf-hub:me/merged", pretrained=True)' in text
    assert "hfmega replay me/merged" in text
    assert "USER/NAME" not in text
    card.write_source_card(spec(**CONFIG, hfmega=RECORD), None, tmp_path)
    edited = card.published_as("me/source", (tmp_path / "README.md").read_text())
    assert 'timm.create_model("hf-hub:me/source", pretrained=True)' in edited


def test_settings_are_the_yaml_of_the_flags(tmp_path: Path) -> None:
    text = written(lineage(), tmp_path)
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    settings = yaml.safe_load(found[1])
    assert settings["sources"] == [f"ann/a@{COMMIT}", f"ann/b@{COMMIT}"]
    assert (settings["mutation-sigma"], settings["calibrate"], settings["preset"]) == (0.01, True, "default")


def test_each_class_has_a_row(tmp_path: Path) -> None:
    many = tuple(ClassEntry(f"class {k}", 10, 0.5, 0.5 + k / 1000) for k in range(100))
    made = lineage()
    text = written(replace(made, result=replace(made.result, per_class=many)), tmp_path)
    assert "| class 99 | 10 | 0.5000 | 0.5990 |" in text
    assert "60 more classes differ less." in text


def test_the_band_of_a_generation_is_never_above_its_best() -> None:
    assert figures.band([0.7, 0.7], [0.05, 0.05], [0.72, 0.8]) == (
        pytest.approx([0.65, 0.65]),
        pytest.approx([0.72, 0.75]),
    )
    assert figures.band([0.5], [0.2], [0.4]) == (pytest.approx([0.4]), pytest.approx([0.7]))  # of losses


def test_an_inner_merge_is_fed_by_its_own_coefficients() -> None:
    made = lineage(("a", "b", "c", "d"), recipe=Recipe((0.0, 1.0, 0.0, 0.0)))
    last = made.nodes[0]
    first = replace(last, name="m1", inputs=("a", "c"), recipe=Recipe((0.6, 0.0, 0.4, 0.0)))
    second = replace(last, name="m2", inputs=("b", "d"), recipe=Recipe((0.0, 1.0, 0.0, 0.0)))
    tree = replace(made, nodes=(first, second, replace(last, inputs=("m1", "m2"), recipe=made.recipe)))
    assert [tree_figure.coefficient_of(tree, k) for k in range(4)] == [0.6, 1.0, 0.4, 0.0]
    assert [tree_figure.is_left_out(tree, name, tree.nodes[-1]) for name in ("m1", "m2")] == [True, False]


def test_an_average_that_the_run_off_kept_is_drawn_from_its_sources() -> None:
    """Not from the merges before it, of which it has nothing."""
    made = chosen(lineage(("a", "b", "c")), "average", uniform_average(3))
    last = replace(made.nodes[0], recipe=made.recipe, chosen="average")
    first = replace(last, name="m1", inputs=("a", "b"), recipe=Recipe((0.0, 1.0, 0.0)), chosen="b")
    tree = replace(made, nodes=(first, replace(last, inputs=("c", "m1"))))
    assert [tree_figure.coefficient_of(tree, k) for k in range(3)] == [pytest.approx(1 / 3)] * 3
    assert tree_figure.taken_directly(tree, tree.nodes[-1]) == [0, 1, 2]
    assert tree_figure.is_left_out(tree, "m1", tree.nodes[-1])
    assert tree_figure.share_of(tree, 0, first) is None
    searched = replace(tree, nodes=(first, replace(tree.nodes[-1], chosen="search")))
    assert tree_figure.taken_directly(searched, searched.nodes[-1]) == []


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 second"), (61.2, "61 seconds"), (300, "5 minutes"), (9000, "2.5 hours")]
)
def test_a_time_is_said_as_a_person_does(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_leak_is_in_the_verdict_and_in_the_card(tmp_path: Path) -> None:
    leak = "LEAK, as asked: the test set steered the search (3000 images are in both the fitness and the test split)."
    made = lineage(leak=leak)
    assert wording.verdict(made).endswith(leak)
    assert written(made, tmp_path).count(leak) == 2
    assert "LEAK" not in wording.verdict(lineage())


def test_comparison_has_the_merged_model_and_every_reference(tmp_path: Path) -> None:
    columns, rows = card.comparison_rows(lineage())
    assert columns == ["model", "accuracy", "95 % interval", "loss"]
    assert rows[0] == ["this merge", "0.7641", "0.7557 to 0.7723", "0.6901"]
    assert [row[0] for row in rows[1:]] == [
        "ann/a", "ann/b", "ann/a, BN re-estimated", "ann/b, BN re-estimated", "uniform average", "ensemble",
    ]  # fmt: skip
    text = written(lineage(), tmp_path)
    assert "| **this merge** | 76.4 % | 75.6 to 77.2 % |" in text
    assert "| best source: ann/a, BN re-estimated | 76.0 % |" in text
    assert "| **this merge** | 0.7641 | 0.7557 to 0.7723 | 0.6901 |" in text
    assert "| ann/b, BN re-estimated | 0.7584 | 0.7499 to 0.7667 | 0.7500 |" in text
    assert "calibrated" not in text.replace("--no-calibrate", "")


def test_command_is_short_when_everything_is_as_the_preset_says() -> None:
    assert command(lineage(("ann/a", "folder"))) == (
        f"hfmega merge ann/a@{COMMIT} folder --dataset uoft-cs/cifar10 --calibrate"
    )
    paper = {**SETTINGS, **asdict(PAPER), "preset": "paper", "confirm_share": 0.0, "calibrate": False}
    assert shlex.split(command(lineage(settings=paper)))[4:] == [
        "--dataset", "uoft-cs/cifar10", "--preset", "paper", "--no-calibrate",
    ]  # fmt: skip


def test_command_has_every_setting_that_was_changed() -> None:
    changed = {
        "population": 12,
        "generations": 5,
        "parents": 3,
        "tournament": 2,
        "mutation_rate": 0.5,
        "mutation_sigma": 0.001,
        "mutation_unit": "tensor",
        "fitness": "loss",
        "tree": "flat",
        "order": "similar-first",
        "seed": 9,
        "confirm_share": 0.25,
        "fitness_split": "train[:10%]+test[:50]",
        "calibration_split": "train[10%:]",
        "test_split": "test[50:]",
        "image_column": "the image",
        "label_column": "fine;label",
    }
    settings = {**SETTINGS, **changed, "allow_leak": True}
    made = lineage(("ann/a", "my folder", "-o"), settings=settings, environment={"num_processes": 4})
    words = shlex.split(command(made))
    assert words[:7] == ["hfmega", "merge", f"ann/a@{COMMIT}", "my folder", "./-o", "--dataset", "uoft-cs/cifar10"]
    rest = words[7:]
    for name, value in changed.items():
        position = rest.index(f"--{name.replace('_', '-')}")
        assert rest[position + 1] == str(value)
        del rest[position : position + 2]
    assert rest == ["--calibrate", "--allow-leak", "--num-processes", "4"]


def test_hostile_names_and_notes_are_inert(tmp_path: Path) -> None:
    notes = ("# boo\n\n<img src=x onerror=alert(1)>", "[click](javascript:alert(1))", "```\nand `more`", "*a* _b_ $x$")
    environment = {"python": "3|11", "num_processes": 1}
    text = written(lineage((HOSTILE, "plain_name"), notes=notes, environment=environment), tmp_path)
    shown = "a&#124;b&#60;script&#62;{{7&#42;7}}"
    assert shown in text
    assert "<script" not in text
    assert "<img" not in text
    assert "](javascript" not in text
    assert "Note: &#35; boo &#60;img" in text
    assert "&#42;a&#42; &#95;b&#95; &#36;x&#36;" in text
    assert "| plain_name |" in text
    rows = [line for line in text.splitlines() if line.startswith(f"| {shown}")]
    assert [row.count("|") for row in rows] == [8, 5, 5]  # the lineage; source, BN re-estimated or not, in one table
    assert text.count("```") == 2  # the example; the command fell back on <pre>
    assert f"<pre><code>hfmega merge '{HOSTILE.replace('<', '&lt;').replace('>', '&gt;')}' plain_name" in text


# What would be structure in Markdown, HTML, YAML, Jinja, a shell, a terminal or rich, were it not inert.
TEXTS = [
    "a|b `c` *d* __e__ ~~f~~ $g$ \\| |",
    "](javascript:alert(1)) [x](javascript:alert(1)) ![x](http://x/y.png) <http://x> [x]: http://x",
    "<script>alert(1)</script><img src=x onerror=alert(1)><!-- </pre></code>",
    "\n---\nlicense: mit\n---\n# heading\n\n```\ncode\n```\n<pre>",
    "{{ 7 * 7 }}{% raw %}{# #}{{ lineage.__class__ }}",
    "!!python/object/apply:os.system [x]",
    "'\"\\t: &a *a %TAG",
    "\x1b[31m\x1b]0;title\x07\x9b\u202e\u2028 [bold]x[/bold][/]",
    "$(reboot) `reboot`; reboot && reboot",
    "1. x",
    "- x",
    "> x",
    "#x",
    "https://evil.example www.evil.example ann@evil.example",
]


def from_outside(text: str) -> Lineage:
    """A merge in which every text is this one."""
    made = lineage((text, "ann/" + text))
    sources = tuple(replace(s, license=text, revision=s.revision and text) for s in made.sources)
    node = replace(made.nodes[0], name=text, inputs=(text, text), chosen=text)
    control = Control(text, text, 0.7, (0.6, 0.8), 0.69, 0.01, 0.02, (0.01, 0.03), 0.01, 1000)
    splits = {purpose: replace(split, slice=text, fingerprint=text) for purpose, split in made.data.splits.items()}
    return replace(
        made,
        hfmega_version=text,
        architecture=text,
        sources=sources,
        nodes=(node, node),
        settings={**SETTINGS, text: text, "method": text, "preset": text, "order": text, "image_column": text},
        data=DataEntry("ann/" + text, text, {**splits, text: splits["test"]}),
        environment={text: text},
        references=tuple(replace(r, name=text) for r in made.references),
        candidates=(Candidate(text, 1, 0.5, 0.5), Candidate("other" + text, 1, 0.5, 0.5)),
        result=replace(made.result, sha256=text, chosen=text, best_reference=text),
        controls=(control,),
        notes=(text,),
        leak=text,
    )


def structure(body: str) -> list[str]:
    """What Markdown finds in a card but its text. A command is a block of code or <pre>, as it must be."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    flat = [part for token in tokens for part in (token.children or [token])]
    kinds = [
        "code" if t.type in ("fence", "html_block") else t.type for t in flat if t.type not in ("text", "softbreak")
    ]
    raw = [t.content for t in flat if t.type.startswith("html")]
    ours = r"<pre><code>[^<]*</code></pre>\n|<details>\n<summary>[\w ,:-]+</summary>\n|</details>\n"
    assert all(re.fullmatch(ours, block) for block in raw), raw
    return kinds


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_from_outside_is_inert_in_the_card(text: str) -> None:
    made = from_outside(text)
    content = card.text(made, spec(**CONFIG))
    match = FRONT_MATTER.match(content)
    assert match is not None
    like = "pl/ain" if "/" in text else "plain"  # a source with an owner is no local folder
    plain = FRONT_MATTER.split(card.text(from_outside(like), spec(**CONFIG)))[-1]
    assert structure(content[match.end() :]) == structure(plain)
    assert content[match.end() :].replace("\n", "").isprintable()
    shown = " ".join("".join(c for c in " ".join(text.split()) if c.isprintable()).split())
    assert html.unescape(content).count(shown) >= 20
    assert not re.search(r"https?://evil|www\.evil|ann@evil", content[match.end() :].split("## Reproduce")[0])


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_from_outside_comes_back_from_the_front_matter(text: str) -> None:
    match = FRONT_MATTER.match(card.text(from_outside(text), spec(**CONFIG)))
    assert match is not None
    metadata = yaml.safe_load(match[1])
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert (metadata["base_model"][-1], metadata["datasets"]) == ("ann/" + text, ["ann/" + text])
    assert entry["name"] == f"{text}.merged"
    assert (result["dataset"]["name"], result["dataset"]["split"]) == ("ann/" + text, text)
    assert result["dataset"]["revision"] == text
    assert re.fullmatch(r"[\w./-]+", result["dataset"]["type"])
    assert metadata["license"] == "other"
    assert metadata.keys() == yaml.safe_load(FRONT_MATTER.match(card.text(from_outside("p"), spec(**CONFIG)))[1]).keys()  # type: ignore[index]


@pytest.mark.parametrize("text", TEXTS)
def test_a_source_s_card_is_inert_too(tmp_path: Path, text: str) -> None:
    def body(word: str) -> str:
        record = {**RECORD, "dataset": "ann/" + word, "train_split": word, "held_out_split": word, "optimizer": word}
        config = {**CONFIG, "architecture": word, "hfmega": {**record, "init": word}}
        card.write_source_card(spec(**config), None, tmp_path)
        return (tmp_path / "README.md").read_text(encoding="utf-8")

    content = body(text)
    match = FRONT_MATTER.match(content)
    assert match is not None
    assert structure(content[match.end() :]) == structure(FRONT_MATTER.split(body("plain"))[-1])
    assert yaml.safe_load(match[1])["datasets"] == ["ann/" + text]


@pytest.mark.parametrize("text", TEXTS)
def test_the_console_obeys_no_text_from_outside(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.say(text)
    output.table(text, [text, "b"], [[text, text]])
    with output:
        phases.begin(text, 3)
    seen = capsys.readouterr().err
    assert seen.replace("\n", "").isprintable()
    assert seen.startswith(printable(text))


def test_card_names_no_place_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    text = written(lineage(("one", "two")), tmp_path / "out")
    assert str(tmp_path) not in text
    assert re.search(r"(?<![\w.\]])/(home|tmp|root|work|Users)\b", text) is None
    assert "hf_" not in text


def test_card_without_a_run_off_or_a_search_says_so(tmp_path: Path) -> None:
    made = lineage(candidates=())
    node = replace(made.nodes[0], history=())
    text = written(replace(made, nodes=(node,)), tmp_path)
    assert "There was no run-off" in text
    assert "fitness.png" not in text
    assert not (tmp_path / "figures" / "fitness.png").exists()


def test_only_a_method_that_does_not_search_has_one_answer(tmp_path: Path) -> None:
    for method, one in (("learned", False), ("random", False), ("average", True), ("a later one", True)):
        made = lineage(candidates=(), settings={**SETTINGS, "method": method})
        assert ("has one answer" in written(made, tmp_path / method)) is one


def test_a_slice_of_very_many_parts_is_abridged() -> None:
    assert short("train[:45000]") == "train[:45000]"
    assert short("+".join(f"train[{k}:{k + 1}]" for k in range(0, 400, 2))) == "train[0:1]+... (199 more parts)"


def test_the_example_in_the_card_runs(tmp_path: Path) -> None:
    text = written(lineage(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_model(build(spec(**CONFIG)), str(tmp_path / "model.safetensors"))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.png")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    program = example[1].replace("local-dir:.", f"local-dir:{tmp_path}")
    values: dict[str, Any] = {}
    exec(program.replace("image.png", str(tmp_path / "image.png")), values)
    assert values["probabilities"].shape == (1, 10)
    torch.testing.assert_close(values["probabilities"].sum(), torch.tensor(1.0))


def test_only_networks_of_hfmega_ask_for_its_import(tmp_path: Path) -> None:
    assert "import hfmega" in written(lineage(), tmp_path)
    config = {**CONFIG, "architecture": "tf_efficientnet_lite0"}
    card.write(lineage(architecture="tf_efficientnet_lite0", repo_id="me/merged"), spec(**config), tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "import hfmega" not in text
    assert 'pipeline("image-classification", model="me/merged")' in text
    data = ModelCard(text).data
    assert (data.library_name, data.tags[:3]) == ("timm", ["image-classification", "timm", "transformers"])


def test_source_card_reports_the_held_out_accuracy(tmp_path: Path) -> None:
    held_out = Evaluation(0.74125, (0.729, 0.753), 0.75, 3706, 5000, "train[:5000]", {})
    card.write_source_card(spec(**CONFIG, hfmega=RECORD), held_out, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert check(text) == ([], [])
    metadata = ModelCard(text).data
    assert metadata.model_name == "resnet8_cifar.s44"
    assert metadata.datasets == ["uoft-cs/cifar10"]
    assert metadata.license is None
    [evaluation] = metadata.eval_results
    assert (evaluation.dataset_split, evaluation.metric_value) == ("train", 0.7412)
    assert "Accuracy 0.7412 (95 % interval 0.7290 to 0.7530) on the 5,000 held-out images (train[:5000])" in text
    assert "| initial weights | random |" in text


def test_source_card_without_held_out_images_reports_nothing(tmp_path: Path) -> None:
    record = {**RECORD, "dataset": "digits", "held_out_split": None, "init": "9" * 64}
    card.write_source_card(spec(**CONFIG, hfmega=record), None, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert check(text) == ([], [])
    assert ModelCard(text).data.eval_results is None
    assert ModelCard(text).data.datasets is None
    assert "no accuracy to report" in text
    assert f"sha256 {'9' * 64}" in text


def test_the_templates_lie_in_the_package() -> None:
    assert (card.TEMPLATES / "merge.md.jinja").is_file()
    assert Path(card.__file__).parent in card.TEMPLATES.parents


def test_the_card_imports_no_matplotlib_until_it_draws() -> None:
    assert not hasattr(card, "figures")


def size_of(png: Path) -> tuple[int, int]:
    """Width and height in the header of a PNG."""
    content = png.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


NAMES = {
    "two": ("resnet8-s44", "resnet8-s45"),
    "long": tuple(f"some-organization/tf_efficientnet_lite0.cifar10-lr{k}e-4" for k in range(8)),
    "odd": ("a$b^{", "模型", "W" * 200),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_figures_are_pngs_and_the_same_when_drawn_twice(tmp_path: Path, names: tuple[str, ...]) -> None:
    made = lineage(names, average=0.15)
    figures.draw(made, tmp_path / "once")
    figures.draw(made, tmp_path / "twice")
    for name in (figures.COMPARISON, figures.TREE, figures.FITNESS):
        width, height = size_of(tmp_path / "once" / name)
        assert width == 8 * 160
        assert 200 < height < 2000
        content = (tmp_path / "once" / name).read_bytes()
        assert content == (tmp_path / "twice" / name).read_bytes()
        assert b"Software" not in content


def test_figures_do_not_depend_on_the_readers_style(tmp_path: Path) -> None:
    import matplotlib

    figures.draw(lineage(), tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 30, "text.color": "red", "savefig.bbox": "tight"}):
        figures.draw(lineage(), tmp_path / "styled")
        assert matplotlib.rcParams["font.size"] == 30
    for png in (tmp_path / "plain").iterdir():
        assert png.read_bytes() == (tmp_path / "styled" / png.name).read_bytes()


def test_figures_have_a_panel_and_a_box_for_each_merge_of_a_tree(tmp_path: Path) -> None:
    made = lineage(("a", "b", "c", "d"))
    last = made.nodes[0]
    first, second = replace(last, name="m1", inputs=("a", "c")), replace(last, name="m2", inputs=("b", "d"))
    tree = replace(made, nodes=(first, second, replace(last, inputs=("m1", "m2"))))
    assert tree_figure.leaf_order(tree) == [0, 2, 1, 3]
    assert tree_figure.node_depths(tree) == {"m1": 1, "m2": 1, "merge": 2}
    figures.draw(tree, tmp_path)
    assert size_of(tmp_path / figures.TREE)[0] > 8 * 160
    assert len(figures.fitness(tree).axes) == 3


def test_a_collapsed_model_does_not_stretch_the_comparison() -> None:
    low, high = figures.comparison(lineage(average=0.15)).axes[0].get_xlim()
    assert 0.7 < low < 0.74 < 0.78 < high < 0.8
    low, _ = figures.comparison(lineage(average=0.7012)).axes[0].get_xlim()
    assert 0.68 < low < 0.7


def test_fitness_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    made = lineage(settings={**SETTINGS, "fitness": "loss"})
    worst = Generation(float("inf"), float("inf"), 0.0)
    node = replace(made.nodes[0], history=(worst, *made.nodes[0].history[:3]))
    axes = figures.fitness(replace(made, nodes=(node,))).axes[0]
    assert axes.get_ylabel() == "mean loss (nats)"
    assert axes.get_ylim()[1] < 1
