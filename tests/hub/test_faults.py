"""What goes wrong with the Hub, and what hfmega makes of it: success after retries, or one clear sentence."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support.hub import Fault, Hub, client
from support.hub.client import Reply
from support.specs import spec

from hfmega.hub import retry
from hfmega.models.library import build

TOKEN = "hf_ann"
PULL = "from hfmega.hub import pull\nfound = pull.pull('ann/source')\nvalue = [found.sha256, found.revision]"
PUSH = "from hfmega.hub.push import Push, push\nvalue = push(Path(folder), Push('ann/merged', create_pr=pr))"


def at_once(_: object) -> float:
    """Seconds to wait where all attempts fail."""
    return 0.0


@dataclass(frozen=True)
class Case:
    """A fault, while a source is pulled or a folder pushed, and what must come of it.

    outcome: part of the sentence of the error; empty: it succeeds. asks: how often a request was made, if that counts.
    """

    name: str
    faults: tuple[Fault, ...]
    do: str = PULL
    outcome: str = ""
    asks: tuple[str, str, int] | None = None
    pr: bool = False
    impatient: bool = False  # where all attempts fail


INFO, FILE = "/api/models/ann/source", "/ann/source/resolve/.*/model.safetensors"
COMMIT = "/ann/merged/commit/"
FINISH = "finishes the job"
CASES = (
    Case("429 with Retry-After, on information", (Fault(INFO, status=429, headers={"Retry-After": "1"}),)),
    Case("500, on a file", (Fault(FILE, "GET", status=500),), asks=("GET", FILE, 2)),
    Case("503 twice, on information", (Fault(INFO, status=503, times=2),), asks=("GET", INFO, 3)),
    Case("a Hub that stays ill", (Fault(INFO, status=503, times=99),), PULL, impatient=True,
         outcome="the Hub refused ann/source", asks=("GET", INFO, 5)),
    Case("dropped connection, on information", (Fault(INFO, drop=True),)),
    Case("dropped connection, on a file", (Fault(FILE, "GET", drop=True),)),
    Case("download cut in its middle", (Fault(FILE, "GET", cut_after=9000),)),
    Case("a flipped byte in the weights", (Fault(FILE, "GET", flip_byte=9000),), asks=("GET", FILE, 2)),
    Case("a flipped byte in the config", (Fault("/ann/source/resolve/.*/config.json", "GET", flip_byte=9),)),
    Case("a flipped byte, again", (Fault(FILE, "GET", flip_byte=9000, times=9),), outcome="came damaged twice"),
    Case("a token that has expired", (Fault(INFO, status=401, headers={"X-Error-Message": "Invalid credentials"}),),
         outcome="the Hub does not know this token"),
    Case("upload whose answer is lost", (Fault("/lfs-upload/", "PUT", drop=True),), PUSH),
    Case("upload cut in its middle", (Fault("/lfs-upload/", "PUT", stop_reading=9000),), PUSH,
         asks=("PUT", "/lfs-upload/", 2)),
    Case("503, on the commit", (Fault(COMMIT, status=503),), PUSH, asks=("POST", COMMIT, 2)),
    Case("commit made, its answer lost", (Fault(COMMIT, drop=True, after=True),), PUSH, asks=("POST", COMMIT, 1)),
    Case("commit made, answered with 502", (Fault(COMMIT, status=502, after=True),), PUSH, asks=("POST", COMMIT, 1)),
    Case("pull request made, its answer lost", (Fault(COMMIT, drop=True, after=True),), PUSH, pr=True,
         asks=("POST", COMMIT, 1)),
    Case("a Hub that takes no commit", (Fault(COMMIT, status=500, times=99),), PUSH, impatient=True, outcome=FINISH,
         asks=("POST", COMMIT, 5)),
    Case("no right to write", (Fault(COMMIT, status=403),), PUSH, outcome="--create-pr proposes it"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as timm writes it, untrained."""
    folder = tmp_path_factory.mktemp("work") / "merge"
    folder.mkdir()
    save_file(build(spec()).state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"architecture": "resnet8_cifar", "num_classes": 10}')
    (folder / "README.md").write_text("---\nlibrary_name: timm\n---\nA card.\n")
    (folder / "lineage.json").write_text("{}")
    return folder


