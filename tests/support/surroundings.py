"""Another environment and another folder for a while, in this process."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

READ_AT_IMPORT: Final = ("huggingface_hub.constants", "datasets.config")  # their variables, from HF_*


@contextmanager
def surroundings(environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Iterator[None]:
    """Work with exactly these variables and in this folder; None: as it is."""
    variables, folder = dict(os.environ), Path.cwd()
    if cwd:
        os.chdir(cwd)
    if environment is not None:
        replace(environment)
    try:
        yield
    finally:
        os.chdir(folder)
        if environment is not None or os.environ != variables:
            replace(variables)


def replace(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for name in READ_AT_IMPORT:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
