"""What a checkpoint calls the tensors of a network of transformers, by asking the library's own loader.

Names in files are not those of modules, and the tables between them change with the versions. So tensor k of the file
is made of nothing but the number k, loaded as any checkpoint, and looked for in the network.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfmega.errors import SourceError
from hfmega.models.transformers.quiet import first_line, quiet

COUNTER: Final = ".num_batches_tracked"  # which older writers left out, and nothing reads
FIRST: Final = 2  # the number of the first tensor: 0 and 1 are what a loader fills with by itself


def mapped(network: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, str]:
    """Tensor name in the file to that in the network, of those that the network has. network: what `numbered` gives.

    Raises SourceError for tensors that are not loaded one to one.
    """
    keys, own = list(shapes), dict[str, str]()
    for name, tensor in network.state_dict().items():
        number = number_in(tensor)
        if number is None or not FIRST <= number < FIRST + len(keys):
            if name.endswith(COUNTER):
                continue
            raise SourceError(f"transformers does not take {name} of {where} from one tensor: it cannot be merged.")
        key = keys[number - FIRST]
        if key in own:
            raise SourceError(f"transformers makes several tensors of {key} of {where}: it cannot be merged.")
        own[key] = name
    return own


def numbered(network: Any, config: Any, shapes: Mapping[str, tuple[int, ...]], where: str) -> nn.Module:
    """A network after a file was loaded in which tensor k holds the number k + FIRST. network: its class.

    Raises SourceError for tensors that are missing, or of other shapes.
    """
    filled = {key: torch.tensor(float(k + FIRST)).expand(shape) for k, (key, shape) in enumerate(shapes.items())}
    given = {"config": config, "state_dict": filled, "dtype": torch.float32}
    try:
        with quiet():
            found, said = network.from_pretrained(None, **given, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # the loader takes what it gets, and raises what it comes upon
        raise SourceError(f"transformers cannot load the weights of {where}: {first_line(error)}") from error
    for name, there, expected in sorted(said["mismatched_keys"]):
        raise SourceError(
            f"{where} has {name} of shape {tuple(there)}, {network.__name__} of its config of shape {tuple(expected)}."
        )
    if missing := sorted(name for name in said["missing_keys"] if not name.endswith(COUNTER)):
        raise SourceError(
            f"{where} lacks the tensor {missing[0]} that {network.__name__} has ({len(missing)} missing)."
        )
    made: nn.Module = found.eval()
    return made


def number_in(tensor: Tensor) -> int | None:
    """The whole number that a tensor holds everywhere; None if it holds anything else."""
    flat = tensor.flatten()
    if not len(flat) or bool((flat != flat[0]).any()) or float(flat[0]) != int(flat[0]):
        return None
    return int(flat[0])
