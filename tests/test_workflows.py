"""The workflow files: valid, pinned, with few rights, and running targets that a person can run too."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfmega import __version__

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}

PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@([0-9a-f]{40}  # )?v\d+\.\d+\.\d+")
TARGET = re.compile(r"^([\w.-]+(?: +[\w.-]+)*) *:(?!=)", re.MULTILINE)

linux_job = pytest.mark.skipif(sys.platform == "win32", reason="the release job runs in the bash of Linux")


def read(path: Path) -> dict[str, Any]:
    # BaseLoader leaves every scalar a string: YAML 1.1 would read the key `on` as true.
    document: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return document


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def check_schema(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False)


def made(workflow: dict[str, Any]) -> set[str]:
    """The make targets that a workflow runs."""
    scripts = "\n".join(step.get("run", "") for step in steps(workflow))
    return {target for line in re.findall(r"\bmake +(.+)", scripts) for target in line.split()}


def makefile_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {target for line in TARGET.findall(text) for target in line.split()}


def run_tag_check(checkout: Path, tag: str) -> int:
    """The exit status of the release job's own script, run in `checkout` as if `tag` had been pushed."""
    scripts = (step.get("run", "") for step in steps(read(WORKFLOWS["release"])))
    command = ["bash", "-e", "-c", next(script for script in scripts if "GITHUB_REF_NAME" in script)]
    environment = os.environ | {"GITHUB_REF_NAME": tag}
    return subprocess.run(command, cwd=checkout, env=environment, check=False).returncode


def test_there_are_three_workflows() -> None:
    assert list(WORKFLOWS) == ["ci", "release", "reproduce"]


def test_every_workflow_follows_the_schema() -> None:
    result = check_schema(*WORKFLOWS.values())
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_broken_workflow_does_not_follow_the_schema(tmp_path: Path) -> None:
    broken = tmp_path / "ci.yml"
    text = WORKFLOWS["ci"].read_text(encoding="utf-8")
    broken.write_text(text.replace("runs-on:", "runs-at:"), encoding="utf-8")
    result = check_schema(broken)
    assert result.returncode == 1
    assert "jobs.lint" in result.stdout


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_pinned_to_a_commit_or_a_release_and_names_it(name: str) -> None:
    lines = WORKFLOWS[name].read_text(encoding="utf-8").splitlines()
    uses = [line.removeprefix("- ").strip() for line in map(str.strip, lines) if "uses:" in line]
    assert uses
    assert [line for line in uses if not PINNED.fullmatch(line)] == []


def test_one_action_is_pinned_to_one_commit_everywhere() -> None:
    uses = {step["uses"] for path in WORKFLOWS.values() for step in steps(read(path)) if "uses" in step}
    assert len(uses) == len({pin.split("@")[0] for pin in uses})


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_the_repository(name: str) -> None:
    assert read(WORKFLOWS[name])["permissions"] == {"contents": "read"}


def test_only_the_publish_job_may_ask_for_an_identity() -> None:
    granted = {
        (name, job): settings["permissions"]
        for name, path in WORKFLOWS.items()
        for job, settings in read(path)["jobs"].items()
        if "permissions" in settings
    }
    assert granted == {("release", "publish"): {"id-token": "write"}}


def test_every_job_has_a_time_limit() -> None:
    jobs = [job for path in WORKFLOWS.values() for job in read(path)["jobs"].values()]
    assert all(int(job["timeout-minutes"]) <= 120 for job in jobs)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("ci", "lint"),
        ("ci", "test"),
        ("ci", "test-all"),
        ("ci", "demo-better"),
        ("ci", "wheel"),
        ("reproduce", "reproduce-small"),
    ],
)
def test_a_workflow_runs_a_target_of_the_makefile(name: str, target: str) -> None:
    assert target in made(read(WORKFLOWS[name]))
    assert target in makefile_targets()


def test_no_workflow_runs_another_target() -> None:
    targets = {name: made(read(path)) for name, path in WORKFLOWS.items()}
    assert targets == {
        "ci": {"lint", "test", "test-all", "demo-better", "wheel"},
        "release": set(),
        "reproduce": {"reproduce-small"},
    }


@linux_job
@pytest.mark.parametrize(
    ("tag", "version", "status"),
    [
        ("v1.2.3", "1.2.3", 0),
        ("v1.2.4", "1.2.3", 1),
        ("1.2.3", "1.2.3", 1),
        ("v1.2.3", None, 1),
        ("v", None, 1),
    ],
)
def test_a_release_stops_unless_the_tag_is_v_and_the_version(
    tmp_path: Path, tag: str, version: str | None, status: int
) -> None:
    package = tmp_path / "hfmega" / "__init__.py"
    package.parent.mkdir()
    package.write_text("" if version is None else f'__version__ = "{version}"\n', encoding="utf-8")
    assert run_tag_check(tmp_path, tag) == status


@linux_job
def test_the_tag_of_this_version_passes_the_check() -> None:
    assert run_tag_check(ROOT, f"v{__version__}") == 0


def test_nothing_is_published_before_the_check() -> None:
    jobs = read(WORKFLOWS["release"])["jobs"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["environment"] == "pypi"
    assert "GITHUB_REF_NAME" in jobs["build"]["steps"][1]["run"]
