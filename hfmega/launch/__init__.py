"""The same command again: in several processes of this machine (`processes`), or as a job of the Hub (`job`)."""

from hfmega.launch.processes import (
    DISTRIBUTED,
    Terminated,
    killed,
    leave,
    lost_a_peer,
    processes_wanted,
    relaunch,
)

__all__ = ["DISTRIBUTED", "Terminated", "killed", "leave", "lost_a_peer", "processes_wanted", "relaunch"]
