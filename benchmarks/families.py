"""`make families`: families of checkpoints that are trained to the end; and the curve that shows that they are.

Three kinds: independent ResNet-8, branches of one trunk that saw a quarter of the images each, fine-tunes of one
pretrained network with one small rate. The same command goes on after an interruption.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hfmega.errors import HfmegaError
from hfmega.folder import WEIGHTS

# Unlabelled images in equal numbers from each quarter of the training images.
EVENLY: Final = "train[5000:8750]+train[16250:20000]+train[27500:31250]+train[38750:42500]"
KINDS: Final = {
    "independent": tuple(f"r8-{seed}" for seed in (101, 102, 103, 104)),
    "branches": tuple(f"branch-{k}" for k in range(4)),
    "fine-tunes": tuple(f"eff-{k}" for k in range(4)),
}


def given(names: Sequence[str], folders: Sequence[Path]) -> tuple[str, ...]:
    """The folders of some sources. Raises HfmegaError for one that is in none of the folders."""
    found = []
    for name in names:
        places = [folder / name for folder in folders if (folder / name / WEIGHTS).is_file()]
        if not places:
            raise HfmegaError(f"{name} is not in any folder of --sources: make families trains it.")
        found.append(str(places[0]))
    return tuple(found)
