"""The test Hub, seen over HTTP by the unmodified huggingface_hub, datasets and timm.

Each client is a process of its own, which `ask` sends a few lines of Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from support.hub import Fault, Hub, client
from support.hub.cards import check
from support.hub.client import Reply

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"


class Ask(Protocol):
    def __call__(self, code: str, token: str | None = OWNER, **arguments: Any) -> Reply: ...


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ann", OWNER)
        hub.add_user("ann", READER, role="read")
        hub.add_user("bob", STRANGER)
        yield hub


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    def run(code: str, token: str | None = OWNER, **arguments: Any) -> Reply:
        return client.ask(hub.environment(tmp_path / "home", token), code, arguments)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of 100,000 bytes with its config."""
    folder = tmp_path / "checkpoint"
    (folder / "logs").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(100_000))
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    (folder / "logs" / "train.txt").write_text("epoch 1\n")
    return folder


@pytest.fixture
def seeded(hub: Hub, folder: Path) -> str:
    """The first commit of ann/model, which holds the files of `folder`."""
    hub.create("ann/model")
    return hub.commit_folder("ann/model", folder)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_whoami_names_the_user_of_the_token(ask: Ask) -> None:
    assert ask("value = api.whoami()['name']").value == "ann"


def test_unknown_token_is_unauthorized_even_on_a_public_repository(ask: Ask, seeded: str) -> None:
    reply = ask("api.model_info('ann/model')", token="hf_nobody")
    assert (reply.error, reply.status) == ("HfHubHTTPError", 401)
    assert "Invalid credentials in Authorization header" in reply.text


def test_a_new_repository_holds_one_commit_with_gitattributes(ask: Ask) -> None:
    reply = ask("""
        url = api.create_repo('ann/new', private=True)
        info = api.model_info('ann/new', files_metadata=True)
        commits = api.list_repo_commits('ann/new')
        value = [url.repo_id, info.private, len(commits), [s.rfilename for s in info.siblings]]
    """)
    assert reply.value == ["ann/new", True, 1, [".gitattributes"]]


def test_creating_twice_is_a_conflict_that_exist_ok_forgives(ask: Ask) -> None:
    create = "value = api.create_repo('ann/new', repo_type='dataset', exist_ok=EXIST_OK).repo_id"
    assert ask(create, EXIST_OK=False).value == "ann/new"
    assert ask(create, EXIST_OK=False).status == 409
    assert ask(create, EXIST_OK=True).value == "ann/new"


def test_a_deleted_repository_is_gone(ask: Ask, seeded: str) -> None:
    assert ask("api.delete_repo('ann/model'); value = api.repo_exists('ann/model')").value is False


def test_committed_bytes_come_back_equal(ask: Ask, folder: Path) -> None:
    reply = ask(
        """
        api.create_repo('ann/model')
        names = ['model.safetensors', 'config.json', 'logs/train.txt']
        changes = [Add(n, f'{folder}/{n}') for n in names]
        made = api.create_commit('ann/model', changes, commit_message='weights').oid
        paths = {n: hf_hub_download('ann/model', n) for n in names}
        entries = api.get_paths_info('ann/model', [*names, 'absent'])
        info = {e.path: [e.size, e.lfs and e.lfs.sha256] for e in entries}
        value = [paths, info, made == api.model_info('ann/model').sha, made in paths['config.json']]
        """,
        folder=folder,
    )
    paths, info, *same = reply.value
    assert [sha256(Path(path)) for path in paths.values()] == [sha256(folder / name) for name in paths]
    assert info["model.safetensors"] == [100_000, sha256(folder / "model.safetensors")]
    assert info["config.json"] == [28, None]
    assert "absent" not in info
    assert same == [True, True]


def test_weights_go_by_lfs_and_only_once(ask: Ask, hub: Hub, folder: Path) -> None:
    upload = "value = api.upload_folder(repo_id='ann/model', folder_path=folder).oid"
    hub.create("ann/model")
    first = ask(upload, folder=folder).value
    (folder / "config.json").write_text("{}")
    second = ask(upload, folder=folder).value
    assert first != second
    assert hub.count("PUT", "/lfs-upload/") == 1


def test_lfs_bytes_with_another_hash_are_refused(ask: Ask, hub: Hub, folder: Path) -> None:
    hub.create("ann/model")
    reply = ask(
        """
        addition = Add('model.safetensors', f'{folder}/model.safetensors')
        addition.upload_info.sha256
        Path(folder, 'model.safetensors').write_bytes(bytes(100_000))
        api.create_commit('ann/model', [addition], commit_message='changed on the way')
        """,
        folder=folder,
    )
    assert reply.error == "RuntimeError"
    assert (hub.count("PUT", "/lfs-upload/"), hub.count("POST", "/verify|/commit/")) == (1, 0)
    assert ask("value = api.list_repo_commits('ann/model')[0].title").value == "initial commit"


