"""`make scale`: what grows with the number of sources, the size of a network and of a set; writes into cards/speed.

Every measurement is a process of its own. Sources and images are made here, and lie in the folder of the output.
What is measured is kept, so the same command goes on.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import torch
from bench import carry_out, machine
from safetensors.torch import load_file, save_file
from speed import commas
from verdict import HERE, Kept, markdown

from hfmega.errors import HfmegaError
from hfmega.folder import CONFIG, WEIGHTS, write_atomically
from hfmega.output import Output

Found = dict[str, Any]
FAMILIES: Final = {
    "ResNet-8": ([f"resnet8-s{seed}" for seed in range(44, 52)], (2, 8, 20, 50)),
    "EfficientNet-Lite0": (["effnet-ft1", "effnet-ft2", "effnet-ft4", "effnet-trunk"], (2, 4, 8, 12)),
}
# So many images of each purpose (fitness, calibration, test): the networks differ in what an image costs.
SOME: Final = {"ResNet-8": (500, 200, 500), "EfficientNet-Lite0": (100, 40, 100)}
LARGE: Final = {"ViT-B/16": "vit_base_patch16_224", "ResNet-50": "resnet50"}
SETS: Final = (500, 5_000, 50_000)
SIDE: Final = 224
NOISE: Final = 0.01  # of the standard deviation of each tensor


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--sources", type=Path, nargs="*", default=[], help="folders with trained sources")
    words.add_argument("--dataset", default="uoft-cs/cifar10")
    words.add_argument("--only", type=commas(str), default=["sources", "networks", "sets"])
    words.add_argument("--most", type=int, default=50, help="sources at most")
    words.add_argument("--sets", type=commas(int), default=list(SETS), help="images of the sets")
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("-o", "--output", type=Path, default=Path("runs/bench"))
    return words


class Scale:
    """Measurements by what was asked. made: where sources and images are made."""

    def __init__(self, options: argparse.Namespace, output: Output) -> None:
        self.options, self.output = options, output
        self.kept = Kept(options.output / "results" / "scale.json")
        self.made = options.output / "made"
        folder = Path(options.dataset)
        self.dataset = str(folder.resolve()) if folder.is_dir() else options.dataset

    def measure(self, what: str, about: Found, asked: Found) -> Found:
        """about: what the measurement is kept under; asked: what the process gets besides."""
        key = json.dumps({"what": what, **about, "threads": self.options.threads}, sort_keys=True)
        if key not in self.kept.found:
            self.output.say(f"measuring {what} {' '.join(f'{k}={v}' for k, v in about.items())}")
            self.kept.keep(key, in_own_process({"what": what, "threads": self.options.threads, **asked}, self.made))
        return self.kept.found[key]


def in_own_process(asked: Found, made: Path) -> Found:
    """Raises HfmegaError when the measurement failed; what it said is on stderr."""
    cache = (made / "cache").resolve()
    shutil.rmtree(cache / "hfmega-images", ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked["threads"]), "HF_DATASETS_CACHE": str(cache)}
    command = [sys.executable, str(HERE / "scale_steps.py"), json.dumps(asked)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(cache / "hfmega-images", ignore_errors=True)
    if done.returncode:
        raise HfmegaError(f"the measurement {json.dumps(asked)[:200]} failed with code {done.returncode}.")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def family(names: list[str], count: int, scale: Scale) -> list[str]:
    """So many checkpoints: those that are there, then copies with seeded noise on their parameters."""
    folders = [next((p / n for p in scale.options.sources if (p / n).is_dir()), None) for n in names]
    if None in folders:
        raise HfmegaError(f"there is no {names[folders.index(None)]} in {' '.join(map(str, scale.options.sources))}.")
    there = [folder for folder in folders if folder is not None]
    return [str(there[k]) if k < len(there) else str(noisy(there[k % len(there)], k, scale.made)) for k in range(count)]


def noisy(source: Path, seed: int, made: Path) -> Path:
    """A copy of a checkpoint with noise on its parameters, the same for a seed."""
    folder = made / f"{source.name}-noise-{seed}"
    if not (folder / WEIGHTS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draw = torch.Generator().manual_seed(seed)
        state = load_file(source / WEIGHTS)
        for name, tensor in state.items():
            if tensor.is_floating_point() and tensor.numel() > 1 and "running" not in name:
                state[name] = tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=draw)
        shutil.copyfile(source / CONFIG, folder / CONFIG)
        save_file(state, folder / WEIGHTS, {"format": "pt"})
    return folder


def untrained(architecture: str, seed: int, made: Path) -> Path:
    """A checkpoint whose weights were only drawn."""
    from hfmega.models.library import build, read

    folder = made / f"{architecture}-{seed}"
    if not (folder / WEIGHTS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        config = {"architecture": architecture, "num_classes": 10,
                  "pretrained_cfg": {"input_size": [3, SIDE, SIDE], "crop_pct": 1.0}}  # fmt: skip
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        network = build(read(folder / CONFIG, str(folder)), seed)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


def flags_of(fitness: int, calibration: int, test: int, **others: Any) -> Found:
    return {
        "fitness_split": f"train[:{fitness}]",
        "calibration_split": f"train[{fitness}:{fitness + calibration}]",
        "test_split": f"train[{fitness + calibration}:{fitness + calibration + test}]",
        **others,
    }


SEARCHED: Final[dict[str, Found]] = {
    "flat": {"tree": "flat", "population": 20, "generations": 2, "calibrate": True},
    "tree": {"tree": "pairs", "population": 4, "generations": 2, "calibrate": True},
    "greedy soup": {"method": "greedy-soup", "calibrate": True},
}


def of_sources(scale: Scale, name: str, count: int, way: str = "flat") -> Found:
    names, _ = FAMILIES[name]
    asked = {"sources": family(names, count, scale), "dataset": scale.dataset}
    asked["flags"] = flags_of(*SOME[name], **SEARCHED[way])
    return scale.measure("many", {"family": name, "sources": count, "way": way}, asked)


def slope(sizes: list[int], values: list[float]) -> str:
    """The exponent between the smallest and the largest size, but the first where there are more than two."""
    first = 1 if len(values) > 2 else 0
    if len(values) < 2 or min(values[first], values[-1]) <= 0:
        return "-"
    return f"{math.log(values[-1] / values[first]) / math.log(sizes[-1] / sizes[first]):.2f}"


def many_tables(scale: Scale) -> str:
    text = "\n## Many sources\n\n" + ABOUT_SOURCES
    for name, (_, every) in FAMILIES.items():
        counts = tuple(k for k in every if k <= scale.options.most)
        found = [of_sources(scale, name, k) for k in counts]
        columns: dict[str, tuple[list[float], str]] = {
            "open, check, decode (s)": ([f["opening"] for f in found], ".2f"),
            "materialize the average (ms)": ([1000 * f["materializing"] for f in found], ".2f"),
            "all distances (s)": ([f["pairs"] for f in found], ".3f"),
            "soup: new evaluations": ([f["soup"]["evaluations"] for f in found], ".0f"),
            "soup: sums of weights (s)": ([f["soup"]["materializing"] for f in found], ".3f"),
            "soup: all (s)": ([f["soup"]["seconds"] for f in found], ".1f"),
            **{f"images, {p}": ([f["images"].get(p, 0) for f in found], ",.0f")
               for p in ("each source", "search", "run-off", "test")},
            "own memory (MB)": ([own(f) for f in found], ",.0f"),
            "mapped files (MB)": ([mapped(f) for f in found], ",.0f"),
            "card (KB)": ([f["card"] / 1024 for f in found], ".1f"),
        }  # fmt: skip
        rows = [[f"{name}, {found[0]['floats']:,} floats", *(f"{k} sources" for k in counts), "exponent"]]
        for column, (values, kind) in columns.items():
            rows.append([column, *(format(value, kind) for value in values), slope(list(counts), values)])
        text += markdown(rows)
        ways = {way: of_sources(scale, name, counts[-1], way) for way in SEARCHED}
        rows = [[f"{counts[-1]} {name}s in one command", "images through a network", "seconds", "own memory (MB)"]]
        for way, f in ways.items():
            rows.append([way, f"{sum(f['images'].values()):,}", f"{sum(f['seconds'].values()):.1f}", f"{own(f):,.0f}"])
        text += markdown(rows)
    return text


def own(found: Found) -> float:
    """The peak of the process' own memory, less that of its imports."""
    return max(peak["own"] for peak in found["memory"].values()) - found["memory"]["imports"]["own"]


