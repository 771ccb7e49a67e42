"""How far a command has come: images, speeds, one ETA for the whole; bars on a terminal, lines elsewhere. 2 seconds."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from support.commands import run

from hfmega import phases
from hfmega.output import Display, Output, short
from hfmega.phases import Phases, clock_of, duration


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def passing(found: Phases, clock: Clock, images: float, seconds: float) -> None:
    clock.now += seconds
    found.passed(images)


def test_the_eta_is_that_of_all_phases_at_the_measured_speed(clock: Clock) -> None:
    found = Phases(clock)
    assert found.seconds_left is None
    found.plan({"search": 900.0, "test": 100.0}, {"report": 4.0})
    found.begin("search", None, "passes", keep=False)
    assert found.seconds_left is None  # no image has passed yet: nothing is known of the speed
    passing(found, clock, 100, 1.0)
    assert found.seconds_left == pytest.approx(800 / 100 + 100 / 100 + 4)
    assert (found.done, found.total) == (100, 900)


def test_a_phase_that_ends_early_takes_what_was_left_of_it_along(clock: Clock) -> None:
    found = Phases(clock)
    found.plan({"search": 900.0, "test": 100.0})
    found.begin("search", None, "passes", keep=False)
    passing(found, clock, 100, 1.0)
    found.begin("test", None, "passes", keep=False)
    assert found.seconds_left == pytest.approx(1.0)


def test_a_phase_that_comes_again_keeps_what_is_left(clock: Clock) -> None:
    found = Phases(clock)
    found.plan({"search": 800.0, "run-off": 200.0})
    found.begin("search", None, "passes", keep=True)
    passing(found, clock, 400, 4.0)
    found.begin("run-off", None, "passes", keep=True)
    passing(found, clock, 100, 1.0)
    found.begin("search", None, "passes", keep=True)
    assert found.seconds_left == pytest.approx((400 + 100) / 100)
    found.expect("search", 100)
    assert found.seconds_left == pytest.approx((100 + 100) / 100)


def test_the_speed_is_that_of_the_last_half_minute(clock: Clock) -> None:
    found = Phases(clock)
    found.plan({"search": 1e6})
    found.begin("search", None, "passes", keep=False)
    for _ in range(60):
        passing(found, clock, 1000, 1.0)
    for _ in range(120):
        passing(found, clock, 100, 1.0)
    assert found.seconds_left == pytest.approx((1e6 - 72_000) / 100, rel=0.25)


def test_images_that_are_read_have_a_speed_of_their_own(clock: Clock) -> None:
    found = Phases(clock)
    found.begin("images", 1000, "reads", keep=False)
    passing(found, clock, 500, 1.0)
    assert found.seconds_left is None  # how fast the network is, nobody knows yet
    found.plan({"test": 100.0})
    found.begin("test", None, "passes", keep=False)
    passing(found, clock, 10, 1.0)
    assert found.seconds_left == pytest.approx(9.0)


def test_what_an_earlier_run_did_tells_nothing_of_the_speed(clock: Clock) -> None:
    found = Phases(clock)
    found.plan({"training": 1000.0})
    found.begin("training", None, "passes", keep=False)
    found.skipped(500)
    passing(found, clock, 100, 1.0)
    assert found.seconds_left == pytest.approx(4.0)
    assert (found.done, found.total) == (600, 1000)


def test_seconds_without_images_are_counted_down(clock: Clock) -> None:
    found = Phases(clock)
    found.plan({"test": 100.0}, {"report": 4.0})
    found.begin("test", None, "passes", keep=False)
    passing(found, clock, 100, 1.0)
    found.begin("report", None, "passes", keep=False)
    clock.now += 3.0
    assert found.seconds_left == pytest.approx(1.0)
    clock.now += 3.0
    assert found.seconds_left in (None, 0.0)


def test_the_share_never_falls(clock: Clock) -> None:
    found = Phases(clock)
    found.plan({"search": 1000.0})
    found.begin("search", None, "passes", keep=False)
    passing(found, clock, 500, 1.0)
    assert found.share == pytest.approx(0.5)
    found.expect("search", 100_000)
    assert found.share == pytest.approx(0.5)


def test_a_part_of_a_long_command_has_a_plan_of_its_own(clock: Clock) -> None:
    found = Phases(clock)
    found.plan({"first": 1000.0, "second": 1000.0})
    with found.inside("first"):
        found.plan({"search": 300.0})
        found.begin("search", None, "passes", keep=False)
        passing(found, clock, 100, 1.0)
        assert found.name == "first: search"
        assert found.seconds_left == pytest.approx((200 + 1000) / 100)
    assert found.seconds_left == pytest.approx(1000 / 100)


def test_where_nobody_watches_nothing_is_counted() -> None:
    assert phases.WATCH.get() is None
    phases.plan({"search": 1.0})
    phases.begin("search")
    phases.passed(1)
    phases.step("1 of 2")
    with phases.inside("part"):
        phases.skipped(1)


def test_a_muted_output_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(muted=True):
        phases.begin("search", 100)
    assert capsys.readouterr().err == ""
    with Output().watch():  # which is watched once
        phases.begin("search", 100)
    assert capsys.readouterr().err == "search, 100 images\n"
    assert phases.WATCH.get() is None


def test_on_a_terminal_of_80_columns_one_line_has_phase_images_and_eta() -> None:
    screen = io.StringIO()
    display = Display(Console(file=screen, force_terminal=True, width=80, highlight=False))
    phases.plan({"search": 40_000_000.0, "test": 1000.0})
    phases.begin("search")
    phases.step("merge-12 13/20")
    phases.passed(1)
    display.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).split("\r")
    line = next(line for line in shown if "merge-12" in line)
    assert re.search(r"search merge-12 13/20 .* 1/40,000k images ETA \d+:\d\d", line), line
    assert len(line) <= 80
    display.close()
    assert phases.WATCH.get() is None


def test_numbers_and_times_stay_short() -> None:
    assert [short(n) for n in (7, 99_999, 1_234_567, 123_456_789, 2.5e11)] == ["7", "99,999", "1,235k", "123M", "250G"]
    assert [clock_of(s) for s in (7.4, 61, 3600 * 3 + 2)] == ["0:07", "1:01", "3:00:02"]
    assert [duration(s) for s in (12, 120, 7200)] == ["12 seconds", "2.0 minutes", "2.0 hours"]


def test_without_a_terminal_each_phase_is_a_line(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    flags = ["--dataset", "digits", "--fitness-split", "train[:60]", "--test-split", "test[:40]"]
    flags += ["--calibration-split", "train[900:920]", "--population", "4", "--generations", "2"]
    done = run("merge", *tiny_sources, *flags, "-o", "out", cwd=tmp_path)
    lines = done.stderr.splitlines()
    names = ("sources", "images", "each source", "search", "run-off", "test", "report")
    assert [line.split(",")[0] for line in lines if line.split(",")[0] in names] == list(names)
    assert [line.split(":")[1] for line in lines if line.startswith("merge: gen")] == [
        " generation 1/2",
        " generation 2/2",
    ]
    end = next(number for number, line in enumerate(lines) if line.startswith("done in "))
    assert lines[end].endswith(": card out/README.md, report out/report.html")
    assert lines[end + 1 : end + 3] == ["next: hfmega verify out", "      hfmega evaluate out"]
    assert done.stdout == "out\n"
    silent = run("evaluate", "out", "--quiet", "--split", "test[:40]", cwd=tmp_path)
    assert silent.stderr == ""
    assert float(silent.stdout) >= 0
