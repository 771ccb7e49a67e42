"""The tree of merges: who meets whom, in which order, side by side or not, resumed, and over the leaves alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import commands
from support.specs import spec

from hfmega.data.dataset import Dataset, rows_of
from hfmega.data.images import load_split
from hfmega.errors import HfmegaError
from hfmega.evaluation.answers import Answers
from hfmega.evaluation.checkpoint import evaluate_checkpoint
from hfmega.evaluation.evaluator import Evaluator, Score
from hfmega.evaluation.network import Network
from hfmega.hub import pull
from hfmega.merging.merge import merge
from hfmega.merging.pairing import NODE_SEEDS, Node, batches, closest_pairs, distances, ordered, plan
from hfmega.merging.progress import PROGRESS, Merged, Progress, saved_progress
from hfmega.merging.replay import replay
from hfmega.merging.run_off import Chosen
from hfmega.merging.tree import SEARCHERS
from hfmega.models.library import build
from hfmega.output import Output
from hfmega.report import lineage
from hfmega.report.lineage import Candidate, Lineage
from hfmega.search import Generation
from hfmega.search.ga import MeGA
from hfmega.search.recipe import Noise, Recipe, source_alone
from hfmega.settings import PRESETS, MergeSettings, SplitRequest
from hfmega.weights.checkpoint import load_weights, save_weights, sha256_of
from hfmega.weights.sources import Sources, mix, rebuild

SEED: Final = 7
SEARCH: Final = replace(PRESETS["default"].search, population=4, generations=2)
FEW: Final = SplitRequest(fitness="train[:200]", calibration="train[900:1000]", test="test[:200]")
PAPER: Final[dict[str, Any]] = {
    "preset": "paper",
    "search": replace(PRESETS["paper"].search, population=4, generations=2),
    "calibrate": False,
    "splits": replace(FEW, confirm_share=0.0),
}
FLAGS: Final = ("--dataset", "digits", "--fitness-split", "train[:200]", "--calibration-split", "train[900:1000]",
                "--test-split", "test[:200]", "--generations", 2, "--seed", SEED, "--json")  # fmt: skip


def run(sources: Sequence[Path], output: Path, **changes: Any) -> Lineage:
    """A small merge on the digits."""
    names = tuple(map(str, sources))
    small = MergeSettings(names, output, dataset="digits", splits=FEW, search=SEARCH, seed=SEED)
    made = merge(replace(small, **changes), Output(muted=True))
    assert made is not None
    return made


def near(source: Path, target: Path, step: float, seed: int) -> Path:
    """A copy whose weights are each moved by about `step` of themselves: another network, finite and not far off."""
    shutil.copytree(source, target)
    noise = torch.Generator().manual_seed(seed)
    state = load_file(target / "model.safetensors")
    moved = {
        name: t * (1 + step * torch.randn(t.shape, generator=noise)) if t.is_floating_point() else t
        for name, t in state.items()
    }
    save_file(moved, target / "model.safetensors")
    return target


@pytest.fixture(scope="module")
def eight(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The two trained sources and six near them: s1 to s8."""
    folder = tmp_path_factory.mktemp("eight")
    return (*tiny_sources, *(near(tiny_sources[k % 2], folder / f"s{k}", 0.05, seed=k) for k in range(3, 9)))


@pytest.fixture(scope="module")
def grown(eight: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lineage]:
    """All eight merged in one go."""
    folder = tmp_path_factory.mktemp("grown") / "out"
    return folder, run(eight, folder)


@pytest.fixture(scope="module")
def by_the_paper(eight: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lineage]:
    """All eight merged by the paper: no run-off, no calibration."""
    folder = tmp_path_factory.mktemp("paper") / "out"
    return folder, run(eight, folder, **PAPER)


def inputs_of(made: Lineage) -> list[tuple[str, str]]:
    return [(node.name, " ".join(node.inputs)) for node in made.nodes]


# The plan.


