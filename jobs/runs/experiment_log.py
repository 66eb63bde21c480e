"""Logs the settings, the progress and the results of a run to W&B or MLflow.

A logger never disturbs a run. It works in a thread of its own. If it fails, one warning says so, it is not called
again, and the run goes on.
"""

import importlib.util
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyrp.errors import UserError
from jobs.display import all_rows
from jobs.runs.record import recorded_stages
from jobs.runs.run import Display
from jobs.runs.run_file import read_run
from pipeline.run.progress import RunState, StateReader
from pipeline.run.stage import FINAL
from pipeline.storage.credentials import redacted
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 30.0
FAREWELL_SECONDS = 60.0
"""How long a run that has ended waits for its logger."""

THROUGH = "images/through"
EXPERIMENT = "asyrp"
NOT_IN_NAMES = re.compile(r"[^\w\-. /]")

Numbers = Mapping[str, float]
Ask = Callable[[], Numbers]
"""Reads the numbers from storage. A log that needs none does not call it."""


class ExperimentLog:
    """A log of one session of a run. This one logs nothing."""

    def began(self, name: str, settings: Mapping[str, Any]) -> None:
        """Logs the run's name and settings."""

    def progress(self, ask: Ask) -> None:
        """Logs the progress; THROUGH counts the images."""

    def ended(self, ask: Ask, sheet: Path | None) -> None:
        """Logs the results and the contact sheet. It is the last call."""


class WandbLog(ExperimentLog):
    """Logs to a run of Weights & Biases. Its environment variables, such as WANDB_MODE, apply."""

    def __init__(self, project: str) -> None:
        self.project = project
        self.run: Any = None

    def began(self, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off"
        )  # keeps its output off the terminal, and the terminal's out of the log
        self.run = wandb.init(project=self.project, name=name, config=dict(settings), settings=quiet)

    def progress(self, ask: Ask) -> None:
        numbers = ask()
        self.run.log(dict(numbers), step=int(numbers[THROUGH]))

    def ended(self, ask: Ask, sheet: Path | None) -> None:
        import wandb

        self.run.summary.update(dict(ask()))
        if sheet:
            self.run.log({"contact sheet": wandb.Image(str(sheet))})
        self.run.finish()


class MlflowLog(ExperimentLog):
    """Logs to a run of MLflow in the experiment EXPERIMENT."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client: Any = None
        self.run = ""

    def began(self, name: str, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=self.uri)
        known = self.client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else self.client.create_experiment(EXPERIMENT)
        self.run = self.client.create_run(experiment, run_name=name).info.run_id
        for setting, value in _flat(settings):
            self.client.log_param(self.run, _name(setting), value)

    def progress(self, ask: Ask) -> None:
        numbers = ask()
        for name, value in numbers.items():
            self.client.log_metric(self.run, _name(name), value, step=int(numbers[THROUGH]))

    def ended(self, ask: Ask, sheet: Path | None) -> None:
        for name, value in ask().items():
            self.client.log_metric(self.run, _name(name), value)
        if sheet:
            self.client.log_artifact(self.run, str(sheet))
        self.client.set_terminated(self.run)


LOGS: dict[str, Callable[[str], ExperimentLog]] = {"wandb": WandbLog, "mlflow": MlflowLog}


def open_log(name: str | None) -> ExperimentLog:
    """The log for `wandb:PROJECT` or `mlflow:URI`. Without a name it is one that logs nothing.

    Raises:
        UserError: if its package is not installed.
    """
    if name is None:
        return ExperimentLog()
    kind, _, argument = name.partition(":")
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"--log {name}: {kind} is not installed: pip install 'asyrp[{kind}]'")
    return LOGS[kind](argument)


class LoggedSession:
    """Feeds a log with one session, from a thread of its own, until the log fails."""

    def __init__(self, experiment: ExperimentLog, display: Display) -> None:
        self.experiment, self.wrapped = experiment, display
        self.store: Store | None = None  # None until there is something to log
        self.failed = False

    @contextmanager
    def display(self, reader: StateReader) -> Iterator[None]:
        """Shows the run as without a log, and logs its progress until the block ends."""
        self.store, stop = reader.store, threading.Event()
        own = StateReader(reader.store, reader.stages)
        thread = threading.Thread(target=self._guarded(lambda: self._follow(own, stop)), name="log", daemon=True)
        thread.start()
        try:
            with self.wrapped(reader):
                yield
        finally:
            stop.set()
            self._wait_for(thread)

    def ended(self, ask: Ask, sheet: str | None) -> None:
        """Logs the results, unless there was nothing to do. `sheet` is the path of the contact sheet below the run's
        root."""
        if self.store is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "contact_sheet.png"
            if sheet:
                picture.write_bytes(self.store.read(sheet))
            ended = self._guarded(lambda: self.experiment.ended(ask, picture if sheet else None))
            thread = threading.Thread(target=ended, name="log", daemon=True)
            thread.start()
            self._wait_for(thread)

    def _follow(self, reader: StateReader, stop: threading.Event) -> None:
        record = read_run(reader.store)
        self.experiment.began(reader.store.root.rsplit("/", 1)[-1], _settings(reader.store, record))
        ended = False
        while not ended:
            ended = stop.wait(PROGRESS_SECONDS)
            self.experiment.progress(lambda: progress_numbers(reader.read()))

    def _guarded(self, call: Callable[[], None]) -> Callable[[], None]:
        """Wraps a call of the log so that it never raises. After a failure the log is not called again."""

        def guarded() -> None:
            if self.failed:
                return
            try:
                call()
            except Exception as error:
                self.failed = True
                reason = redacted(str(error)).splitlines() or [""]
                log.warning("the run is not logged any more: %s: %s", type(error).__name__, reason[0])

        return guarded

    def _wait_for(self, thread: threading.Thread) -> None:
        thread.join(FAREWELL_SECONDS)
        if thread.is_alive() and not self.failed:
            self.failed = True
            log.warning("the run is not logged any more: no answer for %.0f s", FAREWELL_SECONDS)


def progress_numbers(state: RunState) -> dict[str, float]:
    """The progress of a run as numbers by name."""
    stages = {f"images/{name}": float(stage.images_done) for name, stage in state.stages.items()}
    rows = {f"rows/{status}": float(count) for status, count in all_rows(state).items()}
    return {THROUGH: float(state.images_through), **stages, **rows}


def final_numbers(store: Store, state: RunState) -> dict[str, float]:
    """The counts of a run, and the means of its metrics by edit and metric."""
    from pipeline.results.rows import ResultReader
    from pipeline.results.summaries import summaries

    final = [stage for stage in recorded_stages(read_run(store)) if stage.name == FINAL]
    by_edit = summaries(ResultReader(store, final).read())
    means = {
        f"mean/{edit}/{name}": summary.mean
        for edit, by_metric in by_edit.items()
        for name, summary in by_metric.items()
    }
    return progress_numbers(state) | means


def _settings(store: Store, record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that are logged: its identity and its root."""
    return {"root": redacted(store.url), "identity_hash": record["identity_hash"], **record["identity"]}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _name(name: str) -> str:
    """A name in which signs that MLflow refuses are replaced."""
    return NOT_IN_NAMES.sub("_", name)
