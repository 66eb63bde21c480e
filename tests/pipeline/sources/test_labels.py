"""Labels by key: extremes, balance, and what a table refuses."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyrp.errors import UserError
from pipeline.sources.labels import LabelTable, read_labels, write_labels


def table(**columns) -> LabelTable:
    rows = np.array(list(columns.values()), dtype=np.float64).T
    return LabelTable("labels.csv", tuple(columns), tuple(f"{i}.png" for i in range(len(rows))), rows)


def test_extremes_are_the_images_with_the_most_and_the_least_of_a_label():
    found = table(score=[0.5, 0.1, 0.9, 0.2, 0.8, 0.4], other=[1, 2, 3, 4, 5, 6]).extremes("score", 0.34)
    assert found.keys == ("1.png", "2.png", "3.png", "4.png")
    assert found.column("score").tolist() == [0, 1, 0, 1]
    assert found.column("other").tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(("values", "share"), [([1, 2, 3], 0.2), ([1, 1, 1, 1], 0.5), ([0, 0, 0, 1], 0.5)])
def test_extremes_that_are_none_or_alike_are_refused(values, share):
    with pytest.raises(UserError, match="are none, or alike"):
        table(score=values).extremes("score", share)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.booleans()), min_size=2, max_size=60))
def test_balanced_classes_weigh_the_same_and_have_the_other_labels_alike(images):
    labels = table(beard=[i[0] for i in images], hair=[i[1] for i in images], age=[i[2] for i in images])
    has = labels.column("beard") == 1
    cells = [set(map(tuple, labels.rows[side, 1:].tolist())) for side in (has, ~has)]
    if has.all() or not has.any():
        with pytest.raises(UserError, match=r"a classifier needs two classes and 'beard' has 1 value"):
            labels.weights("beard", ["hair", "age"])
        return
    if not cells[0] & cells[1]:
        with pytest.raises(UserError, match="no combination of hair, age has both classes of 'beard'"):
            labels.weights("beard", ["hair", "age"])
        return
    weights = labels.weights("beard", ["hair", "age"])
    for cell in cells[0] | cells[1]:
        here = (labels.rows[:, 1:] == cell).all(1)
        np.testing.assert_allclose(weights[has & here].sum(), weights[~has & here].sum())
    assert weights.sum() > 0


def test_a_label_with_many_values_cannot_be_balanced():
    with pytest.raises(UserError, match="'age' has over 10 values: only classes can be balanced"):
        table(beard=[0, 1] * 10, age=range(20)).weights("beard", ["age"])


def test_keys_of_labels_are_made_as_those_of_sources(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('key,smile\n./a.png,1\n"b\nc.png",0\n')
    assert read_labels(str(path)).keys == ("a.png", "b%0Ac.png")
    path.write_text("key,smile\n./a.png,1\nb.png,0\na.png,0\n")
    with pytest.raises(UserError, match=r"other labels for 'a\.png' in row 2 than in row 4"):
        read_labels(str(path))


def test_keys_of_labels_that_are_no_texts_or_numbers_are_refused(tmp_path):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"key": [["a.png"], ["b.png"]], "smile": [1, 0]}), path)
    with pytest.raises(UserError, match="keys are texts or numbers"):
        read_labels(str(path))


@pytest.mark.parametrize("name", ["labels.parquet", "labels.csv"])
def test_a_table_that_was_written_reads_the_same(tmp_path, name):
    written = table(smile=[0.25, 1, 0], hair=[1, 0, 2])
    write_labels(written, str(tmp_path / "new" / name))
    found = read_labels(str(tmp_path / "new" / name))
    assert (found.columns, found.keys) == (written.columns, written.keys)
    np.testing.assert_array_equal(found.rows, written.rows)


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UserError, match="has no numeric column 'age': it has smile, hair"):
        table(smile=[0, 1], hair=[1, 0]).column("age")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("key,smile\na.png,1\nb.png,0\na.png,0\n", "other labels for 'a.png' in row 2 than in row 4: keep one of them"),
        ("key,smile\na.png,1\n,0\n", "has no key in row 3"),
        ("key,smile\na.png,1\nb.png,\n", "'smile' in row 3 is empty or not finite"),
        ("key,smile\na.png,1.5\nb.png,inf\n", "'smile' in row 3 is empty or not finite"),
        ("key,smile\n", "has no rows"),
        ("key,smile,smile\na,1,0\n", "has several columns 'smile': rename all but one"),
        ("key,smile\na,9007199254740993\n", "has a label that is no float64"),
        ("", "is neither CSV in UTF-8 nor Parquet"),
    ],
)
def test_a_table_of_labels_that_makes_no_sense_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_labels(str(tmp_path / "labels.csv"))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_of_labels_that_is_not_utf8_is_one_sentence(tmp_path, encoding):
    (tmp_path / "labels.csv").write_bytes("key,smile\ncafé.png,1\n".encode(encoding))
    with pytest.raises(UserError, match="is neither CSV in UTF-8 nor Parquet"):
        read_labels(str(tmp_path / "labels.csv"))


def test_the_keys_of_labels_are_text_as_it_is_written(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbfkey,smile\n007,1\n7,0\n00000,1\n7,0\n")
    found = read_labels(str(tmp_path / "labels.csv"))
    assert found.keys == ("007", "7", "00000", "7") and found.columns == ("smile",)
    pq.write_table(pa.table({"key": [7, 8], "smile": [1, 0]}), tmp_path / "labels.parquet")
    found = read_labels(str(tmp_path / "labels.parquet"))
    assert found.keys == ("7", "8") and found.columns == ("smile",)


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([2**62], pa.duration("s")),
        pa.array([2**62], pa.timestamp("ms")),
        pa.array([0], pa.timestamp("ms", "Nope/Zone")),
    ],
    ids=lambda keys: str(keys.type),
)
def test_keys_that_are_no_texts_are_one_sentence(tmp_path, keys):
    pq.write_table(pa.table({"key": keys, "smile": [1.0]}), tmp_path / "l.parquet")
    with pytest.raises(UserError, match="that cannot be read"):
        read_labels(str(tmp_path / "l.parquet"))


def test_a_pipe_is_no_table_of_labels(tmp_path):
    os.mkfifo(tmp_path / "l.csv")
    with pytest.raises(UserError, match="is not a regular file"):
        read_labels(str(tmp_path / "l.csv"))
