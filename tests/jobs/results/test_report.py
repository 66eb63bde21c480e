"""What a report tells is what the manifests say, whatever happened to the run; any format, any storage."""

import base64
import json
import re
import zlib
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from threading import Thread
from time import sleep

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyrp.measures.names import METRICS
from jobs.cli import report as report_command
from jobs.results import markdown, page
from jobs.results.page import STEM, TABLE_ROWS, shown_rows, stem
from jobs.results.report import ReportReader, verdict, within
from jobs.results.tables import headline, tables
from jobs.runs.growth import extend, retry
from jobs.runs.resolve import resolve
from pipeline.results import highlights
from pipeline.results.rows import EncodedTexts, ResultReader, Results
from pipeline.results.summaries import counts, summaries, time_spent
from pipeline.results.thumbnails import Pair, Thumbnail
from pipeline.run import manifest
from pipeline.run.commit import Attempt
from pipeline.run.names import edit_title
from pipeline.run.plan import SHARDS_PER_PART
from pipeline.run.progress import RunState, StageState
from pipeline.run.stage import Stage, Variant
from pipeline.storage.store import Store
from tests.support.reported import GONE, HOSTILE, measured_rows, measured_run
from tests.support.runs import make_faces, run_here, spec, stand_in_run, stand_in_stages
from tests.support.runs import rows as rows_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return measured_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def report(store):
    return ReportReader(store).read()


@pytest.fixture(scope="module")
def rows(store):
    return measured_rows(store)


def columns_of(page: bytes) -> dict:
    packed = re.search(r'id="packed-rows">([^<]*)<', page.decode())
    return json.loads(zlib.decompress(base64.b64decode(packed[1])), parse_constant=pytest.fail)


def places(columns: dict) -> list:
    patterns, keys = decoded(columns, "place"), decoded(columns, "key")
    return [pattern and pattern.replace(STEM, stem(key)) for pattern, key in zip(patterns, keys, strict=True)]


def decoded(columns: dict, name: str) -> list:
    return [columns[name]["names"][code] for code in columns[name]["codes"]]


def test_rows_are_counted_by_edit_and_status(report, rows):
    expected = Counter((edit_title(row["edit"], row["strength"]), row["status"]) for row in rows)
    found = {(edit, status): n for edit, of_edit in counts(report.results).items() for status, n in of_edit.items()}
    assert {name: n for name, n in found.items() if n} == expected
    assert {"ok", "decode_error", "rejected_quality"} == set(report.results.statuses.names)


def test_a_metric_is_summed_up_over_the_rows_of_an_edit(report, rows):
    found = summaries(report.results)
    for edit in report.results.edits.names:
        for metric in METRICS:
            of_edit = (row[metric] for row in rows if edit_title(row["edit"], row["strength"]) == edit)
            values = [value for value in of_edit if value is not None]
            assert (metric in found[edit]) == bool(values)
            if values:
                assert found[edit][metric].count == len(values)
                assert found[edit][metric].mean == pytest.approx(np.mean(values), rel=1e-5)
                assert found[edit][metric].median == pytest.approx(np.median(values), rel=1e-5)
    assert "recon_psnr" in found["reconstruction"] and "identity" not in found["reconstruction"]


def test_the_scores_of_a_classifier_are_metrics_by_name_and_those_of_the_source_choose_no_pictures(report, rows):
    ours = [row["scores"]["smile"] for row in rows if row["scores"]]
    found = report.results.metrics["score.smile"]
    assert sorted(found[np.isfinite(found)].tolist()) == pytest.approx(sorted(ours))
    assert "source_score.smile" in report.results.metrics and "source_score.smile" not in report.results.judgements


def test_the_page_holds_every_row_with_its_metrics_and_where_its_output_lies(report, rows):
    columns = columns_of(page.render(report, None))
    found = list(zip(decoded(columns, "key"), decoded(columns, "edit"), decoded(columns, "status"), places(columns),
                     columns["metrics"]["identity"], strict=True))  # fmt: skip
    expected = [
        (row["key"], edit_title(row["edit"], row["strength"]), row["status"], row["output_uri"],
         None if row["identity"] is None else float(f"{row['identity']:.4g}"))
        for row in rows
    ]  # fmt: skip
    assert Counter(found) == Counter(expected)


