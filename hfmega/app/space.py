"""The same page as a Space of the Hub: three small files, in one commit."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from huggingface_hub import CommitOperationAdd

from hfmega import __version__
from hfmega.errors import HubError
from hfmega.hub.client import api
from hfmega.hub.problems import CLIENT_ERRORS
from hfmega.hub.push import Push, refusal
from hfmega.hub.retry import steady

README: Final = """\
---
title: {title}
emoji: 🧬
colorFrom: red
colorTo: yellow
sdk: gradio
app_file: app.py
hf_oauth: true
hf_oauth_scopes:
  - manage-repos
license: apache-2.0
short_description: Merge image classifiers and see what it is worth
---

# {title}

[hfmega](https://pypi.org/project/hfmega/) {version}: choose checkpoints of one image classifier, see whether a merge of
them is likely to pay, merge them, and publish the result with its lineage. Visitors sign in to publish under their own
names.
"""
APP: Final = '''\
"""The page of hfmega on a Space; the merges lie in `merges/`."""

from hfmega.app.serve import serve

serve("merges")
'''
REQUIREMENTS: Final = """\
hfmega[app,digits]=={version}
gradio[oauth]>=6,<7
"""


def files(repo_id: str) -> dict[str, str]:
    """Name to text of the files of a Space."""
    title = repo_id.rpartition("/")[2]
    return {
        "README.md": README.format(title=title, version=__version__),
        "app.py": APP,
        "requirements.txt": REQUIREMENTS.format(version=__version__),
    }


def write(repo_id: str, folder: Path) -> None:
    """Write the files of a Space into a folder."""
    for name, text in files(repo_id).items():
        (folder / name).write_text(text, encoding="utf-8")


def push(target: Push) -> str:
    """Create the Space if there is none, and write its files in one commit; returns its address.

    Raises HubError when nobody is logged in, or may not write there.
    """
    client = api()
    try:
        made = steady(
            client.create_repo,
            target.repo_id,
            repo_type="space",
            space_sdk="gradio",
            private=target.private or None,
            exist_ok=True,
        )
        with TemporaryDirectory() as scratch:
            write(made.repo_id, Path(scratch))
            operations = [CommitOperationAdd(name, Path(scratch) / name) for name in files(made.repo_id)]
            client.create_commit(
                made.repo_id,
                operations,
                commit_message=target.commit_message or f"The page of hfmega {__version__}",
                repo_type="space",
                create_pr=target.create_pr,
            )
    except CLIENT_ERRORS as error:
        raise HubError(f"the Space {target.repo_id} was not written: {refusal(error, target)}") from error
    return f"{client.endpoint}/spaces/{made.repo_id}"
