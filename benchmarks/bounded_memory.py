"""Checks that memory stays bounded over 10,000 images, and that one, two and a killed actor find the same directions.

    python -m benchmarks.bounded_memory        # about 15 minutes on 2 cores; --ways pca for a part of it

Computes label sums and a PCA sketch of rendered faces at five timesteps. Prints the peak of resident memory of the
driver and of the largest actor, for a tenth of the images and for all, and the relative difference of the directions.
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch

from asyrp.directions.forms import load_direction
from benchmarks.ways import write_faces
from jobs.learn.labels import LabelQuestion, learn_labels
from jobs.learn.request import LearnRequest
from jobs.learn.unsupervised import learn_pca
from jobs.spec.run import EngineSpec
from pipeline.run.commit import committed
from pipeline.run.progress import read_heartbeats
from pipeline.stages.statistics import STAGE
from pipeline.storage.store import Store
from tools.render_avatars import LABELS

MEGABYTE = 1e6
WAYS = ("labels", "pca")


def resident(pid: int) -> float:
    """Resident memory of a process in MB; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


@contextmanager
def watched(work: Path, kill_after: int | None) -> Iterator[dict[str, float]]:
    """Peaks of memory in MB while the block runs. Kills the first actor after `kill_after` commits, if it is given."""
    peaks, stop, store = {"driver": 0.0, "actor": 0.0}, threading.Event(), Store(str(work))

    def watch() -> None:
        left = kill_after
        while not stop.wait(0.2):
            pids = [beat["pid"] for beat in read_heartbeats(store)]
            peaks["driver"] = max(peaks["driver"], resident(os.getpid()))
            peaks["actor"] = max([peaks["actor"], *map(resident, pids)])
            if left is not None and len(committed(store, STAGE)) >= left:
                os.kill(pids[0], signal.SIGKILL)
                left = None

    thread = threading.Thread(target=watch)
    thread.start()
    yield peaks
    stop.set()
    thread.join()


def learn(folder: Path, way: str, name: str, actors: int, kill_after: int | None = None) -> torch.Tensor:
    """The directions that one way finds on a folder of faces. Prints the time and the memory that it took."""
    work = folder / f"{way}-{name}"
    engine = EngineSpec.model_validate({"actors": actors, "check": False})
    request = LearnRequest(
        str(folder / "faces"), "avatars", work / "found", n_steps=10, t_edit=500, work=str(work), engine=engine
    )
    start = time.perf_counter()
    with watched(work, kill_after) as peaks:
        if way == "labels":
            paths = learn_labels(request, LabelQuestion(str(folder / "labels.csv"), LABELS))
        else:
            paths = learn_pca(request, 5, False, 64, 5)
    seconds = time.perf_counter() - start
    print(f"| {way} | {name} | {seconds:.0f} s | {peaks['driver']:.0f} MB | {peaks['actor']:.0f} MB |", flush=True)
    return torch.stack([load_direction(path).form.delta_h for path in paths])


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    print("| way | run | time | driver, peak | actor, peak |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        few, many = Path(name) / "few", Path(name) / "many"
        for folder, count in {few: arguments.images // 10, many: arguments.images}.items():
            folder.mkdir()
            write_faces(folder, count)
        for way in arguments.ways:
            learn(few, way, "a tenth, one actor", 1)
            one = learn(many, way, "all, one actor", 1)
            two = learn(many, way, "all, two actors", 2)
            killed = learn(many, way, "all, an actor killed", 1, kill_after=5)
            print(
                f"{way}: two actors differ by {difference(one, two):.1e}, a killed one by {difference(one, killed):.1e}"
            )


if __name__ == "__main__":
    main()
