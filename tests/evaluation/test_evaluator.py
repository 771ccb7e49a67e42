"""Scores and re-estimated statistics against plain PyTorch on real images."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import timm
import torch
from support.specs import spec
from torch import Tensor, nn

from hfmega.data.dataset import Dataset, open_dataset, rows_of
from hfmega.data.images import Split, load_split
from hfmega.errors import HfmegaError
from hfmega.evaluation.checkpoint import evaluate_checkpoint, predict_checkpoint
from hfmega.evaluation.evaluator import Evaluator, Score
from hfmega.evaluation.network import CALIBRATION_BATCH, Network, attach
from hfmega.evaluation.precision import Precision
from hfmega.hub import pull
from hfmega.models.library import Spec, build
from hfmega.search.recipe import Noise, Recipe, source_alone, uniform_average
from hfmega.weights.checkpoint import Checkpoint, load_weights
from hfmega.weights.sources import Sources

CPU: Final = torch.device("cpu")
CALIBRATION: Final = 300  # two whole batches and a part of one


def config(size: int, architecture: str = "resnet8_cifar", **changes: Any) -> Spec:
    cfg = {"input_size": [3, size, size], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "crop_pct": 1.0}
    return spec(architecture, pretrained_cfg=cfg, **changes)


def untrained(given: Spec, *seeds: int) -> Sources:
    models = [build(given, seed) for seed in seeds]
    return Sources([model.state_dict() for model in models], dict(models[0].named_parameters()))


def evaluator_on(digits: Dataset, given: Spec, calibration: int = CALIBRATION) -> Evaluator:
    images = load_split(digits, np.arange(calibration), given, "calibration") if calibration else None
    return Evaluator(Network(given, untrained(given, 1, 2), images))


def images_of(digits: Dataset, given: Spec) -> Split:
    return load_split(digits, rows_of(digits, "test[:200]"), given, "test")


def plain_input(split: Split, given: Spec) -> Tensor:
    """Images as a network takes them, by the formula and nothing of ours."""
    cfg = given.config["pretrained_cfg"]
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (split.images / 255 - mean) / std


@pytest.fixture(scope="module")
def trained(tiny_sources: tuple[Path, Path]) -> list[Checkpoint]:
    return [pull.pull(str(folder)) for folder in tiny_sources]


@pytest.fixture(scope="module")
def evaluator(trained: list[Checkpoint], digits: Dataset) -> Evaluator:
    """The two trained sources, calibrated on 300 images that both were trained on."""
    states = [load_weights(checkpoint) for checkpoint in trained]
    given = trained[0].spec
    calibration = load_split(digits, np.arange(900, 900 + CALIBRATION), given, "calibration")
    return Evaluator(Network(given, Sources(states, dict(build(given).named_parameters())), calibration))


@pytest.fixture(scope="module")
def unseen(trained: list[Checkpoint], digits: Dataset) -> Split:
    return images_of(digits, trained[0].spec)


def plain(checkpoint: Checkpoint) -> nn.Module:
    model = timm.create_model(checkpoint.spec.architecture, num_classes=10)
    model.load_state_dict(load_weights(checkpoint))
    return model.eval()


def plain_score(model: nn.Module, split: Split, given: Spec) -> tuple[int, float]:
    with torch.inference_mode():
        logits = model(plain_input(split, given))
    return int((logits.argmax(1) == split.labels).sum()), float(nn.functional.cross_entropy(logits, split.labels))


def test_a_score_is_that_of_the_plainly_loaded_model(
    evaluator: Evaluator, trained: list[Checkpoint], unseen: Split
) -> None:
    for index, score in enumerate(evaluator.scores([source_alone(0, 2), source_alone(1, 2)], unseen)):
        correct, loss = plain_score(plain(trained[index]), unseen, trained[index].spec)
        assert (score.correct, score.total, score.exact) == (correct, 200, True)
        assert score.loss == pytest.approx(loss, rel=1e-5)
        assert score.accuracy == correct / 200


def test_a_blend_with_noise_scores_as_its_weights_do_in_plain_pytorch(
    evaluator: Evaluator, trained: list[Checkpoint], unseen: Split
) -> None:
    recipe = Recipe((0.9, 0.1), (Noise(1, 0.02, 0.01, "element"),))
    flat = torch.empty(evaluator.network.sources.layout.size)
    evaluator.network.sources.materialize(recipe, flat)
    model = plain(trained[0])
    model.load_state_dict(evaluator.network.sources.state_dict(flat))
    correct, loss = plain_score(model, unseen, trained[0].spec)
    (score,) = evaluator.scores([recipe], unseen)
    assert score.correct == correct
    assert score.loss == pytest.approx(loss, rel=1e-5)


def exact_statistics(model: nn.Module, images: Tensor, batch: int) -> dict[str, Tensor]:
    """Averages over batches of what enters each BatchNorm in training mode, every image with the same weight."""
    found: dict[str, list[tuple[int, Tensor, Tensor]]] = {}

    def listen(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].double()
            entry = (len(x), x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=True))
            found.setdefault(name, []).append(entry)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.register_forward_pre_hook(listen(name))
    with torch.no_grad():
        for part in images.tensor_split(-(-len(images) // batch)):  # batches of equal size, or one image less
            model(part)
    averages = {}
    for name, entries in found.items():
        averages[f"{name}.running_mean"] = sum(n * mean for n, mean, _ in entries) / len(images)  # type: ignore[assignment]
        averages[f"{name}.running_var"] = sum(n * var for n, _, var in entries) / len(images)  # type: ignore[assignment]
    return averages


def test_calibrated_statistics_are_exact_averages_over_the_images(
    evaluator: Evaluator, trained: list[Checkpoint], digits: Dataset
) -> None:
    images = load_split(digits, np.arange(900, 900 + CALIBRATION), trained[1].spec, "calibration")
    assert CALIBRATION % CALIBRATION_BATCH["cpu"]
    expected = exact_statistics(plain(trained[1]), plain_input(images, trained[1].spec), CALIBRATION_BATCH["cpu"])
    found = evaluator.network.statistics(source_alone(1, 2, calibrate=True))
    assert set(found) == set(expected)
    assert len(found) == 18
    # float32 sums over the pixels of a batch err by 5e-5; batches of equal weight would err by up to 1e-2
    for name, tensor in found.items():
        assert torch.allclose(tensor.double(), expected[name], rtol=1e-3, atol=2e-4), name


def test_calibration_changes_the_statistics_alone(
    evaluator: Evaluator, trained: list[Checkpoint], unseen: Split
) -> None:
    recipe = source_alone(0, 2, calibrate=True)
    model = plain(trained[0])
    model.load_state_dict({**load_weights(trained[0]), **evaluator.network.statistics(recipe)})
    correct, loss = plain_score(model, unseen, trained[0].spec)
    (score,) = evaluator.scores([recipe], unseen)
    assert score.correct == correct
    assert score.loss == pytest.approx(loss, rel=1e-5)


def test_calibration_does_not_depend_on_what_was_evaluated_before(evaluator: Evaluator) -> None:
    wanted, other = source_alone(0, 2, calibrate=True), uniform_average(2, calibrate=True)
    first = evaluator.network.statistics(wanted)
    evaluator.network.statistics(other)
    again = evaluator.network.statistics(wanted)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_calibration_repairs_statistics_that_lag(evaluator: Evaluator, unseen: Split) -> None:
    lagging, calibrated = evaluator.scores([source_alone(1, 2), source_alone(1, 2, calibrate=True)], unseen)
    assert calibrated.loss < lagging.loss
    assert calibrated.accuracy > lagging.accuracy + 0.2


def test_without_calibration_there_are_no_statistics_to_give(evaluator: Evaluator) -> None:
    assert evaluator.network.statistics(source_alone(0, 2)) == {}


def test_a_last_calibration_batch_of_one_image_is_averaged_too(digits: Dataset) -> None:
    given = config(4)  # the last feature maps of a 4-pixel image are single pixels
    evaluator = evaluator_on(digits, given, CALIBRATION_BATCH["cpu"] + 1)
    (score,) = evaluator.scores([source_alone(0, 2, calibrate=True)], images_of(digits, given))
    assert np.isfinite(score.loss)


def test_half_precision_statistics_are_rounded_as_they_are_saved(digits: Dataset) -> None:
    given = config(8)
    halves = {n: t.half() if t.is_floating_point() else t for n, t in build(given, 1).state_dict().items()}
    images = load_split(digits, np.arange(50), given, "calibration")
    evaluator = Evaluator(Network(given, Sources([halves], dict(build(given).named_parameters())), images))
    statistics = evaluator.network.statistics(Recipe((1.0,), calibrate=True))
    assert all(torch.equal(tensor.half().float(), tensor) for tensor in statistics.values())
    assert statistics["bn1.running_mean"].any()


def test_a_recipe_already_scored_is_not_evaluated_again(digits: Dataset) -> None:
    given = config(8)
    evaluator, unseen = evaluator_on(digits, given), images_of(digits, given)
    recipes = [source_alone(0, 2), uniform_average(2), source_alone(0, 2)]
    scores = evaluator.scores(recipes, unseen)
    assert evaluator.network.images_seen == 400
    assert evaluator.scores(recipes[::-1], unseen) == scores[::-1]
    assert evaluator.network.images_seen == 400


def test_calibration_passes_are_counted(digits: Dataset) -> None:
    given = config(8)
    evaluator = evaluator_on(digits, given)
    evaluator.scores([uniform_average(2, calibrate=True)], images_of(digits, given))
    assert evaluator.network.images_seen == CALIBRATION + 200


def test_statistics_of_a_recipe_that_was_judged_are_not_re_estimated_again(digits: Dataset) -> None:
    given, recipe = config(8), uniform_average(2, calibrate=True)
    evaluator, unseen = evaluator_on(digits, given), images_of(digits, given)
    evaluator.answers([recipe], unseen)
    seen = evaluator.network.images_seen
    statistics = evaluator.network.statistics(recipe)
    assert evaluator.network.images_seen == seen
    fresh = evaluator_on(digits, given).network.statistics(recipe)
    assert all(torch.equal(statistics[name], fresh[name]) for name in fresh)
    assert fresh.keys() == statistics.keys() != set()


def test_a_remembered_score_is_not_computed(digits: Dataset) -> None:
    given = config(8)
    evaluator, unseen, known = evaluator_on(digits, given), images_of(digits, given), Score(199, 200, 0.25)
    evaluator.remember(uniform_average(2), unseen, known)
    assert evaluator.scores([uniform_average(2)], unseen) == [known]
    assert evaluator.network.images_seen == 0


def test_a_score_is_remembered_for_its_images_only(digits: Dataset) -> None:
    given = config(8)
    evaluator, unseen = evaluator_on(digits, given), images_of(digits, given)
    held_out = load_split(digits, np.arange(100), given, "search")
    evaluator.remember(uniform_average(2), held_out, Score(1, 100, 9.0))
    assert evaluator.scores([uniform_average(2)], unseen)[0].total == 200


@pytest.mark.parametrize("calibrate", [False, True])
def test_weights_that_overflow_score_nothing(digits: Dataset, calibrate: bool) -> None:
    given = config(8)
    evaluator, unseen = evaluator_on(digits, given), images_of(digits, given)
    broken, sound = Recipe((1e38, 1e38), calibrate=calibrate), uniform_average(2, calibrate)
    assert evaluator.scores([broken], unseen) == [Score(0, 200, float("inf"))]
    assert np.isfinite(evaluator.scores([sound], unseen)[0].loss)  # nothing of the failure is left behind


def test_an_infinite_weight_that_a_relu_hides_scores_nothing_too(digits: Dataset) -> None:
    """The largest float16 times 1.5 is not one any more; the source alone is sound."""
    given = config(8)
    model, other = build(given, 1), build(given, 2)
    states = [{n: t.half() if t.is_floating_point() else t for n, t in m.state_dict().items()} for m in (model, other)]
    states[0]["bn1.bias"][0] = -65504
    evaluator = Evaluator(Network(given, Sources(states, dict(model.named_parameters())), None))
    unseen, beyond = images_of(digits, given), Recipe((1.5, -0.5))
    assert evaluator.scores([source_alone(0, 2)], unseen)[0].correct > 0
    assert evaluator.scores([beyond], unseen) == [Score(0, 200, float("inf"))]
    (judged,) = evaluator.answers([beyond], unseen)
    assert (judged.accuracy, judged.mean_loss) == (0.0, float("inf"))


def test_a_network_without_batchnorm_has_nothing_to_calibrate(digits: Dataset) -> None:
    given = config(32, "test_convnext")
    evaluator = evaluator_on(digits, given, calibration=10)
    assert not evaluator.network.can_calibrate
    assert evaluator.network.statistics(uniform_average(2, calibrate=True)) == {}
    few = load_split(digits, np.arange(20), given, "few")
    one, other = evaluator.scores([uniform_average(2), uniform_average(2, calibrate=True)], few)
    assert one == other


def test_without_calibration_images_there_is_nothing_to_calibrate_on(digits: Dataset) -> None:
    assert not evaluator_on(digits, config(8), calibration=0).network.can_calibrate
    assert evaluator_on(digits, config(8)).network.can_calibrate


def test_the_weights_of_the_network_are_views_of_the_recipe_s(digits: Dataset) -> None:
    given = config(8)
    sources = untrained(given, 1, 2)
    flat = torch.empty(sources.layout.size)
    model = attach(given, build(given), sources, flat)
    images = plain_input(load_split(digits, np.arange(20), given, "few"), given)
    with torch.inference_mode():
        for index, seed in enumerate((1, 2)):
            sources.materialize(source_alone(index, 2), flat)
            assert torch.equal(model(images), build(given, seed)(images))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def plain_prediction(checkpoint: Checkpoint, split: Split) -> Tensor:
    with torch.inference_mode():
        return plain(checkpoint)(plain_input(split, checkpoint.spec)).log_softmax(1)  # type: ignore[no-any-return]


def test_a_prediction_is_the_log_probabilities_of_a_recipe(
    evaluator: Evaluator, trained: list[Checkpoint], unseen: Split
) -> None:
    for index in range(2):
        prediction = evaluator.network.predict(source_alone(index, 2), unseen)
        assert prediction.shape == (200, 10)
        assert torch.allclose(prediction, plain_prediction(trained[index], unseen), atol=1e-4)
        assert torch.allclose(prediction.exp().sum(1), torch.ones(200), atol=1e-5)


def test_answers_say_of_each_image_what_the_plainly_loaded_model_says(
    evaluator: Evaluator, trained: list[Checkpoint], unseen: Split
) -> None:
    for index, found in enumerate(evaluator.answers([source_alone(0, 2), source_alone(1, 2)], unseen)):
        expected = plain_prediction(trained[index], unseen)
        assert np.array_equal(found.correct, (expected.argmax(1) == unseen.labels).numpy())
        losses = nn.functional.nll_loss(expected, unseen.labels, reduction="none").numpy()
        assert np.allclose(found.loss, losses, atol=1e-4)


def test_answers_already_known_are_not_computed_again(digits: Dataset) -> None:
    given = config(8)
    evaluator, unseen = evaluator_on(digits, given), images_of(digits, given)
    recipes = [source_alone(0, 2), uniform_average(2), source_alone(0, 2)]
    found = evaluator.answers(recipes, unseen)
    assert evaluator.network.images_seen == 400
    again = evaluator.answers(recipes[::-1], unseen)
    assert all(one is other for one, other in zip(again, found[::-1], strict=True))
    assert evaluator.network.images_seen == 400
    evaluator.answers(recipes, load_split(digits, np.arange(100), given, "search"))  # other images are another question
    assert evaluator.network.images_seen == 600


def test_an_ensemble_says_what_the_mean_probability_of_its_members_says(
    evaluator: Evaluator, trained: list[Checkpoint], unseen: Split
) -> None:
    found = evaluator.ensemble([source_alone(0, 2), source_alone(1, 2)], unseen)
    mean = torch.stack([plain_prediction(checkpoint, unseen).double().exp() for checkpoint in trained]).mean(0)
    assert np.array_equal(found.correct, (mean.argmax(1) == unseen.labels).numpy())
    losses = nn.functional.nll_loss(mean.log(), unseen.labels, reduction="none").numpy()
    assert np.allclose(found.loss, losses, atol=1e-4)


def test_an_ensemble_already_known_is_not_computed_again_and_makes_its_members_known(digits: Dataset) -> None:
    given = config(8)
    evaluator, other = evaluator_on(digits, given), evaluator_on(digits, given)
    unseen, members = images_of(digits, given), [source_alone(0, 2), source_alone(1, 2)]
    together = evaluator.ensemble(members, unseen)
    assert evaluator.network.images_seen == 400
    assert evaluator.ensemble(members, unseen) is together
    alone = evaluator.answers(members, unseen)
    assert evaluator.network.images_seen == 400
    for known, computed in zip(alone, other.answers(members, unseen), strict=True):
        assert np.array_equal(known.loss, computed.loss)


def test_an_ensemble_of_very_sure_networks_is_not_counted_wrong(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(8)
    one = Split("one", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([1]), "one")
    sure = torch.tensor([[0.0, 150.0, 0.0]]).log_softmax(1)  # exp(-150) is zero in float32
    monkeypatch.setattr(Network, "log_probabilities", lambda *_: sure)
    found = evaluator_on(digits, given).ensemble([source_alone(0, 2), source_alone(1, 2)], one)
    assert found.correct.tolist() == [True]
    assert found.mean_loss == pytest.approx(0.0, abs=1e-6)


def test_a_checkpoint_is_predicted_as_in_a_merge(
    evaluator: Evaluator, trained: list[Checkpoint], unseen: Split
) -> None:
    assert torch.equal(
        predict_checkpoint(trained[1], unseen, CPU), evaluator.network.predict(source_alone(1, 2), unseen)
    )


def test_an_evaluation_agrees_with_itself(trained: list[Checkpoint], digits: Dataset) -> None:
    found = evaluate_checkpoint(trained[0], digits, "test[:200]")
    images = load_split(digits, rows_of(digits, "test[:200]"), trained[0].spec, "test[:200]")
    correct, loss = plain_score(plain(trained[0]), images, trained[0].spec)
    assert (found.correct, found.total, found.split) == (correct, 200, "test[:200]")
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.interval[0] <= found.accuracy == correct / 200 <= found.interval[1]
    counts = np.bincount(images.labels.numpy(), minlength=10)
    assert list(found.per_class) == [str(digit) for digit in range(10)]
    assert np.dot(list(found.per_class.values()), counts) == pytest.approx(correct)


def test_shared_checkpoints_gain_from_calibration(shared_checkpoints: Path, shared_cifar: Path) -> None:
    checkpoint = pull.pull(str(shared_checkpoints / "resnet8-s44"))
    dataset = open_dataset(str(shared_cifar))
    calibration = load_split(dataset, rows_of(dataset, "train[5000:5500]"), checkpoint.spec, "calibration")
    images = load_split(dataset, rows_of(dataset, "test[:500]"), checkpoint.spec, "test")
    sources = Sources([load_weights(checkpoint)], dict(build(checkpoint.spec).named_parameters()))
    evaluator = Evaluator(Network(checkpoint.spec, sources, calibration))
    as_it_is, calibrated = evaluator.scores([Recipe((1.0,)), Recipe((1.0,), calibrate=True)], images)
    assert as_it_is.accuracy == pytest.approx(0.622, abs=0.065)  # of all 10,000; three standard errors of 500
    assert calibrated.accuracy == pytest.approx(0.727, abs=0.065)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_moves_scores_a_little_and_reports_not_at_all(
    trained: list[Checkpoint], digits: Dataset, unseen: Split, precision: Precision
) -> None:
    given, states = trained[0].spec, [load_weights(checkpoint) for checkpoint in trained]
    sources = Sources(states, dict(build(given).named_parameters()))
    if not getattr(torch.ops.mkldnn, f"_is_mkldnn_{'bf16' if precision == 'bfloat16' else 'fp16'}_supported")():
        with pytest.raises(HfmegaError, match=f"this cpu does not compute in {precision}: leave the flag away."):
            Evaluator(Network(given, sources, None, precision))
        return
    half = Evaluator(Network(given, sources, None, precision))
    whole, recipe = Evaluator(Network(given, sources, None)), source_alone(0, 2)
    (rough,), (fine,) = half.scores([recipe], unseen), whole.scores([recipe], unseen)
    assert rough.loss != fine.loss
    assert rough.loss == pytest.approx(fine.loss, rel=0.02)
    assert torch.equal(half.network.predict(recipe, unseen), whole.network.predict(recipe, unseen))


def test_the_sources_of_the_fixtures_have_learned_what_is_said_of_them(
    trained: list[Checkpoint], digits: Dataset
) -> None:
    """As `tiny_sources` and CONTRIBUTING say: a claim about who wins is not about noise."""
    given = trained[0].spec
    test, seen = (load_split(digits, rows_of(digits, rows), given, rows) for rows in ("test", "train[900:]"))
    sources = Sources([load_weights(checkpoint) for checkpoint in trained], dict(build(given).named_parameters()))
    evaluator = Evaluator(Network(given, sources, seen))
    recipes = [source_alone(k, 2, way) for way in (False, True) for k in (0, 1)]
    found = [score.accuracy for score in evaluator.scores(recipes, test)]
    assert found == pytest.approx([0.87, 0.61, 0.93, 0.90], abs=0.05)
