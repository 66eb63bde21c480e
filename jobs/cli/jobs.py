"""`asyrp jobs`: data jobs, their ticks and their history."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from asyrp.errors import UserError
from jobs.cli.options import AsJson, one_of, placement_from_flags, print_paths, takes, write_text
from jobs.display import out, print_facts, report
from jobs.spec.job import Job, job_schema, load_job
from jobs.spec.paths import absolute_url
from jobs.targets.placement import Placement
from jobs.targets.render import TARGETS, render
from pipeline.datasets.leases import Lease, ask_to_stop, last_lease, read_leases, read_skipped
from pipeline.run.names import printable
from pipeline.storage.store import Store

jobs_app = typer.Typer(help="Data jobs: edit what is new in a source, on a schedule.", no_args_is_help=True)
schedule_app = typer.Typer(help="Start the ticks of jobs.", no_args_is_help=True)
jobs_app.add_typer(schedule_app, name="schedule")

Spec = Annotated[Path, typer.Argument(help="The YAML file of a job.")]
Specs = Annotated[list[Path], typer.Argument(help="The YAML files of jobs.")]
SpecOrRoot = Annotated[str, typer.Argument(help="The YAML file of a job, or its root on any fsspec URL.")]
Tick = Annotated[str | None, typer.Option(help="An ISO time. [default: the last one due, or now without a schedule]")]
NEXT_TICKS = 5


@jobs_app.command("validate")
def validate(specs: Specs, as_json: AsJson = False) -> None:
    """Check job files and name every mistake with its line. Touches no storage.

    **Example:** asyrp jobs validate nightly.yaml
    """
    wrong = []
    for path in specs:
        try:
            load_job(path)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n  ".join(wrong))
    good = list(map(str, specs))
    report({"good": good}, as_json, lambda: out.print(f"{', '.join(good)}: good", soft_wrap=True, highlight=False))


@jobs_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    typer.echo(json.dumps(job_schema(), indent=1))


@jobs_app.command("show")
def show(spec: Spec, as_json: AsJson = False) -> None:
    """Show a job with all its defaults, and when it runs next. Touches no storage."""
    job = load_job(spec)
    facts = job.model_dump(mode="json", exclude={"run": {"output"}})
    ticks = _next_ticks(job)

    def print_job() -> None:
        typer.echo(yaml.safe_dump(facts, sort_keys=False), nl=False)
        for tick in ticks:
            typer.echo(f"# runs at {tick}")

    report({"job": facts, "next_ticks": ticks}, as_json, print_job)


def _next_ticks(job: Job) -> list[str]:
    ticks = islice(job.schedule.after(datetime.now(UTC)), NEXT_TICKS) if job.schedule else ()
    return [tick.astimezone(job.zone).isoformat() for tick in ticks]


@jobs_app.command("run")
def run(
    spec: Spec,
    tick: Tick = None,
    as_json: AsJson = False,
) -> None:
    """Do one tick: edit what is new or changed, and make the next version of the data set.

    A finished tick is not done again. A tick that was stopped or killed goes on. If another driver is at work, the tick
    is left out (exit code 0) or waits, as the job says. Exit codes as of `asyrp run`.

    **Example:** asyrp jobs run nightly.yaml
    """
    from jobs.display import live
    from jobs.schedule.tick import run_tick

    job = load_job(spec)
    result = run_tick(job, _parse_tick(job, tick), live)
    facts = asdict(result)
    report(facts, as_json, lambda: out.print(_sentence(facts), soft_wrap=True, highlight=False))
    raise typer.Exit(result.exit_code)


@jobs_app.command("submit")
def submit(
    spec: Spec,
    tick: Tick = None,
    address: Annotated[
        str | None, typer.Option(help="http://HEAD:8265, a cluster's dashboard. [default: as `ray job submit`]")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the tick's log, and end as it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do one tick as a job of a running Ray cluster. It goes on when this terminal closes.

    A tick that was submitted before is not submitted again, unless it failed or was stopped; `--follow` follows it.

    **Example:** asyrp jobs submit nightly.yaml --address http://head:8265 --follow
    """
    from jobs.schedule.ray_jobs import RayJobs

    job = load_job(spec)
    ray_jobs = RayJobs(address)
    submission = ray_jobs.submit(job, _parse_tick(job, tick))
    text = f"{submission.id}: {'submitted' if submission.is_new else f'is there already, {submission.status}'}"
    report(asdict(submission), as_json, lambda: out.print(text, soft_wrap=True, highlight=False))
    if follow and not submission.has_succeeded:
        raise typer.Exit(ray_jobs.follow(submission.id, lambda lines: typer.echo(printable(lines), nl=False, err=True)))


def _parse_tick(job: Job, text: str | None) -> datetime:
    """The tick in UTC. A time without a zone is in the time zone of the job."""
    if text is None:
        return job.last_tick(datetime.now(UTC))
    try:
        tick = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--tick {text}: write it as 2026-11-21T02:30, with or without +01:00") from None
    tick = (tick if tick.tzinfo else tick.replace(tzinfo=job.zone)).astimezone(UTC)
    if tick > datetime.now(UTC):
        raise UserError(f"--tick {text} is still to come: give one that is past")
    return tick


def _sentence(entry: dict[str, Any]) -> str:
    """One line on how a tick ended."""
    version = f"version {entry['version']}" if entry["version"] else None
    told = (f"tick {entry['tick']} {entry['outcome']}", version, _counts(entry["changes"] or {}), entry["message"])
    return ": ".join(filter(None, told))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


