"""Takes a spec to a finished run: it resolves, plans or resumes, computes and reports. It is safe to repeat."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from asyrp.errors import UserError
from jobs.runs.record import check_creates, open_run
from jobs.runs.resolve import resolve
from jobs.spec.run import EngineSpec, RunSpec
from pipeline.engine.machine import check_address
from pipeline.results import sheet
from pipeline.run.additions import grown, shard_ids
from pipeline.run.plan import PlanSummary, stage_sizes
from pipeline.run.progress import RunState, StateReader, device_seconds
from pipeline.run.stage import ImageFormat, Stage
from pipeline.stages.loading import load_functions
from pipeline.storage.failures import machine_failure
from pipeline.storage.store import Store

if TYPE_CHECKING:  # Ray and torch load only where there is something to compute
    from pipeline.engine.driver import Outcome

SUMMARY = "report/summary.json"
DEFAULT_SHEET_ROWS = 8
EXIT_BUG, EXIT_USAGE, EXIT_QUARANTINE, EXIT_BREAKER, EXIT_MACHINE = 1, 2, 3, 4, 5
EXIT_DRAINED, EXIT_PIPE = 130, 141


@dataclass(frozen=True)
class RunResult:
    """How a call of `run` ended. `outcome` is None if nothing was left to do. `sheet` is the path of the contact sheet
    below the run's root, None without images."""

    plan: PlanSummary
    outcome: "Outcome | None"
    sheet: str | None


@dataclass(frozen=True)
class Cost:
    """The hours of devices, busy or waiting, and the price of one hour, in any currency; None if it is not known."""

    device_hours: float
    price_per_hour: float | None

    @property
    def price(self) -> float | None:
        return None if self.price_per_hour is None else self.device_hours * self.price_per_hour

    @property
    def text(self) -> str:
        hours = self.device_hours
        time = f"{hours:,.1f} device hours" if hours >= 1 else f"{hours * 60:.1f} device minutes"
        return time if self.price is None else f"{time}, price {self.price:,.2f}"

    def as_json(self) -> dict[str, Any]:
        return {"device_hours": self.device_hours, "price": self.price}


Display = Callable[[StateReader], AbstractContextManager[None]]
"""Shows the progress of a run while the block runs."""


def no_display(reader: StateReader) -> AbstractContextManager[None]:  # noqa: ARG001
    return nullcontext()


def run(spec: RunSpec, display: Display = no_display) -> RunResult:
    """Does the part of a run that is not done yet. For a finished run it does nothing, and asks for no GPU or cluster.

    Raises:
        UserError: for anything the user can mend, before any image is touched.
    """
    resolved = resolve(spec)
    store = Store(spec.output)
    if store.url.startswith("memory://"):
        raise UserError("memory:// lives in one process, and actors are others: give an output they can all reach")
    plan = open_run(store, resolved)
    reader = StateReader(store, grown(store, stage_sizes(resolved.stages, plan)))
    outcome = None
    if not reader.read().complete:
        outcome = compute(
            store,
            resolved.stages,
            load=load_functions,
            settings=resolved.settings,
            image_format=resolved.image_format,
            knobs=spec.engine,
            shards=shard_ids(store, plan.shards),
            display=display(reader),
        )
    if outcome is None and store.exists(sheet.NAME):
        return RunResult(plan, outcome, sheet.NAME)
    if outcome is not None:
        store.write(SUMMARY, json.dumps(summary(outcome, reader.read(), spec.engine), indent=1).encode())
        reader.keep()
    drawn = sheet.write_sheet(store, resolved.stages, resolved.image_format, spec.preview or DEFAULT_SHEET_ROWS)
    return RunResult(plan, outcome, drawn)


def summary(outcome: "Outcome | None", state: RunState, knobs: EngineSpec) -> dict[str, Any]:
    """How a session ended and how far the run is, as JSON. Seconds, hours and price are those of this session, over all
    actors. Without an outcome there was nothing to do, and no session."""
    stages = {name: {"images": stage.images_done, "rows": dict(stage.rows)} for name, stage in state.stages.items()}
    session = outcome.as_json() | cost(outcome, knobs).as_json() if outcome else None
    return {"complete": state.complete, "stages": stages, "session": session}


def cost(outcome: "Outcome", knobs: EngineSpec) -> Cost:
    """The cost of a session."""
    return Cost(device_seconds(outcome.seconds) / 3600, knobs.price_per_hour)


def compute(
    store: Store,
    stages: Sequence[Stage],
    *,
    load: Callable[[Any], Mapping[str, Callable[..., Any]]],
    settings: Any,
    image_format: ImageFormat,
    knobs: EngineSpec,
    shards: Sequence[int],
    display: AbstractContextManager[None],
) -> "Outcome":
    """Works through what is left of the stages, on the cluster or on this machine.

    `load` gives the stages' functions. It is called on every actor with `settings`, a picklable dataclass whose
    `device` is set here.
    """
    if knobs.address is not None:
        check_address(knobs.address)  # before torch loads, so that a wrong one is soon known
    from pipeline.engine.actors import EngineOptions
    from pipeline.engine.cluster import has_gpu, ray_session
    from pipeline.engine.driver import Engine, pending_units

    check_creates(store)
    with ray_session(knobs.address):
        device = ("cuda" if has_gpu() else "cpu") if knobs.device == "auto" else knobs.device
        may_grow = knobs.address is not None
        options = EngineOptions(
            device=device,
            actors=knobs.actors,
            may_grow=may_grow,
            gpu_share=knobs.gpu_share,
            batch_size=knobs.batch_size,
            readers=knobs.readers,
            writers=knobs.writers,
            max_failed=knobs.max_failed,
            shard_deadline=knobs.shard_deadline,
        )
        engine = Engine(store, stages, partial(load, replace(settings, device=device)), image_format, options)
        with display:
            return engine.run(pending_units(store, stages, shards))


def exit_code(outcome: "Outcome | None") -> int:
    """The exit code of a session: 0 all committed, 3 quarantine, 4 breaker, 130 drained."""
    if outcome is None or outcome.finished:
        return 0
    if outcome.tripped:
        return EXIT_BREAKER
    return EXIT_DRAINED if outcome.drained else EXIT_QUARANTINE


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that an error has ended: 2 the user's mistake, 5 the machine or a store, 1 a bug."""
    if isinstance(error, UserError):
        return EXIT_USAGE
    return EXIT_BUG if machine_failure(error) is None else EXIT_MACHINE
