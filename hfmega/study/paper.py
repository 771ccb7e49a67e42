"""What the paper prints, to stand beside what is measured (Yun 2024, arXiv 2406.04607), and its training protocol."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Printed:
    """A row of a table: test accuracies of the sources and of the merged model."""

    sources: tuple[float, ...]
    merged: float


TABLE1: Final = {
    "resnet56_cifar": Printed((0.809, 0.793), 0.822),
    "resnet110_cifar": Printed((0.801, 0.814), 0.816),
    "resnet152_cifar": Printed((0.783, 0.781), 0.819),
    "xception_cifar": Printed((0.716, 0.730), 0.754),
    "densenet121": Printed((0.719, 0.728), 0.742),
    "densenet169": Printed((0.735, 0.731), 0.753),
}
TABLE2: Final = {
    "resnet56_cifar": Printed((0.804, 0.747, 0.788, 0.774, 0.806, 0.786, 0.749, 0.787), 0.822),
    "resnet110_cifar": Printed((0.782, 0.814, 0.744, 0.800, 0.801, 0.787, 0.781, 0.758), 0.824),
    "resnet152_cifar": Printed((0.775, 0.783, 0.781, 0.747, 0.771, 0.767, 0.772, 0.797), 0.815),
}
FIGURE2: Final = {"resnet56_cifar": (0.8042, 0.8224), "densenet121": (0.7290, 0.7427)}  # first and last best fitness
TABLES: Final = {"table1": TABLE1, "table2": TABLE2}
SEEDS: Final = {"table1": (56, 57), "table2": tuple(range(44, 52)), "figure2": (56, 57)}
NETWORKS: Final = {"table1": tuple(TABLE1), "table2": tuple(TABLE2), "figure2": tuple(FIGURE2)}
ALIASES: Final = {"xception": "xception_cifar"}
PIXELS: Final = 32  # of a side, for every network
FINE_TUNING_BATCH: Final = 128  # of the author's program