def test_a_picture_is_the_source_as_it_was_read_and_the_output(report):
    ok = report.results.statuses.equals("ok")
    pairs = {row: pair for row, pair in report.pictures.items() if ok[row]}
    assert pairs
    keys = report.results.keys
    for row, (before, after) in pairs.items():
        assert after.webp and after.missing is None
        is_gone = keys.names[keys.codes[row]] == GONE
        assert (before.webp is None) == is_gone and (before.missing == "the source is gone") == is_gone


def test_what_has_no_picture_says_why(report):
    missing = {(pair.before.missing, pair.after.missing) for pair in report.pictures.values()}
    reasons = {reason for pair in missing for reason in pair if reason}
    assert "the source is gone" in reasons and "no image was made: rejected_quality" in reasons
    assert any(reason.startswith("the source is no image to edit") for reason in reasons)


def test_an_output_that_was_lost_or_a_source_that_was_changed_is_said_and_no_failure(tmp_path):
    source = make_faces(tmp_path / "faces", 3)
    store = stand_in_run(source, tmp_path / "out", edits=["smile=1", "glasses=1"])
    row = rows_of(store.url)["0000.png", "smile", 1.0]
    store.delete(row["output_uri"])
    (source / "0001.png").write_bytes((source / "0002.png").read_bytes())
    found = ReportReader(store).read()
    reasons = {reason for pair in found.pictures.values() for _, reason in pair if reason}
    assert len(reasons) == 2 and any("is missing at" in reason for reason in reasons)
    assert "the source is another by now than when it was edited" in reasons


def test_an_image_that_was_tried_again_counts_once_and_an_image_that_came_later_counts(tmp_path):
    source = make_faces(tmp_path / "faces", 4)
    good = (source / "0001.png").read_bytes()
    (source / "0001.png").write_bytes(b"")
    edits = {"edits": ["glasses=1", "smile=1"], "shard_size": 2}
    store = stand_in_run(source, tmp_path / "out", **edits)
    reader = ReportReader(store)
    assert counts(reader.read().results)["smile 1"] == {"ok": 3, "decode_error": 1}
    (source / "new.png").write_bytes(good)
    extend(store.url, resolve(spec(source, tmp_path / "out", **edits)))
    (source / "0001.png").write_bytes(good)
    assert retry(store.url, frozenset({"decode_error"})) is not None
    resolved = resolve(spec(source, tmp_path / "out", **edits))
    run_here(resolved, make=stand_in_stages, shards=[SHARDS_PER_PART, 2 * SHARDS_PER_PART])
    again = reader.read()
    assert counts(again.results) == {"glasses 1": {"ok": 5}, "smile 1": {"ok": 5}}
    assert headline(again)["source images"] == "5 of 5" and again.state.complete


def test_a_run_that_has_committed_nothing_yet_has_a_report(tmp_path):
    store = stand_in_run(make_faces(tmp_path / "faces", 2), tmp_path / "out")
    store.delete("commit")
    found = ReportReader(store).read()
    assert len(found.results) == 0 and not found.state.complete
    assert headline(found)["source images"] == "0 of 2"
    assert columns_of(page.render(found, 5.0))["place"]["codes"] == []
    assert set(markdown.render(found)) == {"report.md"}


def test_the_verdict_says_how_a_run_stands():
    def state(done: int, actors: int = 0) -> RunState:
        return RunState({"boost": StageState(2, 8, done)}, [{}] * actors)

    assert verdict(state(2), {"drained": True}) == "complete"
    assert verdict(state(1, actors=1), {"tripped": "too many"}) == "at work, with 1 actor"
    assert verdict(state(1), {"tripped": "too many"}) == "stopped: too many"
    assert verdict(state(1), {"drained": True}).startswith("stopped on request")
    assert verdict(state(1), {"quarantined": [["boost", 1, "it kills"]]}) == "finished with quarantined shards"
    assert verdict(state(1), {}) == "not complete, and nothing is at work on it"


