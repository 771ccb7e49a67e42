"""What a merge depends on, said once. Everybody imports from here."""

from hfmega.settings.fields import Group
from hfmega.settings.merge import (
    OFFERED,
    SETTINGS,
    SWITCHES,
    MergeSettings,
    Setting,
    checked,
    configured,
    default_folder,
    recorded,
    standard,
    understood,
    unknown,
)
from hfmega.settings.methods import METHODS, SOME_USE, UPDATE_BN, Method
from hfmega.settings.parts import (
    AUTHOR,
    DEFAULT,
    EARLIER,
    PAPER,
    PRESETS,
    GASettings,
    Genome,
    LastMileSettings,
    SplitRequest,
)

__all__ = [
    "AUTHOR",
    "DEFAULT",
    "EARLIER",
    "METHODS",
    "OFFERED",
    "PAPER",
    "PRESETS",
    "SETTINGS",
    "SOME_USE",
    "SWITCHES",
    "UPDATE_BN",
    "GASettings",
    "Genome",
    "Group",
    "LastMileSettings",
    "MergeSettings",
    "Method",
    "Setting",
    "SplitRequest",
    "checked",
    "configured",
    "default_folder",
    "recorded",
    "standard",
    "understood",
    "unknown",
]
