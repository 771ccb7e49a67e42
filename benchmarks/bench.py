"""Measurements, each in a process of its own, by what was asked; what is measured is kept in a file."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hfmega.errors import HfmegaError
from hfmega.folder import write_atomically
from hfmega.output import Output

Found = dict[str, Any]


class Bench:
    """Measurements by what was asked, kept in a file. run: how one is made."""

    def __init__(self, options: argparse.Namespace, output: Output, run: Callable[[Found], Found]) -> None:
        self.options, self.output, self.run = options, output, run
        self.file = options.output / "results" / "results.json"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.known, self.before = known(self.file), known(options.before)

    def measure(self, what: str, **others: Any) -> Found:
        """The measurement with the numbers of the options, but for what is said otherwise."""
        asked = self.asked(what, others)
        if key(public(asked)) not in self.known:
            self.output.say(f"measuring {' '.join(f'{k}={v}' for k, v in {'what': what, **others}.items())}")
            self.known[key(public(asked))] = self.run(asked)
            self.save()
        return self.known[key(public(asked))]

    def earlier(self, what: str, **others: Any) -> Found | None:
        """The same measurement of an earlier commit, if it is known."""
        return self.before.get(key(public(self.asked(what, others))))

    def asked(self, what: str, others: Found) -> Found:
        """What a process is asked to measure."""
        options = self.options
        return {
            "what": what,
            "sources": [str(source) for source in options.pair],
            "dataset": options.dataset,
            "images": options.images,
            "population": options.population,
            "generations": options.generations,
            "seed": options.seed,
            "threads": options.threads,
        } | others

    def save(self) -> None:
        measurements = [{"asked": json.loads(k), "found": found} for k, found in self.known.items()]
        kept = {"machine": machine(), "measurements": measurements}
        write_atomically(self.file, (json.dumps(kept, indent=2) + "\n").encode())


def known(file: Path | None) -> dict[str, Found]:
    """The measurements in a file, by what was asked."""
    if file is None or not file.is_file():
        return {}
    return {key(m["asked"]): m["found"] for m in json.loads(file.read_text(encoding="utf-8"))["measurements"]}


def public(asked: Found) -> Found:
    """What was asked, without where this machine keeps things."""
    return {**asked, "sources": [name(s) for s in asked["sources"]], "dataset": name(asked["dataset"])}


def key(asked: Found) -> str:
    return json.dumps(asked, sort_keys=True)


def name(place: str) -> str:
    """A source or a dataset without where this machine keeps it."""
    return Path(place).name


def machine() -> dict[str, str | int | None]:
    packages = {package: version(package) for package in ("torch", "numpy", "pygad", "hfmega")}
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"platform": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(), **gpu, **packages}


def in_own_process(asked: Found) -> Found:
    """Raises HfmegaError when the measurement failed; what it said is on stderr."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("measure.py")), json.dumps(asked)],
        env={**os.environ, "OMP_NUM_THREADS": str(asked["threads"])},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise HfmegaError(f"the measurement {json.dumps(asked)} failed with code {done.returncode}.")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def carry_out(name: str, parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace, Output], object]) -> None:
    """Run a benchmark as a command; what stands in its way is a sentence."""
    output = Output()
    try:
        run(parser.parse_args(), output)
    except HfmegaError as error:
        output.say(f"{name}: {error}")
        sys.exit(1)
