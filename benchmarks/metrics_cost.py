"""Measures the share of a run's time that metrics take.

    python -m benchmarks.metrics_cost              # about 10 minutes on one core

The bundled faces are edited without metrics, with the metrics of edits, with those of reconstructions as well, and with
all of them on 1 % of the images. Each case runs twice, in both orders, and the faster run counts. Device time is that
of the actor's device thread (report/summary.json). The metrics use the nets that come with the model.
"""

import argparse
import json
import tempfile
from pathlib import Path

from asyrp.models.folder import BUNDLED
from jobs.runs.run import SUMMARY, run
from jobs.spec.run import RunSpec

EDIT_METRICS = ["s_dir", "clip_score", "clip_margin", "edit_clip", "segmentation"]
ALL_METRICS = [*EDIT_METRICS, "recon_psnr", "recon_clip"]
CASES = {
    "nothing": None,
    "edits": {"metrics": EDIT_METRICS},
    "edits and reconstructions": {"metrics": ALL_METRICS},
    "all, on 1 % of the images": {"metrics": ALL_METRICS, "sample": 0.01},
}


def device_seconds(inspection: dict | None, images: int) -> float:
    """Seconds of the device thread per image, in one run with this inspection."""
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "source": str(BUNDLED / "avatars" / "samples"),
            "output": folder,
            "edits": ["glasses=1"],
            "limit": images,
            "refine": 2,
            "preview": 0,
            "inspection": inspection,
            "engine": {"check": False, "actors": 1},
        }
        run(RunSpec.model_validate(values))
        return json.loads((Path(folder) / SUMMARY).read_text())["session"]["seconds"]["device"] / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    order = [*CASES, *reversed(CASES)]
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for name in order:
        seconds[name].append(device_seconds(CASES[name], arguments.images))
    least = {name: min(found) for name, found in seconds.items()}
    print("| measured | s an image | share of the run's time |\n| --- | --- | --- |")
    for name, found in least.items():
        print(f"| {name} | {found:.3f} | {100 * (1 - least['nothing'] / found):.1f} % |")


if __name__ == "__main__":
    main()
