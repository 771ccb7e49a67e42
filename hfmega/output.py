"""One output sink: what a person reads goes to stderr, what a program reads to stdout."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Output:
    """Talk to stderr (`say`, `table`, `progress`), the result to stdout (`result`). A muted one says nothing."""

    def __init__(self, as_json: bool = False, muted: bool = False, verbose: bool = False) -> None:
        self.as_json, self.muted, self.verbose = as_json, muted, verbose
        self._console = Console(stderr=True, quiet=muted, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def detail(self, text: str) -> None:
        """Said only with -v."""
        if self.verbose:
            self.say(text)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for position, column in enumerate(columns):
            table.add_column(column, justify="left" if position == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print(table, soft_wrap=False)

    def result(self, path: Path | str, fields: dict[str, Any]) -> None:
        """The path, or with --json one JSON object, on stdout."""
        if not self.muted:
            print(json.dumps(fields) if self.as_json else path, file=sys.stdout, flush=True)

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator["Bar"]:
        """A bar with an ETA on a terminal; elsewhere only the lines that `Bar.line` prints."""
        bar = Progress(
            SpinnerColumn(),
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=self.muted or not self._console.is_terminal,
            transient=True,
        )
        with bar:
            yield Bar(self, bar, total)


class Bar:
    """One running progress bar."""

    def __init__(self, output: Output, progress: Progress, total: int) -> None:
        self._output, self._progress = output, progress
        self._task = progress.add_task("", total=total, note="")

    def advance(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)

    def line(self, note: str) -> None:
        """The newest figures: beside the bar on a terminal, on a line of their own elsewhere."""
        self._progress.update(self._task, note=note)
        if self._progress.disable:
            self._output.say(note)
