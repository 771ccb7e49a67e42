"""The processes that share the work, and how it is shared out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate, pairwise
from typing import Final

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from hfmega.errors import HfmegaError

WAIT: Final = timedelta(days=7)  # for the main process, which trains alone; after torch's half an hour all would fail


def processes() -> PartialState:
    """The processes that share the work, and this one's device.

    Accelerate's PartialState takes several CPU processes for one each unless told that they run on CPUs.
    Raises HfmegaError when it sees another number of processes than were launched.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=WAIT)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise HfmegaError(f"{launched} processes were launched, but each sees {state.num_processes}: use torchrun.")
    return state


@dataclass(frozen=True)
class Item:
    """Work for one process: the batches [start, stop) of a recipe, by its place in the list."""

    recipe: int
    start: int
    stop: int


def shared_out(batches: Sequence[int], processes: int) -> list[list[Item]]:
    """Lay the batches of all recipes in one row, and cut it into a part of equal length for each process.

    batches: how many each recipe takes. Only whole batches change hands, so what they say does not depend on the cuts.
    """
    ends = [0, *accumulate(batches)]
    cuts = [ends[-1] * k // processes for k in range(processes + 1)]
    return [
        [
            Item(recipe, max(first, start) - first, min(last, stop) - first)
            for recipe, (first, last) in enumerate(pairwise(ends))
            if max(first, start) < min(last, stop)
        ]
        for start, stop in pairwise(cuts)
    ]
