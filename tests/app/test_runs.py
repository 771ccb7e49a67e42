"""The command line as a child, and what runs leave on disk. 5 seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hfmega.app import command, runs
from hfmega.errors import HfmegaError
from hfmega.folder import WORK, open_run
from hfmega.settings import MergeSettings

BOX = """hfmega 0.1.0: merge

 Usage: hfmega merge [OPTIONS] SOURCE SOURCE...

╭─ Error ────────────────────────────────────────────────────────────────────────╮
│ Invalid value for '--population': 'many' is not a valid                         │
│ integer.                                                                        │
╰────────────────────────────────────────────────────────────────────────────────╯
"""


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("hfmega 0.1.0: merge\npulling a\nhfmega: a has no config.json.\n", "a has no config.json."),
        ("hfmega: first\nTraceback (most recent call last):\nhfmega: last", "last"),
        (BOX, "Invalid value for '--population': 'many' is not a valid integer."),
        ("Traceback (most recent call last):\n  File x\nValueError: no", "hfmega failed: ValueError: no"),
        ("hfmega 0.1.0: merge\npulling a\n", "it was ended from outside; Resume goes on where it stopped."),
        ("", "it was ended from outside; Resume goes on where it stopped."),
    ],
)
def test_why_a_command_ended_is_its_own_sentence(log: str, sentence: str) -> None:
    assert command.sentence(log) == sentence


def test_a_child_of_a_wrong_setting_says_so_and_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("sources: [a, b]\npopulaton: 3\n")
    state = command.wait(["merge", "--config", str(tmp_path / "settings.yaml")], tmp_path / "place", 120)
    assert (state.running, state.result) == (False, None)
    assert state.problem is not None
    assert state.problem.endswith("populaton is not a flag: did you mean population?")
    assert state.words[:2] == ("merge", "--config")


def test_a_child_that_works_prints_json_and_has_no_problem(merges: Path, tmp_path: Path) -> None:
    state = command.wait(["inspect", "--help"], tmp_path / "place", 120)
    assert (state.running, state.result) == (False, None)  # help is no JSON
    (tmp_path / "place" / command.RESULT).write_text('{"url": null}')
    assert command.read(tmp_path / "place").result == {"url": None}
    assert command.read(tmp_path / "place").problem is None


def test_a_process_id_that_came_again_is_not_the_child(tmp_path: Path) -> None:
    here = os.getpid()
    assert command.alive(here, command.created(here))
    assert not command.alive(here, command.created(here) - 100)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    begun = command.created(gone.pid)
    gone.wait()
    assert not command.alive(gone.pid, begun)
    assert not command.alive(None, None)
    assert not command.running(tmp_path)


def test_a_stopped_child_is_asked_as_a_scheduler_asks(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    note = {"words": ["merge"], "pid": child.pid, "created": command.created(child.pid)}
    (tmp_path / command.COMMAND).write_text(json.dumps(note))
    assert command.running(tmp_path)
    with pytest.raises(HfmegaError, match="is running already: wait for it, or stop it"):
        command.start(["merge"], tmp_path)
    command.stop(tmp_path)
    assert child.wait() == -signal.SIGTERM
    assert not command.running(tmp_path)


def test_a_log_shows_no_token(tmp_path: Path) -> None:
    (tmp_path / command.LOG).write_text("refused hf_abcdefghijklmnopqrst for ann")
    assert command.tail(tmp_path / command.LOG) == "refused <token> for ann"
    assert command.tail(tmp_path / "nothing") == ""


def test_merges_are_found_whoever_made_them(merges: Path) -> None:
    assert runs.names(merges) == {"half": "stopped", "done": "finished"}
    assert runs.status(merges, "nothing") == "new"
    assert str(merges / "done") in runs.checkpoints(merges)
    assert str(merges / "half") not in runs.checkpoints(merges)


def test_an_unfinished_merge_tells_how_far_it_came(merges: Path) -> None:
    live = runs.live(merges / "half")
    assert (live.phase, live.planned, live.merges, live.by_loss) == ("search", 5, 1, False)
    ((name, told),) = live.searches
    scores = json.loads((merges / "half" / WORK / "progress.json").read_text())["scores"][name]
    assert len(told) == len(scores) >= 1
    assert told[0].best == max(s["correct"] / s["total"] for s in scores[0] if s["exact"])
    assert told[0].mean == pytest.approx(sum(s["correct"] / s["total"] for s in scores[0]) / len(scores[0]))
    assert live.images > 0
    assert runs.live(merges / "done") == runs.Live()


def test_files_that_are_half_written_say_nothing(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / "progress.json").write_text('{"scores": {')
    (tmp_path / WORK / "phase.json").write_text("[]")
    (tmp_path / WORK / "holder").write_bytes(b"\xff")
    assert runs.live(tmp_path) == runs.Live()
    assert runs.holder(tmp_path) is None


def test_fitness_by_loss_is_best_where_it_is_lowest() -> None:
    scores = [{"correct": 1, "total": 2, "loss": x, "exact": e} for x, e in ((0.5, True), (0.2, False), (0.4, True))]
    assert runs.generation(scores, by_loss=True).best == 0.4
    failed = [{"correct": 0, "total": 2, "loss": "Infinity", "exact": True}]
    assert runs.generation(failed, by_loss=False) == runs.Generation(0.0, 0.0)


def test_a_run_that_somebody_holds_is_running(tmp_path: Path) -> None:
    with open_run(tmp_path / "one", "print", overwrite=False):
        assert runs.holder(tmp_path / "one") == os.getpid()
        assert runs.names(tmp_path) == {"one": "running"}
    elsewhere = tmp_path / "one" / WORK / "holder"
    elsewhere.write_text("process 1 on another-machine")
    assert runs.holder(tmp_path / "one") is None


def test_the_settings_of_an_unfinished_merge_go_on_with_it(
    merges: Path, tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    text = runs.settings_of(merges, "half")
    assert text is not None
    told = yaml.safe_load(text)
    asked = MergeSettings.of(*told.pop("sources"), output=tmp_path, **told)
    assert (asked.search.generations, asked.seed, asked.dataset) == (5, 3, "digits")
    assert asked.sources == tuple(str(source) for source in tiny_sources)
    assert runs.settings_of(merges, "nothing") is None


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../b", "/etc", ".app", "a//b", "a\0b", "a\nb", "-x", "a/b/c/d"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match="is not a name for a merge"):
        runs.merge_folder(tmp_path, name)


def test_plain_names_are_folders(tmp_path: Path) -> None:
    for name in ("s1+s2", "a/b", "résumé 2", "x.y_z-1"):
        assert runs.merge_folder(tmp_path, name) == tmp_path / name