def mapped(found: Found) -> float:
    """The files that are mapped in the merge, less those of the imports."""
    return found["memory"]["merge"]["mapped"] - found["memory"]["imports"]["mapped"]


def network_tables(scale: Scale) -> str:
    text, images = "\n## A large network\n\n" + ABOUT_NETWORKS, scale.made / "images-200"
    generate(images, 200)
    for name, architecture in LARGE.items():
        sources = [str(untrained(architecture, seed, scale.made)) for seed in (1, 2)]
        asked = {"sources": sources, "dataset": str(images.resolve()), "flags": flags_of(40, 32, 16, tree="flat")}
        found = scale.measure("large", {"network": name}, asked)
        count, model = max(SETS), found["floats"] * 4 / (1 << 20)
        rows = [[f"{name}, {found['floats']:,} floats ({model:,.0f} MB)", "measured", f"of {count:,} images"]]
        fixed = found["materializing"]
        rows.append(["materialize", f"{1000 * fixed:,.0f} ms", f"{fixed:,.1f} s"])
        first, again = found["mutating"]
        rows.append(["materialize with a mutation, drawn / known", f"{1000 * first:,.0f} / {1000 * again:,.0f} ms", ""])
        per = found["calibrating"]
        shown = f"{1000 * per:,.1f} ms an image" if per else "has no BatchNorm"
        rows.append(["calibrate", shown, f"{1000 * per:,.0f} s of 1,000 images" if per else "-"])
        rows.append(
            ["evaluate", f"{1000 * found['evaluating']:,.1f} ms an image", f"{found['evaluating'] * count:,.0f} s"]
        )
        rows.append(["write the result", f"{found['writing']:.1f} s", ""])
        start = found["memory"]["imports"]
        for stage, peak in found["memory"].items():
            if stage != "imports":
                files = peak["mapped"] - start["mapped"]
                memory = f"{peak['own'] - start['own']:,.0f} MB own, {files:,.0f} MB mapped"
                rows.append([f"memory: {stage}", memory, f"{(peak['own'] - start['own']) / model:.1f} models"])
        text += markdown(rows)
    return text


