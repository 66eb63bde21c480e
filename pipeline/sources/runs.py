"""Lists the images that a run has made, as the source of another run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from asyrp.errors import UserError
from pipeline.images.codec import Codec
from pipeline.images.selection import Selection
from pipeline.images.source import SourceImage
from pipeline.images.statuses import OK
from pipeline.run.additions import CurrentRows
from pipeline.run.commit import committed
from pipeline.run.names import check_template, output_name
from pipeline.run.plan import RUN
from pipeline.run.sinks import output_image
from pipeline.run.stage import FINAL, variant_name
from pipeline.storage.records import read_as
from pipeline.storage.store import Store

CARRIED = ("key", "edit", "strength", "source_uri")


@dataclass(frozen=True)
class _OutputSpec:
    """The part of a run's spec that names its images."""

    name: str
    codec: Codec


@dataclass(frozen=True)
class _Made:
    spec: _OutputSpec


def images_of_run(url: str, selection: Selection) -> Iterator[SourceImage]:  # noqa: ARG001
    """The edited images that the run at `url` has committed, in the order of its plan. Their keys are their names.

    Raises:
        UserError: if the run has committed none.
    """
    store = Store(url)
    if not committed(store, FINAL):
        raise UserError(f"the run at {url} has no edited images yet: finish it first")
    spec = read_as(store, RUN, _Made).spec
    check_template(spec.name)
    for row in CurrentRows(store).of_stage(FINAL):
        if row["status"] == OK:
            name = output_name(spec.name, spec.codec, row["key"], *variant_name(row))
            columns = {f"source_{column}" if column == "key" else column: row[column] for column in CARRIED}
            yield replace(output_image(store, row), key=name, columns=columns)