def test_a_quarantined_shard_is_listed_until_somebody_has_done_it(tmp_path):
    store = stand_in_run(make_faces(tmp_path / "faces", 6), tmp_path / "out")
    given_up = [["boost", 0, "done since"], ["boost", 7, "its actor died"]]
    store.write("report/summary.json", json.dumps({"session": {"quarantined": given_up}}).encode())
    listed = next(table for table in tables(ReportReader(store).read()) if table.title == "Quarantined shards")
    assert listed.rows == [("boost", "7", "its actor died")]


def test_the_markdown_shows_the_same_tables_and_no_key_breaks_one(report):
    files = markdown.render(report)
    text = files["report.md"].decode()
    assert set(files) == {"report.md", "report_charts.png", "report_sheet.png"}
    assert all(f"## {table.title}" in text for table in tables(report))
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.M)
    for block in blocks:
        lines = block.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, block


def test_the_page_is_one_file_and_a_hostile_key_stays_text(report):
    html = page.render(report, None).decode()
    assert HOSTILE in report.results.keys.names and "onerror=alert" not in html
    assert not re.search(
        r"""(?:src|href)=["']?(?!data:)[^"'>\s]""", re.sub(r"<script.*?</script>", "", html, flags=re.S)
    )
    assert "default-src 'none'" in html


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(float("nan")), max_size=40))
def test_the_worst_and_the_best_are_the_ends_of_what_was_measured(values):
    array = np.array(values, np.float32)
    for name in ("identity", "edit_lpips"):
        worst, best = highlights.worst_and_best(name, array, np.arange(len(array)))
        measured = np.sort(array[np.isfinite(array)])
        low, high = measured[: highlights.EXTREMES], measured[::-1][: highlights.EXTREMES]
        expected = (low, high) if METRICS[name].better == "high" else (high, low)
        assert np.array_equal(array[worst], expected[0]) and np.array_equal(array[best], expected[1])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3 * TABLE_ROWS), st.floats(0, 1), st.data())
