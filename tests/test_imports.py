"""Heavy libraries are imported where they are used, not before: a process of 5 seconds of CPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

STEPS: Final = """
import sys
def here(*names):
    return sorted(name for name in names if name in sys.modules)
import hfmega.merging.publish, hfmega.merging.replay, hfmega.report.card
print("replay, push:", *here("timm", "datasets", "accelerate", "scipy", "sklearn"))
import hfmega.merging.evaluate, hfmega.evaluation.checkpoint
from hfmega.data.dataset import open_dataset
open_dataset("digits")
print("evaluate:", *here("scipy.stats", "sklearn", "transformers", "cmaes", "gradio"))
import hfmega.merging.merge, hfmega.merging.inspect, hfmega.study.train
print("merge:", *here("scipy.stats", "scipy.optimize", "sklearn", "transformers", "gradio"))
"""


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["replay, push:", "evaluate:", "merge:"]
