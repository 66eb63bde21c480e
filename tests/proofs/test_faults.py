"""Runs on a store that fails now and then end whole: what failed is said in a sentence, and done again."""

import shutil
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyrp.errors import UserError
from jobs.runs.record import open_run, recorded_plan, recorded_sizes, recorded_stages
from jobs.runs.resolve import resolve
from jobs.runs.run_file import read_run
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.run.commit import committed
from pipeline.run.stage import FINAL
from pipeline.storage.store import Store
from pipeline.upkeep.garbage import collect_garbage
from pipeline.upkeep.verify import verify
from tests.support.faulty import FAULTS
from tests.support.runs import digests, make_faces, spec, stand_in_run, stand_in_stages

EDITS = ["glasses=1", "smile=-0.5"]
RATE = 0.05
MOST_CALLS = 60


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    stand_in_run(make_faces(folder / "faces", 12), folder / "out", shard_size=3)
    return folder


@contextmanager
def sentences(said: Counter[str]):
    """Takes the errors that a command may end with: one sentence each."""
    try:
        yield
    except (UserError, OSError) as error:
        assert "\n" not in str(error)
        said[type(error).__name__] += 1


def do_what_is_left(resolved, stage, said) -> bool:
    """One call of `run`: plan or resume, and do each shard that is not committed. Whether all of it went well."""
    before = said.total()
    store = Store(resolved.spec.output)
    with sentences(said):
        plan = open_run(store, resolved)
        options = WorkerOptions(4, 2, 2)
        with Worker(store.url, "here", stand_in_stages(), resolved.image_format, options) as worker:
            for shard in set(range(plan.shards)) - committed(store, stage.name):
                with sentences(said):  # the driver hears of it and goes on
                    worker.run(stage, shard)
    return said.total() == before


SEEDS = [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 200))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_on_a_store_that_fails_now_and_then_ends_whole(undisturbed, tmp_path, seed):
    root = f"faulty://{tmp_path}/out"
    resolved = resolve(spec(undisturbed / "faces", root, edits=EDITS, shard_size=3))
    [stage] = [stage for stage in resolved.stages if stage.name == FINAL]
    said: Counter[str] = Counter()
    with FAULTS.on(seed, RATE) as faults:
        for _ in range(MOST_CALLS):
            if done := do_what_is_left(resolved, stage, said):
                break
            with sentences(said):
                store = Store(root)
                collect_garbage(store, recorded_sizes(read_run(store)), older_than=3600)
        assert done and faults.injected.total() > 0
    assert digests(tmp_path / "out") == digests(undisturbed / "out")
    store = Store(str(tmp_path / "out"))
    record = read_run(store)
    found = verify(store, recorded_plan(record), recorded_stages(record), recorded_sizes(record), deep=True)
    assert found.findings == []
    collect_garbage(store, recorded_sizes(record), older_than=0)
    assert verify(store, recorded_plan(record), recorded_stages(record), recorded_sizes(record), deep=True).whole


COMMANDS = (
    ("status", "{root}"),
    ("verify", "{root}", "--deep"),
    ("gc", "{root}"),
    ("report", "{root}"),
    ("export", "{root}", "--to", "webdataset", "-o", "{root}-set"),
    ("run", "-s", "{source}", "-o", "{root}", "-e", "glasses=1", "--no-check"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_a_command_that_meets_a_fault_says_so_in_one_sentence(cli, undisturbed, tmp_path, command):
    shutil.copytree(undisturbed / "out", tmp_path / "out")
    names = {"root": f"faulty://{tmp_path}/out", "source": undisturbed / "nowhere"}
    codes = set()
    for seed in range(12):
        with FAULTS.on(seed, 0.3):
            code, out, err = cli(*(part.format(**names) for part in command))
        assert "Traceback" not in out + err
        assert not code or command[0] == "verify" or err.count("error: ") == 1, err
        codes.add(code)
    assert codes - {0}
