"""The index of weights that lie in several files, as huggingface_hub and transformers write it, from anyone."""

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hfmega.errors import SourceError
from hfmega.folder import INDEX as INDEX

PLAIN_NAME: Final = re.compile(r"[\w.-]+\.safetensors", re.ASCII)  # no way out of a folder


class Index(TypedDict):
    """What hfmega reads of an index: tensor name to the shard that it lies in."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


_SCHEMA: Final = TypeAdapter(Index)


def read_index(path: Path, where: str) -> dict[str, str]:
    """Tensor name to file name. Raises SourceError for what is no index, or names anything but files beside it."""
    try:
        index = _SCHEMA.validate_json(path.read_bytes())["weight_map"]
    except (OSError, ValidationError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise SourceError(f"{path.name} of {where} cannot be read: {said}") from error
    for shard in index.values():
        if not PLAIN_NAME.fullmatch(shard):
            raise SourceError(f"{path.name} of {where} names {shard[:60]!r}: that is no plain name of a shard.")
    return index


def shards_of(index: dict[str, str]) -> tuple[str, ...]:
    """The file names in an index, each once, sorted."""
    return tuple(sorted(set(index.values())))
