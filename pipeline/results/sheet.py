"""Draws the contact sheet: source, reconstruction and each edit of the first images of a run."""

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pipeline.images.codec import ImageRefused, decode_square, to_uint8
from pipeline.images.read import read_image
from pipeline.images.statuses import OK
from pipeline.run.commit import committed, committed_rows
from pipeline.run.manifest import Row, source_of
from pipeline.run.names import edit_title
from pipeline.run.sinks import read_output
from pipeline.run.stage import ImageFormat, Stage, variant_name
from pipeline.sources.origin import Origin
from pipeline.storage.store import Store

NAME = "report/contact_sheet.png"
MIN_TILE, GAP, HEADER = 128, 4, 24


Corner = tuple[int, int]
"""The left and upper pixel of something on a sheet."""


class Caption(NamedTuple):
    """A text on a sheet: the title of images, in black, or the text in place of an image, in gray."""

    corner: Corner
    text: str
    is_title: bool = True


def lay_sheet(
    size: tuple[int, int], tiles: Iterable[tuple[Corner, Image.Image]], captions: Iterable[Caption]
) -> Image.Image:
    """A white sheet of `size` pixels (width, height) with images and captions on it."""
    sheet = Image.new("RGB", size, "white")
    draw, title_font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for caption in captions:
        if caption.is_title:
            draw.text(caption.corner, caption.text, fill="black", font=title_font)
        else:
            draw.text(caption.corner, caption.text, fill="gray")
    for corner, image in tiles:
        sheet.paste(image, corner)
    return sheet


def write_sheet(store: Store, stages: Sequence[Stage], image_format: ImageFormat, rows: int) -> str | None:
    """Draws the first `rows` images of shard 0 with all their outputs. Gives the sheet's name, or None without
    images."""
    columns: list[str] = ["source"]
    outputs: dict[str, dict[str, Row]] = {}
    origin = Origin(store)
    for stage in sorted(stages, key=lambda s: s.name != "reconstruct"):
        if stage.writes != "images" or 0 not in committed(store, stage.name):
            continue
        columns += [edit_title(variant.edit, variant.strength) for variant in stage.variants]
        for row in map(origin.held, committed_rows(store, stage.name, [0])):
            edit, strength = variant_name(row)
            title = edit_title(edit, stage.planned_strength(edit, strength))
            outputs.setdefault(row["key"], {})[title] = row
    if not outputs:
        return None
    shown = list(outputs.values())[:rows]
    tile = max(MIN_TILE, image_format.size)
    step = tile + GAP
    tiles: list[tuple[Corner, Image.Image]] = []
    captions = [Caption((GAP + x * step, 4), column) for x, column in enumerate(columns)]
    for y, by_title in enumerate(shown):
        images = [_source_tile(next(iter(by_title.values())), image_format)]
        images += [_output_tile(store, by_title.get(column)) for column in columns[1:]]
        for x, image in enumerate(images):
            left, top = GAP + x * step, HEADER + y * step
            if image is None:
                captions.append(Caption((left + 4, top + 4), "no image", is_title=False))
            else:
                tiles.append(((left, top), image.resize((tile, tile), Image.Resampling.BICUBIC)))
    sheet = lay_sheet((len(columns) * step + GAP, HEADER + len(shown) * step), tiles, captions)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    store.write(NAME, buffer.getvalue())
    return NAME


def _source_tile(row: Row, image_format: ImageFormat) -> Image.Image | None:
    try:
        decoded = read_image(source_of(row), image_format.size, image_format.fit, image_format.max_image_bytes)
    except ImageRefused:
        return None  # the row says why
    return Image.fromarray(to_uint8(decoded.pixels))


def _output_tile(store: Store, row: Row | None) -> Image.Image | None:
    if row is None or row["status"] != OK:
        return None
    try:
        return Image.fromarray(decode_square(read_output(store, row), row["width"], "exact").pixels)
    except ImageRefused:
        return None  # `verify --deep` says which
