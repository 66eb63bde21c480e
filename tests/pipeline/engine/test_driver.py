"""Ray actors: what is done once, what a failure costs, and what the driver hears."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from asyrp.errors import MachineError, UserError
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.runs.run import exit_code, run
from pipeline.engine.actors import EngineOptions, is_broken_device
from pipeline.engine.driver import BREAKER_MIN_IMAGES, Engine, Outcome, pending_units
from pipeline.run.commit import committed
from pipeline.run.progress import StateReader, read_heartbeats
from pipeline.run.stage import Measured
from pipeline.storage.store import Store
from tests.support.runs import digests, make_faces, pixels, rows, spec

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run_with(make_functions, resolved, **options) -> Outcome:
    """A run whose net is a stand-in: `make_functions` loads in the actors."""
    store = Store(resolved.spec.output)
    plan = open_run(store, resolved)
    engine = Engine(store, resolved.stages, make_functions, resolved.image_format, EngineOptions(**options))
    return engine.run(pending_units(store, resolved.stages, range(plan.shards)))


def stand_in(act=None):
    """A function that actors load: gives the images back, after `act(keys)`. A closure, so that it travels whole."""

    def load():
        def fused(batch, keys):
            if act:
                act(keys)
            return batch

        return {"fused": fused}

    return load


def only_once(marker: Path):
    """True for the first caller of any process."""

    def first() -> bool:
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    return first


def test_one_and_two_actors_edit_every_image_once_and_alike(faces, tmp_path):
    source, steps = faces(8), {"n_inv": 10, "n_gen": 10}
    for actors in (1, 2):
        resolved = spec(source, tmp_path / str(actors), shard_size=3, engine={"actors": actors}, preview=2, **steps)
        assert exit_code(run(resolved).outcome) == 0
        assert len(rows(tmp_path / str(actors), "reconstruct")) == 2
        assert (tmp_path / str(actors) / "report" / "contact_sheet.png").is_file()
    one, two = rows(tmp_path / "1"), rows(tmp_path / "2")
    assert len(one) == 8 and one.keys() == two.keys()
    for name in one:  # two actors have a thread each, one has both: rounding may differ
        assert np.abs(pixels(tmp_path / "1", one[name]) - pixels(tmp_path / "2", two[name])).max() <= 1


@pytest.mark.usefixtures("without_ray")
def test_a_finished_run_is_left_alone(faces, tmp_path):
    job_spec = spec(faces(4), tmp_path / "out")
    run(job_spec)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    result = run(job_spec)
    assert result.outcome is None and exit_code(result.outcome) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.usefixtures("without_ray")
def test_speed_knobs_may_change_on_resume_and_identity_may_not(faces, tmp_path):
    source = faces(6)
    run(spec(source, tmp_path / "out", shard_size=2))
    (tmp_path / "out" / "commit" / "boost" / "000001.json").unlink()
    result = run(spec(source, tmp_path / "out", shard_size=2, engine={"batch_size": 3, "actors": 2}))
    assert result.outcome is not None and result.outcome.images == 2
    with pytest.raises(UserError, match=r"another one(.|\n)*n_gen: 4 there, 5 here(.|\n)*seed: 0 there, 1 here"):
        run(spec(source, tmp_path / "out", shard_size=2, n_gen=5, seed=1))


def test_a_shard_that_kills_its_actors_is_quarantined_and_the_rest_is_done(faces, tmp_path):
    def die(keys):
        if "0003.png" in keys:
            os.kill(os.getpid(), signal.SIGKILL)

    resolved = resolve(spec(faces(8), tmp_path / "out", shard_size=2))
    outcome = run_with(stand_in(die), resolved, batch_size=2)
    assert not outcome.finished
    assert [(stage, shard) for stage, shard, _ in outcome.quarantined] == [("boost", 1)]
    assert committed(Store(resolved.spec.output), "boost") == {0, 2, 3}


def test_an_error_that_passes_is_retried(faces, tmp_path):
    first = only_once(tmp_path / "marker")

    def flaky(_):
        if first():
            raise ConnectionError("the network blinked")

    outcome = run_with(stand_in(flaky), resolve(spec(faces(4), tmp_path / "out", shard_size=2)), batch_size=2)
    assert outcome.finished and len(digests(tmp_path / "out")) == 4


def test_a_shard_that_takes_far_too_long_is_done_by_a_second_actor_and_counted_once(faces, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.engine.driver.SLOW_SECONDS", 0.5)
    first = only_once(tmp_path / "marker")

    def stick(keys):
        if "0007.png" in keys and first():
            threading.Event().wait()

    resolved = resolve(spec(faces(16), tmp_path / "out", shard_size=2))
    outcome = run_with(stand_in(stick), resolved, batch_size=2, actors=2)
    assert outcome.finished and not outcome.quarantined
    assert outcome.images == len(digests(tmp_path / "out")) == 16


def test_a_shard_that_hangs_is_quarantined_and_its_neighbours_are_not_to_blame(faces, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.engine.driver.HUNG", 8)

    def hang(keys):
        if "0005.png" in keys:
            threading.Event().wait()

    resolved = resolve(spec(faces(10), tmp_path / "out", shard_size=2))
    outcome = run_with(stand_in(hang), resolved, batch_size=2, shard_deadline=2)
    [(stage, shard, reason)] = outcome.quarantined
    assert (stage, shard) == ("boost", 2) and "engine.shard_deadline" in reason
    assert committed(Store(resolved.spec.output), "boost") == {0, 1, 3, 4}


DEVICE_ERRORS = [
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
]


def test_an_actor_whose_device_breaks_is_replaced_and_its_shards_are_done(faces, tmp_path):
    first, broken = only_once(tmp_path / "marker"), []

    def break_for_good(_):
        if broken or first():
            broken.append(True)
            raise DEVICE_ERRORS[1]

    resolved = resolve(spec(faces(12), tmp_path / "out", shard_size=2))
    outcome = run_with(stand_in(break_for_good), resolved, batch_size=2)
    assert outcome.finished and len(digests(tmp_path / "out")) == 12
    assert len(read_heartbeats(Store(resolved.spec.output))) == 2


def test_a_run_whose_device_breaks_every_time_stops_with_a_sentence(faces, tmp_path):
    def broken(_):
        raise RuntimeError("CUDA error: unspecified launch failure\nmore")

    outcome = run_with(stand_in(broken), resolve(spec(faces(40), tmp_path / "out", shard_size=2)), batch_size=2)
    assert outcome.tripped is not None and outcome.tripped.endswith("CUDA error: unspecified launch failure")
    assert not outcome.quarantined and committed(Store(str(tmp_path / "out")), "boost") == set()


def test_only_errors_that_outlast_a_call_say_that_a_device_is_broken():
    assert all(map(is_broken_device, DEVICE_ERRORS))
    assert not is_broken_device(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_broken_device(RuntimeError("CUDA error: out of memory"))
    assert not is_broken_device(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_broken_device(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_bug_stops_the_run_at_once_with_its_traceback(faces, tmp_path):
    def bug(_):
        raise ZeroDivisionError("our fault")

    with pytest.raises(ZeroDivisionError, match=r"in bug(.|\n)*our fault"):
        run_with(stand_in(bug), resolve(spec(faces(40), tmp_path / "out", shard_size=2)), batch_size=2)
    assert committed(Store(str(tmp_path / "out")), "boost") == set()


def test_a_full_disk_stops_the_run_at_once_and_quarantines_nothing(faces, tmp_path):
    def full(_):
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MachineError, match=r"the run at .*/out cannot go on: No space left on device: free some space"):
        run_with(stand_in(full), resolve(spec(faces(40), tmp_path / "out", shard_size=2)), batch_size=2)
    assert len((tmp_path / "tries").read_text()) <= 2  # the shards in flight


def test_a_store_that_fails_under_way_stops_the_run_and_quarantines_nothing(faces, tmp_path):
    def gone(keys):
        if keys[0] > "0007.png":
            raise ConnectionError(f"the store is gone, asked for {keys[0]}")

    with pytest.raises(MachineError, match="the store is gone"):
        run_with(stand_in(gone), resolve(spec(faces(40), tmp_path / "out", shard_size=2)), batch_size=2)
    done = committed(Store(str(tmp_path / "out")), "boost")
    assert {0, 1} <= done <= {0, 1, 2, 3}  # a batch may hold images of a shard before that of the fault


def test_a_mistake_found_by_the_actors_arrives_as_one_sentence(faces, tmp_path):
    def load():
        raise UserError("the disk of this node has no model")

    with pytest.raises(UserError, match=r"^the disk of this node has no model$"):
        run_with(load, resolve(spec(faces(4), tmp_path / "out")))


def test_the_breaker_stops_a_run_of_bad_images(tmp_path):
    source = make_faces(tmp_path / "faces", 600)
    for path in sorted(source.iterdir())[::2]:
        path.write_bytes(b"broken")
    outcome = run_with(stand_in(), resolve(spec(source, tmp_path / "out", shard_size=20)), batch_size=8)
    assert outcome.tripped and "engine.max_failed" in outcome.tripped
    assert 0 < len(committed(Store(str(tmp_path / "out")), "boost")) < 30


def test_edits_that_gates_refuse_do_not_trip_the_breaker(tmp_path):
    def load():
        def refuse(batch, keys):
            return Measured(batch, [[{"status": "rejected_quality", "error": "not good enough"}] for _ in keys])

        return {"fused": refuse}

    source = make_faces(tmp_path / "faces", BREAKER_MIN_IMAGES + 20)
    outcome = run_with(load, resolve(spec(source, tmp_path / "out", shard_size=20)), batch_size=8)
    assert outcome.finished and not outcome.tripped
    assert {row["status"] for row in rows(tmp_path / "out").values()} == {"rejected_quality"}


def test_a_run_told_to_stop_finishes_what_is_in_flight(tmp_path):
    def slow(_):
        time.sleep(0.2)

    resolved = resolve(spec(make_faces(tmp_path / "faces", 40), tmp_path / "out", shard_size=2))
    threading.Thread(target=signal_when_busy, args=(tmp_path / "out",)).start()
    outcome = run_with(stand_in(slow), resolved, batch_size=2)
    done = committed(Store(resolved.spec.output), "boost")
    assert outcome.drained and not outcome.finished and 0 < len(done) < 20
    assert len(digests(tmp_path / "out")) == 2 * len(done)


def signal_when_busy(root: Path) -> None:
    while not committed(Store(str(root)), "boost"):
        time.sleep(0.02)
    signal.raise_signal(signal.SIGTERM)


def test_more_actors_than_gpus_is_refused(faces, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="need a GPU each and the cluster has 0"):
        run(spec(faces(2), tmp_path / "out", engine={"device": "cuda"}))


def test_the_state_of_a_run_is_read_from_storage_alone(faces, tmp_path):
    resolved = resolve(spec(faces(6), tmp_path / "out", shard_size=2))
    run(resolved.spec)
    (tmp_path / "out" / "commit" / "boost" / "000002.json").unlink()
    state = StateReader(Store(resolved.spec.output), {"boost": (3, 6)}).read()
    assert (state.stages["boost"].shards_done, state.images_done, state.complete) == (2, 4, False)
    assert state.stages["boost"].rows == {"ok": 4}
    assert state.actors == []
