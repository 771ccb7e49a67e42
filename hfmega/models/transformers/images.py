"""Image processors of transformers, by probing: no family is known to this code.

After resize and crop a processor has whole grey levels, and the rest is affine in each channel. Images of one colour
tell the slope and the shift; each image is made by the official call and turned back to its levels, uint8.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from hfmega.errors import HfmegaError, SourceError
from hfmega.folder import PREPROCESSOR as FILE
from hfmega.models.preprocessing import Preprocessing
from hfmega.models.transformers.config import bound, nested
from hfmega.models.transformers.quiet import first_line

SIDE: Final = 4096  # pixels
GREYS: Final = (0, 100, 255)
SHAPES: Final = ((48, 36), (35, 61), (224, 224))  # width, height
WHOLE: Final = 0.01  # grey levels: how far from a whole one a pixel may lie
DROPPED: Final = frozenset({"device", "return_tensors", "data_format", "input_data_format", "disable_grouping"})
SPOKEN: Final = frozenset({"image_mean", "image_std", "processor_class", "feature_extractor_type"})


class Processor:
    """An image processor of the library, on single images."""

    def __init__(self, document: Mapping[str, Any], kind: str, mode: str, where: str) -> None:
        name = class_name(document, kind, where)
        for mapping in nested(document):
            if mapping.get("auto_map"):
                raise SourceError(f"{FILE} of {where} names code of its own, which hfmega never runs (auto_map).")
        known = {k: v for k, v in document.items() if not k.startswith("_") and k not in DROPPED}
        try:
            bound(known, where, limit=SIDE)
            self._processor: Any = getattr(transformers, name).from_dict(known)
        except SourceError as error:
            raise SourceError(str(error).replace("config.json", FILE)) from error
        except Exception as error:  # the library's classes take what they get, and raise what they come upon
            raise SourceError(
                f"{FILE} of {where} makes no sense to transformers' {name}: {first_line(error)}"
            ) from error
        self.name, self.mode, self._where = name, mode, where
        self._affine: tuple[Tensor, Tensor] | None = None

    def official(self, image: Image.Image) -> Tensor:
        """What the library makes of an image: float32 [channels, height, width]."""
        try:
            found = self._processor(image, return_tensors="pt")["pixel_values"]
        except Exception as error:  # as above
            raise SourceError(f"the {self.name} of {self._where}: {first_line(error)}") from error
        if not isinstance(found, Tensor) or found.dim() != 4 or len(found) != 1:
            raise SourceError(f"the {self.name} of {self._where} does not make one image of one image.")
        return found[0].float()

    def probe(self) -> Preprocessing:
        """Size, mean and standard deviation of what the processor makes. Raises SourceError where that is not all."""
        seen = [self.official(Image.new(self.mode, size, (100,) * 3 if self.mode == "RGB" else 100)) for size in SHAPES]
        sizes = {tuple(image.shape) for image in seen}
        if len(sizes) > 1:
            raise SourceError(
                f"the images that {FILE} of {self._where} asks for have no common size ({', '.join(map(str, sizes))}): "
                "it needs a size of two sides, or a crop."
            )
        flat = [Image.new(self.mode, SHAPES[0], (grey,) * 3 if self.mode == "RGB" else grey) for grey in GREYS]
        low, middle, high = (self.official(image).double().amax((1, 2)) for image in flat)
        slope, shift = (high - low) / 255, low
        straight = torch.allclose(middle, shift + slope * 100, atol=WHOLE * float(slope.abs().max()), rtol=0)
        if not straight or bool((slope == 0).any()):
            raise SourceError(f"the {self.name} of {self._where} does more to a pixel than to scale it.")
        self._affine = slope.float().view(-1, 1, 1), shift.float().view(-1, 1, 1)
        size = (seen[0].shape[0], seen[0].shape[1], seen[0].shape[2])
        mean, std = -shift / slope / 255, 1 / slope / 255
        return Preprocessing(size, tuple(mean.tolist()), tuple(std.tolist()), {"image processor": self.settings()})

    def settings(self) -> dict[str, Any]:
        """Whatever else the processor depends on, filled by the library, so that old and new files compare."""
        filled = {k: v for k, v in self._processor.to_dict().items() if not k.startswith("_")}
        return {k: v for k, v in filled.items() if k not in DROPPED | SPOKEN and v is not None}

    def levels(self, image: Image.Image) -> Tensor:
        """The grey levels of an image as the network takes it: uint8 [channels, height, width].

        Raises HfmegaError for an image that the processor does not turn into whole levels.
        """
        if self._affine is None:
            self.probe()
        assert self._affine is not None
        slope, shift = self._affine
        found = (self.official(image) - shift) / slope
        whole = found.round()
        if float((found - whole).abs().max()) > WHOLE or not 0 <= float(whole.min()) <= float(whole.max()) <= 255:
            raise HfmegaError(f"the {self.name} of {self._where} does more to an image than resize and scale.")
        return whole.to(torch.uint8)


def class_name(document: Mapping[str, Any], kind: str, where: str) -> str:
    """The class of a processor on torchvision, by the library's own table. Raises SourceError for any other."""
    table = {model: names.get("torchvision") for model, names in IMAGE_PROCESSOR_MAPPING_NAMES.items() if names}
    named = document.get("image_processor_type") or document.get("feature_extractor_type") or table.get(kind)
    plain = str(named).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if plain not in table.values():
        raise SourceError(f"{FILE} of {where} asks for {str(named)[:60]!r}, which hfmega does not know.")
    return plain
