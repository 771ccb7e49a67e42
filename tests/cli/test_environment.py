"""The machine around a merge: a full disk, no home, a clock that jumps, a terminal of ASCII, names of files."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from support.commands import alone

from hfmega.cli import commands
from hfmega.merging.replay import replay
from hfmega.report import lineage
from hfmega.report.lineage import Lineage
from hfmega.settings import default_folder

FLAGS: Final = ("--dataset", "digits", "--fitness-split", "train[:60]", "--calibration-split", "train[900:920]",
                "--test-split", "test[:40]", "--no-calibrate", "--population", "4", "--generations", "3")  # fmt: skip
RESERVED: Final = {"con", "prn", "aux", "nul", *(f"{name}{k}" for name in ("com", "lpt") for k in range(10))}


def merge(sources: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """`hfmega merge` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["hfmega", "merge", *map(str, sources), *FLAGS, "-o", str(folder)])
    with pytest.raises(SystemExit) as done:
        commands.main()
    return int(done.value.code or 0)


def made(folder: Path) -> Lineage:
    """The lineage of a finished merge, without how long it took."""
    return replace(lineage.read(folder / "lineage.json"), seconds=0.0, date=None)


def state_of(folder: Path) -> list[str]:
    """What an unfinished run has for its next attempt; nothing of it may be half a file."""
    assert not list(folder.rglob("*.tmp"))
    return sorted(path.name for path in (folder / ".hfmega").iterdir() if path.name != "lock")


@pytest.fixture(scope="module")
def whole(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge that nothing befell."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert merge(tiny_sources, folder, patch) == 0
    return folder


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("hfmega: ")]
    assert (out, "Traceback" in err) == ("", False)
    return line


# A full disk.


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_during_the_search_costs_nothing_but_the_wait(
    code: int, whole: Path, tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fsync, record = os.fsync, tmp_path / "out" / ".hfmega" / "progress.json"

    def full(handle: int) -> None:
        if record.exists():
            raise OSError(code, os.strerror(code))
        fsync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert merge(tiny_sources, tmp_path / "out", monkeypatch) == 1
    assert "the disk is full; free some space, and the same command resumes" in complaint(capsys)
    assert state_of(tmp_path / "out") == ["fingerprint", "phase.json", "progress.json", "settings.yaml"]
    assert merge(tiny_sources, tmp_path / "out", monkeypatch) == 0
    assert "resuming merge after generation 1 of 3" in capsys.readouterr().err
    assert made(tmp_path / "out") == made(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.system
@pytest.mark.parametrize("room", [12_000, 300_000])  # full at the first state; in the middle of the weights
def test_a_real_full_disk_leaves_the_state_and_an_old_result_readable(
    room: int, whole: Path, tiny_sources: tuple[Path, Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    old = shutil.copytree(whole, small_disk / "old")
    left = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"0" * (left - room))
    assert merge(tiny_sources, small_disk / "new", monkeypatch) == 1
    assert "the disk is full; free some space, and the same command resumes" in complaint(capsys)
    assert ("progress.json" in state_of(small_disk / "new")) == (room > 100_000)
    assert replay(str(old)).equal
    (small_disk / "filler").unlink()
    assert merge(tiny_sources, small_disk / "new", monkeypatch) == 0
    assert made(small_disk / "new") == made(whole)


def test_an_output_folder_that_cannot_be_made_is_one_sentence(
    tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert merge(tiny_sources, tmp_path / "file" / "out", monkeypatch) == 1
    assert re.search(r"out cannot be written \(.+\): name another folder with -o\.$", complaint(capsys))


# The clock, the home, the terminal.


def test_a_clock_that_jumps_backwards_changes_nothing(
    whole: Path, tiny_sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, started = [time.time()], time.monotonic()

    def backwards() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    assert merge(tiny_sources, tmp_path / "out", monkeypatch) == 0
    assert made(tmp_path / "out") == made(whole)
    assert 0 <= lineage.read(tmp_path / "out" / "lineage.json").seconds < time.monotonic() - started + 0.1


@pytest.mark.system
def test_without_a_home_and_on_a_terminal_of_ascii_a_merge_is_as_ever(
    whole: Path, tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """Letters that the terminal lacks are escaped there, and are themselves in files, which are UTF-8 everywhere."""
    homes = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "PYTHONUTF8")
    environment = {name: value for name, value in os.environ.items() if name not in homes}
    environment |= {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONWARNDEFAULTENCODING": "1"}
    (tmp_path / "file").write_text("no folder")
    environment["HOME"] = str(tmp_path / "file" / "home")  # not unset: that would be the home of the user's entry
    sources = [shutil.copytree(source, tmp_path / f"été-{source.name}") for source in tiny_sources]
    done = alone("merge", *sources, *FLAGS, "-o", "mélange", cwd=tmp_path, environment=environment)
    assert (done.code, done.stdout) == (0, "m\\xe9lange\n"), done.stderr
    assert "\\xe9t\\xe9-s1" in done.stderr
    assert not [
        line for line in done.stderr.splitlines() if re.search(r"hfmega.(\w+.)?\w+\.py:\d+: EncodingWarning", line)
    ]
    assert made(tmp_path / "mélange").result.sha256 == made(whole).result.sha256
    assert "été-s1" in (tmp_path / "mélange" / "README.md").read_text(encoding="utf-8")
    assert "été-s1" in (tmp_path / "mélange" / "lineage.json").read_text(encoding="utf-8")


# Names.


def test_names_of_files_are_allowed_on_every_system(whole: Path) -> None:
    names = [path.relative_to(whole).as_posix() for path in whole.rglob("*")]
    assert len({name.casefold() for name in names}) == len(names) > 8
    for part in (part for name in names for part in name.split("/")):
        assert re.fullmatch(r"[A-Za-z0-9._-]*[A-Za-z0-9]", part), part
        assert part.split(".")[0].casefold() not in RESERVED


def test_the_default_folder_is_named_by_the_last_names_of_the_sources(tmp_path: Path) -> None:
    sources = ("ann/one", "hf://bob/two@refs/pr/1", str(tmp_path / "three"))
    assert default_folder(*sources) == Path("merges/one+two+three")
    assert default_folder(".", "ann/one/") == Path("merges") / f"{Path.cwd().name}+one"
