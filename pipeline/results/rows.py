"""Reads the rows of a run as columns: the status of every image and edit, and its metrics."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from asyrp.measures.names import METRICS, SCORE, SOURCE_SCORE
from pipeline.run.additions import CurrentRows
from pipeline.run.commit import committed, committed_table
from pipeline.run.manifest import SCHEMA
from pipeline.run.names import edit_title
from pipeline.run.stage import FINAL, Stage
from pipeline.stages.evaluation import Evaluation, read_evaluations
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store

SCORES = {"scores": SCORE, "source_scores": SOURCE_SCORE}
"""The columns with a classifier's outputs by label, and the prefix that those labels get."""

STRENGTH = "strength"
"""The name of an image's own strength among the metrics, in runs that search for strengths."""

OWN = "the run"
"""The origin of numbers that were measured while the images were made."""

ROW_COLUMNS = (
    "key",
    "shard",
    "stage",
    "edit",
    "strength",
    "status",
    "error",
    "output_uri",
    "output_member",
    "committed_at",
)
COLUMNS = (*ROW_COLUMNS, *METRICS, *SCORES)


class EncodedTexts(NamedTuple):
    """A column with few different texts. `codes` [rows] are indices into `names`; -1 stands for no text."""

    names: list[str]
    codes: NDArray[np.int32]

    @classmethod
    def encode(cls, column: pa.ChunkedArray) -> "EncodedTexts":
        encoded = column.combine_chunks().dictionary_encode()
        return cls(encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy())

    def equals(self, name: str) -> NDArray[np.bool_]:
        """Whether each row has this text, [rows]."""
        return self.codes == self.names.index(name) if name in self.names else np.zeros(len(self.codes), bool)


@dataclass(frozen=True)
class Results:
    """One row per image and edit, in the order of the plan; the sample without an edit comes last.

    `edits` holds the titles of edits with their strengths (`edit_title`). `output_paths` are below the run's root.
    `numbers` are the numbers of rows in the manifests of their shards. `committed_ms` is in milliseconds since 1970.
    `metrics` are float32 [rows] by name, NaN where nothing was measured; metrics without any number are left out.
    `origins` counts the numbers of each metric by origin: the run itself, or an evaluation.
    """

    keys: EncodedTexts
    stages: EncodedTexts
    edits: EncodedTexts
    statuses: EncodedTexts
    errors: EncodedTexts
    output_paths: pa.ChunkedArray
    shards: NDArray[np.int32]
    numbers: NDArray[np.int32]
    committed_ms: NDArray[np.int64]
    metrics: Mapping[str, NDArray[np.float32]]
    origins: Mapping[str, Mapping[str, int]]

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def judgements(self) -> dict[str, NDArray[np.float32]]:
        """The metrics of outputs: all but the scores of source images."""
        return {name: values for name, values in self.metrics.items() if not name.startswith(SOURCE_SCORE)}


class ResultReader:
    """Reads the results of a run, also while it is at work. A shard is read once, because commits do not change.

    If a row was measured by the run and by evaluations, the number comes from the evaluation that was asked for last.
    """

    def __init__(self, store: Store, stages: Sequence[Stage]) -> None:
        self.store, self.stages = store, stages
        self._tables: dict[tuple[str, int], pa.Table] = {}

    def read(self) -> Results:
        """The current rows of the stages, those of a stage in the order of its shards."""
        current, merger = CurrentRows(self.store), MetricMerger()
        evaluations = read_evaluations(self.store)
        tables = [table for stage in self.stages for table in self._of_stage(current, stage, evaluations, merger)]
        return _results(pa.concat_tables(tables or [_EMPTY]), merger.counts)

    def _of_stage(
        self, current: CurrentRows, stage: Stage, evaluations: Sequence[Evaluation], merger: "MetricMerger"
    ) -> Iterator[pa.Table]:
        done = self._read_shards(stage.name, stage)
        evaluated = [(e, set(self._read_shards(e.stage, stage))) for e in evaluations if stage.name == FINAL]
        standing = current.standing(set(done))
        for shard in done:
            table = _standing(self._tables[stage.name, shard], shard, standing)
            measured = {
                evaluation.title: _standing(self._tables[evaluation.stage, shard], shard, standing)
                for evaluation, shards in reversed(evaluated)
                if shard in shards
            }
            yield merger.merge(table, measured)

    def _read_shards(self, name: str, stage: Stage) -> list[int]:
        """Reads the new shards of the stage called `name`, and titles their rows by `stage`; all its committed
        shards."""
        done = sorted(committed(self.store, name))
        unread = [(name, shard) for shard in done if (name, shard) not in self._tables]

        def read(unit: tuple[str, int]) -> pa.Table:
            return _titled(committed_table(self.store, *unit, COLUMNS), stage)

        self._tables.update(zip(unread, read_ahead(read, unread), strict=True))
        return done


