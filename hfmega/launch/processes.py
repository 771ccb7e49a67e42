"""Starting `hfmega merge` again in several processes, as torchrun does."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from hfmega.errors import HfmegaError

DISTRIBUTED: Final = "WORLD_SIZE"


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


def processes_wanted(asked: int | None, cpu: bool) -> int:
    """How many processes to start: as asked, else one per visible GPU; 1 inside a launch that is under way."""
    if DISTRIBUTED in os.environ:
        return 1
    if asked is not None:
        return asked
    if cpu:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def leave() -> None:
    """Leave the process group in order: what is left of it when Python ends aborts the process now and then."""
    if DISTRIBUTED in os.environ and "torch" in sys.modules:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def lost_a_peer(error: Exception) -> bool:
    """Whether a collective failed because another process of the run had ended."""
    signs = ("connection closed by peer", "connection reset by peer", "remote worker", "remote process", "gloo", "nccl")
    return isinstance(error, RuntimeError) and DISTRIBUTED in os.environ and any(s in str(error).lower() for s in signs)


def killed(codes: Mapping[int, int]) -> int | None:
    """The rank that something outside killed, from the exit codes of those that failed, first failure first; else None.

    A killed process need not come first: its peers may have ended too, for want of it, before anybody looked. SIGTERM
    after the first failure is how torch stops the others.
    """
    first = next(iter(codes))
    signals = {rank: -code for rank, code in codes.items() if code < 0}
    return next((rank for rank, sent in signals.items() if rank == first or sent != signal.SIGTERM), None)


def relaunch(arguments: Sequence[str], processes: int, cpu: bool) -> int:
    """Run `hfmega ARGUMENTS` in several processes on this machine and wait; returns the exit code of the first failure.

    Each process gets its share of the cores, unless OMP_NUM_THREADS says otherwise. Raises HfmegaError when one of them
    was killed; the others are stopped then.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Its messages are about its own workers; ours have said what went wrong by then.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if cpu or not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "hfmega", *arguments)
    except SignalException as error:  # what torch makes of a signal to this process, after it has stopped the others
        raise (KeyboardInterrupt if error.sigval == signal.SIGINT else Terminated) from error
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda failure: failure[1].timestamp)
        codes = {rank: failure.exitcode for rank, failure in failures}
        rank = killed(codes)
        if rank is None:
            return max(1, failures[0][1].exitcode)
        how = f"process {rank} of {processes} was ended by {signal.Signals(-codes[rank]).name}"
        raise HfmegaError(f"{how}; the same command resumes where it stopped.") from error
    return 0
