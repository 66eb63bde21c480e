"""Reads one image of a source: its bytes, or its pixels for a command that looks at a few images itself."""

from pipeline.images.codec import Decoded, Fit, ImageRefused, refusing
from pipeline.images.decoder import Decoders
from pipeline.images.fetch import ImageLocation, fetch
from pipeline.images.objects import TooLarge
from pipeline.images.source import MAX_IMAGE_BYTES
from pipeline.images.statuses import FETCH_ERROR, REJECTED_SIZE

_decoders = Decoders()


def read_image(image: ImageLocation, size: int, fit: Fit, max_bytes: int = MAX_IMAGE_BYTES) -> Decoded:
    """Fetch an image and decode it in a child process, which ends with this process.

    Raises:
        ImageRefused: as `fetched_bytes` and `Decoder.decode` do.
        OSError: if no child can be started.
    """
    return Decoded.of(_decoders.decode(fetched_bytes(image, max_bytes), size, fit))


def fetched_bytes(image: ImageLocation, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes of an image.

    Raises:
        ImageRefused: with status rejected_size if it has more than `max_bytes` bytes, or else fetch_error.
    """
    with refusing(FETCH_ERROR):
        try:
            return fetch(image, max_bytes=max_bytes)
        except TooLarge as error:
            raise ImageRefused(REJECTED_SIZE, str(error), TooLarge.__name__) from error
