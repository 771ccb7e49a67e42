"""What is published is true: no kept source, no stray repository, the id that the Hub gives, sources beside the merge.

8 seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from support.commands import run
from support.hub import Hub, client
from support.surroundings import surroundings

import hfmega
from hfmega.report import lineage

FEW = ("--dataset", "digits", "--fitness-split", "train[:200]", "--no-calibrate", "--json")
KEEPS = (*FEW, "--method", "greedy-soup")  # the two do not mix: the soup is the better one alone
AVERAGE = (*FEW, "--method", "average")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ann", "hf_ann")
        hub.add_user("ann", "hf_reader", role="read")
        yield hub


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home", "hf_ann")


def there(environment: dict[str, str], repo_id: str) -> bool:
    return bool(client.ask(environment, "value = api.repo_exists(name)", {"name": repo_id}).value)


def test_a_kept_source_is_not_published_unless_the_user_insists(
    environment: dict[str, str], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run("merge", *tiny_sources, *KEEPS, "-o", tmp_path / "out", "--push-to-hub", "ann/kept",
               environment=environment)  # fmt: skip
    assert (done.json["is_source"], done.json["published"]) == ("s1", None)
    assert "not published: the result is the source s1 as it is" in done.stderr
    assert not there(environment, "ann/kept")  # the repository that was created before the search is gone again
    pushed = run("push", tmp_path / "out", "ann/kept", "--json", environment=environment)
    assert (pushed.code, pushed.json["url"]) == (0, None)
    insisted = run("push", tmp_path / "out", "ann/kept", "--push-anyway", "--json", environment=environment)
    assert insisted.json["url"].startswith("http")
    data = ModelCard((tmp_path / "out" / "README.md").read_text(encoding="utf-8")).data
    assert "merge" not in data.tags
    assert data.get("base_model_relation") is None


def test_a_merge_with_its_sources_is_replayed_from_an_empty_cache(
    hub: Hub, environment: dict[str, str], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run("merge", *tiny_sources, *AVERAGE, "-o", tmp_path / "out", "--push-to-hub", "ann/avg", "--push-sources",
               environment=environment)  # fmt: skip
    assert done.json["published"].startswith("http")
    assert done.json["over_average"] is None
    made = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert made["repo_id"] == "ann/avg"
    assert [s["repo_id"] for s in made["sources"]] == ["ann/avg-sources-s1", "ann/avg-sources-s2"]
    elsewhere = hub.environment(tmp_path / "other", "hf_ann")
    assert run("replay", "ann/avg", "--json", environment=elsewhere).json["equal"]
    verified = run("verify", "ann/avg", "--json", environment=elsewhere)
    assert verified.json["verified"]
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.base_model == ["ann/avg-sources-s1", "ann/avg-sources-s2"]
    assert "not published" not in text
    assert "local-dir" in (tiny_sources[0] / "README.md").read_text()  # the user's own folder stays as it was


def test_local_sources_that_stay_at_home_are_said_to(
    environment: dict[str, str], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    run("merge", *tiny_sources, *AVERAGE, "-o", tmp_path / "out", environment=environment)
    pushed = run("push", tmp_path / "out", "merged", "--json", environment=environment)
    assert "/ann/merged/commit/" in pushed.json["url"]  # the id that the Hub gave
    assert "nobody else can replay or verify this merge (--push-sources" in pushed.stderr
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "hf-hub:ann/merged" in text
    assert "Sources that are not published: s1 and s2." in text
    assert run("verify", tmp_path / "out", "--json", environment=environment).json["verified"]


def test_the_report_is_published_only_when_asked_for_and_its_images_only_by_name(
    hub: Hub, environment: dict[str, str], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    run("merge", *tiny_sources, *AVERAGE, "-o", tmp_path / "out", environment=environment)
    own = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" in own  # the average is worse than either source: they disagree
    elsewhere = hub.environment(tmp_path / "other", "hf_ann")

    def published(*flags: str) -> str:
        assert run("push", tmp_path / "out", "ann/avg", "--push-sources", *flags, environment=environment).code == 0
        code = "from pathlib import Path\nthere = 'report.html' in api.list_repo_files(name)\n"
        code += "value = Path(api.hf_hub_download(name, 'report.html')).read_text() if there else ''"
        return str(client.ask(elsewhere, code, {"name": "ann/avg"}).value)

    assert published() == ""
    plain = published("--push-report")
    assert "hfmega replay ann/avg" in plain
    assert "data:image" not in plain
    made = run("report", "ann/avg", "--json", cwd=tmp_path, environment=elsewhere).json  # of the lineage alone
    assert made == {"output": "avg-report.html"}
    assert (tmp_path / "avg-report.html").read_text(encoding="utf-8") == plain
    assert published("--push-images").count("data:image/png") == own.count("data:image/png")
    assert run("verify", "ann/avg", "--json", environment=elsewhere).json["verified"]
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").count("data:image/png") == own.count(
        "data:image/png"
    )


@pytest.mark.parametrize(("token", "repo_id"), [("hf_reader", "ann/new"), ("hf_ann", "bob/new")])
def test_who_may_not_write_hears_it_before_anything_is_computed(
    hub: Hub, tiny_sources: tuple[Path, Path], tmp_path: Path, token: str, repo_id: str
) -> None:
    refused = run("merge", *tiny_sources, *AVERAGE, "-o", tmp_path / "out", "--push-to-hub", repo_id,
                  environment=hub.environment(tmp_path / "home", token))  # fmt: skip
    assert f"nothing could be published as {repo_id}: this token may not write there" in refused.complaint
    assert not (tmp_path / "out").exists()


def test_a_merge_that_fails_leaves_no_repository(
    environment: dict[str, str], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    run("merge", tiny_sources[0], tmp_path / "nothing", *AVERAGE, "--push-to-hub", "ann/never", "-o", tmp_path / "out",
        environment=environment)  # fmt: skip
    assert not there(environment, "ann/never")


def test_three_sources_are_shown_against_their_greedy_soup(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    third = shutil.copytree(tiny_sources[0], tmp_path / "s3")
    state = load_file(third / "model.safetensors")
    state["fc.bias"] += 0.05 * torch.arange(10)
    save_file(state, third / "model.safetensors", metadata={"format": "pt"})
    few = (*FEW, "--population", 4, "--generations", 1, "--tree", "flat")
    made = run("merge", *tiny_sources, third, *few, "-o", tmp_path / "out").json
    assert "greedy soup" in [reference["name"] for reference in made["references"]]
    (soup,) = [r for r in lineage.read(tmp_path / "out" / "lineage.json").references if r.name == "greedy soup"]
    assert set(soup.members) <= {"s1", "s2", "s3"}
    verified = run("verify", tmp_path / "out", "--json").json
    assert verified["verified"], verified
    count = len(made["references"])
    assert f"{count} of {count} references again" in verified["checks"][-1]["detail"]


def test_python_publishes_no_kept_source_either(
    environment: dict[str, str], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    with surroundings(environment):
        kept = hfmega.merge(*tiny_sources, dataset="digits", fitness_split="train[:200]", calibrate=False,
                            method="greedy-soup", output=tmp_path / "out")  # fmt: skip
        assert kept.lineage.result.is_source == "s1"
        assert kept.push_to_hub("ann/kept") is None
        assert hfmega.push(tmp_path / "out", "ann/kept") is None
    assert not there(environment, "ann/kept")
    with surroundings(environment):
        url = kept.push_to_hub("ann/kept", push_anyway=True)
    assert url is not None
    assert there(environment, "ann/kept")
