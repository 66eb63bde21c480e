"""Finds the images of a source that are new or changed since a version of the data set, and those to be made again."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from pipeline.datasets.known_images import KeySet, KnownImages, version_text
from pipeline.datasets.versions import Version, read_rows
from pipeline.images.source import SourceImage
from pipeline.images.statuses import FETCH_ERROR
from pipeline.run.manifest import Row
from pipeline.storage.store import Store


class Changes:
    """Compares a listing with the images of a version, while the listing is read.

    `counts` holds the number of images that are new, changed, again or kept. An image is `again` if it is unchanged but
    was made by another recipe, or could not be fetched the last time.
    """

    def __init__(self, known: KnownImages, again: KeySet) -> None:
        self.known, self._again = known, again
        self.counts: Counter[str] = Counter()

    @classmethod
    def since(cls, store: Store, version: Version | None, recipe: str) -> "Changes":
        """The changes since a version. Its images that another recipe made count as `again`. Without a version all are
        new."""

        def rows(*columns: str) -> Iterator[Row]:
            return read_rows(store, version, ("key", *columns)) if version else iter(())

        versions = (
            (row["key"], version_text(row["source_size"], row["source_etag"]))
            for row in rows("source_size", "source_etag")
        )
        again = (
            row["key"] for row in rows("recipe", "status") if row["recipe"] != recipe or row["status"] == FETCH_ERROR
        )
        return cls(KnownImages(versions), KeySet(again))

    def to_do(self, listing: Iterable[SourceImage]) -> Iterator[SourceImage]:
        """The images of a listing that are to be edited: all but those that are kept."""
        for image in listing:
            standing: str = self.known.compare(image)
            if standing == "same":
                standing = "again" if image.key in self._again else "kept"
            self.counts[standing] += 1
            if standing != "kept":
                yield image

    def keeps(self, done: KeySet) -> Callable[[str], bool]:
        """A test on keys: whether the next version keeps the rows that the image has now. It does not if the image is
        among those `done` or is gone from the source."""
        return lambda key: key not in done and not self.known.is_gone(key)
