"""One output sink: what a person reads goes to stderr, what a program reads to stdout."""

import json
import os
import sys
import time
from collections.abc import Iterable
from contextvars import Token
from pathlib import Path
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from hfmega.errors import printable
from hfmega.phases import WATCH, Phases, Watch, clock_of, duration

SILENCE: Final = 30.0  # seconds after which a log, which has no bar, gets a line
FLAVOR: Final = "HFMEGA_FLAVOR"  # set in a job of the Hub: the machine that it runs on
TOLD: Final = "progress: "  # how a line of progress begins in the log of a job, which another hfmega follows


class Output:
    """Talk to stderr (`say`, `table`), the result to stdout (`result`). quiet: no talk; muted: no result either.

    As a context it also shows how far the command has come: `hfmega.phases`.
    """

    def __init__(self, as_json: bool = False, muted: bool = False, verbose: bool = False, quiet: bool = False) -> None:
        self.as_json, self.muted, self.verbose = as_json, muted, verbose
        self._console = Console(stderr=True, quiet=muted or quiet, highlight=False, emoji=False, soft_wrap=True)
        self._display: Display | None = None
        self._started = time.monotonic()

    def watch(self) -> "Output":
        """Show how far the command has come, until `close`."""
        if not self._console.quiet and self._display is None:
            self._display = Display(self._console)
        return self

    def __enter__(self) -> "Output":
        return self.watch()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the display away; what was said stays."""
        if self._display:
            self._display.close()
            self._display = None

    @property
    def live(self) -> bool:
        """Whether a line on a terminal shows how far the command has come."""
        return self._display is not None and self._display.live

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False)

    def detail(self, text: str) -> None:
        """Said only with -v."""
        if self.verbose:
            self.say(text)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=Text(printable(title)), title_justify="left")
        for position, column in enumerate(columns):
            folded: Any = {} if position else {"overflow": "fold"}  # a name is never cut
            table.add_column(Text(printable(column)), justify="right" if position else "left", **folded)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self._console.print(table, soft_wrap=False)

    def result(self, path: Path | str, fields: dict[str, Any]) -> None:
        """The path, or with --json one JSON object, on stdout; what it cannot show is escaped, as on stderr."""
        if not self.muted:
            self.close()
            text, encoding = json.dumps(fields) if self.as_json else str(path), sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)

    def finish(self, result: str, steps: Iterable[str]) -> None:
        """The end of a command: how long it took, what it made, and commands to try next."""
        self.close()
        self.say(f"done in {duration(time.monotonic() - self._started)}: {result}")
        for number, command in enumerate(steps):
            self.say(f"{'     ' if number else 'next:'} {command}")


class Display:
    """The phases of a running command: on a terminal one line that moves, elsewhere a line for each phase."""

    def __init__(self, console: Console) -> None:
        self._console, self._phases = console, Phases()
        self._live = Line(self._phases, console) if console.is_terminal else None
        self._prefix = TOLD if FLAVOR in os.environ else ""
        self._said = time.monotonic()
        self._token: Token[Watch | None] | None = WATCH.set(Watch(self._phases, self._began, self._moved))
        if self._live:
            self._live.start()

    def close(self) -> None:
        if self._token:
            WATCH.reset(self._token)
            self._token = None
        if self._live:
            self._live.stop()

    @property
    def live(self) -> bool:
        return self._live is not None

    def refresh(self) -> None:
        """Show how far it is now."""
        if self._live:
            self._live.refresh()

    def _began(self) -> None:
        if not self._live:
            self._tell()

    def _moved(self) -> None:
        if not self._live and time.monotonic() - self._said > SILENCE:
            self._tell()

    def _tell(self) -> None:
        phases, left = self._phases, self._phases.seconds_left
        parts = [f"{phases.name} {phases.step}".strip()]
        if phases.total:
            before = f"{phases.done:,.0f} of " if phases.done else ""
            parts.append(f"{before}{phases.total:,.0f} images")
        if left is not None:
            parts.append(f"about {duration(left)} to go")
        self._console.print(printable(self._prefix + ", ".join(parts)), markup=False)
        self._said = time.monotonic()


class Line(Progress):
    """One line: phase, bar, images of the phase, ETA of the whole command; 80 columns do."""

    def __init__(self, phases: Phases, console: Console) -> None:
        self._phases = phases
        super().__init__(
            SpinnerColumn("line"),  # of ASCII
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TextColumn("{task.fields[images]}", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[eta]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            redirect_stdout=False,  # which is the result's
        )
        self._task = self.add_task("", total=None, images="", eta="")

    def get_renderables(self) -> Iterable[RenderableType]:
        """The line as it is now; asked for several times a second by a thread of its own."""
        if not self.tasks:
            return
        phases = self._phases
        share, left = phases.share, phases.seconds_left
        self.update(
            self._task,
            description=printable(f"{phases.name} {phases.step}".strip()),
            total=None if share is None else 1.0,
            completed=share or 0.0,
            images=f"{short(phases.done)}/{short(phases.total)} images" if phases.total else "",
            eta=clock_of(phases.elapsed) if left is None else f"ETA {clock_of(left)}",
        )
        yield self.make_tasks_table(self.tasks)


def short(images: float) -> str:
    """A number of images in at most six characters."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if images >= 100 * size:
            return f"{images / size:,.0f}{unit}"
    return f"{images:,.0f}"
