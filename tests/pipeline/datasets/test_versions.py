"""The versions of a data set: after every tick exactly what its source holds, each image edited once a change."""

import json
import uuid
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyrp.errors import UserError
from pipeline.datasets.changes import Changes
from pipeline.datasets.known_images import KeySet
from pipeline.datasets.versions import (
    Version,
    latest,
    publish,
    read_rows,
    read_version,
    run_name,
    run_store,
    write_index,
)
from pipeline.images.source import SourceImage
from pipeline.run.manifest import SCHEMA, Row
from pipeline.storage.store import Store

EDITS = ("glasses", "smile")
Listing = dict[str, str]
"""The etags of a source's images."""


def rows_of(image: SourceImage, run: str, recipe: str, status: str) -> list[Row]:
    """The rows of an image, as a run makes them."""
    values: dict[str, Any] = {"key": image.key, "shard": 0, "row": 0, "stage": "boost", "status": status}
    values |= {"source_size": image.size, "source_etag": image.etag, "scores": {"a": 0.5}, "run": run, "recipe": recipe}
    return [{**dict.fromkeys(SCHEMA.names), **values, "edit": edit} for edit in EDITS]


def images(listing: Listing) -> list[SourceImage]:
    return [SourceImage(key, f"/nowhere/{key}", 1, etag) for key, etag in sorted(listing.items())]


def draft(store: Store, base: Version | None, listing: Listing, recipe: str = "r", lost: frozenset[str] = frozenset(),
          status: str = "ok") -> tuple[Version, set[str]]:  # fmt: skip
    """The version that a tick makes of a listing, and the images that it edits; those `lost` were quarantined."""
    number = base.number + 1 if base else 1
    run = f"runs/{number}"
    changes = Changes.since(store, base, recipe)
    edited = [image for image in changes.to_do(images(listing)) if image.key not in lost]
    done = KeySet(image.key for image in edited)
    added = (row for image in edited for row in rows_of(image, run, recipe, status))
    index = write_index(store, base, changes.keeps(done), added)
    counted = {**changes.counts, "gone": changes.known.gone}
    version = Version(
        number=number,
        tick=f"tick-{number}",
        run=run,
        spec_digest="",
        created_at="",
        index=index.path,
        images=index.images,
        rows=dict(index.rows),
        parts=dict(index.parts),
        changes=counted,
    )
    return version, {image.key for image in edited}


def contents(store: Store, version: Version) -> dict[tuple[str, str], str]:
    """The etags of what a version has, by image and edit; no row twice, the edits of an image side by side."""
    rows = list(read_rows(store, version, ("key", "edit", "source_etag")))
    found = {(row["key"], row["edit"]): row["source_etag"] for row in rows}
    assert len(found) == len(rows) == sum(version.rows.values()) == sum(version.parts.values())
    assert [row["key"] for row in rows[::2]] == [row["key"] for row in rows[1::2]]
    return found


def expected(listing: Listing) -> dict[tuple[str, str], str]:
    return {(key, edit): etag for key, etag in listing.items() for edit in EDITS}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "job"))


listings = st.lists(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("12")), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(listings)
def test_every_version_is_its_listing_and_only_what_changed_was_edited_for_it(tmp_path_factory, history):
    store = Store(str(tmp_path_factory.mktemp("job") / uuid.uuid4().hex))
    before: Listing = {}
    made = []
    for listing in history:
        version, edited = draft(store, latest(store), listing)
        assert publish(store, version) == version == latest(store)
        assert edited == {key for key, etag in listing.items() if before.get(key) != etag}
        assert version.images == len(listing)
        assert version.changes["gone"] == len(before.keys() - listing.keys())
        made.append(version)
        before = listing
    for version, listing in zip(made, history, strict=True):
        assert contents(store, version) == expected(listing), "a version never changes"


def test_an_image_of_a_quarantined_shard_stays_as_it_was_and_comes_with_the_next_tick(store):
    first, _ = draft(store, None, {"a": "1", "b": "1"})
    publish(store, first)
    second, _ = draft(store, first, {"a": "2", "b": "1", "c": "1"}, lost=frozenset("ac"))
    publish(store, second)
    assert contents(store, second) == expected({"a": "1", "b": "1"})
    third, edited = draft(store, second, {"a": "2", "b": "1", "c": "1"})
    assert edited == {"a", "c"}
    assert contents(store, third) == expected({"a": "2", "b": "1", "c": "1"})


def test_an_image_that_could_not_be_fetched_is_tried_again_and_one_that_could_not_be_decoded_is_not(store):
    for status, again in {"fetch_error": {"a"}, "decode_error": set()}.items():
        base, _ = draft(store, None, {"a": "1"}, status=status)
        _, edited = draft(store, base, {"a": "1"})
        assert edited == again


def test_another_recipe_does_every_image_again_and_goes_on_with_those_that_it_has_lost(store):
    first, _ = draft(store, None, {"a": "1", "b": "1"}, recipe="r")
    second, edited = draft(store, first, {"a": "1", "b": "1"}, recipe="s", lost=frozenset("b"))
    assert edited == {"a"} and second.changes["again"] == 2
    _, edited = draft(store, second, {"a": "1", "b": "1"}, recipe="s")
    assert edited == {"b"}


def test_of_two_drivers_that_make_the_next_version_one_does_and_the_others_index_is_gone(store):
    first, _ = draft(store, None, {"a": "1"})
    publish(store, first)
    mine, _ = draft(store, first, {"a": "1", "b": "1"})
    its, _ = draft(store, first, {"a": "1", "c": "1"})
    its = replace(its, tick="another")
    assert publish(store, its) == its
    assert publish(store, mine) == its
    assert latest(store) == its and contents(store, its) == expected({"a": "1", "c": "1"})
    assert len(list(store.names("versions/index"))) == 2


def test_a_reader_sees_the_version_before_until_the_next_is_published_whole(store):
    first, _ = draft(store, None, {"a": "1"})
    assert latest(store) is None
    publish(store, first)
    draft(store, first, {"b": "1"})
    assert latest(store) == first and contents(store, first) == expected({"a": "1"})


def test_a_column_that_an_earlier_asyrp_did_not_write_is_null(store):
    first, _ = draft(store, None, {"a": "1"})
    publish(store, first)
    path = store.path(first.index)
    pq.write_table(pq.read_table(path).drop_columns(["actor"]), path)
    second, _ = draft(store, first, {"a": "1", "b": "1"})
    assert contents(store, second) == expected({"a": "1", "b": "1"})
    assert all(row["actor"] is None for row in read_rows(store, second))


def test_a_version_that_is_not_there_or_too_new_is_refused(store):
    store.write("versions/000001.json", json.dumps({"format": 2}).encode())
    with pytest.raises(UserError, match="has format 2, this asyrp knows 1"):
        latest(store)
    with pytest.raises(UserError, match="has no version 7"):
        read_version(store, 7)


def test_a_data_set_may_be_moved_with_its_runs(store):
    assert run_name(store, f"{store.url}/runs/x") == "runs/x"
    assert run_store(Store("/elsewhere"), "runs/x").url == "/elsewhere/runs/x"
    assert run_store(store, run_name(store, "s3://bucket/x")).url == "s3://bucket/x"
