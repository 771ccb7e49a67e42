"""A merge is a recipe: arithmetic on recipes is arithmetic on weights, and weights have the same bits everywhere."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hfmega.errors import HfmegaError
from hfmega.evaluation.evaluator import Score
from hfmega.rng import Draws
from hfmega.search.ga import MeGA
from hfmega.search.recipe import (
    Noise,
    Recipe,
    Static,
    blend,
    centroid,
    crossover,
    mutate,
    source_alone,
    uniform_average,
)
from hfmega.settings import DEFAULT
from hfmega.weights import noise
from hfmega.weights.layout import layout_of
from hfmega.weights.noise import NoiseCache, noise_lots, noise_values
from hfmega.weights.sources import Sources

PARAMETERS = {"bn.bias", "bn.weight", "conv.weight", "fc.weight"}
ELEMENT = Noise(11, 0.25, 0.5, "element")
TENSOR = Noise(13, 0.5, 0.125, "tensor", weight=-0.25)

ON_EACH_DEVICE = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)


def state(offset: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A small state dict: values in [-1, 1] that are not round in binary, variances above zero, one counter."""

    def values(*shape: int) -> Tensor:
        count = int(np.prod(shape))
        return (((torch.arange(count) * 37 + offset * 101) % 203 - 101) / 101).view(shape).to(dtype)

    return {
        "conv.weight": values(4, 3, 3, 3),
        "bn.weight": values(4),
        "bn.bias": values(4) / 3,
        "bn.running_mean": values(4) / 7,
        "bn.running_var": values(4).abs() + 0.5,
        "bn.num_batches_tracked": torch.tensor(1000 + offset),
        "fc.weight": values(10, 40),
    }


def weights(sources: Sources, wanted: Recipe) -> Tensor:
    out = torch.full((sources.layout.size,), float("nan"), device=sources.device)
    sources.materialize(wanted, out)
    return out.cpu()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()


@pytest.fixture
def two() -> Sources:
    return Sources([state(0), state(1)], PARAMETERS)


def test_crossover_is_a_blend_of_coefficients() -> None:
    child = crossover(Recipe((1.0, 0.0)), Recipe((0.25, 0.75)), 0.25)
    assert child.coefficients == (0.25 * 1.0 + 0.75 * 0.25, 0.75 * 0.75)


def test_noise_of_both_parents_is_inherited_by_share() -> None:
    child = crossover(Recipe((1.0, 0.0), (ELEMENT,)), Recipe((0.0, 1.0), (TENSOR,)), 0.75)
    assert [(term.seed, term.weight) for term in child.noise] == [(11, 0.75), (13, 0.25 * -0.25)]


def test_the_same_noise_in_both_parents_stays_one_term() -> None:
    parent = mutate(Recipe((0.5, 0.5)), ELEMENT)
    assert crossover(parent, parent, 0.25) == parent


def test_noise_that_cancels_is_gone() -> None:
    assert blend([Recipe((1.0,), (ELEMENT,)), Recipe((1.0,), (ELEMENT,))], [1.0, -1.0]) == Recipe((0.0,))


def test_the_centroid_is_the_mean() -> None:
    recipes = [Recipe((1.0, 0.0), (ELEMENT,)), Recipe((0.0, 1.0)), Recipe((0.5, 0.5)), Recipe((0.5, 0.5))]
    assert centroid(recipes).coefficients == (0.5, 0.5)
    assert [term.weight for term in centroid(recipes).noise] == [0.25]


def test_calibration_is_inherited() -> None:
    parent = uniform_average(2, calibrate=True)
    assert mutate(crossover(parent, source_alone(0, 2, calibrate=True), 0.5), ELEMENT).calibrate


def test_weights_of_a_blend_are_the_blend_of_weights(two: Sources) -> None:
    first, second = Recipe((0.3, 0.7), (ELEMENT, TENSOR)), Recipe((0.9, 0.1), (Noise(17, 0.1, 1.0, "element"),))
    together = weights(two, blend([first, second], [0.35, 0.65]))
    apart = 0.35 * weights(two, first).double() + 0.65 * weights(two, second).double()
    assert (together.double() - apart).abs().max() < 1e-6


