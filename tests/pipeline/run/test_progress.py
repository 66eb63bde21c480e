"""The state of a run, from storage alone."""

import json
from collections import Counter

import pytest

from pipeline.run import progress
from pipeline.run.commit import commit_name
from pipeline.run.progress import TALLY, StateReader
from tests.support.runs import make_faces, stand_in_run

SIZES = {"boost": (3, 12)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("progress")
    return stand_in_run(make_faces(folder / "faces", 12), folder / "out")


@pytest.fixture
def store(finished):
    finished.delete(TALLY)
    return finished


def test_a_state_that_was_kept_is_the_state_and_no_commit_is_opened_for_it(store, monkeypatch):
    reader = StateReader(store, SIZES)
    state = reader.read()
    assert state.complete and state.stages["boost"].images_done == 12
    assert state.stages["boost"].rows == Counter(ok=24)
    reader.keep()
    monkeypatch.setattr(progress, "read_commit", lambda *_: pytest.fail("a commit was opened"))
    assert StateReader(store, SIZES).read() == state


def test_commits_that_are_newer_than_the_kept_state_are_added_to_it(store):
    last = commit_name("boost", 2)
    data = store.read(last)
    store.delete(last)
    partial = StateReader(store, SIZES)
    assert partial.read().stages["boost"].shards_done == 2
    partial.keep()
    store.write(last, data)
    assert StateReader(store, SIZES).read().complete
    assert partial.read().complete


def test_a_kept_state_that_counts_a_commit_that_is_gone_is_not_believed(store):
    reader = StateReader(store, SIZES)
    reader.read()
    reader.keep()
    name = commit_name("boost", 0)
    data = store.read(name)
    store.delete(name)
    try:
        images = json.loads(data)["images"]
        for again in (reader, StateReader(store, SIZES)):
            stage = again.read().stages["boost"]
            assert not stage.complete and stage.images_done == 12 - images
    finally:
        store.write(name, data)
