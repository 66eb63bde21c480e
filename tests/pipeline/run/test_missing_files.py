"""A file of a run that is missing or changed is one sentence for every command, and never an empty set."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.growth import extend, retry
from jobs.runs.record import recorded_plan
from jobs.runs.resolve import resolve
from jobs.runs.run_file import read_run
from pipeline.images.source import SourceImage
from pipeline.run import plan as plans
from pipeline.run.additions import add, read_additions, read_everything, read_shard
from pipeline.run.plan import DamagedPlan, Part, read_plan, write_parts
from pipeline.storage.records import DamagedRecord
from pipeline.storage.store import Store
from tests.support.runs import make_faces, spec, stand_in_run

IMAGES = 12  # in shards of 2, in parts of 2 shards


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run whose plan has three parts."""
    folder = tmp_path_factory.mktemp("missing")
    source = make_faces(folder / "faces", IMAGES)
    (source / "0007.png").write_bytes(b"broken")
    with pytest.MonkeyPatch.context() as patch:
        few_shards(patch)
        stand_in_run(source, folder / "out", shard_size=2)
        stand_in_run(source, folder / "staged", shard_size=2, stages="staged")
    return folder


def few_shards(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plans, "SHARDS_PER_PART", 2)
    patch.setattr("pipeline.run.additions.SHARDS_PER_PART", 2)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    few_shards(monkeypatch)


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made / "out", tmp_path / "out")


def resolved_again(made: Path, run: Path) -> Any:
    return resolve(spec(made / "faces", run, edits=["glasses=1", "smile=-0.5"], shard_size=2))