def test_the_average_of_sources_is_their_mean(two: Sources) -> None:
    first, second = (state(n)["fc.weight"].double() for n in (0, 1))
    merged = two.state_dict(weights(two, uniform_average(2)))["fc.weight"].double()
    assert (merged - (first + second) / 2).abs().max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_source_alone_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    states = [state(0, dtype), state(1, dtype)]
    states[1]["fc.weight"][0, :3] = torch.tensor([-0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny])
    sources = Sources(states, PARAMETERS)
    found = sources.state_dict(weights(sources, source_alone(1, 2)))
    floats = [name for name, tensor in states[1].items() if tensor.is_floating_point()]
    assert all(same_bits(found[name].view(torch.uint8), states[1][name].view(torch.uint8)) for name in floats)
    assert sorted(found) == sorted(states[1])


def test_a_source_left_out_may_hold_anything() -> None:
    broken = state(1)
    broken["fc.weight"][0, 0] = float("inf")
    sources = Sources([state(0), broken], PARAMETERS)
    assert torch.isfinite(weights(sources, source_alone(0, 2))).all()


def test_integers_come_from_the_first_source(two: Sources) -> None:
    assert two.state_dict(weights(two, source_alone(1, 2)))["bn.num_batches_tracked"] == 1000


@ON_EACH_DEVICE
def test_weights_have_their_golden_bytes(device: str) -> None:
    sources = Sources([state(0), state(1), state(2)], PARAMETERS, device)
    flat = weights(sources, Recipe((0.3, 0.6, 0.1), (ELEMENT, TENSOR)))
    digest = hashlib.sha256(flat.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "52b8ed3a08923fabbf30e6da4d526a626d99407027546afab1d7e8551f10cd59"


def test_weights_are_separate_float32_products_added_in_the_recipe_s_order(two: Sources) -> None:
    coefficients, (index, values) = np.float32([0.3, 0.7]), noise_values(TENSOR, two.layout)
    flats = [torch.cat([s[slot.name].reshape(-1) for slot in two.layout.slots]).numpy() for s in (state(0), state(1))]
    expected = coefficients[0] * flats[0]
    expected = expected + coefficients[1] * flats[1]
    expected[index] = expected[index] + np.float32(TENSOR.weight) * values
    assert weights(two, Recipe((0.3, 0.7), (TENSOR,))).numpy().tobytes() == expected.tobytes()


def test_the_order_of_the_state_dict_does_not_matter(two: Sources) -> None:
    reverse = [dict(reversed(state(n).items())) for n in (0, 1)]
    wanted = Recipe((0.3, 0.7), (ELEMENT, TENSOR))
    other = Sources(reverse, PARAMETERS)
    assert other.layout == two.layout
    assert same_bits(weights(other, wanted), weights(two, wanted))


def test_noise_from_the_cache_has_the_bits_of_noise_drawn_anew(two: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfmega.weights.sources.NOISE_CACHE_BYTES", 0)
    forgetful = Sources([state(0), state(1)], PARAMETERS)
    wanted = Recipe((0.3, 0.7), tuple(Noise(seed, 0.9, 0.1, "element", 0.5) for seed in range(20)))
    drawn, cached = weights(two, wanted), weights(two, wanted)
    assert same_bits(drawn, cached)
    assert same_bits(drawn, weights(forgetful, wanted))


def hits(noise: Noise, states: dict[str, Tensor], parameters: set[str]) -> dict[str, int]:
    layout = layout_of(states, parameters)
    index, _ = noise_values(noise, layout)
    return {slot.name: int(((index >= slot.start) & (index < slot.stop)).sum()) for slot in layout.slots}


def test_noise_hits_parameters_only() -> None:
    everything = hits(Noise(1, 1.0, 0.1, "element"), state(0), PARAMETERS)
    assert everything == {
        "bn.bias": 4,
        "bn.running_mean": 0,
        "bn.running_var": 0,
        "bn.weight": 4,
        "conv.weight": 108,
        "fc.weight": 400,
    }


def test_a_fraction_of_the_elements_is_hit_with_the_given_spread() -> None:
    index, values = noise_values(Noise(3, 0.02, 0.1, "element"), layout_of({"w": torch.zeros(100_000)}, {"w"}))
    assert abs(len(index) - 2000) < 5 * (100_000 * 0.02 * 0.98) ** 0.5
    assert len(np.unique(index)) == len(index)
    assert values.dtype == np.float32
    assert values.std() == pytest.approx(0.1, abs=5 * 0.1 / (2 * 2000) ** 0.5)
    assert values.mean() == pytest.approx(0.0, abs=5 * 0.1 / 2000**0.5)


def test_unit_tensor_hits_all_of_a_tensor_or_nothing() -> None:
    tensors = {f"{n:03}": torch.zeros(50) for n in range(400)}
    counts = hits(Noise(5, 0.25, 0.1, "tensor"), tensors, set(tensors))
    assert set(counts.values()) == {0, 50}
    assert abs(sum(count == 50 for count in counts.values()) - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("unit", ["element", "tensor"])
@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 516)])
def test_rate_zero_hits_nothing_and_rate_one_all(unit: str, rate: float, expected: int) -> None:
    assert sum(hits(Noise(5, rate, 0.1, unit), state(0), PARAMETERS).values()) == expected  # type: ignore[arg-type]


