"""`hf mega ...`: the script that the hf client looks for in an extension called hf-mega. 1 second."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub.cli import extensions
from support.places import ROOT


def test_the_package_installs_the_script_that_hf_looks_for() -> None:
    scripts = re.findall(r'^([\w-]+) = "hfmega\.cli:main"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert set(scripts) == {"hfmega", extensions._get_executable_name("mega").removesuffix(".exe")}


def test_hf_hands_its_arguments_to_the_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "hf-mega" / "hf-mega"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\necho "$@"\n')
    script.chmod(0o755)
    manifest = {"owner": "ann", "repo": "hf-mega", "repo_id": "ann/hf-mega", "short_name": "mega", "type": "python"}
    manifest |= {"executable_path": str(script), "installed_at": "2026-01-01T00:00:00+00:00"}
    (script.parent / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(extensions, "EXTENSIONS_ROOT", tmp_path)
    monkeypatch.setattr(extensions, "_check_extension_update", lambda _: None)
    assert extensions.dispatch_unknown_top_level_extension(["mega", "merge", "a", "b"], {"auth"}) == 0
    assert capfd.readouterr().out == "merge a b\n"
