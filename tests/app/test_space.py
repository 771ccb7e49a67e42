"""The page as a Space: its files, in one commit. 3 seconds."""

from __future__ import annotations

import ast
from importlib import import_module

import yaml
from support.commands import run
from support.hub import Hub, client
from support.hub.cards import check

from hfmega import __version__
from hfmega.app import space


def test_a_space_is_three_files_in_one_commit(hub: Hub) -> None:
    done = run("app", "--to-space", "ann/merges", "--json")
    assert done.json == {"url": f"{hub.url}/spaces/ann/merges"}
    assert f"installs hfmega {__version__} from PyPI" in done.stderr
    listed = client.ask(
        dict(hub.environment(hub_home(hub), "hf_ann")),
        """
        files = [f for f in api.list_repo_files('ann/merges', repo_type='space') if f != '.gitattributes']
        commits = [c.title for c in api.list_repo_commits('ann/merges', repo_type='space')]
        read = lambda name: Path(hf_hub_download('ann/merges', name, repo_type='space')).read_text()
        value = {'files': {name: read(name) for name in files}, 'commits': commits}
        """,
        {},
    ).value
    assert listed["files"] == space.files("ann/merges")
    assert sorted(listed["files"]) == ["README.md", "app.py", "requirements.txt"]
    assert listed["commits"] == [f"The page of hfmega {__version__}", "initial commit"]
    again = run("app", "--to-space", "ann/merges", "--json")
    assert again.code == 0


def hub_home(hub: Hub) -> object:
    import os
    from pathlib import Path

    return Path(os.environ["HF_HOME"])


def test_its_card_is_one_that_the_hub_takes() -> None:
    text = space.files("ann/merges")["README.md"]
    assert check(text) == ([], [])
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["hf_oauth"]) == ("gradio", "app.py", True)
    assert metadata["hf_oauth_scopes"] == ["manage-repos"]
    assert len(metadata["short_description"]) <= 60


def test_its_app_calls_what_there_is() -> None:
    (docstring, imported, call) = ast.parse(space.files("ann/merges")["app.py"]).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(imported, ast.ImportFrom)
    assert imported.module is not None
    assert all(hasattr(import_module(imported.module), alias.name) for alias in imported.names)
    assert ast.unparse(call) == "serve('merges')"
    assert f"hfmega[app,digits]=={__version__}" in space.files("ann/merges")["requirements.txt"]


def test_who_may_not_write_there_is_told(hub: Hub) -> None:
    refused = run("app", "--to-space", "bob/merges")
    assert "the Space bob/merges was not written: this token may not write there" in refused.complaint