def test_each_tensor_and_each_seed_has_noise_of_its_own() -> None:
    layout = layout_of({"a": torch.zeros(1000), "b": torch.zeros(1000)}, {"a", "b"})
    _, values = noise_values(Noise(1, 1.0, 1.0, "element"), layout)
    _, others = noise_values(Noise(2, 1.0, 1.0, "element"), layout)
    assert abs(np.corrcoef(values[:1000], values[1000:])[0, 1]) < 0.16
    assert abs(np.corrcoef(values, others)[0, 1]) < 0.12


def test_noise_of_a_tensor_does_not_depend_on_the_others() -> None:
    alone = noise_values(ELEMENT, layout_of({"w": torch.zeros(300)}, {"w"}))[1]
    among = noise_values(ELEMENT, layout_of({"a": torch.zeros(7), "w": torch.zeros(300)}, {"w"}))
    assert np.array_equal(among[1], alone)
    assert among[0].min() >= 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_blended_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    states = [state(0, dtype), state(1, dtype)]
    sources = Sources(states, PARAMETERS)
    flat = weights(sources, Recipe((0.3, 0.7)))
    saved = sources.state_dict(flat)
    third = np.float32(0.3) * states[0]["fc.weight"].float() + np.float32(0.7) * states[1]["fc.weight"].float()
    assert same_bits(saved["fc.weight"].view(torch.int16), third.to(dtype).view(torch.int16))
    assert same_bits(sources.layout.views(flat)["fc.weight"], third.to(dtype).float())


def test_the_largest_half_survives_a_coefficient_of_one() -> None:
    large = {"w": torch.tensor([65504.0, -65504.0], dtype=torch.float16)}
    sources = Sources([large, {"w": torch.zeros(2, dtype=torch.float16)}], {"w"})
    assert weights(sources, Recipe((1.0, 0.0))).tolist() == [65504.0, -65504.0]


def test_variances_are_never_negative(two: Sources) -> None:
    found = two.layout.views(weights(two, Recipe((2.0, -3.0))))
    raw = 2 * state(0)["bn.running_var"] - 3 * state(1)["bn.running_var"]
    assert raw.min() < 0
    assert torch.equal(found["bn.running_var"], raw.clamp(min=0))
    assert found["bn.running_mean"].min() < 0


