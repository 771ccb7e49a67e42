"""`make bench`: what a search costs, against plain PyTorch, PyGAD and forward passes alone; writes cards/speed.

Every measurement is a process of its own, one after another. What is measured is kept, so the same command goes on.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench import Bench, Found, carry_out, in_own_process, machine, name
from tables import BLOCKS, TABLES, VARIANTS, WAYS, Table

from hfmega.errors import HfmegaError
from hfmega.folder import write_atomically
from hfmega.output import Output

PAIR: Final = ("resnet8-s44", "resnet8-s48")
POPULATIONS: Final = (20, 50, 100, 200)
ARCHITECTURES: Final = ("resnet8_cifar", "resnet20_cifar", "resnet56_cifar")
WORKERS: Final = (1, 2, 4, 8, 16, 32, 64)
TRIED: Final = Path(__file__).with_name("tried.md")  # written by hand
WIDEST: Final = 7  # columns of a terminal's table; a wider one is turned


def page(tables: list[Table], options: argparse.Namespace) -> str:
    facts = ", ".join(f"{k} {v}" for k, v in machine().items())
    head = (
        f"# What a search costs\n\n{' and '.join(name(s) for s in options.pair)} on {name(options.dataset)}; "
        f"{options.images:,} fitness images, of which 60 % steer the search. One process with {options.threads} "
        f"thread(s) per row, one after another; {facts}.{options.remark and f' {options.remark}'}\n\n"
        "Plain PyTorch is `benchmarks/plain.py`, PyGAD `benchmarks/torchga.py`. Both start from hfmega's "
        "first population as state dicts, with the paper's operators; `DataLoader` gives them float images from "
        "memory in batches of 256, and `update_bn` re-estimates their statistics on the calibration images.\n"
    )
    earlier = (
        f"\nWhat {options.before_name} measured and nobody since: [earlier.md](earlier.md).\n" if options.before else ""
    )
    return head + "".join(map(markdown, tables)) + f"\n{TRIED.read_text(encoding='utf-8')}{earlier}"


def markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return f"\n## {table.title}\n\n{table.note}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--sources", type=Path, nargs="*", default=[], help="folders with trained sources")
    words.add_argument("--pair", nargs=2, default=list(PAIR), help="folders, Hub ids, or names in --sources")
    words.add_argument("--dataset", default="uoft-cs/cifar10")
    words.add_argument("--only", type=commas(str), default=list(TABLES), help=f"some of {','.join(TABLES)}")
    words.add_argument("--blocks", type=commas(str), default=list(BLOCKS), help="of the rows")
    words.add_argument("--ways", type=commas(str), default=list(WAYS), help=f"of searching, some of {','.join(WAYS)}")
    words.add_argument("--remark", default="", help="what else the page says of this measurement")
    words.add_argument("--before", type=Path, help="results.json of an earlier commit: its rows stand beside")
    words.add_argument("--before-name", default="before", help="what that commit is called")
    words.add_argument("--population", type=int, default=20)
    words.add_argument("--generations", type=int, default=6)
    words.add_argument("--images", type=int, default=5000, help="fitness images; 40 %% of them do not steer the search")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every row")
    words.add_argument("--repeats", type=int, default=1, help="of the rows")
    words.add_argument("--repeated", type=commas(str), default=list(WAYS), help="ways that are measured more than once")
    words.add_argument("--seeds", type=int, default=10, help="of the tables seeds and variants")
    words.add_argument("--seeds-threads", type=int, default=os.cpu_count() or 1)
    words.add_argument("--seeds-block", choices=list(BLOCKS), default="calibrate")
    words.add_argument("--variants", type=commas(str), default=list(VARIANTS), help=f"some of {','.join(VARIANTS)}")
    words.add_argument("--population-images", type=int, default=1000, help="fitness images of the table population")
    words.add_argument("--populations", type=commas(int), default=list(POPULATIONS))
    words.add_argument("--architectures", type=commas(str), default=list(ARCHITECTURES))
    words.add_argument("--large", type=int, default=50_000, help="search images of the second table of workers")
    words.add_argument("--workers", type=commas(int), default=list(WORKERS))
    words.add_argument("-o", "--output", type=Path, default=Path("runs/bench"))
    return words


def commas(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",")]


def run(options: argparse.Namespace, output: Output, measure: Callable[[Found], Found] = in_own_process) -> list[Table]:
    """Make the tables that are asked for; the page is written anew after each. Raises HfmegaError for unknown ones."""
    for what, asked, known in (("table", options.only, TABLES), ("variant", options.variants, VARIANTS)):
        if unknown := [one for one in asked if one not in known]:
            raise HfmegaError(f"there is no {what} {unknown[0]!r}, only {', '.join(known)}.")
    options.pair = [place(one, options, output) for one in options.pair]
    bench, made = Bench(options, output, measure), list[Table]()
    for wanted in options.only:
        for table in TABLES[wanted](bench):
            made.append(table)
            show(table, output)
            write_atomically(bench.file.with_name("README.md"), page(made, options).encode())
    return made


def place(source: str, options: argparse.Namespace, output: Output) -> str:
    """The checkpoint of a source; one of the families of `make quality` that is nowhere is trained."""
    if Path(source).is_dir() or "/" in source:
        return source
    from quality import available

    return available(source, options, output)


def show(table: Table, output: Output) -> None:
    lines = [table.columns, *table.rows]
    turned = lines if len(table.columns) <= WIDEST else [list(column) for column in zip(*lines, strict=True)]
    output.table(table.title, turned[0], turned[1:])
    output.say(table.note)


if __name__ == "__main__":
    carry_out("bench", parser(), run)
