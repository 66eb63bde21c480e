"""`asyrp verify` and `asyrp gc`: what is done with the storage of a run, and nothing else."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from rich.filesize import decimal
from rich.progress import track

from asyrp.errors import UserError
from jobs.cli_options import AsJson, Root
from jobs.display import console, out, state_table
from jobs.record import read_run, recorded_stages
from jobs.spec import absolute_url
from pipeline.additions import grown, read_additions
from pipeline.garbage import Collected, Garbage, collect_garbage
from pipeline.plan import PlanSummary
from pipeline.progress import RunState
from pipeline.storage import Store
from pipeline.verify import Report, counted
from pipeline.verify import verify as verify_run

EXIT_NOT_WHOLE = 3
Item = TypeVar("Item")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def verify(
    root: Root,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read every file, compare its SHA-256 and decode it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a run is whole, from its storage alone: nothing missing, nothing damaged.

    Exit codes: 0 whole, 2 usage, 3 something is missing or damaged. Images that could not be edited are rows with
    a status, and no damage.

    **Example:** asyrp verify edited/ --deep
    """
    store = Store(absolute_url(root))
    record = read_run(store)
    plan = PlanSummary(**record["plan"])
    sizes = grown(store, record["stages"])
    images = plan.images + sum(addition.images for addition in read_additions(store))
    report = verify_run(store, plan, recorded_stages(record), sizes, deep, _bar("verifying", images))
    if as_json:
        typer.echo(json.dumps(_report_json(report), indent=1))
    else:
        _print_report(report, root)
    raise typer.Exit(0 if report.whole else EXIT_NOT_WHOLE)


def _bar(title: str, total: int) -> Callable[[Iterable[Item]], Iterable[Item]]:
    """Shows on stderr, in a terminal, how many of `total` items have been taken."""
    return lambda items: track(items, title, total, console=console, disable=not console.is_terminal)


def _report_json(report: Report) -> dict[str, Any]:
    return {
        "whole": report.whole,
        "stages": {name: {**vars(state), "rows": dict(state.rows)} for name, state in report.stages.items()},
        "findings": [asdict(finding) for finding in report.findings],
        "garbage": _totals(report.garbage),
        "files": report.files,
        "bytes": report.bytes,
    }


def _print_report(report: Report, root: str) -> None:
    out.print(state_table(RunState(report.stages, [])))
    for finding in report.findings:
        out.print(f"{finding.kind}: {finding.message}", soft_wrap=True, highlight=False, markup=False)
    if report.garbage:
        text = f"no commit names {_amount(report.garbage)}: asyrp gc {root} deletes them"
        out.print(text, soft_wrap=True, highlight=False, markup=False)
    verdict = "whole" if report.whole else "not whole"
    out.print(f"{verdict}: {counted(report.files, 'file')}, {decimal(report.bytes)}", highlight=False)


def gc(
    root: Root,
    older_than: Annotated[
        str, typer.Option("--older-than", help="Only attempts silent for so long: 30m, 1h, 2d, or 0.")
    ] = "1h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what killed attempts left: the files that no commit names. A run may be at work meanwhile.

    **Example:** asyrp gc edited/ --dry-run
    """
    seconds = _seconds(older_than)
    store = Store(absolute_url(root))
    collected = collect_garbage(store, read_run(store)["stages"], seconds, dry_run)
    if as_json:
        facts = {"dry_run": dry_run, "freed": _totals(collected.freed), "young": _totals(collected.young)}
        typer.echo(json.dumps(facts, indent=1))
    else:
        _print_collected(collected, dry_run, older_than)


def _print_collected(collected: Collected, dry_run: bool, older_than: str) -> None:
    for garbage in collected.freed:
        out.print("\n".join(garbage.names), soft_wrap=True, highlight=False, markup=False)
    out.print(f"{'would free' if dry_run else 'freed'} {_amount(collected.freed)}", highlight=False)
    if collected.young:
        out.print(f"kept {_amount(collected.young)}: younger than {older_than}", highlight=False)


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
