"""`asyrp directions preview`: a sheet of images by strengths. An ordinary run of a few images makes it."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

from asyrp.errors import UserError
from jobs.runs.run import run
from jobs.spec.run import load_spec
from pipeline.images.fetch import fetch
from pipeline.results import sheet
from pipeline.sources.listing import list_images

STRENGTHS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)


def preview(direction: Path, name: str, source: str, output: Path, rows: int, flags: dict[str, Any]) -> None:
    """Edit the first `rows` images of a source at STRENGTHS and write the sheet.

    Raises:
        UserError: as `run` does, or if the source has no image.
    """
    with tempfile.TemporaryDirectory(prefix="asyrp-preview-") as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for index, image in enumerate(itertools.islice(list_images(source), rows)):
            (images / f"{index:03d}.png").write_bytes(fetch(image))  # whatever its format: its bytes say it
        edits = [f"{name}={strength:g}" for strength in STRENGTHS]
        own = {
            "source": str(images),
            "output": f"{folder}/run",
            "edits": edits,
            "directions": {name: str(direction)},
            "preview": rows,
            "shard_size": rows,
        }
        result = run(load_spec(None, own | flags, []))
        if result.sheet is None:
            raise UserError("no image came out: the run was stopped or all images failed")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes((Path(folder) / "run" / sheet.NAME).read_bytes())