class MetricMerger:
    """Merges the metrics of evaluations into the tables of a run, and counts the numbers by metric and origin."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def merge(self, table: pa.Table, evaluated: Mapping[str, pa.Table]) -> pa.Table:
        """A shard's table with each number from the first table of `evaluated` that has it, else with its own. The
        manifest of an evaluation has the same rows, in the same order, as the stage that it read."""
        for name in (*METRICS, *SCORES):
            if not evaluated:
                self.counts[name][OWN] += len(table) - table[name].null_count
                continue
            columns = {origin: measured[name] for origin, measured in evaluated.items()} | {OWN: table[name]}
            self._count(name, columns)
            table = table.set_column(table.column_names.index(name), name, pc.coalesce(*columns.values()))
        return table

    def _count(self, name: str, columns: Mapping[str, pa.ChunkedArray]) -> None:
        known = None
        for origin, column in columns.items():
            there = column.is_valid()
            fresh = there if known is None else pc.and_not(there, known)
            known = there if known is None else pc.or_(there, known)
            self.counts[name][origin] += pc.sum(fresh).as_py() or 0


def _titled(table: pa.Table, stage: Stage) -> pa.Table:
    """Adds to a manifest the numbers of its rows, the titles of its edits, and strengths that differ between images."""
    named = cache(lambda edit, strength: edit_title(edit, None if stage.is_of_each(edit) else strength))
    pairs = list(zip(table["edit"].to_pylist(), table["strength"].to_pylist(), strict=True))
    own = [strength if stage.is_of_each(edit) else None for edit, strength in pairs]
    columns = {
        "number": pa.array(range(len(table)), pa.int32()),
        "title": pa.array([named(*pair) for pair in pairs], pa.string()),
        STRENGTH: pa.array(own, pa.float32()),
    }
    table = table.drop_columns(["edit", "strength"])
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


_EMPTY = _titled(
    pa.schema([SCHEMA.field(name) for name in COLUMNS]).empty_table(),
    Stage(name="", function="", writes="images", variants=()),
)


def _standing(table: pa.Table, shard: int, standing: Mapping[str, int]) -> pa.Table:
    """The rows of a shard that no later shard has replaced."""
    if not standing:
        return table
    return table.filter(pa.array([standing.get(key, shard) == shard for key in table["key"].to_pylist()]))


def _results(table: pa.Table, origins: Mapping[str, Counter[str]]) -> Results:
    in_member = pc.binary_join_element_wise(table["output_member"], table["output_uri"], " in ")
    return Results(
        keys=EncodedTexts.encode(table["key"]),
        stages=EncodedTexts.encode(table["stage"]),
        edits=EncodedTexts.encode(table["title"]),
        statuses=EncodedTexts.encode(table["status"]),
        errors=EncodedTexts.encode(table["error"]),
        output_paths=pc.coalesce(in_member, table["output_uri"]),
        shards=table["shard"].to_numpy(),
        numbers=table["number"].to_numpy(),
        committed_ms=table["committed_at"].cast(pa.int64()).to_numpy(),
        metrics=_measured(table),
        origins={name: +counts for name, counts in origins.items() if +counts},
    )


def _measured(table: pa.Table) -> dict[str, NDArray[np.float32]]:
    """The numbers of the rows by name: the metrics, the strengths that were found, the scores."""
    columns = {name: table[name] for name in (*METRICS, STRENGTH)}
    for name, prefix in SCORES.items():
        labels = sorted({label for chunk in table[name].chunks for label in chunk.keys.unique().to_pylist()})
        columns |= {f"{prefix}{label}": pc.map_lookup(table[name], label, "first") for label in labels}
    return {name: _floats(column) for name, column in columns.items() if column.null_count < len(column)}


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    return pc.fill_null(column, float("nan")).to_numpy()
