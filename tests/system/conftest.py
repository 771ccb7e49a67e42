"""A browser, where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, wherever it is: that of the system, of HFMEGA_CHROMIUM, or playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    place = os.environ.get("HFMEGA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with api.sync_playwright() as play:
        try:
            started = play.chromium.launch(executable_path=place, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no chromium can be started here: {str(error).splitlines()[0]}")
        yield started
        started.close()
