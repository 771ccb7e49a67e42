"""Static methods: golden values worked out here, and merges by them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import run, run_all
from torch import Tensor

from hfmega.evaluation.evidence import patches
from hfmega.merging.direct import task_arithmetic
from hfmega.search.cma import CMAES
from hfmega.search.random import RandomSearch
from hfmega.search.recipe import Recipe, Static
from hfmega.settings import GASettings
from hfmega.weights import formulas
from hfmega.weights.sources import Sources


def close(a: Tensor, b: list[float]) -> bool:
    return torch.allclose(a, torch.tensor(b), atol=1e-6)


def test_slerp_of_orthogonal_tensors_keeps_to_the_circle() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    # The angle is 90 degrees: sin(45) / sin(90) of each half-way, sin(60) and sin(30) at a third.
    assert close(formulas.slerp(first, second), [math.sqrt(0.5), math.sqrt(0.5)])
    assert close(formulas.slerp(first, second, 1 / 3), [math.sqrt(0.75), 0.5])
    # Lengths are kept apart from directions' weights: 2 * sin(45), 4 * sin(45).
    assert close(formulas.slerp(2 * first, 4 * second), [2 * math.sqrt(0.5), 4 * math.sqrt(0.5)])


def test_slerp_of_parallel_tensors_and_of_zeros_is_the_straight_line() -> None:
    assert close(formulas.slerp(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])), [2.0, 2.0])
    assert close(formulas.slerp(torch.zeros(2), torch.tensor([4.0, 0.0])), [2.0, 0.0])


def test_task_arithmetic_adds_the_task_vectors() -> None:
    base, deltas = torch.tensor([10.0, 20.0]), [torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])]
    states = [{"w": base + delta} for delta in deltas] + [{"w": base}]
    merged = torch.empty(2)
    Sources(states, ["w"]).materialize(Recipe(task_arithmetic(2, 0.4)), merged)
    # 10 + 0.4 * (1 + 0.5) = 10.6; 20 + 0.4 * (-2 + 4) = 20.8
    assert close(merged, [10.6, 20.8])


def test_ties_trims_elects_and_takes_the_mean_of_those_that_agree() -> None:
    deltas = [torch.tensor([4.0, -3.0, 0.1, 1.0]), torch.tensor([-2.0, -5.0, 0.3, 0.2])]
    # Density 0.5 keeps two of four: [4, -3, 0, 0] and [-2, -5, 0, 0]. Sums 2, -8: signs +, -.
    # First: only 4 agrees: 4. Second: both agree: (-3 - 5) / 2 = -4. The others: nothing is left.
    merged = formulas.ties(torch.full((4,), 10.0), deltas, density=0.5, scale=1.0)
    assert close(merged, [14.0, 6.0, 10.0, 10.0])
    assert close(formulas.ties(torch.zeros(4), deltas, 0.5, 0.5), [2.0, -2.0, 0.0, 0.0])
    # Density 1 keeps all: sums 2, -8, 0.4, 1.2; means of those that agree 4, -4, 0.2, 0.6.
    assert close(formulas.ties(torch.zeros(4), deltas, 1.0, 1.0), [4.0, -4.0, 0.2, 0.6])


def test_fisher_weights_each_element_by_its_information() -> None:
    models = [torch.tensor([1.0, 2.0, 5.0]), torch.tensor([3.0, 6.0, 7.0])]
    information = [torch.tensor([1.0, 0.0, 2.0]), torch.tensor([3.0, 0.0, 0.0])]
    # (1 * 1 + 3 * 3) / 4 = 2.5; no information at all: the mean 4; only the first knows: 5.
    assert close(formulas.fisher(models, information), [2.5, 4.0, 5.0])


def test_regmean_of_one_input_weighs_by_its_square() -> None:
    models = [torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [0.0]])]
    # (3 * 1 + 1 * 3) / 4 = 1.5 and (3 * 4 + 1 * 0) / 4 = 3
    assert torch.allclose(formulas.regmean(models, [torch.tensor([[3.0]]), torch.tensor([[1.0]])]).flatten(),
                          torch.tensor([1.5, 3.0]), atol=1e-5)  # fmt: skip


def test_regmean_is_nearest_to_the_outputs_of_all_models() -> None:
    drawn = torch.Generator().manual_seed(3)
    inputs = [torch.randn(50, 6, generator=drawn) @ torch.randn(6, 6, generator=drawn) for _ in range(2)]
    models = [torch.randn(4, 6, generator=drawn) for _ in range(2)]
    merged = formulas.regmean(models, [x.T @ x for x in inputs], shrink=1.0)

    def distance(weights: Tensor) -> float:
        return sum(float((x @ (weights - m).T).square().sum()) for x, m in zip(inputs, models, strict=True))

    exact = torch.linalg.lstsq(
        torch.cat(inputs).double(), torch.cat([x @ m.T for x, m in zip(inputs, models, strict=True)]).double()
    ).solution.T
    assert torch.allclose(merged, exact.float(), atol=1e-3)
    assert distance(merged) < distance((models[0] + models[1]) / 2)
    # Convolutions are the same on their patches; equal inputs give the mean.
    equal = formulas.regmean([m.view(4, 2, 3, 1) for m in models], [inputs[0].T @ inputs[0]] * 2)
    assert torch.allclose(equal, ((models[0] + models[1]) / 2).view(4, 2, 3, 1), atol=1e-4)


def test_what_images_say_of_the_sources_is_kept_and_replayed(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    with_evidence = ("fisher", "regmean")
    folders = {method: tmp_path / method for method in (*with_evidence, "average")}
    images = ("--dataset", "digits", "--fitness-images", 200, "--test-split", "test[:200]", "--json")
    made = run_all([["merge", *tiny_sources, *images, "--method", m, "-o", folder] for m, folder in folders.items()])
    assert len({merge.json["sha256"] for merge in made}) == 3
    for method in with_evidence:
        stored = load_file(folders[method] / "recipe.safetensors")
        assert {key.split("/")[1] for key in stored} == {"0", "1"}
        parts = stored.values()
        assert all(((part if method == "fisher" else part.diagonal()) >= 0).all() for part in parts)
    replay = [["replay", folder] for folder in folders.values()]
    assert [replayed.code for replayed in run_all(replay)] == [0, 0, 0]
    for method in with_evidence:
        (folders[method] / "recipe.safetensors").unlink()
    assert [replayed.code for replayed in run_all(replay)] == [1, 1, 0]


def test_grams_and_patches_are_those_of_the_convolution() -> None:
    layer = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)
    images = torch.randn(2, 3, 8, 8)
    rows = patches(layer, images)
    outputs = (rows @ layer.weight.flatten(1).T).view(2, 4, 4, 5).permute(0, 3, 1, 2)
    assert torch.allclose(outputs, layer(images), atol=1e-5)


def test_trimming_keeps_the_first_of_equal_magnitudes() -> None:
    assert close(formulas.trim(torch.tensor([1.0, -1.0, 1.0]), 0.67), [1.0, -1.0, 0.0])


def test_dare_of_density_one_is_task_arithmetic_and_elects_without_a_mean() -> None:
    base, deltas = torch.tensor([1.0, 1.0]), [torch.tensor([2.0, -4.0]), torch.tensor([-1.0, -6.0])]
    assert close(formulas.dare(base, deltas, 1.0, 0.5, ["k"], elect=False), [1.5, -4.0])
    # Sums 1, -10: only 2 agrees with +; both agree with -: 1 + 2 = 3; 1 - 10 = -9.
    assert close(formulas.dare(base, deltas, 1.0, 1.0, ["k"], elect=True), [3.0, -9.0])


def test_dare_drops_at_random_and_keeps_the_expectation() -> None:
    delta = torch.ones(200_000)
    dropped = formulas.drop(delta, 0.25, ["dare", 0, "weight"])
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(dropped, formulas.drop(delta, 0.25, ["dare", 0, "weight"]))
    assert not torch.equal(dropped, formulas.drop(delta, 0.25, ["dare", 1, "weight"]))


def test_a_static_recipe_merges_parameters_and_averages_statistics() -> None:
    states = [{"weight": torch.tensor(w), "bn.running_mean": torch.tensor([m])}
              for w, m in (([4.0, -3.0], 1.0), ([-2.0, -5.0], 3.0), ([0.0, 0.0], 9.0))]  # fmt: skip
    sources = Sources(states, {"weight"})
    out = torch.empty(sources.layout.size)
    sources.materialize(Recipe((0.5, 0.5, 0.0), static=Static("ties", base=2)), out)
    merged = sources.state_dict(out)
    assert close(merged["weight"], [4.0, -4.0])
    assert close(merged["bn.running_mean"], [2.0])


def score(recipe: Recipe) -> object:
    """Best at two thirds of the first source and a third of the second."""
    loss = (recipe.coefficients[0] - 2 / 3) ** 2 + (recipe.coefficients[1] - 1 / 3) ** 2
    return type("Score", (), {"accuracy": 1.0 - loss, "loss": loss, "total": 100, "exact": True})()


@pytest.mark.parametrize(("searcher", "distance"), [(RandomSearch, 0.1), (CMAES, 0.01)])
def test_searchers_close_in_on_the_best_blend(searcher: type, distance: float) -> None:
    inputs = [Recipe((1.0, 0.0, 0.0)), Recipe((0.0, 1.0, 0.0)), Recipe((0.0, 0.0, 1.0))]

    def found(seed: int) -> Recipe:
        search = searcher(inputs, GASettings(generations=30), seed)
        while not search.done:
            search.tell([score(recipe) for recipe in search.ask()])
        assert len(search.history) == 30
        assert sum(search.best.coefficients) == pytest.approx(1.0)
        return search.best  # type: ignore[no-any-return]

    assert found(1) == found(1) != found(2)
    assert math.dist(found(1).coefficients, (2 / 3, 1 / 3, 0)) < distance


@pytest.fixture(scope="module")
def merges(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A merge by every method, on few images; the second source stands for a base where one is needed."""
    folder = tmp_path_factory.mktemp("merges")
    train = ["train", "resnet8_cifar", "--init", tiny_sources[0], "--dataset", "digits", "--train-split", "train[900:]"]
    branch = folder / "branch"
    commands = [[*train, "--epochs", 1, "--batch-size", 64, "--lr", 0.003, "--seed", 5, "-o", branch]]
    few = ["--dataset", "digits", "--fitness-split", "train[:200]", "--test-split", "test[:200]", "--json"]
    search = {name: ["--population", 4, "--generations", 2] for name in ("random", "cmaes")}
    names = ["random", "greedy-soup", "average", "slerp"]
    commands += [
        ["merge", tiny_sources[0], branch, *few, *search.get(m, []), "--method", m, "-o", folder / m] for m in names
    ]
    based = ["task-arithmetic", "ties", "dare-linear", "dare-ties", "cmaes"]
    commands += [
        [
            "merge",
            tiny_sources[0],
            branch,
            "--base",
            tiny_sources[1],
            *few,
            "--method",
            m,
            *search.get(m, ["--scale", 0.5]),
            "-o",
            folder / m,
        ]
        for m in based
    ]
    done = run_all(commands)
    assert [d.code for d in done] == [0] * len(done), [d.stderr for d in done if d.code]
    return {m: folder / m for m in [*names, *based]}


