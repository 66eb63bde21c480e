"""What of a source is to be done, given the version that a data set has."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator

from pipeline.known_images import KnownImages, version_text
from pipeline.plan import hash64
from pipeline.source_image import SourceImage
from pipeline.storage import Store
from pipeline.versions import Version, read_rows

TRIED_AGAIN = "fetch_error"
"""The status of rows whose image may be had another time."""


class Changes:
    """Sorts a listing by what became of its images since a version, while it passes by.

    `counts` are images: new, changed, again (as they were, but to be done with another recipe, or not fetched the last
    time) and kept.
    """

    def __init__(self, known: KnownImages, again: Container[int]) -> None:
        self.known, self._again = known, again
        self.counts: Counter[str] = Counter()

    @classmethod
    def since(cls, store: Store, version: Version | None, recipe: str) -> "Changes":
        """Changes since a version, whose images are to have been made by `recipe`; without one, everything is new."""
        again: set[int] = set()

        def images() -> Iterator[tuple[str, str]]:
            columns = ("key", "source_size", "source_etag", "status", "recipe")
            for row in read_rows(store, version, columns) if version else ():
                if row["recipe"] != recipe or row["status"] == TRIED_AGAIN:
                    again.add(hash64(row["key"]))
                yield row["key"], version_text(row["source_size"], row["source_etag"])

        return cls(KnownImages(images()), again)

    def to_do(self, listing: Iterable[SourceImage]) -> Iterator[SourceImage]:
        """The images of a listing that are not kept."""
        for image in listing:
            standing: str = self.known.look_at(image)
            if standing == "same":
                standing = "again" if hash64(image.key) in self._again else "kept"
            self.counts[standing] += 1
            if standing != "kept":
                yield image

    def keeps(self, done: Container[int]) -> Callable[[str], bool]:
        """Whether an image's rows of the version stand in the next one, given the images that are done, as hashes of
        their keys: not of those, and not of an image that is gone."""
        return lambda key: hash64(key) not in done and not self.known.is_gone(key)
