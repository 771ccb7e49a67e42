"""Training: the record it leaves, that it resumes to the same weights, and that branches start from their trunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.specs import spec

from hfmega.data.dataset import open_dataset, rows_of
from hfmega.data.images import as_in_training, load_split
from hfmega.errors import HfmegaError
from hfmega.evaluation.checkpoint import evaluate_checkpoint
from hfmega.evaluation.network import Network
from hfmega.hub import pull
from hfmega.models import fit
from hfmega.models.views import draw
from hfmega.output import Output
from hfmega.study import train
from hfmega.study.train import TrainSettings
from hfmega.weights.checkpoint import load_weights, sha256_of
from hfmega.weights.sources import mix

QUIET = Output(muted=True)


def settings(output: Path) -> TrainSettings:
    return TrainSettings(
        "resnet8_cifar", output, dataset="digits", train_split="train[1000:]", epochs=2, batch_size=64, seed=5
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "source"
    train.train(settings(folder), QUIET)
    return folder


def test_the_record_says_which_images_were_seen_and_which_were_not(trained: Path) -> None:
    record = pull.pull(str(trained)).record
    assert record is not None
    assert (record["dataset"], record["train_split"], record["held_out_split"]) == (
        "digits",
        "train[1000:]",
        "train[:1000]",
    )
    assert (record["seed"], record["epochs"], record["batch_size"], record["learning_rate"]) == (5, 2, 64, 0.01)
    assert (record["optimizer"], record["init"]) == ("adam", None)


def test_training_learns(tmp_path: Path) -> None:
    """Judged by the training loss: after so few steps the running statistics of BatchNorm lag far behind."""
    lines: list[str] = []
    output = Output()
    output.say = lines.append  # type: ignore[method-assign]
    train.train(replace(settings(tmp_path / "out"), epochs=4), output)
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines if "training loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.5 * losses[0]


def test_a_killed_training_resumes_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, epochs = fit.save_state, []

    def killed_after_the_first(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        epochs.append(arguments[2])
        if len(epochs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit, "save_state", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        train.train(settings(tmp_path / "out"), QUIET)
    assert not (tmp_path / "out/model.safetensors").exists()
    train.train(settings(tmp_path / "out"), QUIET)
    assert epochs == [1, 2]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_branch_starts_from_its_trunk(trained: Path, tmp_path: Path) -> None:
    branch = replace(settings(tmp_path / "out"), init=str(trained), epochs=1, learning_rate=1e-9, seed=6)
    train.train(branch, QUIET)
    trunk, ours = load_file(trained / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert torch.allclose(trunk["layer3.0.conv1.weight"], ours["layer3.0.conv1.weight"], atol=1e-6)
    record = pull.pull(str(tmp_path / "out")).record
    assert record is not None
    assert record["init"] == sha256_of(trained / "model.safetensors")


def test_a_source_in_place_of_an_architecture_is_where_training_starts(trained: Path, tmp_path: Path) -> None:
    train.train(replace(settings(tmp_path / "out"), network=str(trained), epochs=1, learning_rate=1e-9), QUIET)
    trunk, ours = load_file(trained / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert torch.allclose(trunk["conv1.weight"], ours["conv1.weight"], atol=1e-6)


def test_statistics_are_re_estimated_at_the_end_unless_asked_not_to(trained: Path, tmp_path: Path) -> None:
    kept = train.train(replace(settings(tmp_path / "out"), update_bn=False), QUIET)
    ours, theirs = load_file(trained / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    differ = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert differ
    assert all(name.endswith(("running_mean", "running_var")) for name in differ)
    records = [pull.pull(str(folder)).record or {} for folder in (trained, tmp_path / "out")]
    assert [record.get("update_bn") for record in records] == [True, None]
    assert kept.held_out is not None
    assert kept.held_out.accuracy == kept.as_trained
    assert kept.updated is not None
    again = evaluate_checkpoint(pull.pull(str(trained)), open_dataset("digits"), "train[:1000]")
    assert again.accuracy == pytest.approx(kept.updated, abs=1e-3)
    first, why, written = train.spoken(kept, updated=False)
    assert f"{kept.updated:.4f} with re-estimated" in first
    assert f"{kept.as_trained:.4f} with the running" in first
    assert "lags behind" in why
    assert "hfmega update-bn" in written


def test_seeds_differ(trained: Path, tmp_path: Path) -> None:
    train.train(replace(settings(tmp_path / "out"), seed=6, epochs=1), QUIET)
    first, second = load_file(trained / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


def test_a_diverging_training_says_so(tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match="training diverged in epoch 1"):
        train.train(replace(settings(tmp_path / "out"), learning_rate=1e30), QUIET)


def test_the_architecture_must_be_that_of_the_start(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match="is a resnet8_cifar, not a resnet20_cifar"):
        train.train(replace(settings(tmp_path / "out"), network="resnet20_cifar", init=str(trained)), QUIET)


def test_constants_that_train_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match="must be positive"):
        replace(settings(tmp_path / "out"), epochs=0)


def test_the_size_of_the_images_can_be_named(tmp_path: Path) -> None:
    train.train(replace(settings(tmp_path / "out"), epochs=1, image_size=16), QUIET)
    config = pull.pull(str(tmp_path / "out")).spec.config["pretrained_cfg"]
    assert (config["input_size"], config["mean"], config["std"]) == ([3, 16, 16], [0.0] * 3, [1.0] * 3)


def test_the_probe_of_a_step_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    asked = settings(tmp_path)
    model = train.build(spec())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fit.seconds_per_step(model, torch.rand(8, 3, 32, 32), asked.schedule) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_compiling_is_as_asked_and_never_tried_on_a_cpu(tmp_path: Path) -> None:
    model, images = torch.nn.Identity(), torch.rand(2, 3, 8, 8)
    for asked, expected in ((None, False), (True, True), (False, False)):
        assert (
            fit.pays_to_compile(model, images, replace(settings(tmp_path).schedule, compiled=asked), QUIET) is expected
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines whose device has no bfloat16")
def test_bf16_is_refused_where_the_device_has_none(tmp_path: Path) -> None:
    with pytest.raises(HfmegaError, match="needs a GPU"):
        replace(settings(tmp_path), bf16=True)


def test_the_cosine_goes_from_the_rate_to_zero_and_the_constant_stays() -> None:
    cosine = fit.Schedule(epochs=2, batch_size=8, learning_rate=0.4, decay="cosine")
    assert [cosine.rate(step, 4) for step in (0, 2, 4)] == pytest.approx([0.4, 0.2, 0.0])
    assert fit.Schedule(epochs=2, batch_size=8, learning_rate=0.4).rate(3, 4) == 0.4


def test_augmented_images_are_shifted_and_flipped_copies() -> None:
    """The one bright pixel of each image moves by at most an eighth of a side; about half are mirrored."""
    images = torch.zeros(400, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 8, 4] = 255
    drawn = draw(images.shape, "flips and crops", 0)
    found = torch.cat(list(drawn.parts(images)))
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    rows, columns = (found[:, 0].amax(dim=axis).argmax(dim=1) for axis in (2, 1))
    assert set(rows.tolist()) == set(range(6, 11))
    assert set(columns.tolist()) == {2, 3, 4, 5, 6} | {9, 10, 11, 12, 13}
    assert 0.4 < (columns > 8).float().mean() < 0.6
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.equal(drawn.mirrored, columns > 8)
    some = torch.tensor([7, 3, 250])
    assert torch.equal(drawn.shown(images, some), found[some])  # a batch shows what was drawn for its images


def test_each_epoch_shows_images_in_its_own_way() -> None:
    images, schedule = torch.zeros(400, 3, 16, 16, dtype=torch.uint8), fit.Schedule(2, 8, 0.1, augment="flips")
    first, second = (schedule.shows(images, epoch).mirrored for epoch in (0, 1))
    assert 0.4 < (first == second).float().mean() < 0.6
    assert torch.equal(first, schedule.shows(images, 0).mirrored)


def test_soft_targets_are_learned_as_they_are(tmp_path: Path) -> None:
    """A linear network that is taught probabilities ends at them, not at their largest."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images = torch.full((64, 3, 2, 2), 128, dtype=torch.uint8)
    wanted = torch.tensor([0.2, 0.5, 0.3]).expand(64, 3)
    schedule = fit.Schedule(epochs=60, batch_size=16, learning_rate=0.02, decay="cosine", augment="flips")
    fit.fit(model, images, wanted, lambda x: x.float() / 255, schedule, tmp_path / "state", QUIET)
    assert torch.allclose(model(images[:1] / 255.0).softmax(1)[0], wanted[0], atol=0.01)


