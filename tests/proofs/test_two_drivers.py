"""Two drivers on one root at once, as when a schedule starts a run that is still at work."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.runs.run_file import read_run
from pipeline.run import plan
from pipeline.run.plan import read_plan
from pipeline.storage.store import Store
from tests.support.runs import asyrp, make_faces, rows, run_here, spec, stand_in_stages


def test_of_two_drivers_that_plan_at_once_one_plan_counts_even_if_the_source_grew_between(tmp_path, monkeypatch):
    source, root = make_faces(tmp_path / "faces", 4), tmp_path / "out"
    late, early = resolve(spec(source, root, shard_size=2)), resolve(spec(source, root, shard_size=2))
    write_parts, store = plan.write_parts, Store(str(root))

    def overtaken(*arguments):
        monkeypatch.setattr(plan, "write_parts", write_parts)
        open_run(store, early)
        make_faces(source, 6)
        return write_parts(*arguments)

    monkeypatch.setattr(plan, "write_parts", overtaken)
    assert open_run(store, late).images == 4
    assert len(list(read_plan(store))) == 4
    assert len(list((root / "plan").iterdir())) == 1
    run_here(late, make=stand_in_stages)
    verified = asyrp("verify", root, "--deep")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")  # which neither driver takes down while the other is at work
def test_two_drivers_at_once_both_finish_and_commit_every_image_once(tmp_path):
    source, root = make_faces(tmp_path / "faces", 24), tmp_path / "out"
    flags = ("-e", "glasses=1", "--n-inv", "4", "--n-gen", "4", "--preview", "0", "--shard-size", "2", "--no-check")
    command = ("run", "-s", source, "-o", root, "--stages", "staged", *flags)
    with ThreadPoolExecutor() as pool:
        ended = [future.result() for future in [pool.submit(asyrp, *command) for _ in range(2)]]
    for driver in ended:
        assert driver.returncode == 0, driver.stderr
    assert len(rows(root)) == 24
    verified = asyrp("verify", root, "--deep")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert [path.name for path in (root / "plan").iterdir()] == [
        Path(read_run(Store(str(root)))["plan"]["folder"]).name
    ]
