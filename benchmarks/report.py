"""Measures the report of a large run: size of the page, time and memory to make it, time to open and to filter.

python -m benchmarks.report                    # 100,000 rows; --rows 1_000_000 for more
python -m benchmarks.report --keep FOLDER      # keeps the run and its report in FOLDER
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from jobs.runs.record import RunRecord, open_root
from jobs.runs.resolve import ResolvedRun, resolve
from jobs.spec.run import RunSpec
from pipeline.images.source import SourceImage
from pipeline.images.statuses import OK
from pipeline.run.commit import Attempt
from pipeline.run.manifest import Row
from pipeline.run.plan import current_plan, read_planned, write_plan
from pipeline.storage.store import Store
from tests.support.browser import chromium

EDITS = ["glasses=1", "smile=1"]
PICTURES, PIXELS, SHARD_SIZE = 64, 128, 64
METRICS = {
    "recon_psnr": (30, 3),
    "recon_lpips": (0.05, 0.02),
    "recon_clip": (0.04, 0.01),
    "edit_lpips": (0.2, 0.05),
    "edit_clip": (0.2, 0.05),
    "s_dir": (0.12, 0.04),
    "clip_score": (0.25, 0.03),
    "clip_margin": (0.02, 0.01),
    "identity": (0.7, 0.1),
    "segmentation": (0.9, 0.05),
    "kept": (0.9, 0.05),
}
"""Mean and standard deviation of the made-up values of each metric."""


def write_run(root: Path, rows: int) -> None:
    """Write a run whose manifests have `rows` rows. Each output is a link to one of a few noisy pictures."""
    images = rows // len(EDITS)
    pictures = write_pictures(root / "pictures")
    values = {"source": str(root / "pictures"), "output": str(root / "run"), "edits": EDITS, "preview": 0}
    resolved = resolve(RunSpec.model_validate({**values, "image_size": PIXELS, "shard_size": SHARD_SIZE}))
    store = Store(resolved.spec.output)

    def listing() -> Iterator[SourceImage]:
        for number in range(images):
            picture = pictures[number % PICTURES]
            yield SourceImage(f"{number // 1000:04d}/{uuid.uuid4().hex}.png", str(picture), picture.stat().st_size)

    plan = open_root(
        store,
        RunRecord(resolved.spec.model_dump(mode="json"), resolved.identity, resolved.stages),
        lambda: write_plan(store, listing(), SHARD_SIZE, lambda key: [key]),
    )
    digests = [hashlib.sha256(picture.read_bytes()).hexdigest() for picture in pictures]
    random = np.random.default_rng(0)
    for shard in range(plan.shards):
        write_shard(store, resolved, shard, pictures, digests, random)


def write_pictures(folder: Path) -> list[Path]:
    """Write faces at PIXELS with noise, so that a picture takes as many bytes as a photograph."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    paths = []
    for number, sample in enumerate(sorted(Path("asyrp/bundled/avatars/samples").glob("*.png"))[:PICTURES]):
        face = np.asarray(Image.open(sample).convert("RGB").resize((PIXELS, PIXELS)), float)
        noisy = np.clip(face + random.normal(0, 8, face.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:02d}.png")
        Image.fromarray(noisy).save(paths[-1])
    return paths


def write_shard(
    store: Store,
    resolved: ResolvedRun,
    shard: int,
    pictures: list[Path],
    digests: list[str],
    random: np.random.Generator,
) -> None:
    attempt, stage, now = Attempt(store, resolved.final.name, shard), resolved.final, datetime.now(UTC)
    folder = Path(store.path(attempt.folder))
    plan = read_planned(store, current_plan(store), shard)
    rows: list[Row] = []
    for image in plan:
        number = int(Path(image.uri).stem)
        for variant in stage.variants:
            name = resolved.image_format.output_name(image.key, variant)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(pictures[(number + 1) % PICTURES], folder / name)
            output = {
                "output_uri": f"{attempt.folder}/{name}",
                "output_bytes": pictures[(number + 1) % PICTURES].stat().st_size,
                "output_sha256": digests[(number + 1) % PICTURES],
            }
            failed = random.random() < 0.01
            rows.append(
                {
                    **stage.columns,
                    "key": image.key,
                    "shard": shard,
                    "row": image.row,
                    "source_uri": image.uri,
                    "source_size": image.size,
                    "source_sha256": digests[number],
                    "stage": stage.name,
                    "edit": variant.edit,
                    "strength": variant.strength,
                    "status": "decode_error" if failed else OK,
                    "attempt": attempt.id,
                    "committed_at": now + timedelta(seconds=shard),
                    **({"error": "not one of the formats PNG, JPEG"} if failed else output | measured(random)),
                }
            )
    attempt.commit(rows, len(plan), None)


def measured(random: np.random.Generator) -> Row:
    return {name: random.normal(*of) for name, of in METRICS.items()}


def build(root: Path) -> dict[str, float]:
    """Run `asyrp report` in a process of its own. Returns its seconds, its peak of memory, and the size of the page."""
    command = [sys.executable, "-c", "from jobs.cli.app import main; main()", "report", str(root / "run")]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    page = root / "run" / "report" / "report.html"
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"build_s": seconds, "build_peak_mb": peak, "page_mb": page.stat().st_size / 1e6}


APPLY = """([name, value]) => new Promise((done) => {
  const field = document.forms.filters.elements[name], start = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  const handled = performance.now() - start;
  requestAnimationFrame(() => requestAnimationFrame(() => done([handled, performance.now() - start])));
})"""
SORT = """() => new Promise((done) => {
  const start = performance.now();
  document.querySelector('#grid th[data-column="identity"] button').click();
  const handled = performance.now() - start;
  requestAnimationFrame(() => requestAnimationFrame(() => done([handled, performance.now() - start])));
})"""


def look(root: Path) -> dict[str, float]:
    """Open the page twice, filter and sort. Returns the time of each until the result is on the screen."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        found = {"open_first_s": opened(page, root), "open_again_s": opened(page, root)}
        for name, field in {"edit": ("edit", "smile 1"), "key": ("key", "abc"), "range": ("from", "30")}.items():
            found[f"filter_{name}_ms"] = page.evaluate(APPLY, list(field))[1]
            page.evaluate(APPLY, [field[0], ""])
        found["sort_ms"] = page.evaluate(SORT)[1]
        found["heap_mb"] = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    return found


def opened(page: Page, root: Path) -> float:
    start = time.perf_counter()
    page.goto((root / "run" / "report" / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: int(text.replace("_", "")), default=100_000)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.keep.absolute() if arguments.keep else Path(folder)
        if not (root / "run" / "run.json").exists():
            write_run(root, arguments.rows)
        found = {"rows": arguments.rows, **build(root), **look(root)}
    print(json.dumps({name: round(value, 2) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
