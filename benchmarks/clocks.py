"""One command of hfmega in this process, with clocks around its steps: JSON as the argument, a line of JSON at the end.

It imports nothing of hfmega but what the command does, so that it measures other versions too (by PYTHONPATH).
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

IMPORTS: Final = "imports"
PASSES: Final = "forward passes"
REST: Final = "everything else"
# Step -> what does it. A version that has not one of them has its time in the step around it.
STEPS: Final = {
    "checkpoints: read, hash, check": ["hub.pull:pull", "weights.mergeable:open_sources", "weights.sources:mix"],
    "dataset: open": ["data.dataset:open_dataset"],
    "images: read, decode": ["data.images:load_splits"],
    "images: order by class": ["data.images:stratified"],
    "network: build, fold": ["evaluation.network:Network.__init__"],
    "weights: materialize": ["weights.sources:Sources.materialize"],
    PASSES: ["evaluation.network:Network._forward"],
    "search: breed, race, record": ["merging.tree:search"],
    "result: write weights, lineage": ["merging.record:write_model", "report.lineage:write"],
    "figures": ["report.figures:draw"],
    "card, page": ["report.card:write", "report.page:write", "report.thumbnails:write"],
}
# Where a step is called from under a name of its own.
NAMES: Final = {
    "load_splits": ["merging.prepare"],
    "stratified": ["merging.prepare"],
    "open_dataset": ["merging.prepare"],
    "open_sources": ["merging.prepare"],
    "mix": ["merging.prepare", "evaluation.checkpoint"],
    "write_model": ["merging.record"],
    "search": ["merging.tree"],
}


class Clock:
    """Seconds by step: those of a step inside another one count for the inner one alone."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.seconds: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.steps, self.since = [REST], now()

    def turn(self) -> None:
        now = self.now()
        self.seconds[self.steps[-1]] += now - self.since
        self.since = now

    @contextmanager
    def inside(self, step: str) -> Iterator[None]:
        self.turn()
        self.steps.append(step)
        try:
            yield
        finally:
            self.turn()
            self.steps.pop()

    def timed(self, step: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def run(*arguments: Any, **options: Any) -> Any:
            with self.inside(step):
                return work(*arguments, **options)

        return run


def child(asked: dict[str, Any]) -> dict[str, Any]:
    """The command in this process, which began at `asked["began"]` seconds since the epoch."""
    for module in ("cli.commands", "merging.merge", "report.figures", "report.card", "report.page"):
        import_module(f"hfmega.{module}")
    import_module("scipy.stats")
    imports, clock = time.time() - asked["began"], Clock()
    watch(clock)
    with TemporaryDirectory() as folder:
        sys.argv = ["hfmega", "merge", *asked["sources"], "--dataset", asked["dataset"], "-o", f"{folder}/merged"]
        sys.argv += [*asked["flags"], "--quiet"]
        try:
            import_module("hfmega.cli.commands").main()
        except SystemExit as done:
            if done.code:
                raise
        clock.turn()
        made = json.loads((Path(folder) / "merged" / "lineage.json").read_text(encoding="utf-8"))
    found = {"seconds": {IMPORTS: imports, **clock.seconds}, "images": dict(clock.images)}
    return {
        **found,
        "sha256": made["result"]["sha256"],
        "splits": {p: s["images"] for p, s in made["data"]["splits"].items()},
    }


def watch(clock: Clock) -> None:
    """Put clocks around the steps, and count the images of each phase."""
    for step, places in STEPS.items():
        for one in places:
            where, _, name = one.partition(":")
            owner: Any = import_module(f"hfmega.{where}")
            *within, last = name.split(".")
            for part in within:
                owner = getattr(owner, part)
            work = clock.timed(step, getattr(owner, last))
            setattr(owner, last, work)
            for other in NAMES.get(last, []):
                setattr(import_module(f"hfmega.{other}"), last, work)
    network, phases = import_module("hfmega.evaluation.network").Network, import_module("hfmega.phases")
    forward, begin, now = network._forward, phases.begin, [""]

    def counted(self: Any, images: Any, *others: Any) -> Any:
        clock.images[now[0]] += len(images)
        return forward(self, images, *others)

    def begun(name: str, *others: Any, **more: Any) -> None:
        now[0] = name
        begin(name, *others, **more)

    network._forward, phases.begin = counted, begun


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
