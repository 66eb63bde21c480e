"""A session of a run with its tables: what the commands that edit have in common."""

from collections.abc import Mapping
from typing import Any

from jobs.display import live, out, report, show_summary
from jobs.record import read_run
from jobs.run import exit_code, run, summary
from jobs.spec import JobSpec
from pipeline.additions import grown
from pipeline.progress import RunState, StateReader
from pipeline.storage import Store


def run_and_report(spec: JobSpec, as_json: bool, found: Mapping[str, Any] | None = None) -> int:
    """Run, print the tables to stderr, and give the exit code; the contact sheet's path goes to stdout. As JSON, after
    what the command has `found` before: the summary of the run."""
    result = run(spec, live)
    store = Store(spec.output)
    state = read_state(store)
    show_summary(result, state)
    sheet = store.path(result.sheet) if result.sheet else None

    def show() -> None:
        if sheet:
            out.print(f"contact sheet: {sheet}", soft_wrap=True, highlight=False)

    report({**(found or {}), **summary(result.outcome, state), "sheet": sheet}, as_json, show)
    return exit_code(result)


def read_state(store: Store) -> RunState:
    """The state of the run at a root, from its storage alone.

    Raises:
        UserError: if there is no run.
    """
    sizes = {name: (shards, images) for name, (shards, images) in read_run(store)["stages"].items()}
    return StateReader(store, grown(store, sizes)).read()