def change(path: Path) -> None:
    """Flip a byte and keep the size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


HARM: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "changed": change,
    "other": lambda path: path.write_bytes(b"PAR1" + b"nonsense" * 10 + b"PAR1"),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_of_the_plan_that_is_not_as_it_was_written_is_no_smaller_plan(made, run, harm, part):
    store = Store(str(run))
    harm(store_path(store, recorded_plan(read_run(store)).parts[part].path))
    before = sorted(run.rglob("*"))
    for act in (
        lambda: list(read_plan(store)),
        lambda: list(read_everything(store)),
        lambda: retry(str(run), frozenset(["decode_error"])),
        lambda: extend(str(run), resolved_again(made, run)),
    ):
        with pytest.raises(DamagedPlan, match=rf"part-0000{part}.parquet at .*: bring it back from a copy"):
            act()
    assert sorted(run.rglob("*")) == before


def store_path(store: Store, name: str) -> Path:
    return Path(store.path(name))


def test_a_part_of_the_plan_that_a_listing_does_not_show_yet_is_read_all_the_same(run, monkeypatch):
    store = Store(str(run))
    monkeypatch.setattr(store, "entries", lambda _: [])
    assert len(list(read_plan(store))) == IMAGES


def test_extend_with_a_missing_part_of_the_plan_adds_nothing(cli, run):
    [*_, part] = run.glob("plan/*/part-*.parquet")
    part.unlink()
    code, out, err = cli("extend", run)
    assert code == 2 and "is missing: bring it back from a copy" in err.replace("\n", " ") and "Traceback" not in err
    assert not (run / "additions").exists() and "new images" not in out + err


@pytest.mark.parametrize("harm", ["missing", "empty", "cut off", "other"])
def test_a_shard_of_a_damaged_part_is_one_sentence(run, harm):
    store = Store(str(run))
    HARM[harm](store_path(store, recorded_plan(read_run(store)).parts[1].path))
    assert [row.row for row in read_shard(store, 1)] == [0, 1]
    with pytest.raises((DamagedPlan, OSError)):
        read_shard(store, 2)


def test_a_part_with_other_shards_is_not_taken_for_the_one_that_was_written(run):
    store = Store(str(run))
    first, second, _ = (store_path(store, part.path) for part in recorded_plan(read_run(store)).parts)
    shutil.copy(first, second)
    for act in (lambda: read_shard(store, 2), lambda: list(read_plan(store))):
        with pytest.raises(DamagedPlan):
            act()


def without_counts(run: Path) -> None:
    """Make run.json one that an earlier asyrp wrote."""
    record = json.loads((run / "run.json").read_text())
    del record["plan"]["parts"]
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("harm", ["missing", "other", "one shard less"])
def test_a_plan_without_counts_is_held_against_its_totals(run, part, harm):
    store = Store(str(run))
    path = recorded_plan(read_run(store)).parts[part].path
    without_counts(run)
    assert len(list(read_plan(store))) == IMAGES
    if harm == "one shard less":
        write_parts(store, [SourceImage("x.png", "/nowhere")], 2, str(Path(path).parent), 2 * part)
        (run / path).write_bytes((run / Path(path).parent / "part-00000.parquet").read_bytes())
    else:
        HARM[harm](run / path)
    with pytest.raises(DamagedPlan, match=r"bring .* back from a copy"):
        list(read_plan(store))


def test_an_addition_whose_record_is_missing_is_told_and_nothing_is_added_over_it(run):
    store = Store(str(run))
    for key in ("b.png", "c.png"):
        add(store, "extend", [SourceImage(key, "/nowhere")], planned=6, shard_size=2, replaces={})
    first, second = run / "additions" / "00001.json", run / "additions" / "00002.json"
    text = first.read_text()
    first.unlink()
    for act in (read_additions, lambda store: list(read_everything(store))):
        with pytest.raises(DamagedRecord, match=r"additions/00001.json is missing at .*: bring it back from a copy"):
            act(store)
    first.write_text(second.read_text())
    with pytest.raises(DamagedRecord, match="it is addition 2"):
        read_additions(store)
    first.write_text(text)
    assert len(read_additions(store)) == 2


def test_an_addition_is_not_made_over_the_commits_of_one_whose_record_is_missing(run):
    store = Store(str(run))
    added = add(store, "extend", [SourceImage("b.png", "/nowhere")], planned=6, shard_size=2, replaces={})
    shutil.copy(run / "commit/boost/000001.json", run / f"commit/boost/{added.first_shard:06d}.json")
    (run / "additions" / "00001.json").unlink()
    with pytest.raises(Exception, match=r"000006.json at .* is of an addition whose record is missing"):
        add(store, "extend", [SourceImage("b.png", "/nowhere")], planned=6, shard_size=2, replaces={})


def test_an_addition_that_an_earlier_asyrp_made_is_read(run):
    store = Store(str(run))
    added = add(store, "extend", [SourceImage("b.png", "/nowhere")], planned=6, shard_size=2, replaces={})
    record = run / "additions" / "00001.json"
    written = json.loads(record.read_text())
    record.write_text(json.dumps({**written, "parts": [part["path"] for part in written["parts"]]}))
    [found] = read_additions(store)
    assert found.parts == (Part(added.parts[0].path),)
    assert [row.key for row in read_shard(store, 6)] == ["b.png"]


COMMANDS = {
    "report": ("report", "{root}"),
    "export": ("export", "{root}", "--to", "parquet", "-o", "{tmp}/set"),
    "retry": ("retry", "{root}", "--status", "decode_error"),
    "source": ("plan", "-s", "{root}", "-o", "{tmp}/again", "-e", "smile=1", "--no-check"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_manifest_that_is_not_as_it_was_committed_is_one_sentence(cli, run, tmp_path, command, harm):
    [manifest] = (run / "manifest" / "boost").glob("000002.*")
    harm(manifest)
    before = read_additions(Store(str(run)))
    code, out, err = cli(*(part.format(root=run, tmp=tmp_path) for part in command))
    said = (out + err).replace("\n", " ")
    assert code == 2 and "asyrp verify says what to do" in said and "Traceback" not in said
    assert read_additions(Store(str(run))) == before


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_verify_tells_of_a_manifest_that_is_not_as_it_was_committed(cli, run, harm):
    [manifest] = (run / "manifest" / "boost").glob("000002.*")
    harm(manifest)
    code, out, err = cli("verify", run)
    assert code == 3 and "boost shard 2" in out and "Traceback" not in out + err


@pytest.mark.parametrize("file", ["commit/boost/000002.json", "commit/boost/000003.json"])
def test_a_commit_of_another_shard_is_no_commit(cli, run, tmp_path, file):
    shutil.copy(run / "commit/boost/000001.json", run / file)
    code, out, err = cli("verify", run)
    assert code == 3 and "its commit cannot be read" in out and "Traceback" not in err
    code, _, err = cli("export", run, "--to", "parquet", "-o", tmp_path / "set")
    assert code == 2 and "asyrp verify says what to do" in err.replace("\n", " ")


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_latents_that_are_not_as_they_were_committed_are_not_denoised(made, tmp_path, harm):
    root = shutil.copytree(made / "staged", tmp_path / "out")
    for commit in (root / "commit" / "boost").iterdir():
        commit.unlink()
    [latents] = (root / "data" / "edit").glob("000000.*/latents.safetensors")
    harm(latents)
    with pytest.raises(Exception, match=r"latents.safetensors .*: asyrp verify says what to do"):
        stand_in_run(made / "faces", root, shard_size=2, stages="staged")


def test_what_a_record_says_and_commits_do_not_is_told(cli, run):
    record = json.loads((run / "run.json").read_text())
    record["plan"] |= {"images": IMAGES - 2, "shards": 5}
    (run / "run.json").write_text(json.dumps(record))
    code, out, err = cli("verify", run)
    assert code == 3 and "Traceback" not in out + err and "plan/ is not what" in out