def test_a_recipe_for_another_number_of_sources_is_refused(two: Sources) -> None:
    with pytest.raises(HfmegaError, match=r"^the recipe has 3 coefficients for 2 sources\.$"):
        weights(two, uniform_average(3))


def test_float64_is_refused_by_name() -> None:
    with pytest.raises(HfmegaError, match=r"^the tensor fc\.weight is torch\.float64: only float32, float16 and "):
        layout_of({"a": torch.zeros(1), "fc.weight": torch.zeros(2, dtype=torch.float64)}, set())


def test_the_noise_cache_stays_below_its_limit_and_forgets_the_oldest() -> None:
    layout = layout_of({"w": torch.zeros(1000)}, {"w"})
    cache = NoiseCache(layout, limit=15_000, device=torch.device("cpu"))  # a term of 1,000 hits takes 6,000 bytes
    terms = [Noise(seed, 1.0, 0.1, "element") for seed in range(10)]
    first = cache.get(terms[0])[0]
    for term in terms[1:]:
        assert cache.get(terms[0])[0] is first  # asked for all the time, never the oldest
        newest = cache.get(term)[0]
        assert cache.get(term)[0] is newest
        kept = list(cache._terms.values())
        assert sum(index.nbytes + lots.nbytes for index, lots in kept) == 6_000 * len(kept) == cache._bytes
        assert len(kept) == 2
    assert torch.equal(cache.get(terms[1])[1], torch.from_numpy(noise_values(terms[1], layout)[1]))


def test_the_noise_of_a_late_population_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws("made-up scores")
    search = MeGA([source_alone(k, 2) for k in range(2)], replace(DEFAULT, patience=0), seed=0)
    while True:
        population = search.ask()
        search.tell([Score(draws.below(1000), 1000, draws.uniform()) for _ in population])
        if search.done:
            break
    terms = {replace(term, weight=1.0) for individual in population for term in individual.noise}
    assert 50 < len(terms) < 100
    drawn: list[Noise] = []
    monkeypatch.setattr(noise, "noise_lots", lambda term, layout: drawn.append(term) or noise_lots(term, layout))
    monkeypatch.setattr("hfmega.weights.sources.NOISE_CACHE_BYTES", 0)
    sources = Sources([{"w": torch.zeros(50_000)}, {"w": torch.ones(50_000)}], {"w"})
    for individual in (*population, *population):
        weights(sources, individual)
    assert len(drawn) == len(terms)


def test_a_noise_term_larger_than_the_cache_is_still_given() -> None:
    cache = NoiseCache(layout_of({"w": torch.zeros(1000)}, {"w"}), limit=10, device=torch.device("cpu"))
    assert len(cache.get(Noise(1, 1.0, 0.1, "element"))[0]) == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "wanted",
    [
        Recipe((0.3, 0.7), (ELEMENT, TENSOR)),
        Recipe((0.0, -0.7), (ELEMENT,)),
        Recipe((0.0, 0.0), (TENSOR,)),
        Recipe((0.5, 0.25), genome="layer", offsets=(0.1, -0.1, 0.0, 0.3, -0.5, 0.75)),
        Recipe((0.5, 0.25), genome="channel", offsets=tuple(n / 7 for n in range(2 * (4 + 4 + 4 + 10)))),
        Recipe((0.5, 0.5), static=Static("ties", base=1, density=0.5)),
    ],
    ids=["blend", "one left out", "none", "layers", "channels", "ties"],
)
def test_sources_mixed_tensor_by_tensor_have_the_bits_of_sources_mixed_whole(
    wanted: Recipe, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [state(0, dtype), state(1, dtype)]
    whole = Sources(states, PARAMETERS)
    monkeypatch.setattr("hfmega.weights.sources.COPIED", 0)
    mapped = Sources(states, PARAMETERS)
    assert len(mapped._parts) == 6
    assert same_bits(weights(mapped, wanted), weights(whole, wanted))