def test_a_commit_of_lfs_bytes_that_never_came_is_refused(hub: Hub) -> None:
    hub.create("ann/model")
    lines = [
        {"key": "header", "value": {"summary": "a promise"}},
        {
            "key": "lfsFile",
            "value": {"path": "model.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 5},
        },
    ]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    headers = {"Authorization": f"Bearer {OWNER}"}
    request = urllib.request.Request(f"{hub.url}/api/models/ann/model/commit/main", body, headers)
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        urllib.request.urlopen(request)
    refused.value.close()


def test_a_snapshot_holds_every_file(ask: Ask, seeded: str, folder: Path) -> None:
    reply = ask("value = snapshot_download('ann/model')")
    snapshot = Path(reply.value)
    assert snapshot.name == seeded
    names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert names == {".gitattributes", "model.safetensors", "config.json", "logs/train.txt"}
    assert sha256(snapshot / "model.safetensors") == sha256(folder / "model.safetensors")


def test_a_tree_of_more_than_one_page_is_listed_whole(ask: Ask, hub: Hub, tmp_path: Path) -> None:
    many = tmp_path / "many" / "files"
    many.mkdir(parents=True)
    for i in range(1005):
        (many / f"{i:04d}.txt").write_text("same")
    hub.create("ann/many", kind="dataset")
    hub.commit_folder("ann/many", tmp_path / "many", kind="dataset")
    reply = ask("""
        whole = [e.path for e in api.list_repo_tree('ann/many', repo_type='dataset', recursive=True)]
        root = [e.path for e in api.list_repo_tree('ann/many', repo_type='dataset')]
        value = [len(whole), len(set(whole)), root]
    """)
    assert reply.value == [1007, 1007, [".gitattributes", "files"]]


def test_an_old_commit_keeps_its_files(ask: Ask, hub: Hub, seeded: str, folder: Path) -> None:
    (folder / "config.json").write_text("changed")
    newer = hub.commit_folder("ann/model", folder)
    reply = ask(
        """
        paths = [hf_hub_download('ann/model', 'config.json', revision=r) for r in revisions]
        value = [Path(path).read_text() for path in paths]
        """,
        revisions=[seeded, newer, "main"],
    )
    assert reply.value == ['{"architecture": "resnet18"}', "changed", "changed"]


def test_a_file_of_a_known_commit_is_asked_only_once(ask: Ask, hub: Hub, seeded: str) -> None:
    download = "hf_hub_download('ann/model', 'config.json', revision=revision)"
    ask(download, revision=seeded)
    before = len(hub.requests)
    assert before == 2
    assert ask(download, revision=seeded).error is None
    assert len(hub.requests) == before


def test_missing_revision_and_missing_file_have_their_own_errors(ask: Ask, seeded: str) -> None:
    assert ask("hf_hub_download('ann/model', 'a', revision='nowhere')").error == "RevisionNotFoundError"
    assert ask("hf_hub_download('ann/model', 'nothing.txt')").error == "RemoteEntryNotFoundError"


def test_the_absence_of_a_file_is_remembered_for_its_commit(ask: Ask, seeded: str) -> None:
    reply = ask("""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
        exists = api.file_exists('ann/model', 'nothing.txt')
        try:
            hf_hub_download('ann/model', 'nothing.txt')
        except Exception:
            value = [exists, try_to_load_from_cache('ann/model', 'nothing.txt') is _CACHED_NO_EXIST]
    """)
    assert reply.value == [False, True]


@pytest.mark.parametrize(("token", "status"), [(None, 401), (STRANGER, 404)])
def test_private_repository_is_not_found_by_others(
    ask: Ask, hub: Hub, folder: Path, token: str | None, status: int
) -> None:
    hub.create("ann/secret", private=True)
    hub.commit_folder("ann/secret", folder)
    for call in ("hf_hub_download('ann/secret', 'config.json')", "api.model_info('ann/secret')"):
        reply = ask(call, token=token)
        assert (reply.error, reply.status) == ("RepositoryNotFoundError", status)


def test_private_repository_is_served_to_its_owner(ask: Ask, hub: Hub, folder: Path) -> None:
    hub.create("ann/secret", private=True)
    hub.commit_folder("ann/secret", folder)
    reply = ask("value = Path(hf_hub_download('ann/secret', 'logs/train.txt')).read_text()", token=READER)
    assert reply.value == "epoch 1\n"


@pytest.mark.parametrize(("token", "status"), [(None, 401), (STRANGER, 403)])
def test_gated_repository_shows_its_files_but_not_their_bytes(
    ask: Ask, hub: Hub, folder: Path, token: str | None, status: int
) -> None:
    hub.create("ann/gated", gated=True)
    hub.commit_folder("ann/gated", folder)
    listed = ask(
        "value = [api.model_info('ann/gated').gated, 'config.json' in api.list_repo_files('ann/gated')]",
        token,
    )
    assert listed.value == ["manual", True]
    reply = ask("hf_hub_download('ann/gated', 'config.json')", token=token)
    assert (reply.error, reply.status) == ("GatedRepoError", status)


@pytest.mark.parametrize(("token", "status"), [(READER, 403), (STRANGER, 403), (None, 401)])
def test_who_may_not_write_cannot_commit(ask: Ask, seeded: str, token: str | None, status: int) -> None:
    commit = "api.create_commit('ann/model', [Add('a.txt', b'a')], commit_message='mine')"
    for call in (commit, "api.auth_check('ann/model', write=True)"):
        reply = ask(call, token=token)
        assert (reply.error, reply.status) == ("HfHubHTTPError", status)


def test_a_stranger_may_propose_what_main_does_not_show(ask: Ask, hub: Hub, seeded: str) -> None:
    propose = """
        change = [Add('extra.safetensors', b'weights')]
        made = api.create_commit('ann/model', change, commit_message='better', create_pr=True)
        refs = api.list_repo_refs('ann/model', include_pull_requests=True)
        there = hf_hub_download('ann/model', 'extra.safetensors', revision=made.pr_revision)
        value = [made.pr_revision, made.pr_num, [r.ref for r in refs.pull_requests], Path(there).read_text(),
                 api.file_exists('ann/model', 'extra.safetensors')]
    """
    assert ask(propose, token=STRANGER).value == ["refs/pr/1", 1, ["refs/pr/1"], "weights", False]
    assert ask(propose, token=OWNER).value[:2] == ["refs/pr/2", 2]


def test_a_commit_on_a_stale_parent_is_refused(ask: Ask, hub: Hub, seeded: str, folder: Path) -> None:
    (folder / "config.json").write_text("newer")
    newest = hub.commit_folder("ann/model", folder)
    commit = "api.create_commit('ann/model', [Add('a.txt', b'a')], commit_message='m', parent_commit=parent)"
    reply = ask(commit, parent=seeded)
    assert (reply.error, reply.status) == ("HfHubHTTPError", 412)
    assert ask(commit, parent=newest).error is None


def test_files_are_copied_and_deleted_by_commits(ask: Ask, seeded: str) -> None:
    reply = ask("""
        copies = [Copy('model.safetensors', 'copy.safetensors'), Copy('config.json', 'copy.json')]
        api.create_commit('ann/model', [*copies, Delete('logs/')], commit_message='tidy')
        value = sorted(api.list_repo_files('ann/model'))
    """)
    files = [".gitattributes", "config.json", "copy.json", "copy.safetensors", "model.safetensors"]
    assert reply.value == files
    assert ask("api.delete_file('absent.txt', 'ann/model')").error == "RemoteEntryNotFoundError"


def test_branches_and_tags_name_commits(ask: Ask, seeded: str) -> None:
    reply = ask("""
        api.create_branch('ann/model', branch='feature/x')
        api.create_tag('ann/model', tag='v1')
        made = api.create_commit('ann/model', [Add('a', b'a')], commit_message='m', revision='feature/x').oid
        ids = [api.model_info('ann/model', revision=r).sha for r in ('main', 'v1', 'feature/x')]
        refs = api.list_repo_refs('ann/model')
        value = [made, ids, [b.name for b in refs.branches], [t.name for t in refs.tags]]
    """)
    made, ids, branches, tags = reply.value
    assert ids == [seeded, seeded, made]
    assert (branches, tags) == (["main", "feature/x"], ["v1"])
    assert ask("api.create_tag('ann/model', tag='v1')").status == 409
    assert ask("api.create_branch('ann/model', branch='feature/x')").status == 409
    gone = "api.delete_tag('ann/model', tag='v1'); api.delete_branch('ann/model', branch='feature/x')"
    assert ask(f"{gone}; value = len(api.list_repo_refs('ann/model').tags)").value == 0


def test_commits_are_listed_newest_first(ask: Ask, hub: Hub, seeded: str, folder: Path) -> None:
    newest = hub.commit_folder("ann/model", folder, message="again")
    reply = ask("value = [[c.commit_id, c.title, c.authors] for c in api.list_repo_commits('ann/model')]")
    assert reply.value[:2] == [[newest, "again", ["ann"]], [seeded, "Upload", ["ann"]]]
    assert reply.value[2][1] == "initial commit"


def test_a_readme_with_wrong_metadata_is_refused_before_the_upload(ask: Ask, hub: Hub, seeded: str) -> None:
    push = "api.upload_file(path_or_fileobj=card.encode(), path_in_repo='README.md', repo_id='ann/model')"
    reply = ask(push, card="---\nlicense: my-own\n---\n# A model")
    assert reply.error == "ValueError"
    assert "license" in reply.text
    assert hub.count("POST", "/commit/") == 0


def test_the_card_of_a_model_comes_back_with_its_description(ask: Ask, seeded: str) -> None:
    card = "---\nlicense: mit\nbase_model: [ann/a, bob/b]\nbase_model_relation: merge\ntags: [merge]\n---\n"
    reply = ask(
        """
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo='README.md', repo_id='ann/model')
        info = api.model_info('ann/model')
        value = [info.card_data.license, info.card_data.base_model, info.tags]
        """,
        card=card,
    )
    assert reply.value == ["mit", ["ann/a", "bob/b"], ["merge"]]


RESULT = "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    dataset: {type: d, name: D}\n"


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ("license: mit\ntags: [a, b]", None),
        (RESULT + "    metrics:\n    - {type: accuracy, value: 0.91}", None),
        (RESULT + "    metrics:\n    - {type: accuracy, value: .nan}", "metrics[0].value"),
        (RESULT + "    metrics:\n    - {value: 0.91}", "metrics[0].type"),
        (RESULT, "metrics[0].type"),
        ("model-index:\n- results: []", "model-index[0].name"),
        ("license: Apache License 2.0", "license"),
        ("base_model: /home/me/model", "base_model"),
        ("base_model_relation: mixture", "base_model_relation"),
        ("tags: [1, 2]", "tags"),
        ("license: mit\nlicense: mit", "duplicated"),
        ("tags: [a", "Invalid YAML"),
        ("just words", "mapping"),
    ],
)
def test_validate_yaml_finds(metadata: str, complaint: str | None) -> None:
    errors, _ = check(f"---\n{metadata}\n---\n# Title\n")
    assert bool(errors) == (complaint is not None)
    assert complaint is None or complaint in errors[0]


