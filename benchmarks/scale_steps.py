"""What many sources, large networks and large sets cost, in a process of its own: JSON as argument, JSON at the end."""

import hashlib
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import numpy as np
import torch
from clocks import Clock, watch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image

from hfmega.data import images as images_module
from hfmega.data.dataset import open_dataset, rows_of
from hfmega.data.images import Split, batches, load_split
from hfmega.hub import pull
from hfmega.merging import judge, pairing, run_off
from hfmega.merging.merge import carry_out
from hfmega.merging.prepare import prepare
from hfmega.merging.record import write_model
from hfmega.output import Output
from hfmega.search.recipe import Noise, mutate, uniform_average
from hfmega.settings import MergeSettings

T = TypeVar("T")
DIFFERENT: Final = 500  # images of a generated set; its rows go round them


class Memory:
    """The peaks of this process, in MB: what is its own, and what of files it has mapped (the system may drop that)."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._now, self._done = "", threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self._look()

    def _look(self) -> None:
        if self._now:
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak = self.stages.setdefault(self._now, {"own": 0.0, "mapped": 0.0})
            for name, field in (("own", "RssAnon"), ("mapped", "RssFile")):
                peak[name] = max(peak[name], int(lines[field].split()[0]) / 1024)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._now = name
        self._look()
        yield
        self._look()
        self._now = ""


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What some work gives, and the CPU seconds that it takes: other programs on the machine do not count."""
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


def seconds_of(work: Callable[[], Any], times: int = 1) -> float:
    return median(timed(work)[1] for _ in range(times))


def many(asked: dict[str, Any]) -> dict[str, Any]:
    """A whole merge of many sources; before it, the steps whose number grows with theirs."""
    memory, clock, soup = (
        Memory(),
        Clock(time.process_time),
        {"evaluations": 0, "seconds": 0.0, "materializing": 0.0, "images": 0},
    )
    watch(clock)
    with memory.stage("imports"):
        folder = TemporaryDirectory()
        flags = {"dataset": asked["dataset"], "output": f"{folder.name}/out", **asked["flags"]}
        settings = MergeSettings.of(*asked["sources"], **flags)
    with memory.stage("open"):
        job, opening = timed(lambda: prepare(settings, Output(muted=True)))
    sources, count = job.evaluator.network.sources, len(job.checkpoints)
    with memory.stage("materialize"):
        average = seconds_of(lambda: sources.materialize(uniform_average(count), job.evaluator.network._flat), 7)
    members = {member.name: member.recipe for member in job.merged}
    with memory.stage("pairs"):
        pairs = seconds_of(lambda: pairing.distances(list(members.values()), job.evaluator.network))

    def cooked(*arguments: Any) -> Any:
        images, before = sum(clock.images.values()), clock.seconds["weights: materialize"]
        scores = len(job.evaluator._scores)
        found, seconds = timed(lambda: cook(*arguments))
        soup["seconds"] += seconds
        soup["evaluations"] += len(job.evaluator._scores) - scores
        soup["materializing"] += clock.seconds["weights: materialize"] - before
        soup["images"] += sum(clock.images.values()) - images
        return found

    cook = run_off.soup_members
    run_off.soup_members = judge.soup_members = cooked  # type: ignore[assignment]
    with memory.stage("merge"):
        made = carry_out(job, Output(muted=True))
    clock.turn()
    assert made is not None
    card = (settings.output / "README.md").stat().st_size
    folder.cleanup()
    return {
        "floats": sources.layout.size,
        "opening": opening,
        "materializing": average,
        "pairs": pairs,
        "soup": soup,
        "images": dict(clock.images),
        "seconds": dict(clock.seconds),
        "memory": memory.stages,
        "card": card,
        "verdict": made.result.verdict,
    }


