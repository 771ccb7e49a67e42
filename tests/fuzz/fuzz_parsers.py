"""Fuzzing that is led by coverage: `python tests/fuzz_parsers.py FOLDER RUNS` lets atheris loose on every parser.

Importing torch takes longest, so each parser is fuzzed in a fork of one process; atheris ends it when it is done. The
process exits with 1 if anything but HfmegaError came out.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris
import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.places import CARDS

with atheris.instrument_imports(include=["hfmega"]):
    from support import parsers

    from hfmega.errors import HfmegaError

CARD = CARDS / "resnet8-s44-s45"
LINEAGE = (CARD / "lineage.json").read_bytes()
DOCUMENT = json.loads(LINEAGE)
BETWEEN = b"\n\0\n"  # a recipe and the tensors that lie beside it


def read_recipe(data: bytes, folder: Path) -> None:
    recipe, _, tensors = data.partition(BETWEEN)
    nodes = json.dumps([{**DOCUMENT["nodes"][0], "history": [], "recipe": None}]).encode().replace(b"null", recipe, 1)
    rest = json.dumps({k: v for k, v in DOCUMENT.items() if k not in ("nodes", "recipe")}).encode()
    parsers.read_recipe(rest[:-1] + b', "nodes": ' + nodes + b', "recipe": ' + recipe + b"}", tensors, folder)


NOISE = '"noise": [{"seed": 1, "rate": 0.5, "sigma": 0.1, "unit": "element"}]'
SEEDS: dict[str, tuple[Callable[[bytes, Path], None], list[bytes]]] = {
    "source": (lambda data, _: parsers.read_source(data.decode("utf-8", "ignore")), [b"hf://ann/a@main", b"ann/a"]),
    "slice": (
        lambda data, _: parsers.read_slice(data.decode("utf-8", "ignore")),
        [b"train[:10%]+test", b"train[-5:9]"],
    ),
    "config": (parsers.read_config, [(CARD / "config.json").read_bytes(), json.dumps(parsers.CONFIG).encode()]),
    "lineage": (parsers.read_lineage, [LINEAGE]),
    "recipe": (
        read_recipe,
        [
            b'{"coefficients": [0.5, 0.5], %s}' % NOISE.encode() + BETWEEN,
            b'{"coefficients": [0.5, 0.5], "static": {"method": "fisher"}}' + BETWEEN + save({"x": torch.ones(2)}),
            b'{"coefficients": [1, 0], "genome": "tensor"}' + BETWEEN + save({"offsets": torch.ones(4, 2).double()}),
        ],
    ),
}


def fuzz(name: str, folder: Path, runs: int) -> None:
    """Never returns: atheris exits, with 0 if nothing but HfmegaError came out."""
    parse, seeds = SEEDS[name]
    corpus = folder / name
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def one_input(data: bytes) -> None:
        with suppress(HfmegaError):
            parse(data, folder)

    options = [f"-runs={runs}", "-seed=1", "-max_len=10000", "-len_control=0", f"-artifact_prefix={folder}/{name}-"]
    atheris.Setup([name, *options, str(corpus)], one_input)
    atheris.Fuzz()


def main(folder: Path, runs: int) -> int:
    failed = 0
    for name in SEEDS:
        print(f"fuzzing {name}", file=sys.stderr, flush=True)
        child = os.fork()
        if child == 0:
            fuzz(name, folder, runs)
        failed += os.waitpid(child, 0)[1] != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
