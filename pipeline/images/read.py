"""Reads one image of a source for a command that looks at a few of them itself."""

from pipeline.images.codec import Decoded, Fit, refusing
from pipeline.images.decoder import Decoders
from pipeline.images.fetch import ImageLocation, fetch
from pipeline.images.statuses import FETCH_ERROR

_decoders = Decoders()


def read_image(image: ImageLocation, size: int, fit: Fit) -> Decoded:
    """Fetch an image and decode it in a child process, which ends with this process.

    Raises:
        ImageRefused: if it cannot be fetched (status fetch_error), or as `Decoder.decode` does.
        OSError: if no child can be started.
    """
    with refusing(FETCH_ERROR):
        data = fetch(image)
    return _decoders.decode(data, size, fit)
