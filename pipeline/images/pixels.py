"""Turns an image of any mode into 8-bit sRGB: upright, its colours as its profile says, on white where transparent.

Work is done strip by strip, because the copies of a whole image of 100 million pixels would fill a machine.
"""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms

STRIP_PIXELS = 1_000_000
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation: how an image is turned upright."""

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
SAME_COLOURS = 3
"""A profile that moves no colour by more levels than this is sRGB in another notation."""

EIGHT_BITS = ((np.arange(65_536) + 128) // 257).astype(np.uint8)
"""By value of 16 bits: the value of 8 bits."""

Convert = Callable[[Image.Image], Image.Image]


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; the same object, not a copy, if there is nothing to turn."""
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, that is upright, if the EXIF block cannot be read: its pixels are sound all the same."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # Pillow raises whatever the bytes of a block make of its parser
        return 1
    return orientation if isinstance(orientation, int) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB and in the colours of sRGB, on white where it is transparent.

    A profile that is broken, or made for images of other channels, counts as sRGB. Numbers become grey as follows:

    - whole numbers (16-bit grey): 65535 is white; larger numbers are white, too
    - floats: 1 is white if no number is larger, else 255 if none is larger, else 65535; negative numbers are black

    Raises:
        ValueError: if the image holds NaN or infinity.
    """
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    to_bytes, mode = _to_bytes(image)
    to_srgb = _to_srgb(image.info.get("icc_profile"), mode)
    if image.mode == "RGB" and to_srgb is None and not has_alpha:
        return image

    def convert(strip: Image.Image) -> Image.Image:
        colours = to_bytes(strip)
        rgb = colours.convert("RGB") if to_srgb is None else to_srgb.apply(colours)
        return _on_white(rgb, _alpha(strip)) if has_alpha else rgb

    return _in_strips(image, convert)


def _in_strips(image: Image.Image, convert: Convert) -> Image.Image:
    """The image in RGB, each strip of it converted on its own."""
    rgb = Image.new("RGB", image.size)
    height = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, height):
        box = (0, top, image.width, min(top + height, image.height))
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _to_bytes(image: Image.Image) -> tuple[Convert, str]:
    """How a strip of the image becomes one of a mode with a byte for each channel and without alpha, and that mode."""
    mode = image.mode
    if mode == "F":
        white = _white(image)
        return lambda strip: _grey_of_floats(strip, white), "L"
    if mode == "I" or mode.startswith("I;16"):
        return _grey_of_integers, "L"
    if mode in ("1", "L", "LA", "La"):
        return lambda strip: _through("LA" if mode == "La" else mode, strip).convert("L"), "L"
    if mode in ("CMYK", "LAB"):
        return lambda strip: strip, mode
    return lambda strip: _through("RGBA" if mode in ("P", "PA", "RGBa") else mode, strip).convert("RGB"), "RGB"


def _through(mode: str, strip: Image.Image) -> Image.Image:
    return strip if strip.mode == mode else strip.convert(mode)


def _grey_of_integers(strip: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling.
    return Image.fromarray(EIGHT_BITS[np.clip(np.asarray(strip), 0, 65_535)])


def _white(image: Image.Image) -> float:
    """The number that is white in an image of floats."""
    _, largest = cast(tuple[float, float], image.getextrema())
    return next((white for white in (1.0, 255.0) if largest <= white), 65_535.0)


def _grey_of_floats(strip: Image.Image, white: float) -> Image.Image:
    values = np.asarray(strip, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the image holds NaN or infinity")
    return Image.fromarray(np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8))


def _alpha(strip: Image.Image) -> Image.Image:
    layer = _through("LA", strip) if strip.mode == "La" else strip
    return layer.convert("RGBA").getchannel("A")


def _on_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    layer = rgb.copy()
    layer.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What takes the colours of a profile to sRGB; None if they are those of sRGB, or no profile says what they are."""
    if profile is None and mode != "LAB":
        return None
    try:
        source = LAB if mode == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        transform = ImageCms.buildTransform(source, SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    return transform if mode in ("CMYK", "LAB") or _moves(transform, mode) else None


def _moves(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform moves any colour by more than SAME_COLOURS levels."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
    colours = Image.fromarray(grid).convert(mode)
    moved = ImageChops.difference(transform.apply(colours), colours.convert("RGB"))
    return bool(np.asarray(moved).max() > SAME_COLOURS)
