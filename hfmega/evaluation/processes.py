"""The processes that share the work."""

import os
from datetime import timedelta
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
