"""A run with its tables: what the commands that edit have in common."""

from jobs.display import live, out, summary
from jobs.record import read_run
from jobs.run import exit_code, run
from jobs.spec import JobSpec
from pipeline.additions import grown
from pipeline.progress import RunState, StateReader
from pipeline.storage import Store


def run_and_report(spec: JobSpec) -> int:
    """Run, print the tables, and give the exit code; the contact sheet's path goes to stdout."""
    result = run(spec, live)
    store = Store(spec.output)
    summary(result, read_state(store))
    if result.sheet:
        out.print(f"contact sheet: {store.path(result.sheet)}", soft_wrap=True, highlight=False)
    return exit_code(result)


def read_state(store: Store) -> RunState:
    """The state of the run at a root, from its storage alone.

    Raises:
        UserError: if there is no run.
    """
    sizes = {name: (shards, images) for name, (shards, images) in read_run(store)["stages"].items()}
    return StateReader(store, grown(store, sizes)).read()
