"""Test images on which a merge and its best source disagree, small, as report.html shows them.

They lie in the work folder of a merge, which is never pushed: images belong to their dataset.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hfmega.errors import HfmegaError
from hfmega.folder import DISAGREEMENTS, WORK, write_atomically

SIDE: Final = 64  # pixels, at most
PNG: Final = "data:image/png;base64,"


@dataclass(frozen=True)
class Disagreement:
    """A test image that only one of the two has right: its class, what each said, and a thumbnail as a data: URI."""

    label: str
    merge: str
    best_source: str
    image: str


_SCHEMA: Final = TypeAdapter(tuple[Disagreement, ...])


def thumbnail(pixels: Tensor, mode: str) -> str:
    """An image as a network takes it (uint8 [channels, height, width]) as a small PNG in a data: URI."""
    array = pixels.cpu().permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[:, :, 0] if mode == "L" else array, mode="L" if mode == "L" else "RGB")
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return PNG + base64.b64encode(content.getvalue()).decode()


def write(shown: Sequence[Disagreement], folder: Path) -> None:
    """Keep them beside a merge."""
    write_atomically(folder / WORK / DISAGREEMENTS, _SCHEMA.dump_json(tuple(shown)))


def read(folder: Path) -> tuple[Disagreement, ...]:
    """Those that were kept beside a merge; none where there is no such file. Raises HfmegaError for a damaged one."""
    path = folder / WORK / DISAGREEMENTS
    if not path.is_file():
        return ()
    try:
        shown = _SCHEMA.validate_json(path.read_bytes())
    except ValidationError as error:
        raise HfmegaError(f"{path} is damaged: --no-images makes the report without it.") from error
    return tuple(one for one in shown if one.image.startswith(PNG))