def test_a_range_gets_its_bytes_only(hub: Hub, seeded: str, folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    address = f"{hub.url}/ann/model/resolve/main/model.safetensors"
    for wanted, part in [("10-19", content[10:20]), ("99990-", content[-10:]), ("-5", content[-5:])]:
        request = urllib.request.Request(address, headers={"Range": f"bytes={wanted}"})
        with urllib.request.urlopen(request) as response:
            assert (response.status, response.read()) == (206, part)
            assert response.headers["Content-Range"].endswith("/100000")


def test_a_500_on_a_listing_is_repeated_and_on_a_file_is_not(ask: Ask, hub: Hub, seeded: str) -> None:
    hub.inject(Fault("/tree/", status=500))
    assert len(ask("value = api.list_repo_files('ann/model')").value) == 4
    assert hub.count("GET", "/tree/") == 2
    hub.inject(Fault("/resolve/", "GET", status=500))
    reply = ask("hf_hub_download('ann/model', 'config.json')")
    assert (reply.error, reply.status) == ("HfHubHTTPError", 500)
    assert hub.count("GET", "/resolve/") == 1


TIMED_DOWNLOAD = """
start = time.time()
hf_hub_download('ann/model', 'config.json')
value = time.time() - start
"""


def test_a_429_is_repeated_when_its_retry_after_is_over(ask: Ask, hub: Hub, seeded: str) -> None:
    hub.inject(Fault("/resolve/", "GET", status=429, headers={"Retry-After": "1"}))
    reply = ask(TIMED_DOWNLOAD)
    assert 2 <= reply.value < 8
    assert hub.count("GET", "/resolve/") == 2


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_an_injected_status_reaches_the_client(ask: Ask, hub: Hub, seeded: str, status: int) -> None:
    hub.inject(Fault("/api/models/ann/model$", status=status))
    reply = ask("api.model_info('ann/model')")
    assert (reply.error, reply.status) == ("HfHubHTTPError", status)


def test_a_slow_answer_is_waited_for(ask: Ask, hub: Hub, seeded: str) -> None:
    hub.inject(Fault("/resolve/", "GET", delay=0.7))
    reply = ask(TIMED_DOWNLOAD)
    assert 0.7 <= reply.value < 8


def test_a_cut_download_is_repeated_until_it_is_whole(ask: Ask, hub: Hub, seeded: str, folder: Path) -> None:
    hub.inject(Fault("model.safetensors", "GET", cut_after=1000))
    reply = ask("value = hf_hub_download('ann/model', 'model.safetensors')")
    assert sha256(Path(reply.value)) == sha256(folder / "model.safetensors")
    assert hub.count("GET", "model.safetensors") == 2


def test_an_upload_whose_connection_is_lost_is_repeated(ask: Ask, hub: Hub, folder: Path) -> None:
    hub.create("ann/model")
    hub.inject(Fault("/lfs-upload/", drop=True))
    assert ask("api.upload_folder(repo_id='ann/model', folder_path=folder)", folder=folder).error is None
    assert hub.count("PUT", "/lfs-upload/") == 2


def test_the_client_takes_a_download_with_a_flipped_byte_for_good(
    ask: Ask, hub: Hub, seeded: str, folder: Path
) -> None:
    """Why hfmega hashes what it pulls."""
    hub.inject(Fault("model.safetensors", "GET", flip_byte=500))
    path = Path(ask("value = hf_hub_download('ann/model', 'model.safetensors')").value)
    sent, got = (folder / "model.safetensors").read_bytes(), path.read_bytes()
    assert [i for i in range(100_000) if sent[i] != got[i]] == [500]


def test_a_commit_whose_answer_is_lost_was_made(ask: Ask, hub: Hub, seeded: str) -> None:
    hub.inject(Fault("/commit/", drop=True, after=True))
    reply = ask("api.create_commit('ann/model', [Add('a.txt', b'a')], commit_message='mine')")
    assert reply.error == "RemoteProtocolError"
    assert hub.count("POST", "/commit/") == 1
    assert ask("value = api.list_repo_commits('ann/model')[0].title").value == "mine"


def test_repositories_outlive_the_server(hub: Hub, seeded: str, tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as again:
        address = f"{again.url}/ann/model/resolve/{seeded}/logs/train.txt"
        with urllib.request.urlopen(address) as response:
            assert response.read() == b"epoch 1\n"


def test_a_model_that_timm_pushed_is_what_timm_loads(ask: Ask, hub: Hub) -> None:
    reply = ask("""
        import timm, torch
        from timm.models import push_to_hf_hub
        pushed = timm.create_model('test_resnet', num_classes=10)
        push_to_hf_hub(pushed, 'ann/tiny', model_config={'seed': 1}, safe_serialization=True)
        loaded = timm.create_model('hf-hub:ann/tiny', pretrained=True)
        there = loaded.state_dict()
        same = [torch.equal(tensor, there[name]) for name, tensor in pushed.state_dict().items()]
        value = [len(same), all(same), loaded.num_classes, sorted(api.list_repo_files('ann/tiny'))]
    """)
    count, same, classes, files = reply.value
    assert (count > 10, same, classes) == (True, True, 10)
    assert files == [".gitattributes", "README.md", "config.json", "model.safetensors"]


def test_a_dataset_of_images_loads_with_its_pixels(ask: Ask, hub: Hub, tmp_path: Path) -> None:
    reply = ask(
        """
        import numpy as np
        from datasets import ClassLabel, Dataset, Features, Image, load_dataset
        from PIL import Image as Pillow
        pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
        features = Features({'image': Image(), 'label': ClassLabel(names=['cat', 'dog'])})
        rows = {'image': [Pillow.fromarray(p) for p in pixels], 'label': [0, 1] * 3}
        Path(folder, 'data').mkdir(parents=True)
        Dataset.from_dict(rows, features).to_parquet(f'{folder}/data/train-00000-of-00001.parquet')
        api.create_repo('ann/pets', repo_type='dataset')
        api.upload_folder(repo_id='ann/pets', folder_path=folder, repo_type='dataset')
        loaded = load_dataset('ann/pets', split='train')
        streamed = load_dataset('ann/pets', split='train', streaming=True)
        rows = [*zip(loaded, pixels), *zip(streamed, pixels)]
        same = [np.array_equal(row['image'], expected) for row, expected in rows]
        value = [len(loaded), loaded.features['label'].names, same]
        """,
        folder=tmp_path / "pets",
    )
    assert reply.value == [6, ["cat", "dog"], [True] * 12]
