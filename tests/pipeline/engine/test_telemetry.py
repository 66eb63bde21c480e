"""What Prometheus is told of a run, scraped from a real Ray node."""

import json
import re
import time
import urllib.request

import pytest
import ray
import torch

from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from pipeline.engine.actors import EditActor
from pipeline.engine.telemetry import DriverMetrics
from pipeline.engine.worker import WorkerOptions
from pipeline.storage.store import Store
from tests.support.runs import asyrp, make_faces, spec

pytest.importorskip("opentelemetry.exporter.prometheus", reason="Ray exports metrics with asyrp[cluster] only")

QUERIED = re.compile(r"ray_asyrp_\w+")
SCRAPE_SECONDS = 60


def exported() -> dict[str, dict[str, float]]:
    """What this machine's Ray node exports of asyrp: values by metric and labels."""
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_asyrp_")]
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        name, labels, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()
        found.setdefault(name, {})[labels] = float(value)
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory, ray_cluster):  # noqa: ARG001
    """The metrics of an actor that has done a run of 5 images, one of them broken, and of its driver."""
    folder = tmp_path_factory.mktemp("telemetry")
    source = make_faces(folder / "faces", 5)
    (source / "0003.png").write_bytes(b"never an image")
    resolved = resolve(spec(source, folder / "run", edits=["glasses=1", "smile=1"], shard_size=3))
    store = Store(resolved.spec.output)
    open_run(store, resolved)

    def make_functions():
        return {"fused": lambda batch, keys: torch.cat([batch, batch], 1)}  # noqa: ARG005

    driver = DriverMetrics(store.url, ["boost", "boost"])
    driver.actors_alive(1)
    driver.shard_failed("boost")
    actor = ray.remote(EditActor).options(num_cpus=0).remote("here")
    ray.get(actor.start.remote(store.url, make_functions, resolved.image_format, WorkerOptions(4, 2, 2)))
    for shard in (0, 1):
        ray.get(actor.run.remote(resolved.final, shard))
        driver.shard_done("boost")
    ray.get(actor.close.remote())
    deadline = time.monotonic() + SCRAPE_SECONDS
    while not tells_all(found := exported(), store.url):
        assert time.monotonic() < deadline, f"Ray has not exported what the run did last, only {found}"
        driver.actors_alive(1)  # as the driver of a run says again and again
        time.sleep(1)
    ray.kill(actor)
    return store.url, found


def tells_all(found: dict[str, dict[str, float]], root: str) -> bool:
    """Whether what was exported has come to the end of this run, whose actor and driver export each at its own time.

    The node exports earlier runs too.
    """

    def values(name: str) -> list[float]:
        return [value for labels, value in found.get(name, {}).items() if f'root="{root}"' in labels]

    in_flight, left = values("ray_asyrp_images_in_flight"), values("ray_asyrp_shards_left")
    told = in_flight == [0] and left == [0] and values("ray_asyrp_actors") == [1]
    return told and sum(values("ray_asyrp_images_total")) == 5


def total(of: dict[str, float], *labels: str) -> float:
    return sum(value for name, value in of.items() if all(label in name for label in labels))


def test_what_a_run_did_can_be_scraped(told):
    root, found = told
    here = f'root="{root}"'
    assert total(found["ray_asyrp_images_total"], here, 'stage="boost"') == 5
    assert total(found["ray_asyrp_rows_total"], here, 'status="ok"') == 8
    assert total(found["ray_asyrp_rows_total"], here, 'status="decode_error"') == 2
    assert total(found["ray_asyrp_shard_seconds_count"], here, 'stage="boost"') == 2
    assert total(found["ray_asyrp_device_thread_seconds_total"], here, 'activity="device"') > 0
    assert total(found["ray_asyrp_shards_left"], here) == 0 and total(found["ray_asyrp_actors"], here) == 1
    assert total(found["ray_asyrp_batch_size"], here) == 4 and total(found["ray_asyrp_images_in_flight"], here) == 0


def test_every_query_of_the_dashboard_is_of_a_metric_that_is_exported(told, tmp_path):
    file = tmp_path / "dashboard.json"
    assert asyrp("cluster", "grafana", "-o", file).returncode == 0
    dashboard = file.read_text()
    queries = [target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]]
    asked = set(QUERIED.findall(dashboard))
    assert asked and asked <= told[1].keys()
    assert all(QUERIED.search(query) for query in queries)
    kinds = {name.removesuffix("_sum").removesuffix("_count") for name in told[1]} - asked
    assert not {name for name in kinds if f"{name}_bucket" not in asked}, "the dashboard leaves something out"
