"""The main job against a Hub: sources, dataset and result are repositories, reached over HTTP by the real clients."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from support.commands import Done, run, run_all
from support.hub import Fault, Hub, client
from support.hub.cards import check

TOKEN = "hf_ann"
MERGE = ("--population", 4, "--generations", 2, "--dataset", "ann/digits", "--fitness-split", "train[:200]", "--json")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_sources: tuple[Path, Path]) -> Iterator[Hub]:
    """A Hub with two trained sources and the digits as a dataset, all of ann."""
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("ann", TOKEN)
        hub.add_user("bob", "hf_bob")
        hub.create("ann/digits", kind="dataset")
        hub.commit_folder("ann/digits", parquet_folder(tmp_path_factory.mktemp("digits")), kind="dataset")
        hub.add_models("ann", tiny_sources)
        yield hub


def parquet_folder(folder: Path) -> Path:
    """The digits as the Hub keeps datasets: one parquet file for each split."""
    from hfmega.data.dataset import open_dataset

    (folder / "data").mkdir()
    for name, split in open_dataset("digits").splits.items():
        split.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def environment(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return hub.environment(tmp_path_factory.mktemp("home"), TOKEN)


@pytest.fixture(scope="module")
def merged(hub: Hub, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """ann/s1 and ann/s2 merged by id and pushed as ann/merged: the folder, and what --json printed."""
    folder = tmp_path_factory.mktemp("work")
    done = run("merge", "ann/s1", "ann/s2@main", *MERGE, "-o", "out", "--push-to-hub", "ann/merged", cwd=folder,
               environment=environment)  # fmt: skip
    return folder / "out", done.json


def test_a_merge_by_id_records_the_commits_of_its_sources(hub: Hub, merged: tuple[Path, Any]) -> None:
    lineage = json.loads((merged[0] / "lineage.json").read_text())
    pinned = [source["revision"] for source in lineage["sources"]]
    assert [source["repo_id"] for source in lineage["sources"]] == ["ann/s1", "ann/s2"]
    assert all(len(revision) == 40 for revision in pinned)
    assert lineage["data"]["id"] == "ann/digits"
    assert len(lineage["data"]["revision"]) == 40


def test_a_push_is_one_commit_of_exactly_the_published_files(
    environment: dict[str, str], merged: tuple[Path, Any]
) -> None:
    reply = client.ask(
        environment,
        "value = [sorted(api.list_repo_files('ann/merged')), len(api.list_repo_commits('ann/merged'))]",
        {},
    )
    files, commits = reply.value
    published = {p.relative_to(merged[0]).as_posix() for p in merged[0].rglob("*") if p.is_file()}
    assert "report.html" in published  # the user's own, unless they ask
    kept = {name for name in published if not name.startswith(".hfmega")} - {"report.html"}
    assert set(files) - {".gitattributes"} == kept
    assert commits == 2  # the Hub's own first commit, and ours
    assert {"README.md", "config.json", "lineage.json", "model.safetensors"} <= set(files)


def test_the_card_passes_the_validation_of_the_hub_and_names_its_sources(merged: tuple[Path, Any]) -> None:
    from huggingface_hub import ModelCard

    content = (merged[0] / "README.md").read_text()
    errors, _ = check(content)
    data = ModelCard(content).data
    assert errors == []
    kept = merged[1]["is_source"]
    assert kept == "ann/s1"  # with BN re-estimated: a derived model of that one source
    assert (data.base_model, data.base_model_relation) == ([kept], "finetune")
    assert "merge" not in data.tags
    assert data.eval_results[0].metric_value == pytest.approx(merged[1]["accuracy"])


def test_a_tampered_evaluation_result_is_found(
    environment: dict[str, str], merged: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(merged[0], tmp_path / "out")
    path = folder / ".eval_results" / "hfmega.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert entry.value == pytest.approx(merged[1]["accuracy"], abs=5e-5)
    path.write_text(path.read_text().replace(f"value: {entry.value}", "value: 0.9999"))
    done = run("verify", folder, "--json", environment=environment)
    assert done.code == 1
    failed = [check for check in json.loads(done.stdout)["checks"] if not check["ok"]]
    assert [check["name"] for check in failed] == ["card"]
    assert ".eval_results/hfmega.yaml does not say what the lineage says" in failed[0]["detail"]


def test_timm_loads_the_published_merge_with_the_accuracy_that_its_card_states(
    environment: dict[str, str], merged: tuple[Path, Any]
) -> None:
    reply = client.ask(environment, LOAD_WITH_TIMM, {})
    assert reply.value == [pytest.approx(merged[1]["accuracy"], abs=1e-12), 500], reply.text


LOAD_WITH_TIMM = """
import hfmega, timm, torch
from datasets import load_dataset
from timm.data import create_transform, resolve_data_config
model = timm.create_model("hf-hub:ann/merged", pretrained=True).eval()
transform = create_transform(**resolve_data_config({}, model=model))
rows = load_dataset("ann/digits", split="test")
images = torch.stack([transform(row["image"].convert("RGB")) for row in rows])
with torch.inference_mode():
    right = model(images).argmax(dim=1) == torch.tensor(rows["label"])
