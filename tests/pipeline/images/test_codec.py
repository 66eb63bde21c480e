"""Which images are taken, how, and which are refused with what status."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline.images.codec import ImageRefused, decode, encode, to_uint8
from tests.support.official import FOLDERS_OF_PHOTOGRAPHS
from tests.support.pictures import whole_png


def file_bytes(image: Image.Image, codec: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, codec, **options)
    return buffer.getvalue()


def halves(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return image.convert(mode)


def decoded(data: bytes, size: int = 32) -> np.ndarray:
    return to_uint8(decode(data, size, "crop").pixels)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that announces a huge image."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return header + struct.pack(">I", 2) + b"IDAT" + b"xx"


@pytest.mark.parametrize(
    ("codec", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("WEBP", "RGB", {"quality": 95}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
    ],
)
def test_every_format_and_mode_comes_out_as_the_same_rgb(codec, mode, options):
    out = decoded(file_bytes(halves(mode), codec, **options)).astype(int)
    assert out.shape == (32, 32, 3)
    assert np.abs(out[:, 4] - [255, 0, 0]).max() < 12 and np.abs(out[:, -4] - [0, 0, 255]).max() < 12


def test_an_image_of_the_right_size_is_not_resampled():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert (decoded(file_bytes(image)) == np.asarray(image)).all()


def test_exif_rotation_is_honoured():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 270 degrees
    out = decoded(file_bytes(halves(), "JPEG", quality=95, exif=exif))
    assert out[4, 16, 0] > 200 and out[-4, 16, 2] > 200


def test_transparent_pixels_are_laid_on_white():
    assert (decoded(file_bytes(Image.new("RGBA", (32, 32), (0, 0, 0, 0)))) == 255).all()


def test_16_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((32, 32), 32896, np.uint16))
    assert np.unique(decoded(file_bytes(grey))).tolist() == [128]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    for codec in ("GIF", "WEBP"):
        data = file_bytes(frames[0], codec, save_all=True, append_images=frames[1:])
        assert decoded(data)[16, 16, 0] > 200


def test_the_centre_square_is_taken():
    out = decoded(file_bytes(halves(size=(96, 32))))
    assert out[16, 2, 0] > 240 and out[16, -2, 2] > 240


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", "decode_error"),
        (b"no image at all", "decode_error"),
        (file_bytes(halves(), "JPEG")[:300], "decode_error"),
        (file_bytes(halves())[:80], "decode_error"),
        (file_bytes(Image.new("RGB", (1, 1))), "rejected_size"),
        (file_bytes(Image.new("P", (1, 1)), "GIF"), "rejected_size"),
        (bomb(20_000, 20_000), "rejected_size"),
        (bomb(11_000, 11_000), "rejected_size"),
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "1x1", "1x1 GIF", "bomb", "large"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_image_is_refused_with_its_status(data, status):
    with pytest.raises(ImageRefused) as refused:
        decode(data, 32, "crop")
    assert refused.value.status == status and str(refused.value)


@pytest.mark.parametrize("side", [12_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_whole_image_that_is_too_large_is_refused_from_its_header_alone(monkeypatch, side):
    def load(*_):
        raise AssertionError("its pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageRefused) as refused:
        decode(whole_png(side), 32, "crop")
    assert refused.value.status == "rejected_size"


def test_every_truncation_and_every_flipped_byte_is_decoded_or_refused():
    data = bytearray(file_bytes(halves(size=(40, 40)), "JPEG"))
    rng = np.random.default_rng(0)
    damaged = [bytes(data[:length]) for length in range(0, len(data), 7)]
    for _ in range(300):
        flipped = data.copy()
        flipped[rng.integers(len(data))] = rng.integers(256)
        damaged.append(bytes(flipped))
    for sample in damaged:
        try:
            assert decode(sample, 32, "crop").pixels.shape == (3, 32, 32)
        except ImageRefused as refused:
            assert refused.status in ("decode_error", "rejected_size")


def test_exact_refuses_another_size():
    assert decode(file_bytes(Image.new("RGB", (32, 32))), 32, "exact").width == 32
    with pytest.raises(ImageRefused, match="64 x 64 is not 32 x 32") as refused:
        decode(file_bytes(halves()), 32, "exact")
    assert refused.value.status == "rejected_size"


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_an_encoded_image_decodes_to_what_was_encoded(codec):
    pixels = decode(file_bytes(halves()), 32, "crop").pixels
    back = decode(encode(to_uint8(pixels), codec, 95), 32, "exact").pixels
    assert np.abs(back - pixels)[:, :, :14].max() < (1e-6 if codec == "png" else 0.15)


@pytest.mark.parametrize("folder", FOLDERS_OF_PHOTOGRAPHS)
def test_the_official_inputs_are_taken(folder):
    files = sorted(folder.iterdir())
    assert files
    for file in files:
        assert decode(file.read_bytes(), 256, "crop").pixels.shape == (3, 256, 256)


def test_a_png_with_a_damaged_header_is_not_said_to_be_another_format():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    data = stream.getvalue()
    with pytest.raises(ImageRefused, match="it begins as PNG and is damaged"):
        decode(data[:29] + bytes(4) + data[33:], 8, "crop")


EXTRAS = {
    "a text with another checksum": b"\0\0\0\4tEXtabcd" + bytes(4),
    "a profile with another checksum": b"\0\0\0\4iCCPabcd" + bytes(4),
    "chromaticities that are too short": b"\0\0\0\4cHRMabcd" + struct.pack(">I", zlib.crc32(b"cHRMabcd")),
    "a time that is too short": b"\0\0\0\1tIMEa" + struct.pack(">I", zlib.crc32(b"tIMEa")),
    "sizes that are too short": b"\0\0\0\1pHYsa" + struct.pack(">I", zlib.crc32(b"pHYsa")),
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_damage_in_what_the_pixels_of_a_png_do_not_need_is_passed_over(extra):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    data = file_bytes(halves(), exif=exif)
    whole = decoded(data, 64)
    assert np.array_equal(whole, np.asarray(halves())[:, ::-1])
    assert np.array_equal(decoded(data[:33] + extra + data[33:], 64), whole)
