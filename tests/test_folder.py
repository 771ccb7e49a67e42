"""The folder of a run: refused, locked, resumed, cleared, and written whole or not at all."""

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hfmega.errors import HfmegaError
from hfmega.folder import FINGERPRINT, HOLDER, WORK, check_output, finish, open_run, write_atomically

DONE = "lineage.json"


def unfinished(folder: Path) -> Path:
    """A run that was interrupted after its first generation."""
    with open_run(folder, "one", overwrite=False) as work:
        (work / "progress.json").write_text("{}")
    return folder


def claimed(folder: Path) -> str:
    """Which run the folder belongs to."""
    return str(json.loads((folder / WORK / FINGERPRINT).read_text())["fingerprint"])


def finished(folder: Path) -> Path:
    unfinished(folder)
    (folder / DONE).write_text("{}")
    finish(folder)
    return folder


def refusal(folder: Path, overwrite: bool = False) -> str:
    with pytest.raises(HfmegaError) as refused:
        check_output(folder, DONE, overwrite)
    return str(refused.value).removeprefix(str(folder))


def test_a_new_an_empty_and_an_unfinished_folder_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty", unfinished(tmp_path / "unfinished")):
        check_output(folder, DONE, overwrite=False)


def test_a_folder_with_files_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert refusal(tmp_path) == " is not empty: name another folder with -o, or --overwrite what is in it."
    check_output(tmp_path, DONE, overwrite=True)


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    folder = finished(tmp_path / "out")
    assert refusal(folder) == " holds a finished run: name another folder with -o, or start again with --overwrite."
    check_output(folder, DONE, overwrite=True)


def test_a_run_that_was_interrupted_between_its_result_and_its_end_is_taken(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "out")
    (folder / DONE).write_text("{}")
    check_output(folder, DONE, overwrite=False)


def test_a_folder_that_cannot_be_made_or_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").write_text("mine")
    with pytest.raises(HfmegaError, match=r"file.out cannot be written \(.+\): name another folder with -o\.$"):
        open_run(tmp_path / "file" / "out", "one", overwrite=False).__enter__()
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(HfmegaError, match=r"out cannot be written \(Permission denied\): name another folder"):
        open_run(tmp_path / "out", "one", overwrite=False).__enter__()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("mine")
    assert refusal(tmp_path / "out", overwrite) == " is a file: name a folder with -o."


def test_the_same_run_finds_its_unfinished_work(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "out")
    with open_run(folder, "one", overwrite=False) as work:
        assert work == folder / WORK
        assert (work / "progress.json").read_text() == "{}"


def test_another_run_is_kept_from_unfinished_work(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "out")
    with pytest.raises(HfmegaError, match="holds an unfinished run of other settings or sources"):
        open_run(folder, "two", overwrite=False).__enter__()
    assert claimed(folder) == "one"
    assert (folder / WORK / "progress.json").exists()


@pytest.mark.parametrize("mark", ['{"hfmega": "0.0.9", "fingerprint": "one"}', "one", "[1]", "[" * 100_000])
def test_work_of_another_version_is_refused_by_the_name_of_its_file(tmp_path: Path, mark: str) -> None:
    folder = unfinished(tmp_path / "out")
    (folder / WORK / FINGERPRINT).write_text(mark)
    with pytest.raises(HfmegaError, match=r"fingerprint is of hfmega (0.0.9|.unknown.), this is"):
        open_run(folder, "one", overwrite=False).__enter__()
    assert (folder / WORK / "progress.json").exists()


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "out")
    with open_run(folder, "two", overwrite=True) as work:
        assert not (work / "progress.json").exists()
        assert claimed(folder) == "two"


def test_overwrite_removes_what_hfmega_writes_and_nothing_else(tmp_path: Path) -> None:
    folder = finished(tmp_path / "out")
    (folder / "figures").mkdir()
    (folder / WORK / "old").mkdir()
    ours = ["README.md", "config.json", "model.safetensors", "statistics.safetensors", "figures/fitness.png", DONE]
    ours += ["model.safetensors.tmp", "figures/fitness.png.tmp"]
    theirs = ["notes.txt", "figures/mine.svg", "model.bin", "notes.tmp"]
    for name in (*ours, *theirs, f"{WORK}/places.json", f"{WORK}/old/state"):
        (folder / name).write_text(name)
    with open_run(folder, "two", overwrite=True):
        left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == {*theirs, f"{WORK}/{FINGERPRINT}", f"{WORK}/{HOLDER}", f"{WORK}/lock"}