@pytest.mark.parametrize(
    ("members", "levels"),
    [
        ("ab", [["a b"]]),
        ("abc", [["a b"], ["c merge-1"]]),
        ("abcde", [["a b", "c d"], ["e merge-1"], ["merge-2 merge-3"]]),
        ("abcdef", [["a b", "c d", "e f"], ["merge-1 merge-2"], ["merge-3 merge-4"]]),
        ("abcdefg", [["a b", "c d", "e f"], ["g merge-1", "merge-2 merge-3"], ["merge-4 merge-5"]]),
        ("abcdefgh", [["a b", "c d", "e f", "g h"], ["merge-1 merge-2", "merge-3 merge-4"], ["merge-5 merge-6"]]),
    ],
)
def test_pairs_are_merged_and_then_pairs_of_results(members: str, levels: list[list[str]]) -> None:
    found = plan(list(members), "pairs")
    assert [[" ".join(node.inputs) for node in level] for level in found] == levels
    names = [node.name for level in found for node in level]
    assert names == (["merge"] if len(members) == 2 else [f"merge-{k}" for k in range(1, len(members))])


@pytest.mark.parametrize("count", range(2, 34))
def test_every_source_is_below_the_last_of_one_merge_less_than_sources(count: int) -> None:
    members = [f"s{k}" for k in range(count)]
    nodes = [node for level in plan(members, "pairs") for node in level]
    below = {name: {name} for name in members}
    for node in nodes:
        below[node.name] = set().union(*(below[name] for name in node.inputs))
        assert set(node.below) == below[node.name]
        assert len(node.below) == len(below[node.name])
    assert len(nodes) == count - 1
    assert below[nodes[-1].name] == set(members)


@pytest.mark.parametrize("count", range(2, 34))
def test_no_member_is_passed_over_twice_in_a_row(count: int) -> None:
    members, passed_before = {f"s{k}" for k in range(count)}, set[str]()
    for level in plan([f"s{k}" for k in range(count)], "pairs"):
        passed = members - {name for node in level for name in node.inputs}
        assert len(passed) == len(members) % 2
        assert not passed & passed_before
        members, passed_before = passed | {node.name for node in level}, passed


@pytest.mark.parametrize("members", ["ab", "abc", "abcdefgh"])
def test_flat_is_one_merge_of_all(members: str) -> None:
    assert plan(list(members), "flat") == [[Node("merge", tuple(members), tuple(members))]]


# Side by side.


def level_of(merges: int) -> list[Node]:
    return plan([f"s{k}" for k in range(2 * merges)], "pairs")[0]


def rounds(found: Sequence[Sequence[Node]], population: int, processes: int) -> int:
    """How often the processes evaluate an individual each, for one generation of every merge."""
    return sum(math.ceil(len(batch) * population / processes) for batch in found)


@pytest.mark.parametrize("processes", [1, 2])
def test_merges_go_one_at_a_time_where_the_processes_are_busy_all_the_same(processes: int) -> None:
    level = level_of(4)
    assert list(batches(level, population=20, processes=processes)) == [[node] for node in level]


def test_merges_go_side_by_side_where_that_saves_rounds() -> None:
    level = level_of(4)
    found = list(batches(level, population=20, processes=8))
    assert found == [level]
    assert (rounds(found, 20, 8), rounds([[node] for node in level], 20, 8)) == (10, 12)


@pytest.mark.parametrize("merges", [1, 2, 3, 4, 8])
def test_side_by_side_never_needs_more_rounds_than_one_by_one(merges: int) -> None:
    level = level_of(merges)
    for population in range(2, 41):
        for processes in range(1, 65):
            found = list(batches(level, population, processes))
            assert [node for batch in found for node in batch] == level
            assert rounds(found, population, processes) <= rounds([[node] for node in level], population, processes)


# The order.


def test_the_closest_pair_comes_first_then_the_closest_of_the_rest_and_an_odd_one_last() -> None:
    distance = {(i, j): 9.0 for i in range(5) for j in range(i + 1, 5)}
    distance |= {(1, 4): 1.0, (1, 2): 2.0, (0, 3): 3.0}
    assert closest_pairs(list("abcde"), distance) == ["b", "e", "a", "d", "c"]


