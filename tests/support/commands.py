"""hfmega commands: in this process, where an import of torch costs nothing any more, or in one of their own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.surroundings import surroundings


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)

    @property
    def complaint(self) -> str:
        """The one sentence of a command that failed: no traceback, nothing on stdout."""
        assert (self.code, self.stdout) == (1, ""), (self.code, self.stdout, self.stderr)
        assert "Traceback" not in self.stderr
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("hfmega: ")]
        return line.removeprefix("hfmega: ")


def run(*arguments: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Done:
    """One command, in this process, with streams of its own, which it cannot tell from real ones."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    with surroundings(environment, cwd), redirect_stdout(out), redirect_stderr(err):
        code = call([str(argument) for argument in arguments])
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return Done(code, *texts)


def call(arguments: Sequence[str]) -> int:
    """`python -m hfmega ARGUMENTS`; its exit code. An exception that it lets through is shown as Python would."""
    from hfmega.cli.commands import main

    argv, hook = sys.argv, sys.excepthook
    sys.argv = ["hfmega", *arguments]
    try:
        main()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    finally:
        sys.argv, sys.excepthook = argv, hook
    return 0


def alone(*arguments: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Done:
    """One command in a process of its own: 8 seconds of CPU before it does anything."""
    done = subprocess.run(
        [sys.executable, "-m", "hfmega", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def run_all(
    commands: Sequence[Sequence[object]], cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> list[Done]:
    """Several commands, one after another, in this process."""
    return [run(*command, cwd=cwd, environment=environment) for command in commands]
