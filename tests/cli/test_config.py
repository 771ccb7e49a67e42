"""Settings from a file and from an earlier merge; help, refusals before torch, signals. 8 seconds."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich_click as click
from support.commands import run

from hfmega.cli.commands import cli, merge
from hfmega.cli.config import merge_settings
from hfmega.cli.errors import PROBLEMS
from hfmega.settings import METHODS, OFFERED, PRESETS, SWITCHES, MergeSettings, recorded

CARDS = Path(__file__).parents[2] / "cards"
FOUND: list[MergeSettings] = []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MergeSettings]:
    """The settings that `hfmega merge ARGUMENTS` would merge by."""

    def keep(*arguments: Any) -> MergeSettings:
        FOUND.append(merge_settings(*arguments))
        raise click.exceptions.Exit(0)

    monkeypatch.setattr("hfmega.cli.commands.merge_settings", keep)

    def ask(*arguments: object) -> MergeSettings:
        FOUND.clear()
        done = run("merge", *arguments)
        assert done.code == 0, done.stderr
        return FOUND[0]

    return ask


def test_flags_are_what_of_makes_of_their_names(asked: Callable[..., MergeSettings]) -> None:
    assert asked("a", "b") == MergeSettings.of("a", "b")
    flags = ["--preset", "paper", "--population", "7", "--calibrate", "--fp16", "--test-split", "test[:9]", "-o", "out"]
    assert asked("a", "b", *flags) == MergeSettings.of(
        "a", "b", preset="paper", population=7, calibrate=True, fp16=True, test_split="test[:9]", output="out"
    )


def test_a_file_gives_sources_and_flags_and_flags_win(tmp_path: Path, asked: Callable[..., MergeSettings]) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(
        "sources: [ann/a, ./b]\npopulation: 8\nmutation-sigma: 0.5\nmutation_unit: tensor\nexact: true\n"
        "calibrate: false\ndataset: digits\nbase:\noutput: there\noverwrite: yes\njson: true\n"
    )
    wanted = {"population": 8, "mutation_sigma": 0.5, "mutation_unit": "tensor", "exact": True, "calibrate": False,
              "dataset": "digits", "output": "there", "overwrite": True}  # fmt: skip
    assert asked("--config", file) == MergeSettings.of("ann/a", "./b", **wanted)
    found = asked("x", "y", "--population", 9, "--calibrate", "--config", file)
    assert found == MergeSettings.of("x", "y", **{**wanted, "population": 9, "calibrate": True})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("populaton: 3", "{}: populaton is not a flag: did you mean population?"),
        ("population: many", "{}: population: 'many' is not a valid integer."),
        ("population: 9.5", "{}: population: '9.5' is not a valid integer."),
        ("population: true", "{}: population: True is not a value of it."),
        ("population: [1, 2]", "{}: population: [1, 2] is not a value of it."),
        ("exact: perhaps", "{}: exact: 'perhaps' is not a valid boolean*"),
        ("method: mean", "{}: method: 'mean' is not one of 'mega', *"),
        ("sources: one", "{}: sources must be a list of checkpoints."),
        ("- a\n- b", "{} must hold the names of flags and their values, e.g. 'dataset: digits'."),
        ("a: [", "{} is not YAML: *"),
        ("token: hf_x", "{}: token is not a flag*"),
        ("method: average\npopulation: 9", "--method average does not use --population: remove it."),
        ("generations: 0", "--generations must be at least 1, not 0."),
    ],
)
def test_a_file_that_cannot_be_taken_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(text)
    pattern = re.escape(sentence.format(file)).replace(r"\*", ".*")
    assert re.fullmatch(pattern, run("merge", "a", "b", "--config", file).complaint)


def test_no_sources_at_all_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text("dataset: digits")
    done = run("merge", "--config", file)
    assert (done.code, "Missing argument 'SOURCE SOURCE...'" in done.stderr) == (2, True)


@pytest.mark.parametrize("path", sorted(CARDS.rglob("lineage.json")), ids=lambda path: path.parent.name)
def test_like_takes_the_settings_of_an_earlier_merge(path: Path, asked: Callable[..., MergeSettings]) -> None:
    lineage = json.loads(path.read_text(encoding="utf-8"))
    found = asked("x", "y", "--like", path.parent)
    assert recorded(found) | lineage["settings"] == recorded(found)
    assert (found.dataset, found.sources) == (lineage["data"]["id"], ("x", "y"))
    searched = METHODS[found.method].searches
    changed = asked("x", "y", "--like", path.parent, *(["--population", 11] if searched else []), "--seed", 5, "--bf16")
    other = {"seed": 5, "precision": "bfloat16"} | ({"population": 11} if searched else {})
    assert recorded(changed) == recorded(found) | other
    unlike = asked("x", "y", "--like", path.parent, "--method", "average")
    assert (unlike.method, unlike.search) == ("average", PRESETS[unlike.preset].search)


def test_the_command_of_a_card_gives_the_settings_of_its_lineage(asked: Callable[..., MergeSettings]) -> None:
    from hfmega.report.command import command
    from hfmega.report.lineage import read

    for path in sorted(CARDS.rglob("lineage.json")):
        made = read(path)
        found = recorded(asked(*shlex.split(command(made))[2:]))
        assert found | made.settings == found, path
        if METHODS[made.settings.get("method", "mega")].searches:
            assert found["patience"] == made.settings.get("patience", 0), path  # there was none before the setting


def test_like_of_no_merge_is_one_sentence(tmp_path: Path) -> None:
    assert "is not a merge of hfmega" in run("merge", "a", "b", "--like", tmp_path).complaint


def test_every_option_has_text_and_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {option.name: option for option in merge.params if isinstance(option, click.Option)}
    assert OFFERED.keys() - {"precision"} | SWITCHES.keys() <= options.keys()
    for command in cli.commands.values():
        assert all(option.help for option in command.params if isinstance(option, click.Option)), command.name
    monkeypatch.setenv("COLUMNS", "100")
    text = run("merge", "--help").stdout
    places = [text.index(f"─ {group} ─") for group in
              ("Everyday", "Data", "Search", "Method", "Hardware", "Publishing", "Output")]  # fmt: skip
    assert places == sorted(places)
    assert "─ Options ─" not in text
    assert text.count("hfmega merge ") == 4
    assert places[0] < text.index("--preset ") < places[1]
    assert "[default: 0.01; paper and author: 0.1]" in text


@pytest.mark.parametrize(
    "arguments",
    [["one-source"], ["a", "b", "--generations", "0"], ["a", "b", "--test-split", "test[:5"],
     ["a", "b", "--method", "average", "--population", "9"], ["a", "b", "--preset", "old"],
     ["a", "b", "--num-processes", "0"]],
)  # fmt: skip
def test_what_needs_no_torch_is_checked_before_it(arguments: list[str]) -> None:
    code = (
        f"import sys\nsys.argv = ['hfmega', 'merge', *{arguments!r}]\nfrom hfmega.cli import main\ntry:\n    main()\n"
    )
    code += "finally:\n    print({'torch', 'timm', 'datasets', 'numpy'} & set(sys.modules))"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert time.monotonic() - started < 5  # 0.4 on an idle machine
    assert done.stdout == "set()\n"
    assert done.returncode in (1, 2)


def test_every_problem_has_a_sentence() -> None:
    assert [code for _, _, code in PROBLEMS] == [130, 130, 143, 1, 1, 1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM for another process")
def test_sigterm_is_143_and_says_that_the_same_command_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("hfmega.cli.commands.merge_settings", terminated)
    done = run("merge", "a", "b")
    assert (done.code, done.stdout) == (143, "")
    assert done.stderr.splitlines()[1:] == ["hfmega: terminated; the same command resumes where it stopped."]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
