"""A client in a process of its own, because huggingface_hub reads the HF_* variables when it is imported."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The lines it is sent may set `value`. An exception of theirs is reported, not raised.
PROGRAM = """
import hashlib, json, sys, time
from pathlib import Path
from huggingface_hub import CommitOperationAdd as Add
from huggingface_hub import CommitOperationCopy as Copy
from huggingface_hub import CommitOperationDelete as Delete
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api, value = HfApi(), None
code, arguments = json.load(sys.stdin)
try:
    globals().update(arguments)
    exec(code)
    report = {"value": value}
except Exception as error:
    status = getattr(getattr(error, "response", None), "status_code", None)
    report = {"error": type(error).__name__, "status": status, "text": str(error)}
print("\\n" + json.dumps(report))
"""


@dataclass(frozen=True)
class Reply:
    """What a client got: a value, or the name of its exception with the HTTP status and the message."""

    value: Any = None
    error: str | None = None
    status: int | None = None
    text: str = ""


def ask(environment: Mapping[str, str], code: str, arguments: Mapping[str, Any]) -> Reply:
    """Run lines of Python in a new client; `api`, the usual functions and the `arguments` are names there."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([textwrap.dedent(code), arguments], default=str),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return Reply(**json.loads(done.stdout.splitlines()[-1]))
