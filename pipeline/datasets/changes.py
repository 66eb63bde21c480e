"""What of a source is to be done, given the version that a data set has."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from pipeline.datasets.known_images import KeySet, KnownImages, version_text
from pipeline.datasets.versions import Version, read_rows
from pipeline.images.source import SourceImage
from pipeline.images.statuses import FETCH_ERROR
from pipeline.run.manifest import Row
from pipeline.storage.store import Store


class Changes:
    """Sorts a listing by what became of its images since a version, while it passes by.

    `counts` are images: new, changed, again (as they were, but to be done with another recipe, or not fetched the last
    time) and kept.
    """

    def __init__(self, known: KnownImages, again: KeySet) -> None:
        self.known, self._again = known, again
        self.counts: Counter[str] = Counter()

    @classmethod
    def since(cls, store: Store, version: Version | None, recipe: str) -> "Changes":
        """Changes since a version, whose images are to have been made by `recipe`; without one, everything is new."""

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
        """The images of a listing that are not kept."""
        for image in listing:
            standing: str = self.known.look_at(image)
            if standing == "same":
                standing = "again" if image.key in self._again else "kept"
            self.counts[standing] += 1
            if standing != "kept":
                yield image

    def keeps(self, done: KeySet) -> Callable[[str], bool]:
        """Whether the rows of an image stand in the next version, given the images that are done: not those of such
        an image, nor of one that is gone."""
        return lambda key: key not in done and not self.known.is_gone(key)