def test_every_method_merges_and_replays(merges: dict[str, Path]) -> None:
    for name, done in zip(merges, run_all([["replay", folder, "--json"] for folder in merges.values()]), strict=True):
        assert done.json["equal"], name
    for name, folder in merges.items():
        made = json.loads((folder / "lineage.json").read_text())
        assert made["settings"]["method"] == name
        assert f"--method {name}" in (folder / "README.md").read_text()
        searched = name in ("cmaes", "random")
        assert (made["result"]["chosen"] == name) is not searched
        assert bool(made["nodes"][0]["history"]) is searched


def test_coefficients_of_the_static_methods(merges: dict[str, Path]) -> None:
    recipes = {name: json.loads((f / "lineage.json").read_text())["recipe"] for name, f in merges.items()}
    assert recipes["average"]["coefficients"] == [0.5, 0.5]
    assert recipes["task-arithmetic"]["coefficients"] == [0.5, 0.5, 0.0]  # 1 - 2 * 0.5 of the base
    assert recipes["ties"]["coefficients"] == [0.5, 0.5, 0.0]
    assert recipes["ties"]["static"] == {"method": "ties", "base": 2, "scale": 0.5, "density": 0.5, "seed": 0}
    assert sorted(recipes["greedy-soup"]["coefficients"]) in ([0.0, 1.0], [0.5, 0.5])


