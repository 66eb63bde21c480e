"""Every odd image of the zoo gets its row, and its neighbours are edited."""

from shutil import copytree

import numpy as np
import pytest

from tests.support.runs import DATA, make_faces, pixels, rows, stand_in_run

BECOMES = {
    "avif_cut.avif": "decode_error",
    "display_p3.png": "ok",
    "eps_in_disguise.png": "decode_error",
    "exif_negative_rational.jpg": "ok",
    "exif_text_as_rational.jpg": "ok",
    "exif_width_as_double.jpg": "ok",
    "float_0_to_1.tif": "ok",
    "gif_without_frames.gif": "decode_error",
    "huge_1_bit.png": "rejected_size",
    "huge_height.tif": "rejected_size",
    "jp2_many_channels.jp2": "decode_error",
    "mpo_index_broken.jpg": "ok",
    "nan.tif": "decode_error",
    "profile_broken.png": "ok",
    "text_bomb.png": "ok",
    "text_of_3_mb.png": "ok",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_odd_image_gets_its_row_and_its_neighbours_are_edited(tmp_path):
    source = make_faces(tmp_path / "source", 4)
    copytree(DATA / "zoo", source, dirs_exist_ok=True)
    store = stand_in_run(source, tmp_path / "out", edits=["smile=-0.5"])
    found = {key: row for (key, _, _), row in rows(store.url).items()}
    assert {key: row["status"] for key, row in found.items() if key in BECOMES} == BECOMES
    assert {row["status"] for key, row in found.items() if key not in BECOMES} == {"ok"}
    assert all(row["error"] and row["error_type"] for row in found.values() if row["status"] != "ok")
    grey = pixels(store.url, found["float_0_to_1.tif"])
    assert np.ptp(grey) > 100, "it is not black"


def test_every_odd_image_is_described():
    described = (DATA / "zoo" / "README.md").read_text()
    files = {path.name for path in (DATA / "zoo").iterdir()} - {"README.md"}
    assert files == set(BECOMES) and all(f"`{name}`" in described for name in files)
