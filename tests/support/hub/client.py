"""Clients of a Hub: lines of Python with the usual names, in the environment of a user."""

from __future__ import annotations

import hashlib
import json
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.surroundings import surroundings


@dataclass(frozen=True)
class Reply:
    """What a client got: a value, or the name of its exception with the HTTP status and the message."""

    value: Any = None
    error: str | None = None
    status: int | None = None
    text: str = ""


def ask(environment: Mapping[str, str], code: str, arguments: Mapping[str, Any]) -> Reply:
    """Run lines of Python as a client; `api`, the usual functions and the `arguments` are names there.

    The lines may set `value`. An exception of theirs is reported, not raised.
    """
    from huggingface_hub import (
        CommitOperationAdd,
        CommitOperationCopy,
        CommitOperationDelete,
        HfApi,
        hf_hub_download,
        snapshot_download,
    )

    known = json.loads(json.dumps(arguments, default=str))
    with surroundings(environment):
        names = {
            "Add": CommitOperationAdd, "Copy": CommitOperationCopy, "Delete": CommitOperationDelete, "HfApi": HfApi,
            "hf_hub_download": hf_hub_download, "snapshot_download": snapshot_download, "api": HfApi(), "value": None,
            "hashlib": hashlib, "json": json, "sys": sys, "time": time, "Path": Path, **known,
        }  # fmt: skip
        try:
            exec(textwrap.dedent(code), names)
            return Reply(value=json.loads(json.dumps(names["value"])))
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            return Reply(error=type(error).__name__, status=status, text=str(error))
