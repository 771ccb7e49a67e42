"""From a timm config to an `nn.Module`."""

from typing import Any, Final

import timm
import torch
from torch import nn

from hfmega.errors import SourceError

# What of a config reaches timm's constructors. Configs come from anyone: nothing that names a file, a class or a place.
ARGUMENTS: Final = frozenset({"num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate"})
PRETRAINED: Final = frozenset(
    {"input_size", "test_input_size", "fixed_input_size", "min_input_size", "pool_size", "interpolation", "crop_pct"}
    | {"test_crop_pct", "crop_mode", "mean", "std", "first_conv", "classifier", "tag", "architecture"}
)


def build(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """The network that a timm `config.json` describes, in eval mode, with weights drawn from `seed`.

    Raises SourceError when timm does not know the architecture or refuses the config.
    """
    architecture = str(config.get("architecture"))
    if not timm.is_model(architecture):
        raise SourceError(f"the architecture {architecture!r} is unknown to timm {timm.__version__}: update timm.")
    arguments = config.get("model_args", {})
    if surplus := sorted(arguments.keys() - ARGUMENTS):
        raise SourceError(
            f"the config of {architecture} has the constructor argument {surplus[0]!r}, which hfmega does not pass on "
            f"(it passes {', '.join(sorted(ARGUMENTS))})."
        )
    options = {**arguments, "num_classes": config["num_classes"]}
    if config.get("pretrained_cfg"):
        known = {key: value for key, value in config["pretrained_cfg"].items() if key in PRETRAINED}
        options["pretrained_cfg"] = {**known, "num_classes": config["num_classes"]}
    try:
        with torch.random.fork_rng(devices=[]):  # drawing weights must not move the caller's generator
            torch.manual_seed(seed)
            model = timm.create_model(architecture, pretrained=False, **options)
    except Exception as error:  # timm's constructors take what they get, and raise what they come upon
        raise SourceError(f"timm cannot build {architecture} from this config: {error}") from error
    return model.eval()  # type: ignore[no-any-return]


def sizes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape of the network that a config describes, without its memory. Raises as `build` does."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
