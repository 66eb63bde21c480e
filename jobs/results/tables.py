"""Makes the tables of a report, which are the same in every format."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asyrp.measures.names import METRICS
from jobs.results.report import Report
from pipeline.datasets.card import run_facts
from pipeline.images.skipped import not_read
from pipeline.images.statuses import OK
from pipeline.results.rows import OWN, Results
from pipeline.results.summaries import counts, summaries
from pipeline.run.stage import FINAL

SHARES = ("device", "reader", "writer")


@dataclass(frozen=True)
class Table:
    """A table of texts. The first `labels` columns name a row, the others hold numbers."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 1


def headline(report: Report) -> dict[str, str]:
    """The most important facts of a run, by name."""
    results, spent = report.results, report.time_spent
    final, ok = results.stages.equals(FINAL), results.statuses.equals(OK)
    passes = report.state.stages[FINAL].images_done
    facts = {
        "source images": f"{np.unique(results.keys.codes[final]).size:,} of {report.images:,}",
        "not read": not_read(report.record["plan"].get("skipped", {})),
        "edited images": f"{np.count_nonzero(final & ok):,}",
        "rows without an image": f"{np.count_nonzero(final & ~ok):,}",
        "time at work": duration(spent.seconds),
        "time of all actors": duration(spent.actor_seconds),
        "speed": f"{passes / spent.seconds:,.3g} images/s" if spent.seconds else "",
    }
    return {name: fact for name, fact in facts.items() if fact}


def tables(report: Report) -> list[Table]:
    """All tables that have rows."""
    made = (
        statuses(report),
        measured(report.results),
        origins(report.results),
        actors(report),
        quarantined(report),
        settings(report),
    )
    return [table for table in made if table.rows]


def statuses(report: Report) -> Table:
    """The number of rows by edit and status."""
    found, names = counts(report.results), report.results.statuses.names
    rows = [(edit, *(f"{of_edit[name]:,}" for name in names)) for edit, of_edit in found.items()]
    return Table("What became of the images", "Rows of the manifest, one per image and edit.", ("edit", *names), rows)


def measured(results: Results) -> Table:
    """The median, range and mean of every metric, by edit."""
    by_edit = summaries(results)
    rows = [
        (
            named(metric),
            edit,
            signif(summary.median),
            f"{signif(summary.low)} to {signif(summary.high)}",
            signif(summary.mean),
            f"{summary.count:,}",
        )
        for metric in results.metrics
        for edit, by_metric in by_edit.items()
        if (summary := by_metric.get(metric))
    ]
    note = "↑: more is better, ↓: less is better. Nine of ten values lie in the range."
    return Table("What was measured", note, ("metric", "edit", "median", "range", "mean", "rows"), rows, labels=2)


def origins(results: Results) -> Table:
    """The origins of the numbers; no rows if all are the run's own."""
    rows = [
        (named(metric), origin, f"{n:,}")
        for metric, by_origin in results.origins.items()
        for origin, n in by_origin.items()
    ]
    evaluated = any(origin != OWN for _, origin, _ in rows)
    note = "Measured while the images were made, or by asyrp evaluate. What was evaluated last counts."
    return Table("Where the numbers come from", note, ("metric", "measured by", "rows"), rows if evaluated else (), 2)


def actors(report: Report) -> Table:
    """The shares of the time of each actor's device."""
    rows = [
        (actor.name, actor.host, f"{actor.passes:,}", duration(actor.seconds), *_percentages(actor.shares))
        for actor in report.time_spent.actors
    ]
    note = (
        "Image passes: an image counts in every stage. Of its time, how much an actor's device was busy, waited for "
        "readers, and for writers."
    )
    return Table("Where the time went", note, ("actor", "host", "image passes", "time", *SHARES), rows, labels=2)


def quarantined(report: Report) -> Table:
    """The shards that were given up."""
    rows = [(given_up.stage, str(given_up.shard), given_up.reason) for given_up in report.quarantined]
    note = "They failed three times. The same command tries them again."
    return Table("Quarantined shards", note, ("stage", "shard", "reason"), rows, labels=3)


def settings(report: Report) -> Table:
    """The settings that the images depend on."""
    return Table("How it was made", "", ("setting", "value"), list(run_facts(report.record).items()), labels=2)


def named(metric: str) -> str:
    """The name of a metric, with an arrow that points to better values."""
    arrows = {"high": "↑", "low": "↓"}
    return f"{metric} {arrows[METRICS[metric].better]}" if metric in METRICS else metric


def signif(value: float) -> str:
    """A number to 4 significant digits."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time in hours, minutes or seconds."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.1f} s"


def _percentages(shares: Mapping[str, float]) -> Iterator[str]:
    return (f"{100 * shares[name]:.1f} %" if shares else "" for name in SHARES)
