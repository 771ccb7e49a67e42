"""Merge checkpoints from the Hugging Face Hub into one, and prove what was gained.

`import hfmega` also registers the paper's networks (`resnet20_cifar`, ...) with timm, so that a published
merge loads with `timm.create_model("hf-hub:user/name", pretrained=True)`.
"""

import importlib

from wrapt import register_post_import_hook

__version__ = "0.1.0"
# Registering needs timm, and timm needs seconds: wait until somebody else imports it (or did so already).
register_post_import_hook(lambda _: importlib.import_module("hfmega.models.cifar"), "timm")