def large(asked: dict[str, Any]) -> dict[str, Any]:
    """One individual of a large network: its steps, and the memory of each."""
    memory = Memory()
    with TemporaryDirectory() as folder:
        with memory.stage("imports"):
            flags = {"dataset": asked["dataset"], "output": f"{folder}/out", **asked["flags"]}
            settings = MergeSettings.of(*asked["sources"], **flags)
        with memory.stage("open"):
            job = prepare(settings, Output(muted=True))
        network, sources = job.evaluator.network, job.evaluator.network.sources
        recipe = uniform_average(2, calibrate=network.can_calibrate)
        mutated = mutate(recipe, Noise(1, 0.02, 0.01, "element"))
        with memory.stage("materialize"):
            materializing = seconds_of(lambda: network.load(recipe), 3)
        with memory.stage("a mutation"):
            first = seconds_of(lambda: network.load(mutated))
            again = seconds_of(lambda: network.load(mutated), 3)
        parts = network.calibration_parts()
        with memory.stage("calibrate"):
            calibrating = seconds_of(lambda: network.moments(recipe, parts)) if parts else 0.0
        rows = batches(range(len(job.search)), network.batch_size)
        network.load(recipe)
        with memory.stage("evaluate"):
            network.look(job.search, rows[:1])
            evaluating = seconds_of(lambda: network.look(job.search, rows))
        (settings.output / "figures").mkdir(parents=True)
        with memory.stage("write"):
            writing = seconds_of(lambda: write_model(settings.output, job, replace(recipe, noise=()), {}))
    return {
        "floats": sources.layout.size,
        "materializing": materializing,
        "mutating": [first, again],
        "calibrating": calibrating / max(sum(map(len, parts)), 1),
        "evaluating": evaluating / len(job.search),
        "writing": writing,
        "images": len(job.search),
        "calibration": sum(map(len, parts)),
        "memory": memory.stages,
    }


def images(asked: dict[str, Any]) -> dict[str, Any]:
    """A set of so many images: decoded, and read again as an earlier run decoded them. in_file: as if none fitted."""
    memory = Memory()
    with memory.stage("imports"):
        dataset = open_dataset(asked["dataset"])
    spec, rows = pull.pull(asked["source"]).spec, rows_of(dataset, f"train[:{asked['count']}]")
    if asked["in_file"]:
        images_module.fits_memory = lambda _: False
    with memory.stage("decode"):
        split, decoding = timed(lambda: load_split(dataset, rows, spec, "decoded"))
    before = digest(split)
    del split
    with memory.stage("next run"):
        split, reading = timed(lambda: load_split(dataset, rows, spec, "kept"))
    same, size = digest(split) == before, split.images.nbytes
    with memory.stage("order"):
        ordering = seconds_of(lambda: images_module.stratified(split))
    found = {"decoding": decoding, "reading": reading, "ordering": ordering}
    return {**found, "same": same, "bytes": size, "memory": memory.stages}


def digest(split: Split) -> str:
    """Of the fingerprint and of fifty of the images."""
    few = split.images[:: max(1, len(split) // 50)]
    return hashlib.sha256(split.fingerprint.encode() + few.numpy().tobytes()).hexdigest()


def generated(folder: Path, count: int, side: int) -> None:
    """A set of images of blocks of colour, cheap to decode, as one parquet file: 10 classes, 500 different images."""
    draw, encoded = np.random.RandomState(0), []
    for _ in range(min(DIFFERENT, count)):
        blocks = Image.fromarray(draw.randint(0, 255, (7, 7, 3), np.uint8))
        content = io.BytesIO()
        blocks.resize((side, side), Image.Resampling.NEAREST).save(content, "PNG", compress_level=1)
        encoded.append({"bytes": content.getvalue(), "path": None})
    features = Features({"image": ImageColumn(), "label": ClassLabel(names=[f"class {k}" for k in range(10)])})
    rows = {"image": [encoded[k % len(encoded)] for k in range(count)], "label": [k % 10 for k in range(count)]}
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")


MEASURES: Final = {"many": many, "large": large, "images": images}


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    print(json.dumps(MEASURES[asked["what"]](asked)))


if __name__ == "__main__":
    main()