def test_a_page_holds_no_more_than_its_rows_with_those_that_have_pictures_or_failed(rows, failing, data):
    pictured = data.draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=50)) if rows else []
    ok = np.random.default_rng(0).random(rows) >= failing
    shown = shown_rows(ok, pictured)
    assert len(shown) <= TABLE_ROWS and set(pictured) <= set(shown.tolist())
    assert (np.diff(shown) > 0).all() and (rows > TABLE_ROWS or len(shown) == rows)
    assert np.count_nonzero(~ok[shown]) >= min(np.count_nonzero(~ok), TABLE_ROWS // 2)


def test_pictures_keep_to_their_budget_and_those_that_matter_most_stay():
    pairs = {row: Pair(Thumbnail(b"x" * 60), Thumbnail(b"y" * 40)) for row in (5, 2, 9)}
    assert list(within(pairs, 250)) == [5, 2]
    assert list(within({1: Pair(Thumbnail(None, "gone"), Thumbnail(None, "gone"))}, 0)) == [1]


def test_the_time_of_a_run_is_that_with_an_actor_at_work():
    def beat(actor: str, started: float, updated: float, device: float) -> dict:
        seconds = {"device": device, "wait_for_reader": 1.0}
        return {"actor": actor, "host": "h", "images": 5, "started": started, "updated": updated, "seconds": seconds}

    found = time_spent([beat("b", 5, 20, 3), beat("a", 0, 10, 1), beat("c", 100, 110, 3)])
    assert (found.seconds, found.actor_seconds) == (30, 35)
    assert [actor.name for actor in found.actors] == ["a", "b", "c"]
    assert found.shares == pytest.approx({"device": 0.7, "reader": 0.3, "writer": 0})
    assert time_spent([]).shares == {} and time_spent([]).seconds == 0


@settings(deadline=None)
@given(st.lists(st.none() | st.sampled_from(["a", "b", "c"])))
def test_a_coded_column_is_the_column(texts):
    names, codes = EncodedTexts.encode(pa.chunked_array([texts], pa.string()))
    assert [None if code < 0 else names[code] for code in codes] == texts


def committed_rows_of(store: Store, strengths: list[float], **columns: object) -> Results:
    """The results of a run of one edit whose strengths were searched for, image by image."""
    names = {"stage": "boost", "edit": "smile", "status": "ok", "shard": 0, "committed_at": datetime.now(UTC)}
    rows = [
        {**names, "key": f"{row}.png", "row": row, "strength": strength, **columns}
        for row, strength in enumerate(strengths)
    ]
    Attempt(store, "boost", 0).commit(rows, len(rows), None)
    stage = Stage(name="boost", function="fused", writes="images", variants=(Variant("smile"),))
    return ResultReader(store, [stage]).read()


def test_an_edit_with_a_strength_for_each_image_is_one_edit_and_its_strengths_are_measured(tmp_path):
    found = committed_rows_of(Store(str(tmp_path)), [0.5, 0.75, 2.0])
    assert found.edits.names == ["smile auto"] and found.metrics["strength"].tolist() == [0.5, 0.75, 2.0]


def test_what_is_not_finite_is_not_measured_and_the_page_can_still_be_read(report, tmp_path):
    results = committed_rows_of(Store(str(tmp_path)), [1.0, 2.0], recon_psnr=float("inf"))
    html = page.render(replace(report, results=results, pictures={}), None)
    assert columns_of(html)["metrics"]["recon_psnr"] == [None, None]
    assert "recon_psnr" not in summaries(results)["smile auto"]


def test_columns_of_a_manifest_are_those_of_its_rows():
    rows = [{"key": "k", "shard": 1, "row": 2, "stage": "boost", "status": "ok", "scores": {"smile": 0.5}}]
    data = manifest.to_bytes(rows)
    wanted = ["scores", "key", "identity"]
    found = manifest.table_from_bytes(data, wanted).to_pylist(maps_as_pydicts="strict")
    assert found == [{name: row[name] for name in wanted} for row in manifest.from_bytes(data)]


@pytest.mark.parametrize("format_", ["html", "markdown", "both"])
def test_the_command_writes_its_files_and_says_where(cli, store, tmp_path, format_):
    code, out, err = cli("report", store.url, "--format", format_, "--output", tmp_path, "--json")
    told = json.loads(out)
    assert code == 0, err
    assert sorted(told["files"]) == sorted(str(path) for path in tmp_path.iterdir())
    suffixes = {name.rsplit(".")[-1] for name in told["files"]}
    assert suffixes == {"html": {"html"}, "markdown": {"md", "png"}, "both": {"html", "md", "png"}}[format_]
    assert told["complete"] and told["rows"] == 27


def test_the_report_lies_with_the_run_and_verify_does_not_mind(cli, tmp_path):
    store = stand_in_run(make_faces(tmp_path / "faces", 2), tmp_path / "out")
    code, out, _ = cli("report", store.url)
    assert code == 0 and out.split() == [f"{store.url}/report/report.html"] and store.exists("report/report.html")
    assert cli("verify", store.url)[0] == 0


def test_watch_goes_on_until_the_run_is_complete_and_the_last_page_does_not_reload(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(report_command, "WATCH_SECONDS", 0.2)
    resolved = resolve(
        spec(make_faces(tmp_path / "faces", 4), tmp_path / "out", edits=["glasses=1", "smile=1"], shard_size=2)
    )
    run_here(resolved, make=stand_in_stages, shards=[0])
    page, pages = tmp_path / "out" / "report" / "report.html", []

    def finish() -> None:
        while not page.exists():
            sleep(0.05)
        pages.append(page.read_text())
        run_here(resolved, make=stand_in_stages, shards=[1])

    worker = Thread(target=finish)
    worker.start()
    code, out, err = cli("report", tmp_path / "out", "--watch")
    worker.join()
    pages.append(page.read_text())
    assert code == 0, err
    assert out.split() == [str(page)]
    assert ["data-reload-seconds" in text for text in pages] == [True, False]
    assert len(places(columns_of(pages[1].encode()))) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{empty}",), "there is no run at"),
        (("{run}", "--format", "pdf"), "--format pdf: give html or markdown or both"),
        (("{run}", "--output", "{file}/x"), "cannot write to"),
    ],
)
def test_a_mistake_is_one_sentence(cli, store, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    places = {"{empty}": str(tmp_path), "{run}": store.url, "{file}": str(tmp_path / "file")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, out, err = cli("report", *arguments)
    assert code == 2 and message in err.replace("\n", "") and "Traceback" not in out + err
