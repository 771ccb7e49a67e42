"""README and docs: links lead somewhere, commands and flags exist. 1 second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
import rich_click as click
from support.places import ROOT

from hfmega.cli.commands import cli

PAGES: Final = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
OTHERS: Final = {"--flavor", "--secrets", "--nodes", "--nnodes", "--node-rank", "--master-addr", "--master-port",
                 "--nproc-per-node", "--ntasks-per-node", "--multi_gpu", "--num_machines", "--machine_rank",
                 "--main_process_ip", "--main_process_port", "--num_processes", "--last-failed", "--delete",
                 "--durations", "--help", "--version", "--rdzv-backend", "--rdzv-endpoint"}  # fmt: skip


def flags() -> set[str]:
    """Every flag of every command."""
    options = [p for c in cli.commands.values() for p in c.params if isinstance(p, click.Option)]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`hfmega ([a-z][a-z-]*)", text):
        assert name in cli.commands, name
    for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text):
        assert flag in flags() | OTHERS, flag


def test_the_readme_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
