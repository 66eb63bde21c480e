"""YAML from anybody: within limits, with the line of a mistake, and never a traceback."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyrp.errors import UserError
from jobs.spec.job import load_job
from jobs.spec.run import load_spec
from jobs.spec.yaml_lines import MAX_BYTES, MAX_DEPTH, read_mapping, read_value

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
HOSTILE = {
    "aliases that multiply": (LAUGHS.encode(), "job.yaml:6: .* more than 100,000 values, its aliases written out"),
    "merged aliases that multiply": (
        b"a: &a {x: 1}\n" + b"b: [" + b", ".join([b"{<<: *a}"] * 60_000) + b"]",
        "job.yaml:2: .* more than 100,000 values",
    ),
    "an alias of itself": (b"name: x\nrun: &a [*a]", "job.yaml:2: .* an alias stands inside what it repeats"),
    "an alias of itself in a mapping": (b"run: &a {b: [*a]}", "job.yaml:1: .* inside what it repeats"),
    "too deep": (b"a: " + b"[" * 100_000, f"job.yaml:1: .* nested more than {MAX_DEPTH} deep"),
    "too deep in blocks": (
        b"".join(b" " * n + b"a:\n" for n in range(200)),
        f"job.yaml:{MAX_DEPTH}: .* nested more than {MAX_DEPTH} deep",
    ),
    "too large": (b"a: 1\n" * (MAX_BYTES // 5 + 1), "is too large: it may have 1,000,000 bytes"),
    "a tab": (b"name: x\n\trun: 1", "job.yaml:2: this is not YAML"),
    "a NUL": (b"name: x\nroot: \0", r"job.yaml:2: .* the character '\\x00' may not stand in it"),
    "no UTF-8": (b"name: x\nroot: caf\xe9", "job.yaml:2: the .* is not text in UTF-8"),
    "half a UTF-16": (b"\xff\xfen", "job.yaml:1: the .* is not text in UTF-8"),
    "no mapping": (b"- a", "must be a mapping of names to values"),
    "nothing": (b"", "must be a mapping of names to values"),
    "two documents": (b"a: 1\n---\nb: 2", "job.yaml:2: .* found another document|job.yaml:2: .* but found"),
    "a tag that runs code": (b"a: !!python/object/apply:os.system [x]", "job.yaml:1: .* could not determine"),
    "a date that is none": (b"name: x\nroot: 2020-13-45", "job.yaml:2: .* month must be in"),
    "a number of 5,000 digits": (b"a: 1\nb: " + b"1" * 5000, "job.yaml:2: .* this is no value"),
    "a key that is a list": (b"a: 1\n[b]: 2", "job.yaml:2: .* unhashable key"),
    "a truth that is none": (b"a: !!bool x", "job.yaml:1: .* this is no value"),
    "an alias of nothing": (b"a: *b", "job.yaml:1: .* undefined alias"),
}
READERS: dict[str, Callable[[Path], Any]] = {
    "job": load_job,
    "config": lambda path: load_spec(path, {}, []),
    "cluster file": lambda path: read_mapping(path, "the cluster file", "a: 1"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_one_sentence_with_its_line(tmp_path, reader, case):
    text, message = HOSTILE[case]
    (tmp_path / "job.yaml").write_bytes(text)
    with pytest.raises(UserError, match=message) as refused:
        READERS[reader](tmp_path / "job.yaml")
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, message in ((tmp_path, "is no file"), (tmp_path / "pipe.yaml", "is no file"), (Path("a\0b"), "cannot")):
        with pytest.raises(UserError, match=message):
            READERS[reader](path)
    with pytest.raises(UserError, match="too large"):
        READERS[reader](Path("/dev/zero"))


def test_a_field_that_stands_twice_is_refused_with_its_line(tmp_path):
    (tmp_path / "run.yaml").write_text("source: a\nengine:\n  actors: 1\n  actors: 2\n")
    with pytest.raises(UserError, match=r"run\.yaml:4: 'actors' is there twice"):
        load_spec(tmp_path / "run.yaml", {}, [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_whatever_the_locale_and_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "run.yaml").write_bytes("source: café".encode(encoding))
    assert read_mapping(tmp_path / "run.yaml", "the config", "a: 1") == {"source": "café"}


def test_aliases_that_do_not_multiply_are_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {<<: &m {x: 1}, y: *a}\n")
    assert read_mapping(tmp_path / "run.yaml", "the config", "a: 1") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"x": 1, "y": [1, 2]},
    }


@pytest.mark.parametrize("value", ["[" * 10_000, "&a [*a]", "{a: ", "\0", "2020-13-45", "!!python/name:os", "1" * 5000])
def test_a_setting_that_is_no_yaml_is_one_sentence(value):
    with pytest.raises(UserError, match=r"^--set seed=.*: this is not YAML: "):
        load_spec(None, {}, [f"seed={value}"])


@given(st.text(alphabet=st.sampled_from("ab&*!<>[]{}:,-?|%@#'\"\\ \n\t\0~01.é"), max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_value_or_a_sentence(text):
    try:
        read_value(text)
    except UserError as refused:
        assert "\n" not in str(refused).strip()
