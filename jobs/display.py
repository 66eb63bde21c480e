"""Shows a run to a person, and reports what a command found.

Progress and tables go to stderr: in a terminal as a bar, elsewhere as a line every 30 s. Reports go to stdout.

All that is printed goes through `console` or `out`. Names in it were chosen by somebody else, so a text is printed as
it is: it has no markup, and no character of it reaches the terminal as a command.
"""

import io
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pipeline.run.names import printable
from pipeline.run.progress import RunState, StateReader

REFRESH_SECONDS = 1.0
LINE_SECONDS = 30.0


class SafeConsole(Console):
    """A console whose texts are literal. Only rich itself commands the terminal, for colours and progress bars."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A text before it is laid out, so that its escapes get their room."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is about to be printed, from whatever it is made."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


console = SafeConsole(stderr=True, markup=False, emoji=False)
out = SafeConsole(markup=False, emoji=False)


def print_any_text() -> None:
    """Let stdout and stderr take every text: what their encoding lacks is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_marked(mark: str, style: str, text: str) -> None:
    """Print a line to stderr whose first words stand out."""
    console.print(Text.assemble((mark, style), text), soft_wrap=True, highlight=False)


def report(facts: Any, as_json: bool, show: Callable[[], None]) -> None:
    """What a command has found, to stdout: as one line of JSON and nothing else, or as `show` prints it."""
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        show()


def print_facts(facts: Mapping[str, Any]) -> None:
    """Names and values to stdout, as a table."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, [], {}):
            table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    out.print(table)


@contextmanager
def live(reader: StateReader) -> Iterator[None]:
    """Show the progress of a run, read from its storage, until the block ends."""
    stop = threading.Event()
    show = _show_bar if console.is_terminal else _show_lines
    thread = threading.Thread(target=show, args=(reader, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show_bar(reader: StateReader, stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} image passes"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[statuses]}", markup=False),
    )
    state = reader.read()
    rate = Rate(state)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("editing", total=state.images, rate="", statuses="starting")
        ended = False
        while not ended:
            ended = stop.wait(REFRESH_SECONDS)
            state = reader.read()
            text = statuses_text(all_rows(state)) or ("starting" if not state.actors else "")
            progress.update(task, completed=state.images_through, rate=rate.text(state), statuses=text)


def _show_lines(reader: StateReader, stop: threading.Event) -> None:
    rate, ended = Rate(reader.read()), False
    while not ended:
        ended = stop.wait(LINE_SECONDS)
        state = reader.read()
        console.print(
            f"{state.images_through}/{state.images} image passes, {rate.text(state)}, {rate.eta(state)}, "
            f"{statuses_text(all_rows(state)) or 'nothing committed yet'}",
            highlight=False,
            soft_wrap=True,
        )


class Rate:
    """Images per second since the first image of this session was through."""

    def __init__(self, state: RunState) -> None:
        self.first, self.since = state.images_through, time.monotonic()

    def per_second(self, state: RunState) -> float:
        if state.images_through == self.first:
            self.since = time.monotonic()
            return 0.0
        return (state.images_through - self.first) / max(time.monotonic() - self.since, 1e-9)

    def text(self, state: RunState) -> str:
        return f"{self.per_second(state):.2f} passes/s"

    def eta(self, state: RunState) -> str:
        rate = self.per_second(state)
        return f"{(state.images - state.images_through) / rate:.0f} s left" if rate else "time left unknown"


def all_rows(state: RunState) -> Counter[str]:
    """Manifest rows by status, over all stages."""
    return sum((stage.rows for stage in state.stages.values()), Counter())


def statuses_text(statuses: Counter[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.most_common())


def state_table(state: RunState) -> Table:
    """How far each stage is."""
    table = Table("stage", "shards", "images", "in flight", "rows by status")
    for name, stage in state.stages.items():
        table.add_row(
            name,
            f"{stage.shards_done}/{stage.shards}",
            f"{stage.images_done}/{stage.images}",
            str(stage.images_in_flight),
            statuses_text(stage.rows) or "-",
        )
    return table


TO_BE_FASTER = {
    "reader": "more engine.readers, or images nearer to their size in the net, would make it faster",
    "writer": "more engine.writers, or sink webdataset, would make it faster",
}
"""What to change where the device waits."""


def bound_text(shares: Mapping[str, float]) -> str:
    """What bounds a run, from the shares of `device_time`."""
    busy, reader, writer = (f"{100 * shares[name]:.1f} %" for name in ("device", "reader", "writer"))
    bound = max(shares, key=lambda name: shares[name])
    said = f"{bound}-bound: the device was busy {busy} of the time, waited for readers {reader}, for writers {writer}"
    return f"{said}: {TO_BE_FASTER[bound]}" if bound in TO_BE_FASTER else said