@pytest.fixture
def hub(tmp_path: Path, folder: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ann", TOKEN)
        hub.create("ann/source")
        hub.commit_folder("ann/source", folder)
        yield hub


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, str]]]:
    """Every fault with its outcome, printed at the end."""
    rows: list[tuple[str, str]] = []
    yield rows
    writer = request.config.get_terminal_writer()
    writer.line()
    for name, outcome in rows:
        writer.line(f"{name:45} {outcome}")


def said(reply: Reply) -> str:
    return "success" if reply.error is None else f"{reply.error}: {reply.text}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_overcome_or_one_sentence(
    hub: Hub, folder: Path, tmp_path: Path, case: Case, table: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.impatient:
        monkeypatch.setattr(retry, "wait", at_once)
    environment = hub.environment(tmp_path / "home", TOKEN)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    if PUSH in case.do:
        hub.create("ann/merged")
    for fault in case.faults:
        hub.inject(fault)
    reply = client.ask(environment, case.do, {"folder": str(folder), "pr": case.pr})
    table.append((case.name, said(reply)))
    hub.clear_faults()
    if case.outcome:
        assert (reply.error in ("HubError", "SourceError"), case.outcome in reply.text) == (True, True), reply
    else:
        assert reply.error is None, reply
    if case.asks:
        assert hub.count(*case.asks[:2]) == case.asks[2]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    again = client.ask(environment, case.do, {"folder": str(folder), "pr": False})
    assert again.error is None, again
    if PUSH in case.do:
        names = set(client.ask(environment, "value = api.list_repo_files('ann/merged')", {}).value)
        assert names >= {path.name for path in folder.iterdir()}
        assert (
            len(client.ask(environment, "value = [c.title for c in api.list_repo_commits('ann/merged')]", {}).value)
            == 2
        )


