"""Coefficients for each stage, layer, tensor or channel: groups, recipes, searches, what lies on disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import run
from support.specs import spec

from hfmega.errors import HfmegaError
from hfmega.models.library import build
from hfmega.report import lineage
from hfmega.search.ga import MeGA
from hfmega.search.recipe import Recipe, blend, blend_groups, centroid
from hfmega.settings import DEFAULT, SplitRequest
from hfmega.weights.layout import groups_of, layout_of
from hfmega.weights.sources import Sources

FINER = ("stage", "layer", "tensor", "channel")
CONFIG: dict[str, Any] = {
    "architecture": "resnet8_cifar",
    "num_classes": 10,
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]},
}
STATES = [
    {"a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a.bias": torch.tensor([5.0, 6.0])},
    {"a.weight": torch.tensor([[10.0, 20.0], [30.0, 40.0]]), "a.bias": torch.tensor([50.0, 60.0])},
]


def tiny() -> Sources:
    return Sources(STATES, STATES[0])


def weights(recipe: Recipe) -> dict[str, list[Any]]:
    sources = tiny()
    flat = torch.empty(sources.layout.size)
    sources.materialize(recipe, flat)
    return {name: tensor.tolist() for name, tensor in sources.state_dict(flat).items()}


def test_groups_cover_the_vector_and_get_finer() -> None:
    model = build(spec(**CONFIG))
    layout = layout_of(model.state_dict(), dict(model.named_parameters()))
    counts = []
    for genome in ("model", *FINER):
        groups = groups_of(layout, genome)  # type: ignore[arg-type]
        assert groups.sizes.sum() == layout.size
        assert sorted(set(groups.owners.tolist())) == list(range(groups.count))
        counts.append(groups.count)
    assert counts[0] == 1
    assert counts == sorted(counts)
    parameters = dict(model.named_parameters())
    assert counts[3] == len(parameters)  # statistics go with the weight of their BatchNorm
    assert counts[4] == sum(p.shape[0] for p in parameters.values())


def test_each_channel_is_mixed_by_its_own_coefficients() -> None:
    # In the order of the names: two elements of the bias, two rows of the weight.
    recipe = Recipe((1.0, 0.0), genome="channel", offsets=(0.0, 0.0, -1.0, 1.0, -0.5, 0.5, 1.0, 0.0))
    assert weights(recipe) == {"a.bias": [5.0, 60.0], "a.weight": [[5.5, 11.0], [6.0, 8.0]]}


def test_a_source_alone_in_every_group_comes_back_bit_for_bit() -> None:
    recipe = blend_groups([Recipe((1.0, 0.0)), Recipe((0.0, 1.0))], np.array([[0.0, 1.0]] * 2), "tensor")
    assert weights(recipe) == {name: tensor.tolist() for name, tensor in STATES[1].items()}


def test_blending_recipes_with_offsets_is_blending_their_weights() -> None:
    first = Recipe((0.25, 0.75), genome="tensor", offsets=(0.5, -0.5, 0.25, 0.25))
    mixed = blend([first, Recipe((1.0, 0.0))], [0.5, 0.5])
    for name, tensor in weights(mixed).items():
        halves = (torch.tensor(weights(first)[name]) + torch.tensor(weights(Recipe((1.0, 0.0)))[name])) / 2
        assert torch.allclose(torch.tensor(tensor), halves)
    assert centroid([first, first]) == first


def test_offsets_of_another_genome_are_an_error() -> None:
    with pytest.raises(HfmegaError, match="6 offsets for 2 groups of 2 sources"):
        weights(Recipe((1.0, 0.0), genome="tensor", offsets=(0.0,) * 6))


def test_children_cross_and_step_in_each_group_and_their_coefficients_sum_to_one() -> None:
    def children(rate: float) -> list[np.ndarray]:
        settings = replace(DEFAULT, population=6, generations=2, genome="tensor", mutation_rate=rate)
        search = MeGA([Recipe((1.0, 0.0, 0.0)), Recipe((0.0, 1.0, 0.0))], settings, seed=3, groups=40)
        search.tell([Told(0.1 * k) for k in range(6)])
        return [child.table(40) for child in search.population[1:]]

    for crossed, mutated in zip(children(0.0), children(0.5), strict=True):
        for table in (crossed, mutated):
            assert np.allclose(table.sum(axis=1), 1.0)
            assert (table[:, 2] == 0).all()  # what no parent has of
        assert 10 <= (crossed != mutated).any(axis=1).sum() <= 30


class Told:
    total, exact = 100, True

    def __init__(self, accuracy: float) -> None:
        self.accuracy, self.loss = accuracy, 1.0 - accuracy


@pytest.mark.parametrize("method", ["mega", "learned"])
def test_a_merge_by_channel_is_replayed_from_its_file(
    tiny_sources: tuple[Path, Path], tmp_path: Path, method: str
) -> None:
    folder = tmp_path / "merged"
    flags = ["--dataset", "digits", "--fitness-images", 200, "--test-split", "test[:200]", "--population", 6,
             "--generations", 6, "--genome", "channel", "--method", method,
             "--preset", "paper", "--fitness", "loss", "--calibrate", "--control"]  # fmt: skip
    made = run("merge", *tiny_sources, *flags, "-o", folder, "--json")
    assert made.code == 0, made.stderr
    read = lineage.read(folder / "lineage.json")
    assert len(read.nodes[-1].history) == (2 if method == "learned" else 6)
    assert read.recipe.genome == "channel"
    assert read.recipe.offsets
    assert read.nodes[-1].recipe == read.recipe
    stored = json.loads((folder / "lineage.json").read_text())
    assert stored["recipe"]["offsets"] == []
    assert "each channel has its own" in (folder / "README.md").read_text()
    assert "--genome channel" in (folder / "README.md").read_text()
    assert run("replay", folder).code == 0
    (folder / "recipe.safetensors").unlink()
    assert "recipe.safetensors" in run("replay", folder).complaint


def test_learned_coefficients_lower_the_loss_that_they_learn_from(tiny_sources: tuple[Path, Path]) -> None:
    from hfmega.merging.learned import Learned
    from hfmega.merging.prepare import prepare
    from hfmega.output import Output
    from hfmega.settings import MergeSettings

    sources = tuple(str(path) for path in tiny_sources)
    splits = SplitRequest(confirm_share=0.0)
    job = prepare(MergeSettings(sources, Path("unused"), "digits", splits=splits), Output(muted=True))
    inputs = [replace(member.recipe, calibrate=True) for member in job.members]
    before, losses = job.evaluator.network.images_seen, []
    search = Learned(inputs, replace(DEFAULT, genome="channel"), 0, job.evaluator, job.search)
    while not search.done:
        scores = job.evaluator.scores(search.ask(), job.search)
        losses.append(min(score.loss for score in scores))
        search.tell(scores)
    assert losses[1] < losses[0] - 0.01
    learning = 3 * 10 * len(job.search)  # ten epochs, a step three times a forward pass
    assert job.evaluator.network.images_seen - before > learning


def test_a_method_without_groups_refuses_a_genome(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("merge", *tiny_sources, "--dataset", "digits", "--method", "cmaes", "--genome", "layer",
               "-o", tmp_path / "out")  # fmt: skip
    assert done.complaint == "--method cmaes does not use --genome: remove it."
