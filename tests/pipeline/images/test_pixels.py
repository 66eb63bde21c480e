"""What the pixels of an image mean: modes, profiles, orientation, numbers that are no bytes."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from pipeline.images import pixels
from pipeline.images.codec import ImageRefused, decode, decode_square, format_of
from pipeline.images.source import EXTENSIONS, FORMATS
from tests.support.pictures import DISPLAY_P3, SRGB, grey_profile, matrix_profile
from tests.support.runs import DATA, SAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:.*deprecated")

FACE = Image.open(sorted(SAMPLES.glob("*.png"))[0]).convert("RGB")
GREY = np.asarray(FACE.convert("L"))


def file_bytes(image: Image.Image, format_name: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return decode_square(data, 32, "crop").pixels.astype(int)


def texture(*shape: int, levels: int = 256) -> np.ndarray:
    numbers = np.arange(int(np.prod(shape)), dtype=np.uint64) ** 2 * 2654435761 % 2**32 * levels >> 32
    return numbers.astype(np.uint8 if levels <= 256 else np.uint16).reshape(shape)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def ordinary_images() -> dict[str, bytes]:
    rgb, grey = Image.fromarray(texture(96, 120, 3)), Image.fromarray(texture(96, 120))
    built_in = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photographs = [path for path in sorted((DATA / "photographs").iterdir()) if path.suffix in EXTENSIONS]
    return {
        **{f"photograph {path.name}": path.read_bytes() for path in photographs},
        "RGB": file_bytes(rgb),
        "RGBA": file_bytes(Image.fromarray(texture(96, 120, 4))),
        "LA": file_bytes(Image.fromarray(texture(96, 120, 2), "LA")),
        "L": file_bytes(grey),
        "1": file_bytes(grey.convert("1", dither=Image.Dither.NONE)),
        "P": file_bytes(Image.fromarray(texture(96, 120) % 8).convert("P")),
        "16 bit grey": file_bytes(Image.fromarray(texture(96, 120, levels=65_536))),
        "RGB, a transparent colour": file_bytes(rgb, transparency=tuple(texture(96, 120, 3)[0, 0].tolist())),
        **{f"RGB, orientation {n}": file_bytes(rgb, exif=oriented(n)) for n in range(1, 9)},
        "RGB, tagged sRGB": file_bytes(rgb, icc_profile=built_in),
    }


DIGESTS = {
    "photograph astronaut.jpg": "f949b0406898360f 40bb76331b68cbf5",
    "photograph camera.png": "679c37f3c502ee9a 1dcf568d9f6c3809",
    "photograph chelsea.png": "29db4d5675f5ca0f 456189ea497f867f",
    "photograph coffee.jpg": "b251a3b71af28faa 7d20f6c00ecf2c41",
    "RGB": "76f157f5071f9909 27a9c92857a03513",
    "RGBA": "62f3bc2caa4648e6 844c438a724f7f45",
    "LA": "5120f2aeda466e49 6ee485442fa971fc",
    "L": "85a1bd01da08eec1 35352296ec6c3dd5",
    "1": "875d35e0a87e3fd1 5b3629f9dc61e50c",
    "P": "5f9a857e45a1d432 068284c6ba21d563",
    "16 bit grey": "ab2ab80845900ff4 3f0d451a747556ee",
    "RGB, a transparent colour": "76f157f5071f9909 27a9c92857a03513",
    "RGB, orientation 1": "76f157f5071f9909 27a9c92857a03513",
    "RGB, orientation 2": "e97a1193aceedfaa ceaf3081c025ae76",
    "RGB, orientation 3": "53abb6135db399c2 5e2995e60081cfaa",
    "RGB, orientation 4": "de8f616814b73e54 0c5732ec9cca08ba",
    "RGB, orientation 5": "b6bf8671c1909c55 761c77ce346dad4b",
    "RGB, orientation 6": "ab5cddfe2b452bb0 f853be23ec54e5db",
    "RGB, orientation 7": "e22802bd6953209a e69789d513aab431",
    "RGB, orientation 8": "7c8bb85af1ec650b d65d7be579556505",
    "RGB, tagged sRGB": "76f157f5071f9909 27a9c92857a03513",
}
"""Of what earlier versions made of ordinary images, at 32 and 96 pixels."""


@pytest.mark.parametrize("name", DIGESTS)
def test_ordinary_images_keep_the_pixels_that_earlier_versions_gave_them(name):
    data = ordinary_images()[name]
    found = [hashlib.sha256(decode(data, size, "crop").pixels.tobytes()).hexdigest()[:16] for size in (32, 96)]
    assert " ".join(found) == DIGESTS[name]


@pytest.mark.parametrize("height", [1, 7, 33])
def test_strips_change_no_pixel(monkeypatch, height):
    data = ordinary_images()
    whole = {name: decoded(data[name]) for name in ("RGBA", "P", "16 bit grey", "RGB, a transparent colour")}
    monkeypatch.setattr(pixels, "STRIP_PIXELS", 120 * height)
    for name, expected in whole.items():
        assert (decoded(data[name]) == expected).all()


def test_a_display_p3_image_is_converted_by_its_profile():
    in_p3 = ImageCms.profileToProfile(FACE, ImageCms.createProfile("sRGB"), io.BytesIO(matrix_profile(DISPLAY_P3)))
    assert np.abs(np.asarray(in_p3).mean((0, 1)) - [134.9, 104.7, 91.7]).max() < 0.2
    found = decoded(file_bytes(in_p3, icc_profile=matrix_profile(DISPLAY_P3)))
    assert np.abs(found.mean((0, 1)) - [139.6, 103.0, 88.2]).max() < 0.2
    assert np.abs(found - np.asarray(FACE)).max() <= 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_counts_in_every_mode_of_colour(mode):
    image = FACE.convert(mode)
    plain, tagged = file_bytes(image), file_bytes(image, icc_profile=matrix_profile(DISPLAY_P3))
    assert decoded(tagged)[..., 0].mean() - decoded(plain)[..., 0].mean() > 3


def test_grey_is_converted_by_its_profile_with_and_without_alpha():
    linear = np.arange(256) / 255
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    for mode in ("L", "LA"):
        found = decoded(file_bytes(FACE.convert(mode), icc_profile=grey_profile(1.0)))
        assert np.abs(found[..., 0] - expected[GREY]).max() <= 1


@pytest.mark.parametrize(
    "profile",
    [matrix_profile(SRGB), b"no profile", matrix_profile(DISPLAY_P3)[:300], grey_profile(1.8), bytes(200)],
    ids=["sRGB", "text", "cut off", "of other channels", "zeros"],
)
def test_a_profile_that_is_srgb_or_of_no_use_moves_no_pixel(profile):
    assert (decoded(file_bytes(FACE, icc_profile=profile)) == np.asarray(FACE)).all()


def test_cmyk_is_converted_with_and_without_a_profile_of_its_channels():
    for options in ({}, {"icc_profile": matrix_profile(DISPLAY_P3)}):
        found = decoded(file_bytes(FACE.convert("CMYK"), "TIFF", **options))
        assert np.abs(found - np.asarray(FACE)).max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        file_bytes(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
        file_bytes(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        file_bytes(Image.fromarray(GREY.astype(np.float32) * 257), "TIFF"),
        file_bytes(Image.fromarray(GREY.astype(np.uint16) * 257)),
        file_bytes(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
        file_bytes(Image.frombytes("I;16B", (32, 32), (GREY.astype(">u2") * 257).tobytes()), "TIFF"),
        file_bytes(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
        b"P5\n32 32\n65535\n" + (GREY.astype(">u2") * 257).tobytes(),
        file_bytes(Image.fromarray(GREY)),
        file_bytes(Image.fromarray(GREY).convert("LA")),
    ],
    ids=[
        "float 0..1",
        "float 0..255",
        "float 0..65535",
        "I;16",
        "I;16 TIFF",
        "I;16B",
        "I",
        "PGM of 16 bits",
        "L",
        "LA",
    ],
)
def test_every_kind_of_grey_is_the_same_grey(data):
    assert (decoded(data) == GREY[..., None]).all()


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits and as many channels, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_colours_of_16_bits_are_scaled():
    values = np.asarray(FACE).astype(np.uint16) * 257
    opaque = np.full((32, 32, 1), 65_535, np.uint16)
    assert (decoded(png16(values)) == np.asarray(FACE)).all()
    assert (decoded(png16(np.concatenate([values, opaque], 2))) == np.asarray(FACE)).all()
    assert (decoded(png16(np.concatenate([values[..., :1], opaque], 2)))[..., 1] == np.asarray(FACE)[..., 0]).all()


def in_mode(mode: str) -> Image.Image:
    """The face in a mode; Pillow has no direct way to some of them."""
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(FACE, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    if mode == "P":
        return FACE.quantize(8)
    return FACE.convert({"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode, "RGB")).convert(mode)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "La", "PA", "RGBa", "RGBX", "HSV", "YCbCr", "CMYK", "LAB"])
def test_every_mode_becomes_its_colours(mode):
    same = {"1": "1", "P": "P", "PA": "P", "LA": "L", "La": "L"}.get(mode, "RGB")
    expected = (in_mode("P") if mode == "P" else FACE.convert(same)).convert("RGB")
    found = np.asarray(pixels.to_rgb(in_mode(mode))).astype(int)
    assert np.abs(found - np.asarray(expected)).mean() < 2.5


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_an_image_with_a_number_that_is_none_is_a_decode_error(odd):
    values = GREY.astype(np.float32) / 255
    values[3, 4] = odd
    with pytest.raises(ImageRefused, match="NaN or infinity") as refused:
        decoded(file_bytes(Image.fromarray(values), "TIFF"))
    assert refused.value.status == "decode_error"


def with_exif(block: bytes) -> bytes:
    return file_bytes(FACE, "JPEG", quality=95, exif=b"Exif\0\0" + block)


NEGATIVE_RATIONAL = (
    b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHLLHHLL", 0x112, 3, 1, 6, 0x11A, 10, 1, 38) + bytes(4)
) + struct.pack("<ll", -72, 1)
TEXT_AS_RATIONAL = (
    b"MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHLLHHLHH", 0x10E, 5, 1, 38, 0x112, 3, 1, 6, 0) + bytes(4)
) + struct.pack(">LL", 1, 1)
WIDTH_AS_DOUBLE = (
    b"MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHLLHHLHH", 0x100, 12, 1, 38, 0x112, 3, 1, 6, 0) + bytes(4)
) + struct.pack(">d", 32.0)


@pytest.mark.parametrize("block", [NEGATIVE_RATIONAL, TEXT_AS_RATIONAL, WIDTH_AS_DOUBLE])
def test_an_odd_exif_block_still_turns_its_image(block):
    plain = decoded(with_exif(b"II*\0\x08\0\0\0\0\0\0\0\0\0"))
    assert (decoded(with_exif(block)) == np.rot90(plain, -1)).all()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", NEGATIVE_RATIONAL]))
def test_no_exif_block_makes_an_image_unreadable(block, head):
    plain = decoded(with_exif(b"II*\0\x08\0\0\0\0\0\0\0\0\0"))
    found = decoded(with_exif(head + block))
    assert sorted(found.reshape(-1)) == sorted(plain.reshape(-1))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "XMP", "profile"])
def test_texts_and_profiles_of_megabytes_are_no_reason_to_refuse_an_image(kind):
    info, large = PngImagePlugin.PngInfo(), "x" * 3_000_000
    if kind == "zTXt":
        info.add_text("note", large, zip=True)
    elif kind == "iTXt":
        info.add_itxt("note", large, zip=True)
    elif kind == "XMP":
        info.add_itxt("XML:com.adobe.xmp", large)
    profile = {"icc_profile": matrix_profile(SRGB) + bytes(3_000_000)} if kind == "profile" else {}
    assert (decoded(file_bytes(FACE, pnginfo=info, **profile)) == np.asarray(FACE)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_and_known_by_its_name(name):
    data = file_bytes(FACE, name)
    assert np.abs(decoded(data) - np.asarray(FACE)).mean() < 10
    assert format_of(data) == name and FORMATS[name][0] in EXTENSIONS


def test_a_photograph_with_a_second_one_behind_it_is_the_first_one():
    data = file_bytes(FACE, "MPO", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    assert np.abs(decoded(data) - np.asarray(FACE)).mean() < 10 and format_of(data) == "JPEG"


@pytest.mark.parametrize("name", ["EPS", "PCX", "TGA", "ICO", "IM"])
def test_other_formats_are_not_even_tried(name):
    with pytest.raises(ImageRefused, match="not one of the formats PNG, JPEG") as refused:
        decoded(file_bytes(FACE, name))
    assert refused.value.status == "decode_error"


def test_a_format_that_this_pillow_lacks_is_said(monkeypatch):
    monkeypatch.setattr("pipeline.images.codec.features.check", lambda feature: feature != "avif")
    with pytest.raises(ImageRefused, match=r"does not read AVIF"):
        decoded(b"what is it")


def test_no_two_formats_have_an_extension_in_common():
    assert len(set(EXTENSIONS)) == len(EXTENSIONS)
    registered = Image.registered_extensions()
    for name, extensions in FORMATS.items():
        assert {registered[extension] for extension in extensions if extension in registered} <= {name, "MPO"}