def while_waiting(hub: Hub, method: str, path: str, act: Callable[[], object]) -> None:
    """Do something once a request has come, while its answer is being held back."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while hub.count(method, path) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    threading.Thread(target=watch).start()


def other_folder(folder: Path, tmp_path: Path, *changed: str) -> Path:
    """The same folder with other bytes in some files."""
    other = shutil.copytree(folder, tmp_path / "other")
    for name in changed:
        path = other / name
        path.write_bytes(path.read_bytes().replace(b'num_classes": 10', b'num_classes":10 ') + b" ")
    return other


def test_a_revision_that_moves_between_two_downloads(
    hub: Hub, folder: Path, tmp_path: Path, table: list[tuple[str, str]]
) -> None:
    """Config and weights come from one commit: the one that main was when it was asked for first."""
    first = client.ask(hub.environment(tmp_path / "one", TOKEN), PULL, {}).value
    other = other_folder(folder, tmp_path, "config.json", "lineage.json")
    hub.inject(Fault("/ann/source/resolve/.*/model.safetensors", "HEAD", delay=1.0))
    while_waiting(hub, "HEAD", "/ann/source/resolve/.*/config.json", lambda: hub.commit_folder("ann/source", other))
    hub.requests.clear()
    reply = client.ask(hub.environment(tmp_path / "two", TOKEN), PULL + "\nvalue += [found.spec.config]", {})
    table.append(("a revision that moves between two downloads", said(reply)))
    assert reply.error is None, reply
    weights, commit, config = reply.value
    assert config == {"architecture": "resnet8_cifar", "num_classes": 10, "pretrained_cfg": config["pretrained_cfg"]}
    asked = {path.split("/resolve/")[1].split("/")[0] for _, path in hub.requests if "/resolve/" in path} - {"main"}
    assert asked == {commit}
    assert weights == first[0]


def test_a_repository_that_changed_meanwhile_is_left_as_it_is(
    hub: Hub, folder: Path, tmp_path: Path, table: list[tuple[str, str]]
) -> None:
    environment = hub.environment(tmp_path / "home", TOKEN)
    hub.create("ann/merged")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("of somebody else")
    hub.inject(Fault(COMMIT, "POST", delay=1.0))
    while_waiting(hub, "POST", COMMIT, lambda: hub.commit_folder("ann/merged", other))
    reply = client.ask(environment, PUSH, {"folder": str(folder), "pr": False})
    table.append(("a repository that changed meanwhile", said(reply)))
    assert "ann/merged got another commit while this one was being made" in reply.text
    assert FINISH in reply.text
    files = client.ask(environment, "value = api.list_repo_files('ann/merged')", {}).value
    assert set(files) == {".gitattributes", "notes.txt"}
    assert client.ask(environment, PUSH, {"folder": str(folder), "pr": False}).error is None


@pytest.mark.parametrize("moment", ["/ann/merged/preupload/", COMMIT])
def test_a_repository_that_got_the_same_files_meanwhile_is_as_it_should_be(
    hub: Hub, folder: Path, tmp_path: Path, moment: str, table: list[tuple[str, str]]
) -> None:
    hub.create("ann/merged")
    hub.inject(Fault(moment, "POST", delay=1.0))
    while_waiting(hub, "POST", moment, lambda: hub.commit_folder("ann/merged", folder))
    reply = client.ask(hub.environment(tmp_path / "home", TOKEN), PUSH, {"folder": str(folder), "pr": False})
    table.append((f"the same files meanwhile, at {moment.split('/')[3]}", said(reply)))
    assert reply.error is None, reply
    commits = client.ask(
        hub.environment(tmp_path / "home"), "value = [c.commit_id for c in api.list_repo_commits('ann/merged')]", {}
    ).value
    assert len(commits) == 2
    assert reply.value == f"{hub.url}/ann/merged/commit/{commits[0]}"


def test_no_network_is_one_sentence(
    tmp_path: Path, table: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "wait", at_once)
    with Hub(tmp_path / "hub") as gone:
        environment = gone.environment(tmp_path / "home", TOKEN)
    reply = client.ask(environment, PULL, {})  # at a port where nobody listens any more
    table.append(("no network", said(reply)))
    assert reply.error == "HubError"
    assert reply.text.startswith("the connection to the Hub failed for ann/source (")
    offline = client.ask({**environment, "HF_HUB_OFFLINE": "1"}, PULL, {})
    table.append(("offline, with a cold cache", said(offline)))
    assert (offline.error, offline.text.partition(",")[0]) == ("HubError", "there is no folder ann/source")


def test_a_folder_that_is_there_already_makes_no_commit(
    hub: Hub, folder: Path, tmp_path: Path, table: list[tuple[str, str]]
) -> None:
    environment = hub.environment(tmp_path / "home", TOKEN)
    first, second = (client.ask(environment, PUSH, {"folder": str(folder), "pr": False}) for _ in range(2))
    table.append(("a folder that is there already", said(second)))
    assert first.value == second.value
    assert hub.count("POST", COMMIT) == 1


def test_a_warm_cache_is_enough_offline_and_is_checked(hub: Hub, tmp_path: Path, table: list[tuple[str, str]]) -> None:
    environment = hub.environment(tmp_path / "home", TOKEN)
    online = client.ask(environment, PULL, {})
    offline = client.ask({**environment, "HF_HUB_OFFLINE": "1"}, PULL, {})
    table.append(("offline, with a warm cache", said(offline)))
    assert offline.value == online.value
    blob = next(path for path in (tmp_path / "home").rglob("blobs/*") if path.name == online.value[0])
    blob.write_bytes(b"\0" + blob.read_bytes()[1:])
    damaged = client.ask({**environment, "HF_HUB_OFFLINE": "1"}, PULL, {})
    table.append(("offline, with a damaged cache", said(damaged)))
    assert damaged.error == "SourceError"


def test_a_file_that_got_another_commit_on_its_way_is_asked_for_again() -> None:
    assert retry.passing(OSError("Consistency check failed: file should be of size 52 but has size 80"))
    assert not retry.passing(OSError("No space left on device"))