value = [right.float().double().mean().item(), len(rows)]
"""


def test_the_published_merge_replays_in_another_folder_and_evaluates_to_its_accuracy(
    environment: dict[str, str], merged: tuple[Path, Any], tmp_path: Path
) -> None:
    replayed, evaluated = run_all(
        [["replay", "ann/merged", "--json"], ["evaluate", "ann/merged", "--json"]], tmp_path, environment
    )
    assert replayed.json["sha256"] == merged[1]["sha256"]
    assert evaluated.json["accuracy"] == merged[1]["accuracy"]
    assert evaluated.json["interval"] == merged[1]["interval"]


def test_a_pull_request_leaves_main_alone(environment: dict[str, str], merged: tuple[Path, Any]) -> None:
    bob = {**environment, "HF_TOKEN": "hf_bob"}
    refused = run("push", merged[0], "ann/s1", environment=bob)
    proposed = run("push", merged[0], "ann/s1", "--create-pr", "--commit-message", "Better", "--json", environment=bob)
    assert "`hfmega push" in refused.complaint
    assert "--create-pr" in refused.complaint
    assert proposed.json["url"].endswith("/discussions/1")
    files = client.ask(environment, "value = api.list_repo_files('ann/s1')", {}).value
    assert "lineage.json" not in files


def test_every_hub_problem_is_one_sentence(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    hub.create("ann/pickle")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"not read")
    (tmp_path / "pickle" / "config.json").write_text('{"architecture": "resnet8_cifar", "num_classes": 10}')
    hub.commit_folder("ann/pickle", tmp_path / "pickle")
    hub.create("ann/private", private=True)
    hub.create("ann/gated", gated=True)
    hub.commit_folder("ann/gated", Path(__file__).parent)
    problems = {
        "ann/nothing": "ann/nothing is not on the Hub",
        "ann/s1@nowhere": "ann/s1 has no revision nowhere",
        "ann/pickle": "only a pickle checkpoint",
        "ann/private": "private: log in",
        "not-an-id": "no folder not-an-id",
        "hf://datasets/ann/digits": "not a model repository",
    }
    anonymous = {name: value for name, value in environment.items() if name != "HF_TOKEN"}
    commands = [["merge", "ann/s2", source, *MERGE[:-1], "-o", "never"] for source in problems]
    for done, expected in zip(run_all(commands, tmp_path, anonymous), problems.values(), strict=True):
        assert expected in done.complaint
    assert not (tmp_path / "never").exists()


def test_damaged_weights_are_fetched_again_and_then_refused(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    fault = {"path": "/ann/s1/resolve/.*/model.safetensors", "method": "GET", "flip_byte": 5000}
    pull = "from hfmega.hub import pull\nvalue = pull.pull('ann/s1').sha256"
    hub.inject(Fault(**fault, times=1))
    healed = client.ask({**environment, "HF_HOME": str(tmp_path / "one")}, pull, {})
    hub.inject(Fault(**fault, times=2))
    refused = client.ask({**environment, "HF_HOME": str(tmp_path / "two")}, pull, {})
    hub.clear_faults()
    assert healed.error is None
    assert (refused.error, "damaged twice" in refused.text) == ("SourceError", True)


def test_a_warm_cache_is_enough_offline(environment: dict[str, str], merged: tuple[Path, Any], tmp_path: Path) -> None:
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    done: Done = run("merge", "ann/s1", "ann/s2", *MERGE, "-o", tmp_path / "again", environment=offline)
    assert done.json["sha256"] == merged[1]["sha256"]


def test_a_dry_run_by_id_says_what_it_would_download_and_fetches_no_weights(
    hub: Hub, environment: dict[str, str], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    fresh = {**environment, "HF_HOME": str(tmp_path / "home")}
    done = run("merge", "ann/s1", "ann/s2", *MERGE, "--dry-run", "-o", tmp_path / "out", environment=fresh)
    weights = sum((source / "model.safetensors").stat().st_size for source in tiny_sources)
    assert weights <= done.json["download_bytes"] < weights + 5_000_000
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    assert not (tmp_path / "out").exists()


def test_a_merge_on_the_hub_is_expanded_to_its_own_sources(
    hub: Hub, environment: dict[str, str], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    small = ("--dataset", "ann/digits", "--fitness-split", "train[:200]", "--preset", "paper", "--population", 3)
    small += ("--generations", 1)
    third = ("train", "ann/s1", "-o", "s3", "--dataset", "ann/digits", "--train-split", "train[900:]", "--epochs", 1)
    trained, first, second = run_all(
        [
            third,
            ["merge", "ann/s1", "ann/s2", *small, "-o", "first", "--push-to-hub", "ann/first"],
            ["merge", "ann/first", "s3", *small, "-o", "second"],
        ],
        tmp_path,
        environment,
    )
    assert (trained.code, first.code, second.code) == (0, 0, 0), trained.stderr + first.stderr + second.stderr
    lineage = json.loads((tmp_path / "second/lineage.json").read_text())
    assert [source["name"] for source in lineage["sources"]] == ["ann/s1", "ann/s2", "s3"]
    assert [(node["name"], node["inputs"]) for node in lineage["nodes"]] == [
        ("ann/first", ["ann/s1", "ann/s2"]),
        ("merge", ["ann/first", "s3"]),
    ]
    assert run("replay", tmp_path / "second", "--json", environment=environment).json["equal"]
