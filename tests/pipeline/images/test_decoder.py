"""Decoding in a child process: what ends the child costs one image, and pixels are the same as in this process."""

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.images import codec
from pipeline.images.codec import ImageRefused
from pipeline.images.decoder import Decoder, Decoders
from tests.support.pictures import whole_png
from tests.support.runs import SAMPLES

FACE = next(iter(sorted(SAMPLES.glob("*.png")))).read_bytes()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def refusal(decoder: Decoder, data: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as refused:
        decoder.decode(data, 32, "crop")
    return refused.value


def test_a_child_gives_the_pixels_that_this_process_would(decoder):
    for size in (32, 48):
        here, there = codec.decode_square(FACE, size, "crop"), decoder.decode(FACE, size, "crop")
        assert (here.pixels == there.pixels).all() and (there.width, there.height) == (32, 32)
    assert decoder.starts == 1


def test_a_refusal_comes_back_as_it_is_and_the_child_goes_on(decoder):
    for data in (b"", b"text", FACE[:60], whole_png(12_000)):
        with pytest.raises(ImageRefused) as here:
            codec.decode(data, 32, "crop")
        there = refusal(decoder, data)
        assert (there.status, str(there), there.error_type) == (
            here.value.status,
            str(here.value),
            here.value.error_type,
        )
    assert decoder.starts == 1


def spell(word: str) -> bytes:
    """A sound picture that has a word in it."""
    buffer, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("spell", word)
    Image.new("RGB", (32, 32)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.fixture
def bewitched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The child's Pillow does what a picture spells, as one with a hole in it would."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        """
import os, signal, time
from PIL import PngImagePlugin

class Stream(PngImagePlugin.PngStream):
    def chunk_tEXt(self, pos, length):
        text = super().chunk_tEXt(pos, length)
        word = text.partition(b"\\0")[2].decode()
        if word == "eat":
            bytearray(2**50)
        while word == "loop":
            pass
        if word == "wait":
            time.sleep(3600)
        if word == "leave":
            os._exit(3)
        if word.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[word])
        return text

PngImagePlugin.PngStream = Stream
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("bewitched")
@pytest.mark.parametrize(
    ("word", "status", "error_type", "says"),
    [
        ("SIGSEGV", "decode_error", "DecoderCrashed", "SIGSEGV"),
        ("SIGABRT", "decode_error", "DecoderCrashed", "SIGABRT"),
        ("SIGKILL", "decode_error", "DecoderCrashed", "SIGKILL"),
        ("leave", "decode_error", "DecoderCrashed", "exit code 3"),
        ("loop", "decode_error", "DecoderTimeout", "0.2 s"),
        ("wait", "decode_error", "DecoderTimeout", "0.2 s"),
        ("eat", "rejected_size", "MemoryError", "3,000 MB of memory"),
    ],
)
def test_an_image_that_ends_the_decoder_is_refused_and_the_next_one_is_decoded(word, status, error_type, says):
    decoder = Decoder(seconds=0.2)
    assert decoder.decode(FACE, 32, "crop").width == 32
    refused = refusal(decoder, spell(word))
    assert (refused.status, refused.error_type) == (status, error_type) and says in str(refused)
    assert decoder.decode(FACE, 32, "crop").width == 32
    decoder.close()


@pytest.mark.usefixtures("bewitched")
def test_a_signal_that_ends_a_run_does_not_end_its_decoders(decoder):
    for word in ("SIGTERM", "SIGINT", "SIGHUP"):
        assert decoder.decode(spell(word), 32, "crop").width == 32
    assert decoder.starts == 1


def test_an_image_is_not_blamed_for_a_child_that_an_earlier_one_has_damaged(decoder):
    decoder.decode(FACE, 32, "crop")
    assert decoder.child_pid is not None
    os.kill(decoder.child_pid, signal.SIGKILL)
    assert decoder.decode(FACE, 32, "crop").width == 32 and decoder.starts == 2


def test_a_child_ends_when_nobody_gives_it_images_any_more(decoder):
    decoder.decode(FACE, 32, "crop")
    child = decoder._child
    assert child is not None and child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=60) == 0
    decoder._child = None


def test_a_child_that_cannot_start_is_no_fault_of_the_image(decoder, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="exit code 1"):
        decoder.decode(FACE, 32, "crop")


def test_a_child_knows_no_credentials(decoder, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    decoder.decode(FACE, 32, "crop")
    assert b"secret" not in Path(f"/proc/{decoder.child_pid}/environ").read_bytes()


def test_files_in_the_working_folder_are_not_imported(decoder, monkeypatch, tmp_path):
    (tmp_path / "PIL.py").write_text("raise SystemExit('a stranger ran')")
    monkeypatch.chdir(tmp_path)
    assert decoder.decode(FACE, 32, "crop").width == 32


def test_threads_share_as_many_decoders_as_they_use_at_once():
    from concurrent.futures import ThreadPoolExecutor

    decoders = Decoders()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: decoders.decode(FACE, 32, "crop").pixels, range(20)))
    assert all(np.array_equal(pixels, found[0]) for pixels in found)
    assert 1 <= len(decoders._idle) <= 2
    decoders.close()
