"""Running hfmega commands in a process of their own; several in one where importing torch each time would cost most."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = """
import contextlib, io, json, sys
from hfmega.cli import main
for arguments in json.load(sys.stdin):
    sys.argv = ["hfmega", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
    print("\\n" + json.dumps({"code": code, "stdout": out.getvalue(), "stderr": err.getvalue()}), flush=True)
"""


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
    """One command."""
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
    """Several commands, one after another, in one process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([[str(argument) for argument in command] for command in commands]),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [Done(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
