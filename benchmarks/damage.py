"""Damages files as disks, networks and strangers do. The damage depends on the random numbers alone."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SIDE = 40
Damage = Callable[[bytes, random.Random], bytes]


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes get other values."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        damaged[rng.randrange(len(damaged))] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
    return bytes(damaged)


def flip_header(data: bytes, rng: random.Random) -> bytes:
    """A byte of the first hundred gets another value."""
    at = rng.randrange(min(100, len(data)))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """The file ends too early."""
    return data[: rng.randrange(len(data))]


def double(data: bytes, rng: random.Random) -> bytes:
    """A part of the file comes twice."""
    start, end = sorted(rng.sample(range(len(data) + 1), 2))
    return data[:end] + data[start:]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Two parts that lie side by side change their places."""
    a, b, c = sorted(rng.sample(range(len(data) + 1), 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def blow_up(data: bytes, rng: random.Random) -> bytes:
    """A number of 2 or 4 bytes becomes huge, or small."""
    at, big_endian = rng.randrange(max(1, len(data) - 4)), rng.random() < 0.5
    wide, value = rng.choice("HI"), rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x4000, 0x7FFFFFFF, 0xFFFFFFFF, 10_000))
    number = struct.pack(("<>"[big_endian]) + wide, value & (0xFFFF if wide == "H" else 0xFFFFFFFF))
    return data[:at] + number + data[at + len(number) :]


def damage_chunk(data: bytes, rng: random.Random) -> bytes:
    """A chunk of a PNG is damaged, doubled or left out, and its checksum is right; other files lose a byte."""
    chunks = _png_chunks(data)
    if not chunks:
        at = rng.randrange(len(data))
        return data[:at] + data[at + 1 :]
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    changed = [(kind, flip_bytes(body, rng))] if body and rng.random() < 0.7 else rng.choice(([], [chunks[at]] * 2))
    chunks[at : at + 1] = changed
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def damage_exif(data: bytes, rng: random.Random) -> bytes:
    """Bytes behind a TIFF header change: of an EXIF block, or of a whole TIFF."""
    start = max(data.find(b"II*\0"), data.find(b"MM\0*"))
    if start < 0:
        return flip_bytes(data, rng)
    end = min(len(data), start + 300)
    return data[:start] + flip_bytes(data[start:end], rng) + data[end:]


DAMAGES: tuple[Damage, ...] = (flip_bytes, flip_header, cut, double, swap, blow_up, damage_chunk, damage_exif)


def damaged(data: bytes, rng: random.Random, damages: Sequence[Damage] = DAMAGES) -> bytes:
    """A file with one or a few kinds of damage; those of images by default."""
    for damage in rng.choices(damages, k=rng.choice((1, 1, 2, 3))):
        if len(data) > 8:
            data = damage(data, rng)
    return data


def sound_images() -> dict[str, bytes]:
    """A small image in every format, and in the modes and with the metadata that take ways of their own."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    rgba, rgb = Image.fromarray(noise), Image.fromarray(noise[..., :3])
    grey = rgb.convert("L")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a picture", 72.0
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    marked: dict[str, Any] = {"exif": exif, "icc_profile": profile}
    float_grey = Image.fromarray(np.asarray(grey, np.float32) / 255)
    return {
        "PNG": _file(rgb, "PNG", **marked),
        "PNG RGBA": _file(rgba, "PNG"),
        "PNG P": _file(rgb.quantize(16), "PNG", transparency=3),
        "PNG 16": _file(Image.fromarray(np.asarray(grey, np.uint16) * 257), "PNG"),
        "APNG": _file(rgb, "PNG", save_all=True, append_images=[rgb.transpose(Image.Transpose.ROTATE_90)]),
        "JPEG": _file(rgb, "JPEG", **marked),
        "JPEG progressive": _file(rgb, "JPEG", progressive=True),
        "JPEG CMYK": _file(rgb.convert("CMYK"), "JPEG"),
        "MPO": _file(rgb, "MPO", save_all=True, append_images=[rgb]),
        "WEBP": _file(rgb, "WEBP", **marked),
        "WEBP lossless": _file(rgba, "WEBP", lossless=True),
        "WEBP animated": _file(rgb, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
        "AVIF": _file(rgba, "AVIF", **marked),
        "JPEG2000": _file(rgb, "JPEG2000"),
        "JPEG2000 codestream": _file(rgba, "JPEG2000", no_jp2=True, irreversible=True),
        "TIFF": _file(rgb, "TIFF", **marked),
        "TIFF float": _file(float_grey, "TIFF"),
        **{f"TIFF {name}": _file(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")},
        "TIFF group4": _file(grey.convert("1"), "TIFF", compression="group4"),
        "TIFF LAB": _file(Image.merge("LAB", [grey] * 3), "TIFF"),
        "GIF": _file(rgb.quantize(16), "GIF"),
        "GIF animated": _file(rgb.quantize(16), "GIF", save_all=True, append_images=[grey]),
        "BMP": _file(rgb, "BMP"),
        "BMP P": _file(rgb.quantize(16), "BMP"),
        "PPM": _file(rgb, "PPM"),
        "PGM": b"P2 40 40 255\n" + b" ".join(str(value).encode() for value in noise[..., 0].ravel()),
    }


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, as far as they are whole; none of another file."""
    chunks, at = [], 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def _file(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()