def test_equally_similar_sources_stay_as_given() -> None:
    assert closest_pairs(list("abc"), {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 1.0}) == ["a", "b", "c"]


def test_the_distance_of_two_sources_is_that_of_their_parameters_alone() -> None:
    models = [build(spec(), seed) for seed in (1, 2)]
    parameters = [torch.cat([p.detach().double().flatten() for p in model.parameters()]) for model in models]
    states = [model.state_dict() for model in models]
    states[1]["bn1.running_mean"] += 100
    evaluator: Any = SimpleNamespace(sources=Sources(states, dict(models[0].named_parameters())))
    found = distances([source_alone(0, 2), source_alone(1, 2)], evaluator)
    assert found == {(0, 1): pytest.approx(float((parameters[0] - parameters[1]).norm()), rel=1e-6)}


def test_strongest_first_orders_by_loss() -> None:
    members = {"a": source_alone(0, 3), "b": source_alone(1, 3), "c": source_alone(2, 3)}
    losses = dict(zip(members.values(), (0.9, 0.2, math.inf), strict=True))
    evaluator = SimpleNamespace(scores=lambda recipes, _: [Score(50, 100, losses[recipe]) for recipe in recipes])
    job: Any = SimpleNamespace(evaluator=evaluator, search=None)
    assert ordered(members, "strongest-first", job) == ["b", "a", "c"]
    assert ordered(members, "given", job) == ["a", "b", "c"]


def test_a_tree_strongest_first_pairs_the_sources_of_the_lowest_loss(
    eight: tuple[Path, ...], digits: Dataset, tmp_path: Path
) -> None:
    loss = {source: evaluate_checkpoint(pull.pull(str(source)), digits, "train[:200]").loss for source in eight[:3]}
    strongest = sorted(loss, key=loss.__getitem__)
    made = run(strongest[::-1], tmp_path / "out", order="strongest-first", **PAPER)
    first, second, last = (source.name for source in strongest)
    assert inputs_of(made) == [("merge-1", f"{first} {second}"), ("merge-2", f"{last} merge-1")]
    assert [source.name for source in made.sources] == [last, second, first]  # the leaves stay as given


def test_a_tree_similar_first_pairs_the_most_similar_sources(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = tiny_sources
    sources = (one, two, near(two, tmp_path / "near2", 0.01, 1), near(one, tmp_path / "near1", 0.02, 2))
    made = run(sources, tmp_path / "out", order="similar-first", **PAPER)
    assert inputs_of(made)[:2] == [("merge-1", "s2 near2"), ("merge-2", "s1 near1")]


# Whole trees.


def test_eight_sources_are_merged_by_seven_nodes_over_eight_leaves(grown: tuple[Path, Lineage]) -> None:
    made = grown[1]
    assert inputs_of(made) == [
        ("merge-1", "s1 s2"),
        ("merge-2", "s3 s4"),
        ("merge-3", "s5 s6"),
        ("merge-4", "s7 s8"),
        ("merge-5", "merge-1 merge-2"),
        ("merge-6", "merge-3 merge-4"),
        ("merge-7", "merge-5 merge-6"),
    ]
    assert [source.name for source in made.sources] == [f"s{k}" for k in range(1, 9)]
    assert [len(node.recipe.coefficients) for node in made.nodes] == [8] * 7
    assert [sum(node.recipe.coefficients) for node in made.nodes] == pytest.approx([1.0] * 7)
    assert [len(node.history) for node in made.nodes] == [2] * 7


def test_a_node_mixes_the_leaves_below_it_alone(grown: tuple[Path, Lineage]) -> None:
    below = [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 1, 2, 3}, {4, 5, 6, 7}, set(range(8))]
    for node, leaves in zip(grown[1].nodes, below, strict=True):
        assert {k for k, c in enumerate(node.recipe.coefficients) if c} <= leaves


