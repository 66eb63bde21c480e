"""The contact sheet: source | reconstruction | each edit, for the first images of a run."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.images.codec import ImageRefused, decode, to_uint8
from pipeline.images.fetch import fetch
from pipeline.run.commit import committed, committed_rows
from pipeline.run.manifest import OK, Row, source_of
from pipeline.run.sinks import read_output
from pipeline.run.stage import ImageFormat, Stage, edit_title, variant_name
from pipeline.storage.store import Store

NAME = "report/contact_sheet.png"
MIN_TILE, GAP, HEADER = 128, 4, 24


def write_sheet(store: Store, stages: Sequence[Stage], image_format: ImageFormat, rows: int) -> str | None:
    """Draw the first `rows` images of shard 0 with all their outputs; the sheet's name, or None without any."""
    columns: list[str] = ["source"]
    outputs: dict[str, dict[str, Row]] = {}
    for stage in sorted(stages, key=lambda s: s.name != "reconstruct"):
        if stage.writes != "images" or 0 not in committed(store, stage.name):
            continue
        columns += [edit_title(variant.edit, variant.strength) for variant in stage.variants]
        for row in committed_rows(store, stage.name, [0]):
            edit, strength = variant_name(row)
            title = edit_title(edit, stage.planned_strength(edit, strength))
            outputs.setdefault(row["key"], {})[title] = row
    if not outputs:
        return None
    shown = list(outputs.items())[:rows]
    tile = max(MIN_TILE, image_format.size)
    sheet = Image.new("RGB", (len(columns) * (tile + GAP) + GAP, HEADER + len(shown) * (tile + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, column in enumerate(columns):
        draw.text((GAP + x * (tile + GAP), 4), column, fill="black", font=ImageFont.load_default(14))
    for y, (_, by_title) in enumerate(shown):
        tiles = [_source_tile(next(iter(by_title.values())), image_format)]
        tiles += [_output_tile(store, by_title.get(column)) for column in columns[1:]]
        for x, image in enumerate(tiles):
            place = (GAP + x * (tile + GAP), HEADER + y * (tile + GAP))
            if image is None:
                draw.text((place[0] + 4, place[1] + 4), "no image", fill="gray")
            else:
                sheet.paste(image.resize((tile, tile), Image.Resampling.BICUBIC), place)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    store.write(NAME, buffer.getvalue())
    return NAME


def _source_tile(row: Row, image_format: ImageFormat) -> Image.Image | None:
    try:
        decoded = decode(fetch(source_of(row)), image_format.size, image_format.fit)
    except (OSError, ImageRefused):
        return None  # the row says why
    return Image.fromarray(to_uint8(decoded.pixels))


def _output_tile(store: Store, row: Row | None) -> Image.Image | None:
    if row is None or row["status"] != OK:
        return None
    return Image.open(io.BytesIO(read_output(store, row))).convert("RGB")
