"""The images that a run has made, as the source of another."""

from collections.abc import Iterator

from asyrp.errors import UserError
from pipeline.additions import CurrentRows
from pipeline.commit import committed
from pipeline.manifest import OK
from pipeline.recipe import FINAL
from pipeline.selection import Selection
from pipeline.source_image import SourceImage
from pipeline.storage import Store

CARRIED = ("key", "edit", "strength", "source_uri")


def images_of_run(url: str, selection: Selection) -> Iterator[SourceImage]:  # noqa: ARG001
    """The edited images that the run at `url` has committed, in the order of its plan. Keys are their names.

    Raises:
        UserError: if it has committed none.
    """
    store = Store(url)
    if not committed(store, FINAL):
        raise UserError(f"the run at {url} has no edited images yet: finish it first")
    for row in CurrentRows(store).of(FINAL):
        if row["status"] == OK:
            name = row["output_uri"].split("/", 3)[3]  # data/<stage>/<shard>.<attempt>/<name>
            columns = {f"source_{column}" if column == "key" else column: row[column] for column in CARRIED}
            uri = store.fs.unstrip_protocol(store.path(row["output_uri"]))
            yield SourceImage(name, uri, row["output_bytes"], row["output_sha256"], columns=columns)