def test_the_recipe_of_the_last_node_is_the_result(grown: tuple[Path, Lineage]) -> None:
    made = grown[1]
    assert made.nodes[-1].recipe == made.recipe
    assert made.nodes[-1].accuracy == made.result.accuracy
    assert made.nodes[-1].chosen == made.result.chosen


def test_a_tree_replays_from_its_leaves_alone(
    grown: tuple[Path, Lineage], eight: tuple[Path, ...], tmp_path: Path
) -> None:
    copy = bare(grown[0], tmp_path / "copy")
    for source in eight:
        shutil.copytree(source, tmp_path / "leaves" / source.name)
    assert replay(str(copy), tmp_path / "leaves").equal


def bare(made: Path, target: Path) -> Path:
    """What of a merge is published for a replay: no weights, no places."""
    target.mkdir()
    for name in ("lineage.json", "statistics.safetensors"):
        if (made / name).exists():
            shutil.copy(made / name, target)
    return target


@pytest.mark.parametrize("tree", ["grown", "by_the_paper"])
def test_the_accuracy_of_each_node_is_that_of_its_rebuilt_weights(
    tree: str, request: pytest.FixtureRequest, eight: tuple[Path, ...], digits: Dataset, tmp_path: Path
) -> None:
    made = request.getfixturevalue(tree)[1]
    leaves = [pull.pull(str(source)) for source in eight]
    sources = mix(leaves, [load_weights(leaf) for leaf in leaves])
    given = leaves[0].spec
    images = load_split(digits, rows_of(digits, "train[900:1000]"), given, "calibration")
    evaluator = Evaluator(Network(given, sources, images))
    found = []
    for node in made.nodes:
        folder = tmp_path / node.name
        folder.mkdir()
        save_weights(
            rebuild(sources, node.recipe, evaluator.network.statistics(node.recipe)), folder / "model.safetensors"
        )
        shutil.copy(eight[0] / "config.json", folder)
        found.append(evaluate_checkpoint(pull.pull(str(folder)), digits, "test[:200]").accuracy)
    assert [node.accuracy for node in made.nodes] == found
    assert len(set(found)) > 1


def test_every_node_of_the_paper_is_what_its_search_found(by_the_paper: tuple[Path, Lineage]) -> None:
    folder, made = by_the_paper
    assert [node.chosen for node in made.nodes] == ["search"] * 7
    assert not any(node.recipe.calibrate for node in made.nodes)
    assert made.candidates == ()
    assert replay(str(folder)).equal


def test_the_fitness_of_a_node_of_the_paper_is_the_best_of_its_history(by_the_paper: tuple[Path, Lineage]) -> None:
    for node in by_the_paper[1].nodes:
        assert node.fitness == node.history[-1].best


def test_seven_sources_are_merged_by_six_nodes(eight: tuple[Path, ...], tmp_path: Path) -> None:
    made = run(eight[:7], tmp_path / "out", **PAPER)
    assert inputs_of(made) == [
        ("merge-1", "s1 s2"),
        ("merge-2", "s3 s4"),
        ("merge-3", "s5 s6"),
        ("merge-4", "s7 merge-1"),
        ("merge-5", "merge-2 merge-3"),
        ("merge-6", "merge-4 merge-5"),
    ]