def test_a_finished_run_forgets_all_but_the_places_of_its_sources(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "out")
    (folder / WORK / "places.json").write_text("{}")
    finish(folder)
    assert {path.name for path in (folder / WORK).iterdir()} - {"lock"} == {"places.json"}


def test_nobody_holds_a_folder_that_was_left(tmp_path: Path) -> None:
    with open_run(tmp_path, "one", overwrite=False) as work:
        assert (work / HOLDER).exists()
    assert not (work / HOLDER).exists()


def test_a_run_killed_while_it_is_being_finished_is_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file is the last that it could remove: there is a result, and the same command is not refused."""
    folder, unlink = unfinished(tmp_path / "out"), Path.unlink
    (folder / DONE).write_text("{}")
    (folder / WORK / "progress.json.tmp").write_text("{")
    (folder / WORK / HOLDER).write_text("process 1 on a machine")  # as a killed run leaves it
    removed: list[str] = []

    def killed(path: Path) -> None:
        if len(removed) == stop:
            raise KeyboardInterrupt
        removed.append(path.name)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", killed)
    for stop in range(4):
        removed.clear()
        with pytest.raises(KeyboardInterrupt):
            finish(shutil.copytree(folder, tmp_path / f"{stop}"))
        check_output(tmp_path / f"{stop}", DONE, overwrite=False)
    assert {*removed, FINGERPRINT} == {"progress.json", "progress.json.tmp", HOLDER, FINGERPRINT}


def test_a_run_in_this_process_keeps_others_out(tmp_path: Path) -> None:
    with open_run(tmp_path, "one", overwrite=False):
        with pytest.raises(HfmegaError) as refused:
            open_run(tmp_path, "one", overwrite=True).__enter__()
        assert claimed(tmp_path) == "one"
    assert str(refused.value) == (
        f"another hfmega is working in {tmp_path} (process {os.getpid()} on {platform.node()}): wait for it, or name "
        "another folder with -o."
    )
    with open_run(tmp_path, "one", overwrite=False):
        pass  # free again


HOLD = """
import sys
from pathlib import Path
from hfmega.folder import open_run
with open_run(Path(sys.argv[1]), "one", overwrite=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_in_another_process_keeps_this_one_out_until_it_is_killed(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(HfmegaError, match=r"^another hfmega is working in "):
            open_run(tmp_path, "one", overwrite=False).__enter__()
        other.kill()
    with open_run(tmp_path, "one", overwrite=False):
        assert claimed(tmp_path) == "one"


def test_a_file_is_written_with_its_content_and_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "state", b"one")
    write_atomically(tmp_path / "state", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("state", b"two")]


def test_a_write_goes_over_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "state.tmp").write_bytes(b"half of a long file")
    write_atomically(tmp_path / "state", b"one")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("state", b"one")]


def test_a_file_that_another_program_is_reading_is_replaced_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows has it."""
    replace, readers = Path.replace, ["a virus scanner", "an indexer"]

    def busy(path: Path, target: Path) -> Path:
        if readers:
            raise PermissionError(13, f"used by {readers.pop()}")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", busy)
    write_atomically(tmp_path / "state", b"one")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("state", b"one")]


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot sync a folder")
def test_the_name_of_a_new_file_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = list[tuple[bool, list[str]]](), os.fsync

    def watched(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), [path.name for path in tmp_path.iterdir()]))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomically(tmp_path / "state", b"one")
    assert synced == [(False, ["state.tmp"]), (True, ["state"])]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "state", b"old")
    monkeypatch.setattr(*{"fsync": (os, "fsync", full), "replace": (Path, "replace", full)}[step])
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "state", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("state", b"old")]
