"""Runs a session of a run and prints its tables, for all commands that edit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from asyrp.diffusion.moves import SolverName
from asyrp.measures.names import RECONSTRUCTION_PSNR
from jobs.display import bound_text, console, live, out, print_marked, report, state_table
from jobs.runs.experiment_log import LoggedSession, final_numbers, open_log
from jobs.runs.record import recorded_sizes
from jobs.runs.run import cost, exit_code, run, summary
from jobs.runs.run_file import read_run
from jobs.spec.run import EngineSpec, RunSpec
from pipeline.images.skipped import not_read
from pipeline.run.additions import grown
from pipeline.run.commit import committed, committed_rows
from pipeline.run.progress import RunState, StateReader, device_time
from pipeline.run.stage import SAMPLE_STAGE
from pipeline.storage.store import Store

if TYPE_CHECKING:  # Ray and torch load only where there is something to compute
    from pipeline.engine.driver import Outcome

GOOD_PSNR = 30.0
"""dB. From this value on hardly anybody sees a difference."""


def run_and_report(spec: RunSpec, as_json: bool, found: Mapping[str, Any] | None = None) -> int:
    """Does a run, prints its tables to stderr and the path of the contact sheet to stdout, and gives the exit code.
    With `as_json`, stdout gets JSON instead: what the command has `found` before, then the summary of the run."""
    session = LoggedSession(open_log(spec.engine.log), live)
    result = run(spec, session.display)
    store = Store(spec.output)
    state = read_state(store)
    session.ended(lambda: final_numbers(store, state), result.sheet)
    show_summary(result.outcome, state, spec.engine)
    if result.plan.skipped:
        console.print(f"not read: {not_read(result.plan.skipped)}", highlight=False, markup=False, soft_wrap=True)
    lost = inversion_loss(store)
    if lost:
        console.print(lost.text, highlight=False, soft_wrap=True)
    sheet = store.path(result.sheet) if result.sheet else None

    def show() -> None:
        if sheet:
            out.print(f"contact sheet: {sheet}", soft_wrap=True, highlight=False)

    ended = summary(result.outcome, state, spec.engine) | {"skipped": dict(result.plan.skipped)}
    facts = {**(found or {}), **ended, "reconstruction": asdict(lost) if lost else None, "sheet": sheet}
    report(facts, as_json, show)
    return exit_code(result.outcome)


@dataclass(frozen=True)
class InversionLoss:
    """What the plain process loses of a sample that it denoises without an edit: PSNR in dB. Edits by dpmpp_2m are
    anchored to the source and lose none of it."""

    images: int
    median_psnr: float
    worst_psnr: float
    solver: SolverName = "ddim"

    @property
    def text(self) -> str:
        """One sentence."""
        said = f"inversion keeps {self.median_psnr:.1f} dB (PSNR, the median of {self.images} images without an edit"
        said += f"; the worst {self.worst_psnr:.1f})"
        if self.solver != "ddim":
            return f"{said}, and an edit starts from all of the image"
        return said if self.median_psnr >= GOOD_PSNR else f"{said}: --refine 2 keeps more"


def inversion_loss(store: Store) -> InversionLoss | None:
    """What the sample of a run has lost; None without a sample."""
    if 0 not in committed(store, SAMPLE_STAGE):
        return None
    rows = [row for row in committed_rows(store, SAMPLE_STAGE, [0]) if row[RECONSTRUCTION_PSNR] is not None]
    psnr = [row[RECONSTRUCTION_PSNR] for row in rows]
    return InversionLoss(len(psnr), median(psnr), min(psnr), rows[0]["solver"] or "ddim") if rows else None


def read_state(store: Store) -> RunState:
    """The state of the run at a root, from its storage alone.

    Raises:
        UserError: if there is no run.
    """
    return StateReader(store, grown(store, recorded_sizes(read_run(store)))).read()


def show_summary(outcome: "Outcome | None", state: RunState, knobs: EngineSpec) -> None:
    """Prints the tables at the end of a run: the rows by status, and the use of the devices' time."""
    console.print(state_table(state))
    if outcome is None:
        console.print("nothing to do: every shard was committed already")
        return
    if shares := device_time(outcome.seconds):
        console.print(bound_text(shares), highlight=False, soft_wrap=True)
        console.print(cost(outcome, knobs).text, highlight=False)
    for stage, shard, reason in outcome.quarantined:
        print_marked("quarantined", "red", f" {stage} shard {shard}: {reason}")
    if outcome.tripped:
        print_marked("stopped", "red", f": {outcome.tripped}")
    if outcome.drained:
        console.print("stopped on request: what was in flight is committed; the same command goes on from here")
