"""Sources that were trained on mirrored and shifted images keep BatchNorm statistics of such images (5 s)."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hfmega.data.dataset import open_dataset
from hfmega.data.images import as_in_training, load_split
from hfmega.data.splits import plan_splits
from hfmega.evaluation.answers import answers
from hfmega.evaluation.network import Network
from hfmega.hub.pull import pull
from hfmega.merging.inspect import inspect
from hfmega.merging.merge import merge
from hfmega.merging.verify import verify
from hfmega.output import Output
from hfmega.settings import MergeSettings, SplitRequest
from hfmega.study.train import UPDATED
from hfmega.weights.checkpoint import load_weights
from hfmega.weights.sources import mix

QUIET = Output(muted=True)


@pytest.fixture
def augmented(tiny_sources: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    """The two sources, whose records say that they were trained with --augment."""
    copies = []
    for source in tiny_sources:
        copies.append(Path(shutil.copytree(source, tmp_path / source.name)))
        config = json.loads((copies[-1] / "config.json").read_text())
        config["hfmega"]["augment"] = True
        (copies[-1] / "config.json").write_text(json.dumps(config))
    return copies


def average(sources: list[Path], output: Path) -> Path:
    names = tuple(map(str, sources))
    merge(MergeSettings(names, output, method="average", calibrate=True, dataset="digits"), QUIET)
    return output


def test_inspect_looks_at_what_a_merge_would_have(augmented: list[Path], tmp_path: Path) -> None:
    """Its accuracy with re-estimated statistics is that of shifted images; plain ones would give another."""
    output, images = tmp_path / "inspection", SplitRequest(confirm_share=0.0)
    settings = MergeSettings(tuple(map(str, augmented)), output, dataset="digits", splits=images)
    found = inspect(settings, QUIET)
    digits, checkpoint = open_dataset("digits"), pull(str(augmented[0]))
    plan = plan_splits(digits, [pull(str(source)).record for source in augmented], images, tests=False)
    search, plain = (load_split(digits, plan.rows[p], checkpoint.spec, p) for p in ("search", "calibration"))
    sources = mix([checkpoint], [load_weights(checkpoint)])
    shown, other = (
        answers(Network(checkpoint.spec, sources, split).predict(UPDATED, search), search.labels).accuracy
        for split in (as_in_training(plain), plain)
    )
    assert found.sources[0].calibrated_accuracy == pytest.approx(shown, abs=1e-9)
    assert shown != other


def test_statistics_are_of_shifted_images_and_verify_makes_them_again(
    tiny_sources: tuple[Path, Path], augmented: list[Path], tmp_path: Path
) -> None:
    plain = average(list(tiny_sources), tmp_path / "plain")
    shifted = average(augmented, tmp_path / "shifted")
    known, found = (load_file(folder / "model.safetensors") for folder in (plain, shifted))
    same = {name for name in known if (known[name] == found[name]).all()}
    assert {name for name in known if name not in same} == {n for n in known if n.endswith(("_mean", "_var"))}
    entry = json.loads((shifted / "lineage.json").read_text())["data"]["splits"]["calibration"]
    assert entry["fingerprint"].endswith(", mirrored and shifted")
    assert [check for check in verify(str(shifted), None, None) if not check.ok] == []
