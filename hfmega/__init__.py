"""Merge checkpoints from the Hugging Face Hub into one, and prove what was gained.

`import hfmega` also registers the paper's networks (`resnet20_cifar`, ...) with timm, so that a published
merge loads with `timm.create_model("hf-hub:user/name", pretrained=True)`.
"""

import importlib

from wrapt import register_post_import_hook

__version__ = "0.1.0"


def printable(text: str) -> str:
    """Text as a terminal shows it and nothing more: whatever else is in it is spelled (\\x1b). Lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class HfmegaError(Exception):
    """A problem that one sentence explains: what was wrong, where, and what to do.

    Names in it come from anyone: it is one line, and a terminal has nothing to obey in it.
    """

    def __init__(self, sentence: str = "") -> None:
        super().__init__(printable(" ".join(sentence.splitlines())))


# Registering needs timm, and timm needs seconds: wait until somebody else imports it (or did so already).
register_post_import_hook(lambda _: importlib.import_module("hfmega.models"), "timm")
