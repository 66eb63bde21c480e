"""Writes `asyrp/directions/presets.json` from the LPIPS curves of the official release.

python -m tools.make_presets FOLDER     # the release's utils/: {data set}_LPIPS_distance_{x,x0_t}.tsv
"""

import json
import sys
from pathlib import Path

from asyrp.measures.intervals import T_BOOST_LPIPS, T_EDIT_LPIPS, first_at_least

DATA_SETS = ("celeba", "church", "bedroom", "afhq", "metface")
NO_TEXT_LPIPS = 0.30
"""The LPIPS to which the release's own table of t_edit without a text corresponds."""

COSINES = [round(1 - step / 100, 2) for step in range(61)]
SOURCE = (
    "LPIPS curves released with Kwon et al. 2023 (kwonminki/Asyrp_official, MIT, commit a6c82dc). t_edit: the first "
    "timestep where LPIPS(x_0, P_t) >= 0.33 times the cosine of the two texts (index 0: cosine 1.00, then in steps of "
    "0.01 down to 0.40); t_edit_without_text: >= 0.30; t_boost: where LPIPS(x_0, x_t) >= 1.2"
)


def read_curve(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The timesteps of a curve, ascending, and its mean LPIPS at each."""
    rows = (line.split("\t") for line in path.read_text().splitlines() if line.strip())
    timesteps, values = zip(*sorted((int(t), float(value)) for t, value in rows), strict=True)
    return timesteps, values


def preset(folder: Path, name: str) -> dict[str, object]:
    edits, boosts = (read_curve(folder / f"{name}_LPIPS_distance_{kind}.tsv") for kind in ("x0_t", "x"))
    return {
        "t_edit": [first_at_least(*edits, T_EDIT_LPIPS * cosine) for cosine in COSINES],
        "t_edit_without_text": first_at_least(*edits, NO_TEXT_LPIPS),
        "t_boost": first_at_least(*boosts, T_BOOST_LPIPS),
    }


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(__file__).parents[1] / "asyrp" / "directions" / "presets.json"
    lines = [f' "{name}": {json.dumps(preset(folder, name))}' for name in DATA_SETS]
    target.write_text("{\n" + f' "source": {json.dumps(SOURCE)},\n' + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