@schedule_app.command("serve")
def serve(specs: Specs) -> None:
    """Start every tick of some jobs in a process of its own, until this process is stopped. Needs only the job files.

    **Example:** asyrp jobs schedule serve nightly.yaml weekly.yaml
    """
    from jobs.schedule.serve import serve

    serve(specs, [load_job(path) for path in specs])


@schedule_app.command("render")
@takes(placement_from_flags)
def render_command(
    placement: Placement,
    spec: Spec,
    target: Annotated[str, typer.Option(help=f"{', '.join(TARGETS)}.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file; a folder for systemd and slurm, two files. [default: stdout]"),
    ] = None,
) -> None:
    """Write the schedule of a job for another scheduler, which then starts its ticks. Starts nothing.

    **Example:** asyrp jobs schedule render nightly.yaml --target k8s-cronjob --image registry/asyrp:1
    """
    one_of("target", target, tuple(TARGETS))
    files = render(spec, target, placement, output)
    if output is None:
        typer.echo("\n".join(f"# {name}\n{text}" if len(files) > 1 else text for name, text in files.items()), nl=False)
        return
    paths = {output / name if len(files) > 1 else output: text for name, text in files.items()}
    for path, text in paths.items():
        write_text(path, text)
    print_paths(list(paths))


@jobs_app.command("status")
def status(job: SpecOrRoot, as_json: AsJson = False) -> None:
    """Show the newest version of a job's data set, who is at work on it and when it runs next, from storage alone.

    **Example:** asyrp jobs status nightly.yaml
    """
    from jobs.runs.session import read_state
    from jobs.schedule.tick import read_job
    from pipeline.datasets.versions import latest, run_store

    store = Store(_root(job))
    name = read_job(store).name
    version, lease = latest(store), last_lease(store)
    at_work = lease if lease is not None and lease.ended_at is None else None
    run = read_state(run_store(store, at_work.run)) if at_work and at_work.run else None
    facts: dict[str, Any] = {
        "name": name,
        "root": store.url,
        "version": asdict(version) if version else None,
        "last_tick": _entry(lease) if lease else None,
        "at_work": f"{at_work.host} (process {at_work.pid})" if at_work else None,
        "progress": f"{run.images_through} of {run.images} image passes" if run else None,
        "next_ticks": _next_ticks(load_job(Path(job))) if _is_spec(job) else [],
    }
    shown: dict[str, Any] = {
        "last_tick": _sentence(facts["last_tick"]) if facts["last_tick"] else None,
        "next_ticks": None,
    }
    if version is not None:
        shown["version"] = f"{version.number}: {version.images} images, rows {_counts(version.rows)}"
    if facts["next_ticks"]:
        shown["next_tick"] = facts["next_ticks"][0]
    report(facts, as_json, lambda: print_facts({**facts, **shown}))


@jobs_app.command("history")
def history(
    job: SpecOrRoot,
    limit: Annotated[int, typer.Option(min=1, help="Number of ticks to show, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what became of each tick, the newest last, from storage alone."""
    from jobs.schedule.tick import read_job

    store = Store(_root(job))
    read_job(store)
    entries = [_entry(lease) for lease in reversed(list(islice(read_leases(store), limit)))]
    entries += [
        {"tick": skipped.tick, "outcome": "skipped", "began_at": skipped.at, "message": skipped.reason}
        for skipped in islice(read_skipped(store), limit)
    ]
    entries = sorted(entries, key=lambda entry: entry["began_at"])[-limit:]
    report(entries, as_json, lambda: out.print(_history_table(entries)))


def _entry(lease: Lease) -> dict[str, Any]:
    """A lease as the history shows it. If it has no end, its driver is at work or died."""
    facts = {name: lease.facts.get(name) for name in ("version", "run", "changes", "message", "exit_code")}
    outcome = lease.outcome or f"no end, last heartbeat {lease.beat_at}"
    times = {"began_at": lease.began_at, "ended_at": lease.ended_at}
    return {"tick": lease.tick, "outcome": outcome, **facts, **times, "host": lease.host, "pid": lease.pid}


def _history_table(entries: list[dict[str, Any]]) -> Table:
    table = Table()
    for name, no_wrap in {"tick": True, "outcome": False, "version": True, "images": False, "message": False}.items():
        table.add_column(name, no_wrap=no_wrap, overflow="fold")
    for entry in entries:
        version, images = entry.get("version"), _counts(entry.get("changes") or {})
        cells = (entry["tick"], entry["outcome"], version and str(version), images, entry["message"])
        table.add_row(*(cell or "-" for cell in cells))
    return table


@jobs_app.command("cancel")
def cancel(job: SpecOrRoot, as_json: AsJson = False) -> None:
    """Ask the driver that is at work, on any machine, to finish what it has in flight and stop.

    What is committed stays, and the next tick goes on from there.
    """
    from jobs.schedule.tick import read_job

    store = Store(_root(job))
    read_job(store)
    lease = last_lease(store)
    if lease is None or lease.ended_at is not None:
        report({"asked": None}, as_json, lambda: out.print("nobody is at work"))
        return
    ask_to_stop(store, lease)
    who = f"{lease.host} (process {lease.pid})"
    text = f"asked {who}, at work on tick {lease.tick}, to stop: it sees that at its next heartbeat"
    report({"asked": asdict(lease)}, as_json, lambda: out.print(text, soft_wrap=True, highlight=False))


def _is_spec(job: str) -> bool:
    return Path(job).suffix in (".yaml", ".yml")


def _root(job: str) -> str:
    return load_job(Path(job)).root if _is_spec(job) else absolute_url(job)
