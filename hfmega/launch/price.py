"""The machines of the Hub that jobs run on, and what a merge would cost on one."""

from typing import Final

from huggingface_hub import JobHardwareInfo

from hfmega.errors import SettingsError
from hfmega.hub.jobs import Jobs
from hfmega.phases import duration

HOURLY: Final = {"second": 3600, "minute": 60, "hour": 1}  # how many units of a price an hour has


def flavor_of(jobs: Jobs, name: str) -> JobHardwareInfo:
    """What the Hub says of a flavor. Raises SettingsError with those that there are."""
    offered = jobs.flavors()
    for one in offered:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in offered)
    raise SettingsError(f"--on {name} is not a flavor of the Hub's jobs: choose one of {known}.")


def described(flavor: JobHardwareInfo) -> str:
    """A flavor in words: `l4x4 (48 vCPU, 186 GB, 4 x L4 with 96 GB)`."""
    gpu = flavor.accelerator
    parts = [flavor.cpu, flavor.ram, *([f"{gpu.quantity} x {gpu.model} with {gpu.vram}"] if gpu else [])]
    return f"{flavor.name} ({', '.join(parts)})"


def dollars_per_hour(flavor: JobHardwareInfo) -> float | None:
    """The price of an hour in US dollars; None where the Hub counts in a unit that is not known here."""
    times = HOURLY.get(flavor.unit_label)
    return None if times is None else flavor.unit_cost_usd * times


def price_rows(flavor: JobHardwareInfo, seconds: float) -> list[list[str]]:
    """The rows that `--dry-run --on` adds. seconds: the estimate, which is one of this machine."""
    price = dollars_per_hour(flavor)
    if price is None:
        return [["job of the Hub", described(flavor)], ["price", f"{flavor.unit_cost_usd} $ per {flavor.unit_label}"]]
    return [
        ["job of the Hub", described(flavor)],
        ["price of an hour there", f"{price:.2f} $"],
        [f"price of {duration(seconds)} there", f"{price * seconds / 3600:.2f} $"],
    ]


def price_fields(flavor: JobHardwareInfo, seconds: float) -> dict[str, object]:
    """The same for `--json`."""
    price = dollars_per_hour(flavor)
    cost = None if price is None else price * seconds / 3600
    return {"flavor": flavor.name, "dollars_per_hour": price, "dollars": cost}
