"""The `asyrp` command. Results go to stdout, everything else to stderr."""

import logging
import sys
import threading
import traceback

import typer
from rich.logging import RichHandler

from asyrp.errors import UserError
from jobs.cli.cluster import cluster_app, submit
from jobs.cli.directions.files import directions_app
from jobs.cli.directions.score import sample
from jobs.cli.evaluate import evaluate, fid
from jobs.cli.intervals import intervals_app
from jobs.cli.jobs import jobs_app
from jobs.cli.models import models_app
from jobs.cli.report import report_command
from jobs.cli.runs import demo, extend, plan, retry, run, status
from jobs.cli.store import export, gc, verify
from jobs.display import console, print_any_text, print_marked
from jobs.runs.run import EXIT_DRAINED, EXIT_PIPE, exit_code_of
from pipeline.storage.credentials import redacted
from pipeline.storage.failures import machine_failure

app = typer.Typer(
    help="Edit image data sets in the semantic latent space of frozen diffusion models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models")
app.add_typer(directions_app, name="directions")
app.add_typer(intervals_app, name="intervals")
app.add_typer(cluster_app, name="cluster")
app.add_typer(jobs_app, name="jobs")
for command in (run, plan, demo, status, retry, extend, evaluate, fid, verify, gc, export, sample, submit):
    app.command()(command)
app.command("report")(report_command)


class Stopped(BaseException):
    """A signal asked the process to stop while nothing was computed."""


def main() -> None:
    """Run the command line and exit. What ends it is one sentence; only a bug of this package has a traceback too."""
    print_any_text()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)])
    logging.getLogger("jobs").setLevel(logging.INFO)
    threading.excepthook = _thread_ended
    try:
        app(prog_name="asyrp")
    except SystemExit as ended:  # typer and rich exit with 1 when nobody reads stdout any more
        if isinstance(ended.__context__, BrokenPipeError):
            sys.exit(EXIT_PIPE)
        raise
    except (Stopped, KeyboardInterrupt):
        _say("stopped: what is committed stays, and the same command goes on from there", "stopped")
        sys.exit(EXIT_DRAINED)
    except BaseException as error:
        _last_words(error)
        sys.exit(exit_code_of(error))


def _last_words(error: BaseException) -> None:
    """Say what has ended the command."""
    if isinstance(error, UserError):
        _say(str(error))
    elif said := machine_failure(error):
        _say(f"{said}; what is committed stays, and the same command goes on from there")
    else:
        _say("".join(traceback.format_exception(error)), None)
        _say(
            f"{type(error).__name__}: this is a bug of asyrp, please report it with the lines above; what is committed "
            "stays, and the same command goes on from there"
        )


def _thread_ended(arguments: threading.ExceptHookArgs) -> None:
    """Say what has ended a thread that runs beside the command."""
    error, name = arguments.exc_value, arguments.thread.name if arguments.thread else "a thread"
    if error is None or isinstance(error, SystemExit):
        return
    if said := machine_failure(error):
        _say(f"{name} has ended: {said}", "warning")
    else:
        _say("".join(traceback.format_exception(error)), f"{name} has ended by a bug of asyrp")


def _say(text: str, head: str | None = "error") -> None:
    """Print to stderr, if there is somebody to read it."""
    try:
        if head:
            print_marked(f"{head}:", "bold red", f" {redacted(text)}")
        else:
            console.print(redacted(text), soft_wrap=True, highlight=False)
    except OSError:  # the terminal is gone: the exit code is left
        return
