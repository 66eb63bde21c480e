"""Renders labelled cartoon faces: the data of the bundled `avatars` model, of its directions and of its judge.

    python -m tools.render_avatars --count 24000 --seed 0 --output tools/cache/train.npz

Faces are drawn with `python_avatars` (MIT) and rasterised by resvg. Every attribute is drawn independently, so that no
label predicts another. A face depends on (seed, index) alone.

The npz holds `images` uint8 [N, 32, 32, 3] and one integer array [N] per label.
"""

import argparse
import io
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import python_avatars as pa
import resvg_py
from PIL import Image

IMAGE_SIZE = 32
LABELS = ("smile", "glasses", "beard", "long_hair")
NUISANCES = ("hair", "hair_color", "skin", "clothing", "clothing_color", "brows", "eyes", "background")

SMILING = ("SMILE", "BIG_SMILE")
NOT_SMILING = ("SERIOUS", "SAD", "DEFAULT")
GLASSES = ("SUNGLASSES", "SUNGLASSES_2", "WAYFARERS")
BEARDS = ("BEARD_MEDIUM", "BEARD_MAGESTIC")
LONG_HAIR = ("BOB", "CURLY", "CURVY", "LONG_NOT_TOO_LONG", "STRAIGHT_1", "STRAIGHT_2")
SHORT_HAIR = (
    "CAESAR", "CAESAR_SIDE_PART", "SHORT_CURLY", "SHORT_FLAT", "SHORT_ROUND", "SHORT_WAVED", "SHAGGY", "SIDES",
    "SHORT_DREADS_1", "FRIZZLE",
)  # fmt: skip
HAIR = LONG_HAIR + SHORT_HAIR
HAIR_COLORS = ("AUBURN", "BLACK", "BLONDE", "BLONDE_GOLDEN", "BROWN", "BROWN_DARK", "PLATINUM", "RED")
SKINS = ("TANNED", "PALE", "LIGHT", "BROWN", "DARK_BROWN", "BLACK")
CLOTHING = ("HOODIE", "SHIRT_CREW_NECK", "BLAZER_SHIRT")
CLOTHING_COLORS = ("BLACK", "BLUE_02", "GRAY_02", "PASTEL_GREEN", "PASTEL_YELLOW", "PINK", "RED")
BROWS = ("DEFAULT", "DEFAULT_NATURAL")
EYES = ("DEFAULT", "HAPPY")
BACKGROUNDS = (
    (190, 224, 240),
    (205, 235, 225),
    (250, 222, 205),
    (220, 215, 240),
    (245, 235, 205),
    (230, 230, 230),
)

RASTER_WIDTH = 264
CROP_SIDE, CROP_LEFT, CROP_TOP, CROP_JITTER = 200, 32, 17, 4


def draw_labels(rng: np.random.Generator) -> dict[str, int]:
    """The attributes of one face: presence for LABELS, an index into the tables above for NUISANCES."""
    long_hair = int(rng.random() < len(LONG_HAIR) / len(HAIR))
    styles = range(len(LONG_HAIR)) if long_hair else range(len(LONG_HAIR), len(HAIR))
    sizes = {"hair_color": HAIR_COLORS, "skin": SKINS, "clothing": CLOTHING, "clothing_color": CLOTHING_COLORS}
    sizes |= {"brows": BROWS, "eyes": EYES, "background": BACKGROUNDS}
    return {
        "smile": int(rng.random() < 0.5),
        "glasses": int(rng.random() < 0.4),
        "beard": int(rng.random() < 0.35),
        "long_hair": long_hair,
        "hair": int(rng.choice(list(styles))),
        **{name: int(rng.integers(len(table))) for name, table in sizes.items()},
    }


def avatar_svg(labels: dict[str, int], rng: np.random.Generator) -> str:
    """The face with these labels as SVG. Variants inside a label (which glasses, which smile) come from `rng`."""
    hair_color = pa.HairColor[HAIR_COLORS[labels["hair_color"]]]
    return pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=pa.HairType[HAIR[labels["hair"]]],
        eyebrows=pa.EyebrowType[BROWS[labels["brows"]]],
        eyes=pa.EyeType[EYES[labels["eyes"]]],
        mouth=pa.MouthType[rng.choice(SMILING if labels["smile"] else NOT_SMILING)],
        facial_hair=pa.FacialHairType[rng.choice(BEARDS) if labels["beard"] else "NONE"],
        skin_color=pa.SkinColor[SKINS[labels["skin"]]],
        hair_color=hair_color,
        facial_hair_color=hair_color,
        accessory=pa.AccessoryType[rng.choice(GLASSES) if labels["glasses"] else "NONE"],
        clothing=pa.ClothingType[CLOTHING[labels["clothing"]]],
        clothing_color=pa.ClothingColor[CLOTHING_COLORS[labels["clothing_color"]]],
    ).render()


def render_face(index: int, seed: int) -> tuple[np.ndarray, dict[str, int]]:
    """Face `index` of data set `seed`: uint8 [32, 32, 3] and its labels."""
    rng = np.random.default_rng((seed, index))
    labels = draw_labels(rng)
    return render_labels(labels, rng), labels


def render_labels(labels: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    """One face with these labels: uint8 [32, 32, 3]. Its other properties (which glasses, the crop) come from `rng`."""
    png = resvg_py.svg_to_bytes(svg_string=avatar_svg(labels, rng), width=RASTER_WIDTH, skip_system_fonts=True)
    face = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    canvas = Image.new("RGBA", face.size, (*BACKGROUNDS[labels["background"]], 255))
    canvas.alpha_composite(face)
    dx, dy = rng.integers(-CROP_JITTER, CROP_JITTER + 1, size=2)
    left, top = CROP_LEFT + int(dx), CROP_TOP + int(dy)
    square = canvas.convert("RGB").crop((left, top, left + CROP_SIDE, top + CROP_SIDE))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))


def render_faces(count: int, seed: int, workers: int | None = None) -> dict[str, np.ndarray]:
    """`images` uint8 [count, 32, 32, 3] and each label [count]."""
    with ProcessPoolExecutor(workers) as pool:
        faces = list(pool.map(partial(render_face, seed=seed), range(count), chunksize=64))
    columns = {name: np.array([labels[name] for _, labels in faces]) for name in LABELS + NUISANCES}
    return {"images": np.stack([image for image, _ in faces]), **columns}


def load_or_render(path: Path, count: int, seed: int) -> dict[str, np.ndarray]:
    """The data set at `path`. It is rendered first if it does not exist or has another size."""
    if path.exists() and len((faces := dict(np.load(path)))["images"]) == count:
        return faces
    faces = render_faces(count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **faces)
    return faces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("tools/cache/train.npz"))
    arguments = parser.parse_args()
    faces = load_or_render(arguments.output, arguments.count, arguments.seed)
    print(f"{len(faces['images'])} faces in {arguments.output}")


if __name__ == "__main__":
    main()
