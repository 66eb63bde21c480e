"""What is added to a run after it was planned: new images, and images that are tried again."""

import json

import pytest

from asyrp.errors import UserError
from jobs.runs.growth import extend, retry, spec_of
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.runs.run import exit_code, run
from jobs.runs.session import read_state
from jobs.spec.run import EngineSpec
from pipeline.images.selection import ALL
from pipeline.images.source import SourceImage
from pipeline.run.additions import CurrentRows, add, read_additions, read_everything, read_shard
from pipeline.run.plan import SHARDS_PER_PART, write_plan
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store
from tests.support.runs import (
    SAMPLES,
    asyrp,
    digests,
    make_faces,
    record_plan,
    rows,
    run_here,
    spec,
    stand_in_run,
    stand_in_stages,
)

ENGINE = EngineSpec.model_validate({"check": False})


def images(*keys: str) -> list[SourceImage]:
    return [SourceImage(key, f"/nowhere/{key}") for key in keys]


@pytest.fixture
def planned(tmp_path) -> Store:
    store = Store(str(tmp_path / "run"))
    record_plan(store, write_plan(store, images("a", "b", "c"), 2, lambda key: [key]))
    return store


def test_an_addition_has_shards_of_its_own_and_the_plan_stays_as_it_is(planned):
    first = add(planned, "extend", images("d", "e", "f"), planned=2, shard_size=2, replaces={})
    second = add(planned, "retry", images("a"), planned=2, shard_size=2, replaces={"boost": {"fetch_error": 1}})
    assert (first.shard_ids, second.shard_ids) == (range(1024, 1026), range(2048, 2049))
    assert [row.key for row in read_shard(planned, 0)] == ["a", "b"]
    assert [row.key for row in read_shard(planned, 1025)] == ["f"]
    assert [(row.key, row.shard, row.row) for row in read_shard(planned, 2048)] == [("a", 2048, 0)]
    assert [row.key for row in read_everything(planned)] == ["a", "b", "c", "d", "e", "f", "a"]
    with pytest.raises(FileNotFoundError):
        read_shard(planned, 2)
    assert read_additions(planned) == [first, second]


def test_an_addition_of_more_shards_than_a_part_holds_is_read_whole(planned):
    added = add(
        planned,
        "extend",
        images(*(f"{n:05d}" for n in range(SHARDS_PER_PART + 3))),
        planned=2,
        shard_size=1,
        replaces={},
    )
    assert len(added.parts) == 2
    assert [row.key for row in read_shard(planned, added.shard_ids[-1])] == [f"{SHARDS_PER_PART + 2:05d}"]


def test_of_two_additions_at_once_one_is_refused_and_the_other_whole(planned, monkeypatch):
    other = Store(planned.url)
    create = Store.create

    def late(self, name, data):
        if self is planned:
            add(other, "extend", images("other"), planned=2, shard_size=2, replaces={})
        return create(self, name, data)

    monkeypatch.setattr(Store, "create", late)
    with pytest.raises(UserError, match="another command was adding to the run"):
        add(planned, "extend", images("mine"), planned=2, shard_size=2, replaces={})
    [left] = read_additions(planned)
    assert [row.key for row in read_shard(planned, left.first_shard)] == ["other"]
    assert len(list(planned.fs.find(planned.path("additions/parts")))) == 1


def test_current_rows_of_some_shards_are_as_if_there_were_no_others(tmp_path):
    source = make_faces(tmp_path / "faces", 4)
    (source / "0001.png").write_bytes(b"")
    store = stand_in_run(source, tmp_path / "out", edits=["glasses=1", "smile=1"], shard_size=2)
    assert retry(store.url, frozenset({"decode_error"})) is not None
    resolved = resolve(spec(source, tmp_path / "out", edits=["glasses=1", "smile=1"], shard_size=2))
    assert CurrentRows(store).waiting("boost") == {"0001.png"}
    run_here(resolved, make=stand_in_stages, shards=[SHARDS_PER_PART])
    current = CurrentRows(store)
    assert {row["shard"] for row in current.of_stage("boost") if row["key"] == "0001.png"} == {SHARDS_PER_PART}
    assert {row["shard"] for row in current.of_stage("boost", [0, 1]) if row["key"] == "0001.png"} == {0}
    assert current.waiting("boost") == set()


