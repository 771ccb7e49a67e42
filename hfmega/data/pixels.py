"""An image file as a person sees it: upright, on white, 8 bits a channel, its first frame."""

import io
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

LONGEST: Final = 200  # times the shorter side of an image
TRANSPARENT: Final = "transparent parts, which are shown on white"
ANIMATED: Final = "several frames, of which the first is shown"
REMARKS: Final = (TRANSPARENT, ANIMATED)
DEEP: Final = 257  # 65535 / 255


def decode(content: bytes, mode: str) -> tuple[Image.Image, tuple[str, ...]]:
    """The pixels of an encoded image, and what the user should know of it: of TRANSPARENT, ANIMATED.

    What would take very many pixels is refused by its header: PIL's warning is an error here.
    Raises whatever PIL's decoders come upon, and ValueError for values that no range of brightness is known for.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(content))
        if max(image.size) > LONGEST * min(image.size):  # its shorter side is what is scaled to the network's size
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        frames = image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # of MPO the others are previews
        shown = as_seen(image, mode)
    remarks = ((TRANSPARENT, has_alpha(image)), (ANIMATED, frames))
    return shown, tuple(remark for remark, holds in remarks if holds)


def as_seen(image: Image.Image, mode: str) -> Image.Image:
    """An image of any mode in `L` or `RGB`, as a person sees it. Raises as `decode` does."""
    image.load()
    image = eight_bit(upright(image))
    if has_alpha(image):
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(colours)
        image = white.convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    return image.convert(mode)


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF orientation says; as it is where that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF comes from anyone, and viewers show an image whose EXIF is broken as it is
        return image


def has_alpha(image: Image.Image) -> bool:
    """Whether anything of an image is transparent."""
    if image.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in image.info:
        return False
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "RGBa", "LA", "La", "PA"):
        return False  # PIL shows a transparent value of no other mode
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def eight_bit(image: Image.Image) -> Image.Image:
    """An image of integers of 16 or 32 bits, or of floats, as 8 bits a channel; any other as it is.

    16 bits are scaled by 257. 32-bit integers are taken for 8 bits if none is above 255, else for 16 bits; floats for
    0 to 1, or for 0 to 255 if one is above 1.
    Raises ValueError for values beyond that.
    """
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64) / DEEP)
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    ranges = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0)
    most = next((top for top in ranges if high <= top), None)
    if most is None or not low >= 0:  # NaN is not
        what = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its {what} from {low:g} to {high:g} have no known brightness: store 8 or 16 bits")
    return _grey(values * (255 / most))


def _grey(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8))
