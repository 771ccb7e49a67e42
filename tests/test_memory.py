"""A population costs kilobytes: memory is the sources and one network, however many individuals there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import resource, sys
import numpy as np
from hfmega import hub
from hfmega.data import load_split, open_dataset
from hfmega.evaluate import Evaluator
from hfmega.recipe import source_alone
from hfmega.search.ga import MeGA, DEFAULT
from hfmega.weights import load_weights, mix
from dataclasses import replace
sources, population = [hub.pull(folder) for folder in sys.argv[1:3]], int(sys.argv[3])
images = load_split(open_dataset("digits"), np.arange(4), sources[0].config, "few")
evaluator = Evaluator(sources[0].config, mix(sources, [load_weights(s) for s in sources]), None)
search = MeGA([source_alone(k, 2) for k in range(2)], replace(DEFAULT, population=population, generations=2), seed=0)
while not search.done:
    search.tell(evaluator.scores(search.ask(), images))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_memory_does_not_grow_with_the_population(tmp_path: Path) -> None:
    """ResNet-56, two populations (the second has noise): 200 individuals take at most 10 % more than 20."""
    from hfmega.models import build
    from hfmega.weights import save_weights

    config = '{"architecture": "resnet56_cifar", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 16, 16]}}'
    for seed in (1, 2):
        folder = tmp_path / f"s{seed}"
        folder.mkdir()
        (folder / "config.json").write_text(config)
        save_weights(
            build({"architecture": "resnet56_cifar", "num_classes": 10}, seed).state_dict(),
            folder / "model.safetensors",
        )
    peaks, environment = [], {**os.environ, "OMP_NUM_THREADS": "1"}
    for population in (20, 200):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "s1"), str(tmp_path / "s2"), str(population)]
        peaks.append(int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < 1.1 * peaks[0], peaks
