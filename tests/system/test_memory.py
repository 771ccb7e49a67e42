"""A population costs kilobytes: memory is the sources and one network, however many individuals there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

MEASURE = """
import resource, sys
import numpy as np
from hfmega.evaluation.network import Network
from hfmega.data.dataset import open_dataset
from hfmega.data.images import load_split
from hfmega.evaluation.evaluator import Evaluator
from hfmega.hub import pull
from hfmega.search.ga import MeGA
from hfmega.search.recipe import source_alone
from hfmega.settings import DEFAULT
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.sources import mix
from dataclasses import replace
sources, population = [pull.pull(folder) for folder in sys.argv[1:3]], int(sys.argv[3])
images = load_split(open_dataset("digits"), np.arange(4), sources[0].spec, "few")
evaluator = Evaluator(Network(sources[0].spec, mix(sources, [load_weights(s) for s in sources]), None))
search = MeGA([source_alone(k, 2) for k in range(2)], replace(DEFAULT, population=population, generations=2), seed=0)
while not search.done:
    search.tell(evaluator.scores(search.ask(), images))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_memory_does_not_grow_with_the_population(tmp_path: Path) -> None:
    """ResNet-56, two populations (the second has noise): 200 individuals take at most 10 % more than 20."""
    from hfmega.models.library import build, read
    from hfmega.weights.checkpoint import save_weights

    config = '{"architecture": "resnet56_cifar", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 16, 16]}}'
    for seed in (1, 2):
        folder = tmp_path / f"s{seed}"
        folder.mkdir()
        (folder / "config.json").write_text(config)
        save_weights(
            build(read(folder / "config.json", "here"), seed).state_dict(),
            folder / "model.safetensors",
        )
    peaks, environment = [], {**os.environ, "OMP_NUM_THREADS": "1"}
    for population in (20, 200):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "s1"), str(tmp_path / "s2"), str(population)]
        peaks.append(int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < 1.1 * peaks[0], peaks


MIX = """
import sys, threading
from pathlib import Path
import torch
from hfmega.hub import pull
from hfmega.search.recipe import Recipe
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.sources import Sources

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.002):
        peak.append(anonymous())

torch.set_num_threads(1)
(torch.ones(1000) * 0.5 + 1).aminmax()  # what torch takes for itself at its first use
sources, peak, done = [pull.pull(folder) for folder in sys.argv[1:]], [], threading.Event()
before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
states = [load_weights(source) for source in sources]
loaded = max(peak) - before
mixed = Sources(states, ())
flat = torch.empty(mixed.layout.size)
mixed.materialize(Recipe((0.25, 0.5)), flat)
done.set()
watcher.join()
print(loaded, max([*peak, anonymous()]) - before, flat.nbytes, sum(float(part.sum()) for part in flat.split(1_000_000)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory from mapped files")
def test_sources_in_shards_are_mixed_without_being_copied_into_memory(tmp_path: Path) -> None:
    """Two of 100 MB: reading takes nothing, mixing one network and one tensor of it."""
    import torch
    from huggingface_hub import save_torch_state_dict

    for value in (1.0, 2.0):
        folder = tmp_path / str(value)
        folder.mkdir()
        (folder / "config.json").write_text('{"architecture": "resnet50", "num_classes": 10}')
        state = {f"{number:02}": torch.full((1250, 1000), value) for number in range(20)}
        save_torch_state_dict(state, folder, max_shard_size="25MB")
    command = [sys.executable, "-c", MIX, str(tmp_path / "1.0"), str(tmp_path / "2.0")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    loaded, mixed, size, total = map(float, done.stdout.split())
    assert len(list((tmp_path / "1.0").glob("*.safetensors"))) == 4
    assert (size, total) == (100_000_000, 1.25 * 25_000_000)
    assert loaded < 5_000_000, loaded
    assert mixed < 100_000_000 + 5_000_000 + 5_000_000, mixed
