"""What the page says: sentences beside their fields, settings as YAML, pictures; hostile names do nothing. 1 second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from hfmega.app import charts, words
from hfmega.app.answers import Answer
from hfmega.app.look import Fact, Facts
from hfmega.app.runs import Generation, Live
from hfmega.errors import SettingsError

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def pair(first: str = "s1", second: str = "s2") -> dict[str, Any]:
    """A pair as `inspection.json` has it."""
    walk = {"align": "none", "calibrated": False, "accuracy": [k / 10 for k in range(11)], "loss": [1.0] * 11}
    walks = [walk, {**walk, "calibrated": True}, {**walk, "align": "weights"},
             {**walk, "align": "activations", "calibrated": True, "loss": [*[2.0] * 10, "Infinity"]}]  # fmt: skip
    prospect = {"walk": walk, "share": 0.3, "accuracy": 0.7, "gain": 0.01, "p_value": 0.2}
    return {"first": first, "second": second, "walks": walks, "prospect": prospect}


@pytest.mark.parametrize(
    ("sentence", "field"),
    [
        ("--dataset x is not a dataset.", "dataset"),
        ("there is no such dataset on the Hub: photos.", "dataset"),
        ("populaton is not a flag: did you mean population?", "settings"),
        ("--population must be at least 2, not 1.", "settings"),
        ("--method ties needs the common start of the sources: name it with --base.", "method"),
        ("--fitness-images must be a whole number, not many.", "images"),
        ("fitness-images: 'x' is not a valid integer.", "images"),
        ("'train[' is not a slice of digits (splits: train, test)", "dataset"),
        ("merges/one holds a finished run: name another folder with -o, or start again with --overwrite.", "name"),
        ("s2 and s1 differ in architecture (a and b): only checkpoints of one architecture can be merged.", "sources"),
        ("there is no folder nowhere, and it is not a Hub id (user/name).", "sources"),
        ("sources: choose at least two in the tab Pair.", "sources"),
        ("the connection to the Hub failed for ann/x: try again.", "sources"),
    ],
)
def test_a_sentence_stands_beside_its_field(sentence: str, field: str) -> None:
    assert words.field_of(sentence) == field


def test_controls_change_their_own_settings_and_no_others() -> None:
    typed = "sources: [a/b, c/d]\npopulation: 12\ngenerations: 3\n"
    told = yaml.safe_load(words.changed(typed, dataset="digits", generations=None, fine_tune=True, distill=False))
    assert told == {"sources": ["a/b", "c/d"], "population": 12, "dataset": "digits", "fine-tune": True}
    assert words.changed("population: [", dataset="digits") == "population: ["  # what is being typed is not lost
    assert yaml.safe_load(words.changed(None, sources=["a", "b"])) == {"sources": ["a", "b"]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sources: [a, b]\npopulation: 1", "--population must be at least 2, not 1."),
        ("sources: [a]", "one source cannot be merged: name two or more."),
        ("sources: a", "sources must be a list of checkpoints."),
        ("sources: [a, b]\nfitness-images: many", "--fitness-images must be a whole number, not many."),
        ("- a", "this must hold the names of flags and their values, e.g. 'dataset: digits'."),
    ],
)
def test_settings_are_checked_as_the_command_does(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        words.checked(text)
    assert str(refused.value) == sentence


def test_flags_that_are_no_settings_are_left_to_the_command() -> None:
    assert words.checked("sources: [a, b]\nnum-processes: 2\nquiet: true\n")["num-processes"] == 2
    with pytest.raises(SettingsError, match="this is not YAML"):
        words.checked("a: [")


def test_the_colour_says_whether_merging_pays() -> None:
    def tone(gain: float, p_value: float, **more: Any) -> str:
        one = pair()
        one["prospect"] |= {"gain": gain, "p_value": p_value}
        return words.tone_of({"compatible": True, "relation": "shared trunk", "pairs": [one], **more})

    assert (tone(0.02, 0.01), tone(0.02, 0.3), tone(-0.01, 0.01)) == ("good", "doubt", "bad")
    assert tone(0.02, 0.01, compatible=False) == tone(0.02, 0.01, pairs=[]) == "bad"
    assert tone(0.0, 1.0, relation="identical") == "bad"


def test_stopped_by_hand_is_no_problem() -> None:
    assert "Resume goes on where it stopped" in words.ended("terminated; the same command resumes where it stopped.")
    assert 'role="alert"' in words.ended("the disk is full; free some space.")
    assert words.ended(None) == ""


def test_a_running_merge_shows_its_phase_and_its_figures() -> None:
    told = (Generation(0.7, 0.5), Generation(0.75, 0.625))
    live = Live("search", (("merge", told),), planned=20, merges=1, images=12345, seconds=7.2)
    shown = words.standing("one", "running", live)
    assert '<li class="now" aria-current=step>Search</li>' in shown
    assert '<li class="done">Prepare</li>' in shown
    for figure in ("2 of 20", "75.0 %", "62.5 %", "12,345", "7 s"):
        assert f"<dd>{figure}</dd>" in shown
    assert "Controls" not in shown
    assert "Last mile" in words.standing("one", "running", Live("last mile"))


def test_durations_are_said_as_a_person_does() -> None:
    assert [words.minutes(s) for s in (0, 40, 100, 600, 7200)] == [
        "about 1 seconds", "about 40 seconds", "about 2 minutes", "about 10 minutes", "about 2.0 hours"
    ]  # fmt: skip


def test_hostile_names_are_text() -> None:
    seen = Facts((Fact(HOSTILE, HOSTILE, 10, 5, HOSTILE, "Hub", 0),) * 2, True, "independent", HOSTILE, "doubt")
    shown = [
        words.facts(seen),
        words.problem(HOSTILE),
        words.note(HOSTILE),
        words.standing(HOSTILE, "running", Live("search", ((HOSTILE, (Generation(0.5, 0.5),)),), merges=3)),
        words.chips([HOSTILE]),
        words.along(pair(HOSTILE, HOSTILE), 3),
        charts.paths(pair(HOSTILE, HOSTILE), "accuracy", 0.9, 3),
        charts.search(Live("search", ((HOSTILE, (Generation(0.5, 0.5),)),))),
        charts.bars([Answer(HOSTILE, "source", ((HOSTILE, 0.5),))]),
    ]
    for text in shown:
        assert "<script" not in text
        assert "<img" not in text


@pytest.mark.parametrize("what", ["accuracy", "loss"])
def test_a_chart_is_one_picture_with_a_title_and_a_point_for_each_value(what: str) -> None:
    picture = ElementTree.fromstring(charts.paths(pair(), what, 0.95, 3).partition("</p>")[2])
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == f"{what} along the line from s1 to s2"
    circles = picture.findall("circle")
    assert len(circles) == (44 if what == "accuracy" else 43)  # one loss is not finite
    assert sum(circle.get("r") == "5.5" for circle in circles) == 4
    assert len(picture.findall("line[@class='ensemble']")) == (what == "accuracy")


def test_a_search_that_has_just_begun_has_no_chart() -> None:
    assert charts.search(Live("search")) == ""
    one = charts.search(Live("search", (("merge", (Generation(0.5, 0.4),)),), planned=1))
    assert one.count("<circle") == 2


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2, of #rrggbb."""
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("selector", "page", "panel"), [(":root", "#ffffff", "#f8fafc"), (".dark", "#0b0f19", "#1f2937")]
)
def test_coloured_words_can_be_read_on_both_pages(selector: str, page: str, panel: str) -> None:
    css = (Path(words.__file__).parent / "page.css").read_text()
    block = css.split(f"{selector} {{")[1].split("}")[0]
    colours = dict(re.findall(r"--hf-([\w-]+): (#[0-9a-f]{6})", block))
    for name, colour in colours.items():
        if not name.endswith("-bg"):
            grounds = [page, panel, *([colours[f"{name}-bg"]] if f"{name}-bg" in colours else [])]
            assert all(contrast(colour, ground) >= 4.5 for ground in grounds), (name, colour)
    assert len(colours) == 11
