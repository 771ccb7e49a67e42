"""The progress of a job in the display of another process. 1 second."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hfmega import phases
from hfmega.launch.follow import PROGRESS, Heard, hear, show
from hfmega.output import FLAVOR, Output

PHASES = [
    (("BatchNorm", None), 0, {}, ("BatchNorm", 0, None, None)),
    (("search", 5000.0), 0, {}, ("search", 0, 5000, None)),
    (("search", 5000.0), 1234, {"search": 240.0}, ("search", 1234, 5000, 240)),
    (("test", 1e6), 10, {"test": 45.0}, ("test", 10, 1_000_000, 45)),
    (("search", None), 0, {"search": 7200.0}, ("search", 0, None, 7200)),
]


@pytest.mark.parametrize(("begun", "passed", "ahead", "shown"), PHASES)
def test_a_display_shows_what_the_log_of_a_job_says(
    begun: Any, passed: float, ahead: Any, shown: Any,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Written by the display of one process, read into the phases of another."""
    monkeypatch.setenv(FLAVOR, "cpu-basic")
    monkeypatch.setattr("hfmega.output.SILENCE", -1.0)
    with Output():
        phases.plan({}, ahead)
        phases.begin(*begun)
        phases.skipped(passed)
        phases.step("")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("progress: ")
    told = PROGRESS.fullmatch(line)
    assert told
    with Output():
        show(told)
        seen = phases.WATCH.get()
        assert seen
        left = seen.phases.seconds_left
        assert (seen.phases.name, seen.phases.done, seen.phases.total) == shown[:3]
        assert left == (None if shown[3] is None else pytest.approx(shown[3], abs=1))


class Terminal(Output):
    """An output whose display is a line that moves."""

    live = True  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_terminal_moves_its_line_and_a_log_gets_the_lines() -> None:
    lines = ["progress: search 3 of 8, 10 of 200 images, about 9 seconds to go", "relation: independent", "", "{oops"]
    terminal, heard = Terminal(), Heard()
    for line in lines:
        hear(line, heard, terminal)
    assert terminal.said == lines[1:]
    assert heard == Heard(None, [], "{oops", 4)
    plain = Terminal()
    plain.live = False  # type: ignore[assignment]
    hear(lines[0], heard, plain)
    assert plain.said == [re.sub("^progress: ", "", lines[0])]


def test_the_result_and_the_last_sentence_are_kept_and_not_said() -> None:
    terminal, heard = Terminal(), Heard()
    for line in ['{"verdict": "better"}', '{"output": 1}', "hfmega: interrupted.", '{"verdict": "worse"}']:
        hear(line, heard, terminal)
    assert heard == Heard({"verdict": "worse"}, ["interrupted."], '{"output": 1}', 4)
    assert terminal.said == ['{"output": 1}']
