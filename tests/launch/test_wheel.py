"""What a job installs. 2 seconds."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import run
from support.hub import Hub
from support.places import ROOT

import hfmega
from hfmega.errors import HfmegaError
from hfmega.launch import wheel


class Noted:
    """What an installer notes of hfmega."""

    def __init__(self, note: object) -> None:
        self.note = note

    def read_text(self, name: str) -> str | None:
        return json.dumps(self.note) if name == "direct_url.json" and self.note else None


FOLDER = {"url": "file:///home/ann/hfmega", "dir_info": {}}
COMMIT = {"url": "https://hub/ann/hfmega", "vcs_info": {"vcs": "git", "commit_id": "12ab"}}
NOTES = [(None, None), (FOLDER, "file:///home/ann/hfmega"), (COMMIT, "git+https://hub/ann/hfmega@12ab")]


@pytest.mark.parametrize(("note", "place"), NOTES, ids=["an index", "a folder", "a commit"])
def test_what_came_from_no_index_is_built_where_it_came_from(
    note: object, place: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert wheel.origin() == str(ROOT)  # the clone that runs
    monkeypatch.setattr(hfmega, "__file__", str(tmp_path / "site-packages" / "hfmega" / "__init__.py"))
    monkeypatch.setattr(wheel, "distribution", lambda _: Noted(note))
    assert wheel.origin() == place
    if place is None:
        assert wheel.installed("ann", "digits").requirement.endswith(f"]=={hfmega.__version__}")


def test_what_cannot_be_built_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match=f"is not from PyPI, and no wheel of it can be built from {tmp_path} "):
        wheel.build(str(tmp_path), tmp_path)


@pytest.fixture
def hub(tmp_path: Path, tiny_sources: tuple[Path, Path]) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ann", "hf_ann")
        for number, source in enumerate(tiny_sources, 1):
            hub.create(f"ann/s{number}")
            hub.commit_folder(f"ann/s{number}", source)
        yield hub


def test_a_wheel_goes_along_in_a_private_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that holds a module which the job imports."""

    def build(place: str, folder: Path) -> Path:
        path = folder / "hfmega-0.1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo("carried.py"), """print('{"verdict": "better"}')""")
        return path

    monkeypatch.setattr(wheel, "build", build)
    hub.jobs.program = [sys.executable, "-S", "-c", "import carried"]
    environment = hub.environment(tmp_path / "home", "hf_ann")
    for seed in (1, 2):
        words = ["merge", "ann/s1", "ann/s2", "--on", "cpu-basic", "--seed", seed, "--json"]
        assert run(*words, cwd=tmp_path, environment=environment).json["verdict"] == "better"
    first, second = [job.spec for job in hub.jobs.known.values()]
    requirement = first["command"][3]
    assert " @ file:///wheels/" in requirement
    assert requirement == second["command"][3]
    mounted = {"type": "model", "source": "ann/hfmega-wheels", "mountPath": "/wheels", "readOnly": True}
    assert first["volumes"][1:] == second["volumes"][1:] == [mounted]
    assert hub.count("POST", "/ann/hfmega-wheels/commit/") == 1
    assert hub.count("GET", "/api/models/ann/hfmega-wheels")
    code = "value = api.model_info('ann/hfmega-wheels').private"
    from support.hub.client import ask

    assert ask(environment, code, {}).value is True
