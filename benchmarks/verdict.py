"""`make verdict`: where the seconds of one `hfmega merge` go, from the command to the card; writes into cards/speed.

The command runs as a user gives it, in a process of its own, with clocks around its steps; first without decoded images
of an earlier run, then with them. `--before`: a checkout of another version, which is measured first.
What is measured is kept, so the same command goes on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench import carry_out, machine, name
from clocks import IMPORTS, PASSES
from speed import place

from hfmega.folder import write_atomically
from hfmega.output import Output

HERE: Final = Path(__file__).resolve().parent
PAIR: Final = ("resnet8-s44", "resnet8-s45")
# What comes before the command that is measured: the dataset as `datasets` keeps it.
READY: Final = "import sys; from hfmega.data.dataset import open_dataset; open_dataset(sys.argv[1])"


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--sources", type=Path, nargs="*", default=[], help="folders with trained sources")
    words.add_argument("--pair", nargs=2, default=list(PAIR), help="folders, Hub ids, or names in --sources")
    words.add_argument("--dataset", default="uoft-cs/cifar10")
    words.add_argument("--before", type=Path, help="a checkout of another version, measured first")
    words.add_argument("--flags", default="", help="more flags of the merge, in one string")
    words.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    words.add_argument("-o", "--output", type=Path, default=Path("runs/bench"))
    return words


def run(options: argparse.Namespace, output: Output) -> Path:
    """Measure what is not measured yet, and write the page."""
    kept = Kept(options.output / "results" / "verdict.json")
    options.pair = [place(source, options, output) for source in options.pair]
    asked = {"pair": [name(one) for one in options.pair], "dataset": name(options.dataset), "flags": options.flags}
    versions = [("before", options.before)] if options.before else []
    columns = []
    for which, folder in [*versions, ("after", HERE.parent)]:
        version = commit(folder)
        for time_ in ("first run",) if which == "before" else ("first run", "next run"):
            key = json.dumps({**asked, "version": version, "run": time_, "threads": options.threads}, sort_keys=True)
            if key not in kept.found:
                output.say(f"measuring {version}, {time_}")
                kept.keep(key, measured(options, folder, anew=time_ == "first run"))
            columns.append((f"{version}, {time_}" if which == "after" else version, kept.found[key]))
    path = kept.path.with_name("verdict.md")
    write_atomically(path, page(columns, asked, options.threads).encode())
    output.say(f"written: {path}")
    return path


class Kept:
    """What was measured, by what was asked, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def keep(self, key: str, found: dict[str, Any]) -> None:
        self.found[key] = found
        write_atomically(self.path, (json.dumps(self.found, indent=2) + "\n").encode())


def commit(folder: Path) -> str:
    """What a checkout is called by git, with a star where its code was changed since."""
    asked = ["git", "-C", str(folder), "describe", "--always", "--dirty=*", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def measured(options: argparse.Namespace, folder: Path, anew: bool) -> dict[str, Any]:
    """The command by the code in a folder, in a process of its own. anew: no decoded images of an earlier run."""
    cache = options.output / "cache"
    if anew:
        shutil.rmtree(cache / "hfmega-images", ignore_errors=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": str(options.threads),
        "HF_DATASETS_CACHE": str(cache.resolve()),
    }
    subprocess.run([sys.executable, "-c", READY, options.dataset], env=environment, check=True)
    sources = [str(Path(one).resolve()) if Path(one).is_dir() else one for one in options.pair]
    dataset = str(Path(options.dataset).resolve()) if Path(options.dataset).is_dir() else options.dataset
    asked = {"sources": sources, "dataset": dataset, "flags": options.flags.split(), "began": time.time()}
    done = subprocess.run(
        [sys.executable, str(HERE / "clocks.py"), json.dumps(asked)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def page(columns: list[tuple[str, dict[str, Any]]], asked: dict[str, Any], threads: int) -> str:
    facts = ", ".join(f"{k} {v}" for k, v in machine().items())
    steps = list(dict.fromkeys(step for _, found in columns for step in found["seconds"]))
    phases = list(dict.fromkeys(phase for _, found in columns for phase in found["images"] if phase))
    head = (
        f"# The time to a verdict\n\n`hfmega merge {' '.join(asked['pair'])} --dataset {asked['dataset']}"
        f"{' ' + asked['flags'] if asked['flags'] else ''}`, from the command to the card: seconds by step, those of a "
        f"step inside another one counted for the inner one alone, and their share of all but the imports. "
        f"One process, {threads} thread(s); {facts}. `make verdict` measures it.\n"
    )
    table = [["step", *(text for name_, _ in columns for text in (f"{name_}: seconds", "share"))]]
    wholes = [sum(s for step, s in found["seconds"].items() if step != IMPORTS) for _, found in columns]
    for step in sorted(steps, key=lambda one: (one != IMPORTS, -columns[-1][1]["seconds"].get(one, 0.0))):
        line = [step]
        for (_, found), whole in zip(columns, wholes, strict=True):
            seconds = found["seconds"].get(step, 0.0)
            line += [f"{seconds:.2f}", "-" if step == IMPORTS else f"{seconds / whole:.1%}"]
        table.append(line)
    rest = [whole - found["seconds"][PASSES] for (_, found), whole in zip(columns, wholes, strict=True)]
    table.append(["**all but imports**", *(text for whole in wholes for text in (f"**{whole:.2f}**", "100.0%"))])
    table.append(["**of it no forward pass**", *(t for r, w in zip(rest, wholes, strict=True)
                                                 for t in (f"**{r:.2f}**", f"**{r / w:.1%}**"))])  # fmt: skip
    counts = [["images through a network", *(name_ for name_, _ in columns)]]
    for phase in phases:
        counts.append([phase, *(f"{found['images'].get(phase, 0):,}" for _, found in columns)])
    counts.append(["all", *(f"{sum(found['images'].values()):,}" for _, found in columns)])
    return head + markdown(table) + "\n" + markdown(counts)


def markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    carry_out("verdict", parser(), run)
