"""Counts the samples of an augmented data set, and makes the tables of its card."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from asyrp.measures.names import METRICS
from pipeline.augmentation.balance import group_name
from pipeline.augmentation.draws import Census
from pipeline.run.containers import Sample

Row = tuple[str, ...]


@dataclass
class Tally:
    """Counts over samples. Memory grows with the number of combinations of labels.

    `labels` counts samples by their labels, as sorted pairs, and by whether they are augmented. `metrics` holds for
    each metric the sum and the count over augmented samples.
    """

    labels: Counter[tuple[tuple[tuple[str, float], ...], bool]] = field(default_factory=Counter)
    metrics: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))

    def count(self, sample: Sample) -> None:
        """Add a sample. Samples of a run without an augmentation have no labels."""
        if (labels := sample.row.get("labels")) is not None:
            self.labels[tuple(sorted(labels.items())), sample.is_augmented] += 1
        if sample.is_augmented:
            for name in METRICS:
                if (value := sample.row[name]) is not None:
                    self.metrics[name][0] += value
                    self.metrics[name][1] += 1

    def groups(self, names: Sequence[str], augmented: bool) -> Counter[str]:
        """The number of samples in each group of the labels `names`; of originals only, unless `augmented`."""
        groups = Counter[str]()
        for (labels, is_augmented), count in self.labels.items():
            if augmented or not is_augmented:
                found = dict(labels)
                groups[group_name({name: found[name] for name in names})] += count
        return groups


class CardTable(NamedTuple):
    """A section of a card."""

    title: str
    text: str
    head: Row
    rows: list[Row]


def augmentation_tables(record: Mapping[str, Any], tally: Tally) -> Iterator[CardTable]:
    """The additional tables on the card of an augmented data set. `record` is the run's run.json."""
    asked, census = record["spec"]["augmentation"], Census.from_json(record["plan"]["census"])
    text = (
        f"Every image drew up to {asked['draws']} of these edits, as its key and labels say (seed {asked['seed']}), "
        "and is there unedited too (`is_augmented` is false, the edit `original`). `labels` are those of the result, "
        "`key` names the image that it was made from, `draw` counts its edits, `run` is the identity of the run."
    )
    options = [_option(*pair) for pair in zip(asked["edits"], census.sets, strict=True)]
    head = ("edit", "times its strength", "weight", "where", "labels of the result")
    yield CardTable("The edits that were drawn", text, head, options)
    if names := asked["balance"] or [name for name in census.labels if any(name in sets for sets in census.sets)]:
        before, after = tally.groups(names, False), tally.groups(names, True)
        sizes: list[Row] = [(group, f"{before[group]:,}", f"{after[group]:,}") for group in sorted(after)]
        text = "Images by labels, without and with those that were edited."
        yield CardTable("Balance", text, ("labels", "before", "after"), sizes)
    if tally.metrics:
        means: list[Row] = [
            (name, METRICS[name].says, f"{total / images:.4g}", f"{images:,.0f}")
            for name, (total, images) in tally.metrics.items()
        ]
        yield CardTable("Metrics", "Means over augmented images.", ("metric", "what it is", "mean", "images"), means)


def _option(asked: Mapping[str, Any], sets: Mapping[str, float]) -> Row:
    strength = asked["strength"]
    if isinstance(strength, dict):
        low, high = strength["uniform"]
        shown = f"{low:g} to {high:g}"
    else:
        shown = ", ".join(f"{value:g}" for value in (strength if isinstance(strength, list) else [strength]))
    return asked["edit"], shown, f"{asked['weight']:g}", " and ".join(asked["where"]) or "-", group_name(sets) or "-"
