"""What several test files share: the images and the checkpoints that lie on disk, and two small trained sources."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before huggingface_hub is imported, which keeps some of them: no server but the tests' own is ever asked.
os.environ |= {
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
}

from hfmega.data import cache
from hfmega.data.dataset import Dataset, open_dataset

# Tests press Ctrl-C, which a shell lets be ignored by what it starts in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", max_examples=300, derandomize=True)  # the same inputs everywhere
settings.register_profile("fuzz", max_examples=10_000, derandomize=True)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_folder(name: str) -> Path:
    """A folder beside the repository that only some machines have."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"there is no ../shared/{name} on this machine")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _decoded_images_of_these_tests_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads what an earlier version of the code decoded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "FOLDER", str(tmp_path_factory.mktemp("decoded")))
        yield


@pytest.fixture(scope="session")
def shared_cifar() -> Path:
    """CIFAR-10 as parquet files."""
    return shared_folder("cifar10")


@pytest.fixture(scope="session")
def shared_checkpoints() -> Path:
    """Trained CIFAR-10 checkpoints, a folder each."""
    return shared_folder("checkpoints")


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """1,297 train and 500 test images that come with scikit-learn."""
    return open_dataset("digits")


@pytest.fixture(scope="session")
def tiny_sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two ResNet-8 on digits of 8 x 8 pixels, trained on train[900:]; train[:900] is held out of both.

    Accuracy on test as trained 0.87 and 0.61, with re-estimated BatchNorm statistics 0.93 and 0.90.
    """
    from hfmega.output import Output
    from hfmega.study.train import TrainSettings, train

    folder = tmp_path_factory.mktemp("sources")
    for seed in (1, 2):
        settings = TrainSettings(
            "resnet8_cifar",
            folder / f"s{seed}",
            dataset="digits",
            train_split="train[900:]",
            epochs=4,
            batch_size=64,
            seed=seed,
            image_size=8,
            update_bn=False,
        )
        train(settings, Output(muted=True))
    return folder / "s1", folder / "s2"
