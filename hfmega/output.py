"""One output sink: what a person reads goes to stderr, what a program reads to stdout."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from hfmega.errors import printable


class Output:
    """Talk to stderr (`say`, `table`, `progress`), the result to stdout (`result`). A muted one says nothing."""

    def __init__(self, as_json: bool = False, muted: bool = False, verbose: bool = False) -> None:
        self.as_json, self.muted, self.verbose = as_json, muted, verbose
        self._console = Console(stderr=True, quiet=muted, highlight=False, emoji=False, soft_wrap=True)

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
            text, encoding = json.dumps(fields) if self.as_json else str(path), sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator["Bar"]:
        """One line with the newest figures, a bar and an ETA on a terminal (80 columns do); elsewhere plain lines."""
        bar = Progress(
            SpinnerColumn("line"),  # of ASCII
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=5),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=self.muted or not self._console.is_terminal,
            transient=True,
        )
        with bar:
            yield Bar(self, bar, bar.add_task(what, total=total))


class Bar:
    """One running progress bar."""

    def __init__(self, output: Output, progress: Progress, task: TaskID) -> None:
        self._output, self._progress, self._task = output, progress, task

    def advance(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)

    def line(self, figures: str) -> None:
        """The newest figures: beside the bar on a terminal, on a line of their own elsewhere."""
        self._progress.update(self._task, description=printable(figures))
        if self._progress.disable:
            self._output.say(figures)
