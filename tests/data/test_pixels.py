"""Whatever a file stores, the network gets what a person sees: upright, on white, 8 bits, the first frame. 2 s."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageSequence

from hfmega.data.pixels import ANIMATED, TRANSPARENT, as_seen, decode, has_alpha

RANDOM = np.random.RandomState(0)
COLOURS = Image.fromarray(RANDOM.randint(0, 256, (6, 9, 3), np.uint8))
GREY = COLOURS.convert("L")
LEVELS = np.asarray(GREY)
BLACK_OR_WHITE = GREY.point(lambda v: 255 * (v > 127))


def stored(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **how)
    return buffer.getvalue()


def seen(content: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(decode(content, mode)[0])


def turned(orientation: int, kind: str) -> bytes:
    """The colours, stored so that an EXIF orientation shows them upright."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if kind == "WEBP" else {}
    return stored(COLOURS.transpose(Image.Transpose[undo[orientation]]), kind, exif=exif, **how)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_an_image_that_is_stored_turned_is_turned_back(orientation: int, kind: str) -> None:
    assert np.array_equal(seen(turned(orientation, kind)), np.asarray(COLOURS))


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0", b"junk"])
def test_broken_exif_leaves_an_image_as_it_is(exif: bytes) -> None:
    assert np.array_equal(seen(stored(COLOURS, "PNG", exif=exif)), np.asarray(COLOURS))