@pytest.mark.usefixtures("without_ray")
def test_a_retry_does_the_failed_images_alone_and_the_run_is_then_as_if_nothing_had_failed(tmp_path):
    source = make_faces(tmp_path / "faces", 7)
    whole = digests_of(tmp_path, source)
    good = {number: (source / f"{number:04d}.png").read_bytes() for number in (2, 5)}
    (source / "0002.png").write_bytes(b"")
    (source / "0005.png").write_bytes(good[5][:200])
    root = tmp_path / "out"
    asked = spec(source, root, shard_size=2)
    assert exit_code(run(asked).outcome) == 0
    before = {row["key"]: row["attempt"] for row in rows(root).values()}
    assert {key for (key, _, _), row in rows(root).items() if row["status"] == "decode_error"} == {
        "0002.png",
        "0005.png",
    }
    assert retry(str(root), frozenset({"fetch_error"})) is None
    (source / "0002.png").write_bytes(good[2])
    (source / "0005.png").write_bytes(good[5])
    added = retry(str(root), frozenset({"decode_error"}))
    assert added is not None and (added.images, added.replaces["boost"]) == (2, {"decode_error": 2})
    assert retry(str(root), frozenset({"decode_error"})) is None, "they are waiting to be done already"
    assert exit_code(run(asked).outcome) == 0
    now = {row["key"]: row for row in CurrentRows(Store(str(root))).of_stage("boost")}
    assert {key: row["output_sha256"] for key, row in now.items()} == {key: sha for (key, _, _), sha in whole.items()}
    assert sum(now[key]["attempt"] != attempt for key, attempt in before.items()) == 2
    state = read_state(Store(str(root)))
    assert state.complete and dict(state.stages["boost"].rows) == {"ok": 7}
    assert exit_code(run(asked).outcome) == 0


def digests_of(tmp_path, source):
    run(spec(source, tmp_path / "whole", shard_size=2))
    return digests(tmp_path / "whole")


@pytest.mark.usefixtures("without_ray")
def test_an_image_that_fails_again_keeps_its_row_and_can_be_tried_once_more(tmp_path):
    source = make_faces(tmp_path / "faces", 3)
    (source / "0001.png").write_bytes(b"never an image")
    asked = spec(source, tmp_path / "out")
    run(asked)
    for _ in range(2):
        assert retry(asked.output, frozenset({"decode_error"})) is not None
        assert exit_code(run(asked).outcome) == 0
        found = [(row["key"], row["status"]) for row in CurrentRows(Store(asked.output)).of_stage("boost")]
        assert sorted(found) == [("0000.png", "ok"), ("0001.png", "decode_error"), ("0002.png", "ok")]
        assert dict(read_state(Store(asked.output)).stages["boost"].rows) == {"ok": 2, "decode_error": 1}


@pytest.mark.usefixtures("without_ray")
def test_a_retry_of_a_staged_run_goes_through_all_its_stages(tmp_path):
    source = make_faces(tmp_path / "faces", 3)
    good = (source / "0001.png").read_bytes()
    (source / "0001.png").write_bytes(b"")
    asked = spec(source, tmp_path / "out", stages="staged")
    run(asked)
    (source / "0001.png").write_bytes(good)
    assert retry(asked.output, frozenset({"decode_error"})) is not None
    assert exit_code(run(asked).outcome) == 0
    state = read_state(Store(asked.output))
    assert {name: dict(stage.rows) for name, stage in state.stages.items()} == {
        "invert": {"ok": 3}, "edit": {"ok": 3}, "boost": {"ok": 3},
    }  # fmt: skip


@pytest.mark.usefixtures("without_ray")
def test_an_extension_edits_what_is_new_and_names_what_changed_or_is_gone(tmp_path):
    source = make_faces(tmp_path / "faces", 4)
    asked = spec(source, tmp_path / "out", shard_size=2)
    run(asked)
    before = digests(asked.output)
    nothing = extend(asked.output, resolve(asked))
    assert (nothing.addition, nothing.changed, nothing.deleted) == (None, 0, 0)
    (source / "0001.png").unlink()
    (source / "0002.png").write_bytes((source / "0003.png").read_bytes() + b"\0")
    for number in (10, 11, 12):
        (source / f"{number:04d}.png").write_bytes((SAMPLES / f"face_{number}.png").read_bytes())
    found = extend(asked.output, resolve(asked))
    assert found.addition is not None and (found.addition.images, found.changed, found.deleted) == (3, 1, 1)
    assert found.examples == {"changed": ["0002.png"], "deleted": ["0001.png"]}
    assert exit_code(run(asked).outcome) == 0
    after = digests(asked.output)
    assert before.items() <= after.items()
    assert {key for key, _, _ in after.keys() - before.keys()} == {"0010.png", "0011.png", "0012.png"}
    assert extend(asked.output, resolve(asked)).addition is None


