"""Decodes image bytes to a square float array and encodes such arrays, and refuses images that cannot be edited."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pipeline.images.statuses import DECODE_ERROR, REJECTED_SIZE

Fit = Literal["crop", "exact"]
Codec = Literal["png", "jpeg", "webp"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
EXTENSION = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MAX_PIXELS = 100_000_000
MAX_UPSCALE = 8
"""An image that would have to grow by a larger factor is refused: it holds too little detail to edit."""


class ImageRefused(Exception):
    """An image cannot be edited. The error holds a manifest status and a sentence that says why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Decoded:
    """A decoded image: `pixels` float32 [3, size, size] in [-1, 1], and the original width and height in pixels."""

    pixels: NDArray[np.float32]
    width: int
    height: int


def decode(data: bytes, size: int, fit: Fit) -> Decoded:
    """Decode an image, upright and in RGB, to a square of `size` pixels.

    `fit` "crop" takes the centre square and resizes it (Lanczos); "exact" refuses images of another size. Transparent
    images are laid on white. The first frame of an animation is taken.

    Raises:
        ImageRefused: with status decode_error if the bytes are not a readable image, or rejected_size if the image is
            too large to decode safely, too small to edit, or of another size although `fit` is "exact".
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image)
            upright = _upright(image)
            width, height = upright.size
            _check_size(width, height, size, fit)
            rgb = _to_rgb(upright)
    except ImageRefused:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRefused(REJECTED_SIZE, str(error)) from error
    except UnidentifiedImageError as error:
        what = "the file is empty" if not data else f"not one of the formats {', '.join(FORMATS)}"
        raise ImageRefused(DECODE_ERROR, what) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError) as error:
        # Pillow's decoders raise these errors on damaged bytes. Any other error is a bug here and must be seen.
        raise ImageRefused(DECODE_ERROR, f"{type(error).__name__}: {error}") from error
    square = _centre_square(rgb, size)
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    return Decoded(pixels, width, height)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageRefused(REJECTED_SIZE, f"{image.width} x {image.height} is over the limit of {MAX_PIXELS:,} pixels")


def _check_size(width: int, height: int, size: int, fit: Fit) -> None:
    if fit == "exact" and (width, height) != (size, size):
        raise ImageRefused(REJECTED_SIZE, f"{width} x {height} is not {size} x {size}, which fit 'exact' demands")
    if min(width, height) * MAX_UPSCALE < size:
        raise ImageRefused(REJECTED_SIZE, f"{width} x {height} is too small: {size} px is over {MAX_UPSCALE} times")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; the same object, not a copy, if there is nothing to turn."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # For 16-bit grey, Pillow's own conversion clips at 255 instead of scaling.
        grey = np.asarray(image, dtype=np.float64) / 257
        return Image.fromarray(np.clip(grey.round(), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return image.crop(box)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=2.0)


def encode(pixels: NDArray[np.float32], codec: Codec, quality: int) -> bytes:
    """Encode float32 [3, H, W] in [-1, 1], clipped. `quality` applies to JPEG and WebP; PNG is lossless, level 1."""
    buffer = io.BytesIO()
    image = Image.fromarray(to_uint8(pixels))
    if codec == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, codec.upper(), quality=quality)
    return buffer.getvalue()


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert float [3, H, W] in [-1, 1] to uint8 [H, W, 3], rounded and clipped."""
    return np.clip((pixels.transpose(1, 2, 0) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