GREYS: dict[str, Callable[[], bytes]] = {
    "8 bits": lambda: stored(GREY),
    "16 bits, PNG": lambda: stored(Image.fromarray(LEVELS.astype(np.uint16) * 257)),
    "16 bits, TIFF": lambda: stored(Image.fromarray(LEVELS.astype(np.uint16) * 257), "TIFF"),
    "16 bits, big-endian": lambda: stored(Image.fromarray((LEVELS.astype(np.uint16) * 257).astype(">u2")), "TIFF"),
    "16 bits, JPEG 2000": lambda: stored(Image.fromarray(LEVELS.astype(np.uint16) * 257), "JPEG2000"),
    "32 bits that hold 8": lambda: stored(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"),
    "32 bits that hold 16": lambda: stored(Image.fromarray(LEVELS.astype(np.int32) * 257), "TIFF"),
    "floats to 1": lambda: stored(Image.fromarray(LEVELS.astype(np.float32) / 255), "TIFF"),
    "floats to 255": lambda: stored(Image.fromarray(LEVELS.astype(np.float32)), "TIFF"),
    "opaque LA": lambda: stored(GREY.convert("LA")),
    "opaque RGBA": lambda: stored(GREY.convert("RGBA")),
    "a palette": lambda: stored(GREY.convert("P")),
}  # fmt: skip


@pytest.mark.parametrize("how", GREYS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_same_grey_is_seen_however_it_is_stored(how: str, mode: str) -> None:
    found = seen(GREYS[how](), mode)
    assert np.array_equal(found, np.asarray(GREY.convert(mode)))


def test_one_bit_an_image_is_black_and_white() -> None:
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(seen(stored(BLACK_OR_WHITE.convert("1"), kind), "L"), np.asarray(BLACK_OR_WHITE))


def test_inks_and_other_colour_spaces_are_shown_as_colours() -> None:
    inks = COLOURS.convert("CMYK")
    assert np.abs(seen(stored(inks, "TIFF")).astype(int) - np.asarray(COLOURS)).max() <= 1
    smooth = Image.new("RGB", (8, 8), (200, 60, 20))
    assert np.abs(seen(stored(smooth.convert("CMYK"), "JPEG", quality=100)).astype(int) - (200, 60, 20)).max() <= 6
    assert np.abs(np.asarray(as_seen(smooth.convert("HSV"), "RGB")).astype(int) - (200, 60, 20)).max() <= 2
    lab = ImageCms.profileToProfile(
        smooth, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert np.abs(np.asarray(as_seen(lab, "RGB")).astype(int) - (200, 60, 20)).max() <= 4


def palette(transparent: int | bytes) -> bytes:
    """Columns of red, green and blue by a palette, of which some is transparent."""
    image = Image.fromarray(np.tile(np.uint8([0, 1, 2]), (6, 3)), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return stored(image, "PNG", transparency=transparent)


def with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    image = image.copy()
    image.putalpha(alpha)
    return image


TRANSPARENCIES: dict[str, tuple[Callable[[], bytes], list[int]]] = {
    "RGBA, nothing": (lambda: stored(with_alpha(Image.new("RGB", (4, 4)), 0)), [255, 255, 255]),
    "RGBA, half": (lambda: stored(with_alpha(Image.new("RGB", (4, 4), (255, 0, 0)), 128)), [255, 127, 127]),
    "LA, nothing": (lambda: stored(with_alpha(Image.new("L", (4, 4)), 0)), [255, 255, 255]),
    "LA, half": (lambda: stored(with_alpha(Image.new("L", (4, 4)), 51)), [204, 204, 204]),
    "a palette with a colour that is not there": (lambda: palette(0), [255, 255, 255]),
    "a palette with alphas": (lambda: palette(bytes([0, 255, 255])), [255, 255, 255]),
    "RGB with a colour that is not there": (
        lambda: stored(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)),
        [255, 255, 255],
    ),
    "L with a level that is not there": (lambda: stored(Image.new("L", (4, 4), 7), transparency=7), [255, 255, 255]),
    "GIF": (lambda: stored(Image.new("P", (4, 4), 0), "GIF", transparency=0), [255, 255, 255]),
    "WEBP": (lambda: stored(with_alpha(Image.new("RGB", (4, 4)), 0), "WEBP", lossless=True), [255, 255, 255]),
}


@pytest.mark.parametrize("how", TRANSPARENCIES)
def test_transparency_is_shown_on_white_and_said(how: str) -> None:
    write, corner = TRANSPARENCIES[how]
    image, remarks = decode(write(), "RGB")
    assert np.asarray(image)[0, 0].tolist() == corner
    assert remarks == (TRANSPARENT,)
    assert np.asarray(decode(write(), "L")[0])[0, 0] == np.asarray(image.convert("L"))[0, 0]


def test_what_a_palette_does_show_keeps_its_colours() -> None:
    assert seen(palette(0))[0, 1:3].tolist() == [[0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_shown_and_said(kind: str) -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    how = {"lossless": True} if kind == "WEBP" else {}
    content = stored(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(content))))) == 3
    image, remarks = decode(content, "RGB")
    assert np.asarray(image)[2, 2].tolist() == [200, 0, 0]
    assert remarks == (ANIMATED,)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.int32([[0, 70_000]]), "32-bit integers from 0 to 70000 have no known brightness"),
        (np.int32([[-1, 5]]), "32-bit integers from -1 to 5"),
        (np.float32([[0, 300]]), "floating-point numbers from 0 to 300"),
        (np.float32([[-0.5, 0.5]]), "floating-point numbers from -0.5"),
        (np.float32([[0.5, np.nan]]), "floating-point numbers from nan"),
        (np.float32([[0.5, np.inf]]), "floating-point numbers from 0.5 to inf"),
    ],
)
def test_values_of_no_known_brightness_are_refused(values: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decode(stored(Image.fromarray(values), "TIFF"), "RGB")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    noise = Image.fromarray(RANDOM.randint(0, 256, (64, 64, 3), np.uint8))
    content = stored(noise, kind)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(content[: len(content) // 2], "RGB")


def test_an_image_in_memory_is_seen_as_one_in_a_file() -> None:
    image = Image.open(io.BytesIO(turned(6, "PNG")))
    assert np.array_equal(np.asarray(as_seen(image, "RGB")), np.asarray(COLOURS))
    assert not has_alpha(COLOURS.convert("CMYK"))
