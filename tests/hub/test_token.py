"""The token of the Hub is in no log, file, traceback, process list or representation, whatever goes wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import alone, run
from support.hub import Fault, Hub

TOKEN = "hf_secretWordOfAnn0123456789"
WRONG = "hf_wrongWordOfSomeone9876543210"


@pytest.fixture
def hub(tmp_path: Path, tiny_sources: tuple[Path, Path]) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ann", TOKEN)
        hub.add_models("ann", tiny_sources, private=True)
        yield hub


def holding(folder: Path, token: str) -> list[Path]:
    """The files below a folder in which the token stands, but those that the Hub itself keeps."""
    files = [path for path in folder.rglob("*") if path.is_file() and "hub" not in path.relative_to(folder).parts[:1]]
    return [path for path in files if token.encode() in path.read_bytes()]


MERGE = ["merge", "ann/s1", "ann/s2", "--dataset", "digits", "--fitness-split", "train[:200]", "--population", 4]
MERGE += ["--generations", 1, "-o", "out", "--push-to-hub", "ann/merged", "--debug", "-v", "--json"]


@pytest.mark.system
def test_a_merge_and_its_push_leave_no_token_behind(hub: Hub, tmp_path: Path) -> None:
    """The commit fails at the end, in --debug with its whole traceback."""
    hub.inject(Fault("/ann/merged/commit/", status=403, times=99))
    (tmp_path / "work").mkdir()
    done = alone(*MERGE, "--token", TOKEN, cwd=tmp_path / "work", environment=hub.environment(tmp_path / "home"))
    assert done.code == 1
    assert "Traceback" in done.stderr
    assert "--create-pr proposes it" in done.stderr
    assert (tmp_path / "work" / "out" / "lineage.json").is_file()
    assert (tmp_path / "work" / "out" / "README.md").is_file()
    assert TOKEN not in done.stdout + done.stderr
    assert holding(tmp_path, TOKEN) == []


@pytest.mark.system
def test_a_wrong_token_is_refused_without_being_shown(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    done = alone(*MERGE, f"--token={WRONG}", cwd=tmp_path / "work", environment=hub.environment(tmp_path / "home"))
    assert done.code == 1
    assert "Traceback" in done.stderr
    assert "nothing could be published as ann/merged" in done.stderr
    assert WRONG not in done.stdout + done.stderr
    assert holding(tmp_path, WRONG) == []


@pytest.mark.system
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks where Linux lists processes")
@pytest.mark.parametrize("flags", [["--token", TOKEN], [f"--token={TOKEN}"]], ids=["two words", "one word"])
def test_the_list_of_processes_shows_no_token_while_a_command_works(hub: Hub, tmp_path: Path, flags: list[str]) -> None:
    """The Hub answers after two seconds: then the command waits, and its arguments are looked at."""
    hub.inject(Fault("/api/models/ann/s1", delay=2.0))
    command = [
        sys.executable,
        "-m",
        "hfmega",
        "evaluate",
        "ann/s1",
        "--split",
        "train[:9]",
        "--dataset",
        "digits",
        *flags,
    ]
    working = subprocess.Popen(command, env=hub.environment(tmp_path / "home"), stdout=-1, stderr=-1, text=True)
    while not hub.count("GET", "/api/models/ann/s1"):
        assert working.poll() is None, working.communicate()
        time.sleep(0.05)
    shown = Path(f"/proc/{working.pid}/cmdline").read_bytes().split(b"\0")
    out, err = working.communicate(timeout=120)
    assert working.returncode == 0, err
    assert shown[1:5] == [b"-m", b"hfmega", b"evaluate", b"ann/s1"]
    assert not [word for word in shown if TOKEN.encode() in word or b"--token" in word]
    assert TOKEN not in out + err


@pytest.mark.parametrize(("place", "debug"), [("X-Error-Message", False), ("X-Request-Id", True)])
def test_a_hub_that_says_the_token_back_is_not_repeated(hub: Hub, tmp_path: Path, place: str, debug: bool) -> None:
    hub.inject(Fault("/api/models/ann/s1", status=400, headers={place: f"bad header: Bearer {TOKEN}"}, times=9))
    environment = hub.environment(tmp_path / "home")
    words = ["evaluate", "ann/s1", "--dataset", "digits", "--token", TOKEN, *(["--debug"] if debug else [])]
    done = run(*words, environment=environment)
    assert done.code == 1
    assert "the Hub refused ann/s1" in done.stderr
    assert "Bearer <token>" in done.stderr
    assert ("Traceback" in done.stderr) == debug
    assert TOKEN not in done.stdout + done.stderr
