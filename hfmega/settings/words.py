"""Sources in the words of others: addresses, prefixes of timm, files, lists with commas, as hfmega spells them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from hfmega.folder import CONFIG, LINEAGE, WEIGHTS

HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
WITHIN: Final = ("tree", "blob", "resolve", "raw", "commit")  # what stands before a revision in an address
OF_A_FOLDER: Final = re.compile(
    rf"{re.escape(WEIGHTS)}(\.index\.json)?|{re.escape(CONFIG)}|{re.escape(LINEAGE)}|model-\d+-of-\d+\.safetensors"
)
ID: Final = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)


def spelled(source: str) -> str:
    """A source as `user/name[@revision]`, `hf://user/name[@revision]` or a folder; what is none of these stays.

    From an address of the Hub, from `hf-hub:` and `local-dir:` of timm, from a file of a checkpoint, or with a slash at
    its end.
    """
    text = source.strip().removeprefix("local-dir:")
    for prefix in ("hf-hub:", "hf_hub:"):
        if text.startswith(prefix):
            return f"hf://{text.removeprefix(prefix).strip('/')}"
    found = of_address(text)
    if found:
        return found
    path = Path(text).expanduser()
    if OF_A_FOLDER.fullmatch(path.name) and path.is_file():
        return str(path.parent)
    bare = text.rstrip("/")
    return bare if bare != text and ID.fullmatch(bare) and not path.is_dir() else text


def of_address(text: str) -> str | None:
    """`hf://user/name[@revision]` of an address of the Hub, with the kind where it is no model; None for other text."""
    named = text if "://" in text else f"https://{text}"
    parts = urlsplit(named)
    own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    if parts.scheme not in ("http", "https") or parts.netloc not in (*HOSTS, *([own] if own else [])):
        return None
    words = [unquote(word) for word in parts.path.strip("/").split("/")]
    if words[0] in ("datasets", "spaces") or len(words) < 2:
        return f"hf://{'/'.join(words)}"
    revision = f"@{words[3]}" if len(words) > 3 and words[2] in WITHIN else ""
    return f"hf://{words[0]}/{words[1]}{revision}"


def separated(sources: Iterable[str | Path]) -> list[str]:
    """Sources one by one, each spelled as hfmega does: `a,b` is two, unless there is such a folder."""
    found: list[str] = []
    for source in map(str, sources):
        parts = source.split(",") if "," in source and not Path(source).exists() else [source]
        found += [spelled(part) for part in parts if part.strip()]
    return found