def set_tables(scale: Scale) -> str:
    text, sets = "\n## A large set\n\n" + ABOUT_SETS, sorted(scale.options.sets)
    source = str(untrained(LARGE["ResNet-50"], 1, scale.made))
    found = []
    for count in sets:
        folder = scale.made / f"images-{count}"
        generate(folder, count)
        asked = {"dataset": str(folder.resolve()), "source": source, "count": count, "in_file": True}
        found.append(scale.measure("images", {"images": count}, asked))
    rows = [["", *(f"{count:,} images" for count in sets), "exponent"]]
    lines = {
        "decode and keep (s)": ([f["decoding"] for f in found], ",.1f"),
        "read in the next run (s)": ([f["reading"] for f in found], ",.2f"),
        "bring into order (s)": ([f["ordering"] for f in found], ",.2f"),
        "pixels (MB)": ([f["bytes"] / (1 << 20) for f in found], ",.0f"),
        "own memory (MB)": ([own(f) for f in found], ",.0f"),
    }
    for line, (values, kind) in lines.items():
        rows.append([line, *(format(value, kind) for value in values), slope(sets, values)])
    rows.append(["the same images again", *("yes" if f["same"] else "NO" for f in found), ""])
    return text + markdown(rows)


def generate(folder: Path, count: int) -> None:
    if not (folder / "train.parquet").is_file():
        code = "import sys, pathlib, scale_steps as s; s.generated(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))"
        command = [sys.executable, "-c", code, str(folder), str(count), str(SIDE)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        subprocess.run(command, env=environment, check=True)


ABOUT_SOURCES: Final = (
    "Merges of checkpoints, the first ones trained, the others copies of them with seeded noise of 1 % of the standard "
    "deviation of each tensor on their parameters: what a merge costs does not depend on what it is worth. `--tree "
    "flat`, two populations of 20, statistics re-estimated, few images (cards/speed/scale.json has the numbers); the "
    "exponent is between the second and the last column. Images: passes through a network by phase. Own memory: the "
    "peak of the process over its imports; mapped files are the system's to drop.\n"
)
ABOUT_NETWORKS: Final = (
    f"Weights that were only drawn, images of {SIDE} pixels that were generated. A step is measured on 24 images (32 "
    "for statistics); the last column is that, times the number of images of a large set: it was not run. Memory: the "
    "peak of a stage over the imports, two sources in their files; what is beyond one model are the activations of a "
    "batch (32 images, 128 for statistics), the folded twin of the convolutions, and at the end the weights once more "
    "with the bytes of their file.\n"
)
ABOUT_SETS: Final = (
    f"Sets of {SIDE}-pixel images, generated (blocks of colour, 500 different ones, in one parquet file), as on a "
    "machine whose memory does not take them: decoded once into a file that is kept, and streamed from it. The "
    "exponent is between the second and the last column.\n"
)
PARTS: Final = {"sources": many_tables, "networks": network_tables, "sets": set_tables}


def run(options: argparse.Namespace, output: Output) -> Path:
    scale = Scale(options, output)
    facts = ", ".join(f"{k} {v}" for k, v in machine().items())
    page = (
        f"# What grows, and how\n\nOne process with {options.threads} thread(s) for each measurement; seconds are "
        f"those of its CPU; {facts}. `make scale` measures it. An exponent of 1: twice as much costs twice as much.\n"
    )
    for part in options.only:
        page += PARTS[part](scale)
        write_atomically(scale.kept.path.with_name("scale.md"), page.encode())
    written = scale.kept.path.with_name("scale.md")
    output.say(f"written: {written}")
    return written


if __name__ == "__main__":
    carry_out("scale", parser(), run)