def test_two_sources_are_one_node(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    assert inputs_of(run(tiny_sources, tmp_path / "out", **PAPER)) == [("merge", "s1 s2")]


def test_three_sources_flat_are_one_node_of_three_inputs(eight: tuple[Path, ...], tmp_path: Path) -> None:
    made = run(eight[:3], tmp_path / "out", tree="flat", **PAPER)
    assert inputs_of(made) == [("merge", "s1 s2 s3")]
    assert all(0 < coefficient < 1 for coefficient in made.recipe.coefficients)
    assert replay(str(tmp_path / "out")).equal


def test_a_source_that_is_called_as_a_merge_gets_another_name(eight: tuple[Path, ...], tmp_path: Path) -> None:
    source = shutil.copytree(eight[2], tmp_path / "merge-1")
    made = run((*eight[:2], source), tmp_path / "out", **PAPER)
    name = f"merge-1-{made.sources[2].sha256[:6]}"
    assert inputs_of(made) == [("merge-1", "s1 s2"), ("merge-2", f"{name} merge-1")]


def test_one_source_is_not_merged(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match=r"^one source cannot be merged"):
        run(tiny_sources[:1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Interrupted and resumed.


@dataclass
class Watch:
    """Merges and generations in the order in which they were asked for, and those of each individual evaluated."""

    asked: list[tuple[str, int]] = field(default_factory=list)
    evaluated: list[tuple[str, int]] = field(default_factory=list)


def watch(monkeypatch: pytest.MonkeyPatch, stop: tuple[str, int] | None = None) -> Watch:
    """Look on while a tree grows; an interrupt at the first individual of the generation `stop`."""
    seen, score = Watch(), Network.look

    class Watched(MeGA):
        def ask(self) -> tuple[Recipe, ...]:
            seen.asked.append((f"merge-{(self.seed - SEED) // NODE_SEEDS + 1}", len(self.history) + 1))
            return super().ask()

    def interrupted(self: Network, *arguments: Any, **named: Any) -> Answers:
        if seen.asked and seen.asked[-1] == stop:
            raise KeyboardInterrupt
        seen.evaluated += seen.asked[-1:]
        return score(self, *arguments, **named)

    monkeypatch.setitem(SEARCHERS, "mega", Watched)
    monkeypatch.setattr(Network, "look", interrupted)
    return seen


@pytest.fixture(scope="module")
def resumed(eight: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Watch, Lineage]:
    """A run that was interrupted in the second generation of its fifth merge: what the rest of it did, and made."""
    folder = tmp_path_factory.mktemp("resumed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, stop=("merge-5", 2))
        with pytest.raises(KeyboardInterrupt):
            run(eight, folder)
    assert not (folder / "lineage.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        return seen, run(eight, folder)


def test_a_run_interrupted_in_its_fifth_merge_does_not_search_the_first_four_again(
    resumed: tuple[Watch, Lineage],
) -> None:
    rest = [("merge-5", 2), ("merge-6", 1), ("merge-6", 2), ("merge-7", 1), ("merge-7", 2)]
    assert list(dict.fromkeys(resumed[0].evaluated)) == rest
    counts = [resumed[0].evaluated.count(generation) for generation in rest]
    assert max(counts[:-1]) <= 4
    assert counts[-1] <= 4 + 7  # and the averages that the greedy soup of all eight tries


def test_an_interrupted_tree_resumes_to_the_same_nodes_and_bytes(
    resumed: tuple[Watch, Lineage], grown: tuple[Path, Lineage]
) -> None:
    made, expected = resumed[1], grown[1]
    assert made.nodes == expected.nodes
    assert made.recipe == expected.recipe
    assert made.result == expected.result
    assert made.candidates == expected.candidates


def test_an_interrupted_tree_counts_the_forward_passes_of_one_run(
    resumed: tuple[Watch, Lineage], grown: tuple[Path, Lineage]
) -> None:
    assert resumed[1].forward_passes == grown[1].forward_passes


def test_a_tree_interrupted_before_a_merge_has_begun_counts_the_forward_passes_of_one_run(
    eight: tuple[Path, ...], grown: tuple[Path, Lineage], tmp_path: Path
) -> None:
    """What was known before the first search, to decide on calibration, is not counted as a part of a later one."""
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, stop=("merge-3", 1))
        with pytest.raises(KeyboardInterrupt):
            run(eight, tmp_path / "out")
    assert run(eight, tmp_path / "out").forward_passes == grown[1].forward_passes


def done_nodes(folder: Path) -> list[str]:
    """The merges that a running hfmega has on disk."""
    record = folder / ".hfmega" / "progress.json"
    return list(json.loads(record.read_text())["done"]) if record.exists() else []


@pytest.mark.system
def test_resume_after_kill_gives_the_same_recipe(
    eight: tuple[Path, ...], by_the_paper: tuple[Path, Lineage], tmp_path: Path
) -> None:
    arguments = ("merge", *eight, *FLAGS, "--preset", "paper", "--population", 4, "-o", tmp_path / "out")
    first = subprocess.Popen(
        [sys.executable, "-m", "hfmega", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len(done_nodes(tmp_path / "out")) < 4 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    first.kill()
    assert first.wait() != 0
    done = done_nodes(tmp_path / "out")
    assert done[:4] == ["merge-1", "merge-2", "merge-3", "merge-4"]
    second = commands.alone(*arguments)
    assert second.json["sha256"] == by_the_paper[1].result.sha256
    made = lineage.read(tmp_path / "out" / "lineage.json")
    assert (made.recipe, made.nodes) == (by_the_paper[1].recipe, by_the_paper[1].nodes)
    assert not any(line.startswith(f"{node}: generation") for line in second.stderr.splitlines() for node in done)


def test_progress_with_a_failed_candidate_is_read_back_from_disk() -> None:
    recipe = Recipe((0.1, 0.7 + 0.2), (Noise(2**48 - 1, 0.02, 0.01, "element", 1 / 3),), calibrate=True)
    chosen = Chosen("search", recipe, (Candidate("average", 80, 0.1, math.inf),))
    history = (Generation(math.inf, math.inf, 0.0),)
    scores = [[Score(0, 200, math.inf), Score(7, 200, 1 / 3)]]
    progress = Progress({"merge-1": scores}, {"merge-1": Merged("merge-1", ("a", "b"), chosen, 0.1, history)}, 12, 0.1)
    assert PROGRESS.validate_json(PROGRESS.dump_json(progress)) == progress


def test_damaged_progress_is_refused_by_its_name(tmp_path: Path) -> None:
    from hfmega.evaluation.processes import processes

    record = tmp_path / "progress.json"
    record.write_text('{"scores": {"merge": [[{"correct":')
    evaluator = SimpleNamespace(state=processes())
    with pytest.raises(HfmegaError, match=r"progress\.json is damaged and cannot be resumed"):
        saved_progress(record, evaluator)  # type: ignore[arg-type]


# One by one or side by side.


def whole(level: Sequence[Node], population: int, processes: int) -> Iterator[list[Node]]:
    yield list(level)


@pytest.mark.system
def test_merges_side_by_side_are_those_one_by_one(
    eight: tuple[Path, ...], by_the_paper: tuple[Path, Lineage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfmega.merging.tree.batches", whole)
    seen = watch(monkeypatch)
    made = run(eight, tmp_path / "out", **PAPER)
    assert seen.asked[:8] == [(f"merge-{k}", generation) for generation in (1, 2) for k in (1, 2, 3, 4)]
    assert made.nodes == by_the_paper[1].nodes
    assert made.result.sha256 == by_the_paper[1].result.sha256
    assert made.forward_passes == by_the_paper[1].forward_passes


def test_a_level_interrupted_side_by_side_resumes_to_the_same_nodes(
    eight: tuple[Path, ...], by_the_paper: tuple[Path, Lineage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfmega.merging.tree.batches", whole)
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, stop=("merge-4", 2))
        with pytest.raises(KeyboardInterrupt):
            run(eight, tmp_path / "out", **PAPER)
    assert done_nodes(tmp_path / "out") == []
    assert run(eight, tmp_path / "out", **PAPER).nodes == by_the_paper[1].nodes


@pytest.mark.system
def test_a_tree_in_two_processes_is_the_tree_of_one(eight: tuple[Path, ...], tmp_path: Path) -> None:
    """Of a population of five, two merges side by side take five rounds instead of six."""
    level = level_of(2)
    assert list(batches(level, population=5, processes=2)) == [level]
    made = []
    for n in (1, 2):
        done = commands.alone("merge", *eight[:4], *FLAGS, "--population", 5, "-o", tmp_path / f"{n}",
                            "--num-processes", n, environment={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.code == 0, done.stderr
        made.append(lineage.read(tmp_path / f"{n}" / "lineage.json"))
    assert [one.environment["num_processes"] for one in made] == [1, 2]
    assert made[0].nodes == made[1].nodes
    assert made[0].result == made[1].result
    assert made[0].forward_passes == made[1].forward_passes


# A source that is itself a merge.


@pytest.fixture(scope="module")
def ours(tiny_sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lineage]:
    """s1 and s2 merged, not calibrated: a source for another merge."""
    folder = tmp_path_factory.mktemp("ours") / "ours"
    return folder, run(tiny_sources, folder, **PAPER)


@pytest.fixture(scope="module")
def expanded(
    ours: tuple[Path, Lineage], eight: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Lineage]:
    """The merge of s1 and s2, merged with s3."""
    folder = tmp_path_factory.mktemp("expanded") / "out"
    return folder, run((ours[0], eight[2]), folder, calibrate=False)


def test_a_source_that_is_a_merge_is_expanded_to_its_leaves(
    expanded: tuple[Path, Lineage], eight: tuple[Path, ...]
) -> None:
    made = expanded[1]
    assert [source.name for source in made.sources] == ["s1", "s2", "s3"]
    assert [source.sha256 for source in made.sources] == [
        sha256_of(source / "model.safetensors") for source in eight[:3]
    ]
    assert inputs_of(made) == [("ours", "s1 s2"), ("merge", "ours s3")]
    assert len(made.recipe.coefficients) == 3
    assert made.notes == ()


def test_an_expanded_merge_is_a_node_without_a_search(
    expanded: tuple[Path, Lineage], ours: tuple[Path, Lineage], digits: Dataset
) -> None:
    node = expanded[1].nodes[0]
    assert (node.history, node.chosen) == ((), "")
    assert node.recipe == replace(ours[1].recipe, coefficients=(*ours[1].recipe.coefficients, 0.0))
    assert node.accuracy == evaluate_checkpoint(pull.pull(str(ours[0])), digits, "test[:200]").accuracy


def test_an_expanded_merge_is_shown_among_the_references_as_it_is(
    expanded: tuple[Path, Lineage], ours: tuple[Path, Lineage]
) -> None:
    rows = {reference.name: reference for reference in expanded[1].references if reference.kind == "source"}
    assert list(rows) == ["s1", "s2", "s3", "ours"]
    assert rows["ours"].accuracy == ours[1].result.accuracy
    assert rows["ours"].loss == pytest.approx(ours[1].result.loss, rel=1e-6)


def test_an_expanded_merge_replays_from_its_leaves_alone(
    expanded: tuple[Path, Lineage], eight: tuple[Path, ...], tmp_path: Path
) -> None:
    for source in eight[:3]:
        shutil.copytree(source, tmp_path / "leaves" / source.name)
    assert replay(str(bare(expanded[0], tmp_path / "copy")), tmp_path / "leaves").equal


def test_a_merge_whose_leaves_are_not_found_is_taken_as_it_is_with_a_note(
    ours: tuple[Path, Lineage], eight: tuple[Path, ...], tmp_path: Path
) -> None:
    alone = shutil.copytree(ours[0], tmp_path / "alone", ignore=shutil.ignore_patterns(".hfmega"))
    made = run((alone, eight[2]), tmp_path / "out", calibrate=False)
    assert [source.name for source in made.sources] == ["alone", "s3"]
    assert inputs_of(made) == [("merge", "alone s3")]
    (note,) = [note for note in made.notes if note.startswith("alone is a merge whose sources cannot be had")]
    assert "the local source s1" in note
    assert replay(str(tmp_path / "out")).equal


def test_a_leaf_that_two_sources_share_is_one_leaf(
    ours: tuple[Path, Lineage], tiny_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    made = run((tiny_sources[1], ours[0]), tmp_path / "out", calibrate=False)
    assert [source.name for source in made.sources] == ["s2", "s1"]
    assert made.nodes[0].recipe.coefficients == ours[1].recipe.coefficients[::-1]
    assert replay(str(tmp_path / "out")).equal
