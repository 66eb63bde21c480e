"""Writes the card of a data set, README.md: what is in it and how it was made, for people and Hugging Face
`datasets`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from pipeline.augmentation.tally import augmentation_tables
from pipeline.datasets.export import Exported, ExportSettings, Snapshot
from pipeline.datasets.formats import FORMATS
from pipeline.run.manifest import PIXEL_COLUMNS
from pipeline.run.names import markdown_cell

TOLD_BY = {
    "edit": "edits",
    "strength": "edits",
    "direction_digest": "directions",
    "model_digest": "model",
    "t_edit": "intervals",
    "t_boost": "intervals",
    "eta": "intervals",
}
"""The fact that tells a column which is not a fact of its own."""

FACTS = (*(name for name in PIXEL_COLUMNS if name not in TOLD_BY), "combine", "fit", "codec")
"""The settings that are facts by their own name."""


def make_card(record: Mapping[str, Any], settings: ExportSettings, snapshot: Snapshot, exported: Exported) -> str:
    """The card as Markdown with YAML front matter. `record` is the run.json of the run, or of the last of several runs.
    The card shows none of its paths and URLs."""
    splits = [split for split, shards in exported.shards.items() if shards]
    is_augmentation = bool(record["spec"].get("augmentation"))
    lines = [
        "---",
        yaml.safe_dump(_front_matter(settings, splits), sort_keys=False).strip(),
        "---",
        "",
        "# Images edited in the semantic latent space of a diffusion model",
        "",
        f"One row is one image{' as it is, or' if is_augmentation else ''} after one edit. All rows of an image are in "
        "the same split.",
        "",
        *markdown_table(("edit", "strength", *splits), _counts(exported, splits)),
        "",
        *_left_out(settings, snapshot, exported),
        *(_augmentation(record, exported) if is_augmentation else ()),
        "## How it was made",
        "",
        *markdown_table(("", ""), run_facts(record).items()),
        "",
    ]
    return "\n".join(lines)


def _front_matter(settings: ExportSettings, splits: Sequence[str]) -> dict[str, Any]:
    files = [{"split": split, "path": FORMATS[settings.format].files.format(split=split)} for split in splits]
    configs = [{"config_name": "default", "data_files": files}]
    return {"license": settings.license, "configs": configs, "tags": ["asyrp", "image-editing"]}


def _counts(exported: Exported, splits: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for edit, strength in dict.fromkeys((edit, strength) for _, edit, strength in exported.samples):
        yield (edit, strength, *(f"{exported.samples[split, edit, strength]:,}" for split in splits))


def _augmentation(record: Mapping[str, Any], exported: Exported) -> Iterator[str]:
    for title, text, head, rows in augmentation_tables(record, exported.tally):
        yield from (f"## {title}", "", text, "", *markdown_table(head, rows), "")


def _left_out(settings: ExportSettings, snapshot: Snapshot, exported: Exported) -> Iterator[str]:
    """Sentences on the rows and images of the run that are not in the data set, if there are any."""
    rest = [
        f"{count:,} {markdown_cell(status)}"
        for status, count in snapshot.rows.items()
        if status not in settings.statuses
    ]
    if rest:
        yield f"Rows of the run that were left out, by status: {', '.join(rest)}."
        yield ""
    if exported.changed:
        yield f"Images that were left out, as their sources have changed since they were edited: {exported.changed:,}."
        yield ""
    if snapshot.unfinished:
        yield f"The run was not complete: {snapshot.unfinished} were committed."
        yield ""


def run_facts(record: Mapping[str, Any]) -> dict[str, str]:
    """The settings by which a run makes its images, by name, from its run.json. They show no path and no URL."""
    spec, identity = record["spec"], record["identity"]
    facts = {
        "model": f"{_public(spec['model'])} ({identity['model_digest'][:12]})",
        "directions": ", ".join(f"{name} ({digest[:12]})" for name, digest in identity["directions"].items()),
        "edits": "; ".join(spec["edits"]),
        "intervals": "; ".join(
            f"{edit} edits down to t = {t_edit}" + (f", fresh noise from t = {t_boost}" if t_boost else "")
            for edit, (t_edit, t_boost) in identity["intervals"].items()
        ),
        **{name: str(identity[name]) for name in FACTS if identity.get(name) is not None},
        "run": record["identity_hash"][:12],
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _public(model: str) -> str:
    """The name of a model. Of a path or URL it keeps only the last part."""
    is_location = "://" in model or PurePosixPath(model).is_absolute()
    return PurePosixPath(model).name if is_location else model


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a Markdown table, whose cells are texts and not Markdown."""
    head = list(head)
    for cells in (map(markdown_cell, head), ["---"] * len(head), *(map(markdown_cell, row) for row in rows)):
        yield f"| {' | '.join(cells)} |"