def test_a_base_is_one_more_input_of_an_affine_search(merges: dict[str, Path]) -> None:
    """Only the two sources are merged, and averaged as a reference; the search blends all three."""
    made = json.loads((merges["cmaes"] / "lineage.json").read_text())
    assert [len(made["nodes"][0]["inputs"]), len(made["recipe"]["coefficients"])] == [2, 3]
    assert made["settings"]["base"] == "s2"
    assert "scale" not in made["settings"]
    assert [c["name"] for c in made["candidates"][:3]] == ["average", "s1", "branch"]
    assert "hfmega merge s1 branch --base s2" in (merges["cmaes"] / "README.md").read_text()


def test_the_command_of_a_card_names_the_base(merges: dict[str, Path]) -> None:
    card = (merges["dare-ties"] / "README.md").read_text()
    assert "hfmega merge s1 branch --base s2 --dataset digits" in card
    assert "made by dare-ties of the sources whose coefficient is not 0" in card


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--method", "ties"], "--method ties needs the common start of the sources: name it with --base."),
        (["--base", "x"], "--method mega does not use a base: remove --base."),
        (["--method", "slerp", "third"], "--method slerp merges 2 sources, not 3."),
        (["--density", "0"], "--density must be above 0 and at most 1, not 0.0."),
    ],
)
def test_a_method_without_what_it_needs_is_refused(flags: list[str], sentence: str) -> None:
    assert run("merge", "a", "b", *flags).complaint == sentence
