"""Decodes image bytes to a square float array and encodes such arrays, and refuses images that cannot be edited."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from pipeline.images import png
from pipeline.images.pixels import to_rgb, upright
from pipeline.images.source import FORMATS
from pipeline.images.statuses import DECODE_ERROR, REJECTED_SIZE

Fit = Literal["crop", "exact"]
Codec = Literal["png", "jpeg", "webp"]

EXTENSION = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MAX_PIXELS = 100_000_000
MAX_UPSCALE = 8
"""An image that would have to grow by a larger factor is refused: it holds too little detail to edit."""

OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""The formats that a build of Pillow can lack, and what it calls the feature."""

# A profile or a text of megabytes is no reason to refuse an image, and 64 MB of text can do no harm.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# Pillow warns of odd metadata, and of many pixels before we count them; nobody can do anything about either.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageRefused(Exception):
    """An image cannot be edited. The error holds a manifest status, a sentence that says why, and the type of the
    error behind it."""

    def __init__(self, status: str, reason: str, error_type: str = "ImageRefused") -> None:
        super().__init__(reason)
        self.status, self.error_type = status, error_type


@contextmanager
def refusing(status: str) -> Iterator[None]:
    """The wall around one image: whatever is raised inside becomes its refusal, with a manifest status.

    It does not ask what error it is. Bytes that somebody else wrote can make a library raise anything.

    Raises:
        ImageRefused: for every error of the image.
        MemoryError: as it is, because it is the error of the process.
    """
    try:
        yield
    except (ImageRefused, MemoryError):
        raise
    except Exception as error:
        raise ImageRefused(status, str(error) or type(error).__name__, type(error).__name__) from error


@dataclass(frozen=True)
class Square:
    """A decoded image: `pixels` uint8 [size, size, 3], and the original width and height in pixels."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True)
class Decoded:
    """A decoded image: `pixels` float32 [3, size, size] in [-1, 1], and the original width and height in pixels."""

    pixels: NDArray[np.float32]
    width: int
    height: int

    @classmethod
    def of(cls, square: Square) -> "Decoded":
        """The decoded image with its pixels as floats."""
        return cls(to_floats(square.pixels), square.width, square.height)


def decode(data: bytes, size: int, fit: Fit) -> Decoded:
    """Decode an image in this process; `decode_square` says how.

    It is for images that were decoded before, or that are decoded while somebody waits. The worker uses a `Decoder`,
    which a crash of a codec cannot leave.

    Raises:
        ImageRefused: as `decode_square` does.
    """
    return Decoded.of(decode_square(data, size, fit))


def decode_square(data: bytes, size: int, fit: Fit) -> Square:
    """Decode an image, upright and in sRGB, to a square of `size` pixels.

    `fit` "crop" takes the centre square and resizes it (Lanczos); "exact" refuses images of another size. Transparent
    images are laid on white. The first frame of an animation is taken. Damage in a PNG's texts and the like is passed
    over.

    Raises:
        ImageRefused: with status decode_error if the bytes are not a readable image, or rejected_size if the image is
            too large to decode safely, too small to edit, or of another size although `fit` is "exact".
    """
    try:
        return _square(data, size, fit)
    except ImageRefused as refusal:
        lean = png.without_extras(data) if refusal.status == DECODE_ERROR else None
        if lean is None:
            raise
    return _square(lean, size, fit)


def _square(data: bytes, size: int, fit: Fit) -> Square:
    with refusing(DECODE_ERROR), _open(data) as image:
        _check_pixels(image)
        _check_size(*image.size, size, fit)  # a turn changes nothing here
        image.load()
        turned = upright(image)
        square = _centre_square(to_rgb(turned), size)
        return Square(np.asarray(square), *turned.size)


def format_of(data: bytes) -> str | None:
    """Which of FORMATS an image has; None if it has none of them."""
    try:
        with refusing(DECODE_ERROR), _open(data) as image:
            return image.format if image.format in FORMATS else "JPEG"  # MPO: a JPEG with more behind it
    except ImageRefused:
        return None


def _open(data: bytes) -> Image.Image:
    """Read the header of an image. Raises ImageRefused if there is none, or it announces too many pixels."""
    try:
        return Image.open(io.BytesIO(data), formats=tuple(FORMATS))
    except Image.DecompressionBombError as error:
        raise ImageRefused(REJECTED_SIZE, str(error), type(error).__name__) from error
    except UnidentifiedImageError as error:
        raise ImageRefused(DECODE_ERROR, _unidentified(data), type(error).__name__) from error


MAGIC = {"PNG": (b"\x89PNG",), "JPEG": (b"\xff\xd8\xff",), "GIF": (b"GIF8",), "TIFF": (b"II*\0", b"MM\0*")}
"""How files of a format begin."""


def _unidentified(data: bytes) -> str:
    """Says what is wrong with bytes of which Pillow knows nothing."""
    if not data:
        return "the file is empty"
    lacking = [name for name, feature in OPTIONAL.items() if not features.check(feature)]
    known = ", ".join(name for name in FORMATS if name not in lacking)
    if begun := next((name for name, magic in MAGIC.items() if data.startswith(magic)), None):
        return f"it begins as {begun} and is damaged"
    said = f"not one of the formats {known}"
    return f"{said} (this build of Pillow does not read {', '.join(lacking)})" if lacking else said


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageRefused(REJECTED_SIZE, f"{image.width} x {image.height} is over the limit of {MAX_PIXELS:,} pixels")


def _check_size(width: int, height: int, size: int, fit: Fit) -> None:
    if fit == "exact" and (width, height) != (size, size):
        raise ImageRefused(REJECTED_SIZE, f"{width} x {height} is not {size} x {size}, which fit 'exact' demands")
    if min(width, height) * MAX_UPSCALE < size:
        raise ImageRefused(REJECTED_SIZE, f"{width} x {height} is too small: {size} px is over {MAX_UPSCALE} times")


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return image.crop(box)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=2.0)


def encode(pixels: NDArray[np.uint8], codec: Codec, quality: int) -> bytes:
    """Encode uint8 [H, W, 3]. `quality` applies to JPEG and WebP; PNG is lossless, level 1."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if codec == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, codec.upper(), quality=quality)
    return buffer.getvalue()


def to_floats(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert uint8 [H, W, 3] to float32 [3, H, W] in [-1, 1]."""
    return np.asarray(pixels, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert float [3, H, W] in [-1, 1] to uint8 [H, W, 3], rounded and clipped."""
    return np.clip((pixels.transpose(1, 2, 0) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