def test_a_new_image_with_the_output_name_of_an_old_one_is_refused(tmp_path):
    source = make_faces(tmp_path / "faces", 2)
    asked = spec(source, tmp_path / "out")
    store = Store(asked.output)
    resolved = resolve(asked)
    open_run(store, resolved)
    (source / "0001.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"images '0001.png' and '0001.jpg' would both be written as"):
        extend(asked.output, resolved)
    assert read_additions(store) == []


def test_a_run_with_images_tried_again_can_be_extended(tmp_path):
    source = make_faces(tmp_path / "faces", 2)
    resolved = resolve(spec(source, tmp_path / "out"))
    store = Store(resolved.spec.output)
    plan = open_run(store, resolved)
    [first, _] = list_images(str(source), ALL)
    add(store, "retry", [first], planned=plan.shards, shard_size=plan.shard_size, replaces={})
    (source / "0002.png").write_bytes((source / "0001.png").read_bytes())
    found = extend(resolved.spec.output, resolved)
    assert found.addition is not None and (found.addition.images, found.changed, found.deleted) == (1, 0, 0)


@pytest.mark.usefixtures("without_ray")
def test_the_commands_speak_of_what_they_did_and_refuse_what_they_cannot(tmp_path):
    source = make_faces(tmp_path / "faces", 2)
    (source / "0001.png").write_bytes(b"")
    flags = ("-e", "glasses=1", "--n-inv", "4", "--n-gen", "4", "--preview", "0", "--no-check")
    first = asyrp("run", "-s", source, "-o", tmp_path / "out", "--json", *flags)
    facts = json.loads(first.stdout)
    assert first.returncode == 0 and facts["complete"] and facts["session"]["finished"]
    assert facts["stages"]["boost"]["rows"] == {"ok": 1, "decode_error": 1}
    (source / "0001.png").write_bytes((source / "0000.png").read_bytes())
    again = asyrp("retry", tmp_path / "out", "--status", "decode_error", "--no-check", "--json")
    assert again.returncode == 0 and "1 images to do again" in again.stderr, again.stderr
    assert json.loads(again.stdout)["added"] == 1
    status = json.loads(asyrp("status", tmp_path / "out", "--json").stdout)
    assert status["complete"] and status["stages"]["boost"]["rows"] == {"ok": 2}
    verified = asyrp("verify", tmp_path / "out", "--deep", "--json")
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["stages"]["boost"]["rows"] == {"ok": 2}, "rows that were replaced do not count"
    for arguments, sentence in {
        ("retry", tmp_path / "none"): "there is no run at",
        ("retry", tmp_path / "out", "--status", "bad"): "--status bad: give decode_error, fetch_error, nonfinite",
        ("extend", tmp_path / "none"): "there is no run at",
    }.items():
        done = asyrp(*arguments)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_a_spec_is_read_back_as_it_was(tmp_path):
    asked = spec(make_faces(tmp_path / "faces", 2), tmp_path / "out", limit=1)
    open_run(Store(asked.output), resolve(asked))
    assert spec_of(asked.output, ENGINE).identity() == resolve(asked).spec.identity()
    assert spec_of(asked.output, ENGINE).engine == ENGINE


@pytest.mark.parametrize("name", ["run.json", "additions/00001.json", "progress/here.json", "report/tally.json"])
@pytest.mark.parametrize("left", [b'{"format"', b"[]"])
def test_a_damaged_record_is_named_in_one_sentence(cli, tmp_path, name, left):
    source = make_faces(tmp_path / "faces", 2)
    (source / "0001.png").write_bytes(b"never an image")
    store = stand_in_run(source, tmp_path / "out")
    assert retry(store.url, frozenset({"decode_error"})) is not None
    store.write(name, left)
    code, _, error = cli("status", store.url)
    assert code == 2 and error.count("\n") == 1
    assert error.startswith(f"error: {name} at {store.url} is damaged")