def test_targets_are_those_of_an_image_as_the_epoch_shows_it(tmp_path: Path) -> None:
    """Bright on the left is one class, on the right the other; what is mirrored is taught to be of the other."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    images = torch.zeros(64, 3, 2, 2, dtype=torch.uint8)
    images[..., 0] = 255
    schedule = fit.Schedule(epochs=30, batch_size=16, learning_rate=0.02, augment="flips")

    def targets(epoch: int) -> torch.Tensor:
        return torch.nn.functional.one_hot(schedule.shows(images, epoch).mirrored.long(), 2).float()

    fit.fit(model, images, targets, lambda x: x.float() / 255, schedule, tmp_path / "state", QUIET)
    assert model(torch.cat([images[:1], images[:1].flip(3)]) / 255.0).argmax(1).tolist() == [0, 1]


def test_decay_and_augmentation_are_recorded_and_change_the_weights(trained: Path, tmp_path: Path) -> None:
    train.train(replace(settings(tmp_path / "out"), decay="cosine", augment=True), QUIET)
    record = pull.pull(str(tmp_path / "out")).record
    assert record is not None
    assert (record["decay"], record["augment"]) == ("cosine", True)
    first, second = load_file(trained / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


def test_statistics_are_re_estimated_on_images_as_the_training_showed_them(tmp_path: Path) -> None:
    """With --augment on shifted ones: plain ones would give other statistics."""
    train.train(replace(settings(tmp_path / "out"), epochs=1, augment=True), QUIET)
    checkpoint, digits = pull.pull(str(tmp_path / "out")), open_dataset("digits")
    plain = load_split(digits, rows_of(digits, "train[1000:]"), checkpoint.spec, "train")
    sources = mix([checkpoint], [load_weights(checkpoint)])
    shown, other = (
        Network(checkpoint.spec, sources, images).statistics(train.UPDATED) for images in (as_in_training(plain), plain)
    )
    written = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.allclose(tensor, written[name], rtol=1e-4, atol=1e-5) for name, tensor in shown.items())
    assert not torch.allclose(other["bn1.running_mean"], written["bn1.running_mean"], rtol=1e-2)
