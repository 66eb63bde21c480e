"""The `asyrp` command. Results go to stdout, everything else to stderr."""

import logging
import sys

import typer
from rich.logging import RichHandler
from rich.markup import escape

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
from jobs.display import console
from jobs.runs.run import EXIT_USAGE
from pipeline.storage.credentials import redacted

EXIT_ERROR = 1

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


def main() -> None:
    """Run the command line. A user's mistake is one sentence and exit code 2, never a traceback. A store that fails is
    one sentence and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)])
    logging.getLogger("jobs").setLevel(logging.INFO)
    try:
        app(prog_name="asyrp")
    except UserError as error:
        _say(str(error))
        sys.exit(EXIT_USAGE)
    except OSError as error:
        _say(f"a file cannot be read or written ({type(error).__name__}: {error}): give the command again when it can")
        sys.exit(EXIT_ERROR)


def _say(sentence: str) -> None:
    console.print(f"[bold red]error:[/bold red] {escape(redacted(sentence))}", soft_wrap=True, highlight=False)
