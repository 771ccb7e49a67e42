"""The notebook of the examples runs from top to bottom. 40 seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from support.places import ROOT

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore")]


def outputs(cell: Any) -> str:
    """What a cell printed."""
    return "".join(out.get("text", "") for out in cell.get("outputs", []))


def test_the_notebook_runs_and_shows_the_result(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples" / "merge.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "shared trunk" in outputs(code[1])
    (shown,) = [out["data"]["text/markdown"] for out in code[2]["outputs"] if "data" in out]
    assert "data:image/png;base64," in shown
    assert "the network says" in outputs(code[3])
    assert "FAILED" not in outputs(code[4])
    assert outputs(code[4]).startswith("True")
