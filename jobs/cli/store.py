"""`asyrp verify`, `gc` and `export`: commands that need only the storage of a run."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.filesize import decimal
from rich.progress import track

from asyrp.errors import UserError
from jobs.cli.options import AsJson, Root, one_of
from jobs.display import console, out, report, state_table
from jobs.runs.record import recorded_plan, recorded_sizes, recorded_stages
from jobs.runs.run_file import read_run
from jobs.schedule.tick import TICKS, is_job
from jobs.spec.paths import absolute_url
from pipeline.datasets import leases, versions
from pipeline.run.additions import grown, read_additions
from pipeline.run.progress import RunState
from pipeline.run.stage import FINAL
from pipeline.storage.store import Store
from pipeline.upkeep.garbage import CollectedGarbage, Garbage, collect_garbage, collect_unfinished
from pipeline.upkeep.retention import RUNS, Retired, retire
from pipeline.upkeep.verify import Verification, counted
from pipeline.upkeep.verify import verify as verify_run

if TYPE_CHECKING:
    from pipeline.datasets.export import Exported, Snapshot

EXIT_NOT_WHOLE = 3
JOB_FOLDERS = ("", leases.FOLDER, leases.SKIPPED, versions.FOLDER, TICKS)
Item = TypeVar("Item")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def verify(
    root: Root,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read every file, compare its SHA-256 and decode it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check, from its storage alone, that nothing of a run is missing or damaged.

    Exit codes: 0 whole, 2 usage, 3 something is missing or damaged. An image that could
    not be edited has a row with its status; that is no damage.

    **Example:** asyrp verify edited/ --deep
    """
    store = Store(absolute_url(root))
    record = read_run(store)
    plan = recorded_plan(record)
    images = plan.images + sum(addition.images for addition in read_additions(store))
    stages, sizes = recorded_stages(record), grown(store, recorded_sizes(record))
    found = verify_run(store, plan, stages, sizes, deep=deep, watch=_bar("verifying", images))
    report(_found_json(found), as_json, lambda: _print_found(found, root))
    raise typer.Exit(0 if found.whole else EXIT_NOT_WHOLE)


def _bar(title: str, total: int) -> Callable[[Iterable[Item]], Iterable[Item]]:
    """Shows on stderr, in a terminal, how many of `total` items have been taken."""
    return lambda items: track(items, title, total, console=console, disable=not console.is_terminal)


def _found_json(found: Verification) -> dict[str, Any]:
    return {
        "whole": found.whole,
        "stages": {name: {**vars(state), "rows": dict(state.rows)} for name, state in found.stages.items()},
        "findings": [asdict(finding) for finding in found.findings],
        "garbage": _totals(found.garbage),
        "strangers": found.strangers,
        "files": found.files,
        "bytes": found.bytes,
    }


def _print_found(found: Verification, root: str) -> None:
    out.print(state_table(RunState(found.stages, [])))
    for finding in found.findings:
        out.print(f"{finding.kind}: {finding.message}", soft_wrap=True, highlight=False)
    if found.garbage:
        text = f"nothing names {_amount(found.garbage)}: asyrp gc {root} deletes them"
        out.print(text, soft_wrap=True, highlight=False)
    if found.strangers:
        files = counted(len(found.strangers), "file")
        text = f"passed over {files} among the records that asyrp did not write (the first is {found.strangers[0]})"
        out.print(text, soft_wrap=True, highlight=False)
    verdict = "whole" if found.whole else "not whole"
    out.print(f"{verdict}: {counted(found.files, 'file')}, {decimal(found.bytes)}", highlight=False)


