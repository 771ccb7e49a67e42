"""The page in a process of its own: gradio leaves event loops behind, which our tests would not forgive."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ADDRESS: Final = re.compile(r"the page is at (http://\S+)/? ")


@contextmanager
def serving(base: Path, environment: Mapping[str, str] | None = None, log: Path | None = None) -> Iterator[str]:
    """`hfmega app BASE --no-browser`, until the end of the block; its address. log: where what it says is kept."""
    said = log or base.parent / f"{base.name}-page.log"
    with said.open("wb") as stream:
        page = subprocess.Popen(
            [sys.executable, "-m", "hfmega", "app", str(base), "--no-browser"],
            env={**(environment or os.environ)},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
        try:
            yield address_of(page, said).rstrip("/")
        finally:
            page.terminate()
            page.wait(60)


def address_of(page: subprocess.Popen[bytes], said: Path) -> str:
    """What it says when it is ready."""
    until = time.monotonic() + 120
    while time.monotonic() < until and page.poll() is None:
        if found := ADDRESS.search(said.read_text(encoding="utf-8", errors="replace")):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(said.read_text(encoding="utf-8", errors="replace"))