def gc(
    root: Root,
    older_than: Annotated[
        str, typer.Option(help="Only attempts that were silent for so long: 30m, 1h, 2d, or 0.")
    ] = "1h",
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="For a job: how many of the newest to keep. [default: all]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what killed attempts left behind: files that no commit names, and parts of additions without a record.

    At the root of a job, delete versions that are not to be kept, and runs that no version has images of. In the output
    of an export, delete what a killed export left. The run or the job may be at work at the same time.

    **Example:** asyrp gc edited/ --dry-run
    """
    from pipeline.datasets.export import RECORD

    seconds = _seconds(older_than)
    store = Store(absolute_url(root))
    if is_job(store):
        retired = retire(store, keep_versions, seconds, dry_run)
        torn = collect_unfinished(store, JOB_FOLDERS, seconds, dry_run).freed
        facts = {"dry_run": dry_run, **asdict(retired), "unfinished": _totals(torn)["files"]}
        report(facts, as_json, lambda: _print_retired(retired, dry_run))
        return
    if keep_versions is not None:
        raise UserError(f"--keep-versions is for the root of a job, and {root} is none: leave it out")
    if store.exists(RECORD):
        folders = {entry.name.rpartition("/")[0] for entry in store.files("")}
        collected = collect_unfinished(store, sorted(folders), seconds, dry_run)
    else:
        collected = collect_garbage(store, recorded_sizes(read_run(store)), seconds, dry_run)
    facts = {"dry_run": dry_run, "freed": _totals(collected.freed), "young": _totals(collected.young)}
    report(facts, as_json, lambda: _print_collected(collected, dry_run, older_than))


def export(
    root: Root,
    to: Annotated[str, typer.Option(help="webdataset, imagefolder or parquet.")],
    output: Annotated[str, typer.Option("--output", "-o", help="An empty folder, on any fsspec URL.")],
    split: Annotated[
        str, typer.Option(help="Names and shares: train=0.9,test=0.1. Split by source image.")
    ] = "train=1",
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    statuses: Annotated[str, typer.Option(help="Rows to take, such as ok,decode_error.")] = "ok",
    shard_bytes: Annotated[str, typer.Option(help="Images per shard, as in 256MB or 1GB.")] = "256MB",
    with_source: Annotated[
        bool,
        typer.Option("--with-source", help="Export the source images too. If one has changed, its edits are left out."),
    ] = False,
    license_: Annotated[
        str, typer.Option("--license", help="The licence for the card, as Hugging Face names it: cc-by-4.0, mit, ...")
    ] = "unknown",
    partial: Annotated[bool, typer.Option("--partial", help="Export an incomplete run as far as it is.")] = False,
    version: Annotated[int | None, typer.Option(help="For a job: number of the version. [default: the newest]")] = None,
    as_json: AsJson = False,
) -> None:
    """Export the images of a run, or of a version of a job's data set, as numbered shards with splits and a card.

    **Example:** asyrp export edited/ --to parquet -o faces-with-glasses/ --split train=0.9,test=0.1 --with-source
    """
    from pipeline.datasets.card import make_card
    from pipeline.datasets.export import CARD, ExportSettings
    from pipeline.datasets.export import export as export_snapshot
    from pipeline.datasets.formats import FORMATS
    from pipeline.datasets.splits import parse_shares

    one_of("to", to, tuple(FORMATS))
    chosen = tuple(status.strip() for status in statuses.split(","))
    target = Store(absolute_url(output))
    snapshot, record = _exportable(Store(absolute_url(root)), version)
    settings = ExportSettings(
        format=to,
        splits=parse_shares(split),
        seed=seed,
        statuses=chosen,
        shard_bytes=_bytes(shard_bytes),
        with_source=with_source,
        license=license_,
        **_lineage(record),
    )
    if snapshot.unfinished and not partial:
        done = f"{snapshot.unfinished} are committed"
        raise UserError(f"the run at {root} is not complete, {done}: finish it, or give --partial")
    watch = _bar("exporting", sum(snapshot.rows[status] for status in chosen))
    exported = export_snapshot(
        snapshot, target, settings, lambda done: make_card(record, settings, snapshot, done), watch
    )
    card = target.path(CARD)
    samples = {name: sum(n for (at, *_), n in exported.samples.items() if at == name) for name in exported.shards}
    changed = {"images": exported.changed, "examples": exported.examples}
    facts = {"samples": samples, "shards": exported.shards, "changed_sources": changed, "card": card}
    report(facts, as_json, lambda: _print_exported(exported, samples, card))


def _exportable(store: Store, number: int | None) -> "tuple[Snapshot, dict[str, Any]]":
    """The images of a run, or of a job's version, and the run.json that says how they were made. Without a number it is
    the newest version."""
    from pipeline.datasets.export import take_snapshot, version_snapshot
    from pipeline.datasets.versions import latest, read_version, run_store

    version = latest(store) if number is None else read_version(store, number)
    if version is not None:
        if version.last_run is None:
            raise UserError(f"version {version.number} at {store.url} has no images: there is nothing to export")
        return version_snapshot(store, version), read_run(run_store(store, version.last_run))
    record = read_run(store)
    sizes = grown(store, recorded_sizes(record))
    if FINAL not in sizes:
        raise UserError(f"the run at {store.url} edited no images: there is nothing to export")
    shards, _ = sizes[FINAL]
    return take_snapshot(store, FINAL, shards), record


def _lineage(record: dict[str, Any]) -> dict[str, Any]:
    """Where the samples of an augmentation come from: their run and labels. Other runs have no lineage."""
    census = record["plan"].get("census")
    return {"run": record["identity_hash"][:12], "labels": tuple(census["labels"])} if census else {}


def _print_exported(exported: "Exported", samples: dict[str, int], card: str) -> None:
    for name, count in samples.items():
        out.print(f"{name}: {counted(count, 'sample')} in {counted(exported.shards[name], 'shard')}", highlight=False)
    if exported.changed:
        which = ", ".join(exported.examples) + (", ..." if exported.changed > len(exported.examples) else "")
        text = f"left out {counted(exported.changed, 'image')} whose source is not the one that was edited: {which}"
        out.print(text, soft_wrap=True, highlight=False)
    out.print(card, soft_wrap=True, highlight=False)


def _bytes(text: str) -> int:
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = ByteSize(0)
    if size < 1:
        raise UserError(f"--shard-bytes {text}: write a size as in 500KB, 256MB or 1GB")
    return int(size)


def _print_collected(collected: CollectedGarbage, dry_run: bool, older_than: str) -> None:
    for garbage in collected.freed:
        out.print("\n".join(garbage.names), soft_wrap=True, highlight=False)
    out.print(f"{'would free' if dry_run else 'freed'} {_amount(collected.freed)}", highlight=False)
    if collected.young:
        out.print(f"kept {_amount(collected.young)}: younger than {older_than}", highlight=False)


def _print_retired(retired: Retired, dry_run: bool) -> None:
    lines = [f"version {number}" for number in retired.versions] + retired.runs + retired.indexes
    for line in lines:
        out.print(line, soft_wrap=True, highlight=False)
    amounts = (len(retired.versions), len(retired.runs), len(retired.indexes))
    text = ", ".join(map(counted, amounts, ("version", "run", "index file")))
    out.print(f"{'would delete' if dry_run else 'deleted'} {text}", highlight=False)
    for run in retired.elsewhere:
        text = f"not deleted, because it is no run below {RUNS}/: {run}, which no version needs: delete it by hand"
        out.print(text, soft_wrap=True, highlight=False)


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+)([smhd]?)", age.strip())
    if match is None:
        raise UserError(f"--older-than {age}: write a number and s, m, h or d, as in 30m, 1h or 2d")
    return int(match[1]) * SECONDS[match[2]]


def _totals(garbage: Sequence[Garbage]) -> dict[str, int]:
    return {"attempts": len(garbage), "files": sum(g.files for g in garbage), "bytes": sum(g.bytes for g in garbage)}


def _amount(garbage: Sequence[Garbage]) -> str:
    totals = _totals(garbage)
    files, attempts = counted(totals["files"], "file"), counted(totals["attempts"], "attempt")
    return f"{files} of {attempts}, {decimal(totals['bytes'])}"
