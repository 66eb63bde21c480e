"""What is printed is literal: no text that somebody else chose steers the terminal, means markup or fails to print."""

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.logging import RichHandler
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from jobs.display import SafeConsole, print_marked
from pipeline.run.names import printable
from tests.support.names import NAMES
from tests.support.runs import ROOT

STEERING = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
HOSTILE = "\x1b[31m[red]:smile:\u202e[/nope]\r\x9b"


def printed(name: object, **options: object) -> str:
    stream = io.StringIO()
    console = SafeConsole(file=stream, markup=False, emoji=False, width=10_000)
    console.print(name, **options)
    return stream.getvalue()


@settings(deadline=None)
@given(st.text() | st.sampled_from(NAMES))
def test_every_text_is_printed_as_it_is_and_steers_nothing(text):
    shown = printed(text, soft_wrap=True, highlight=False)
    assert not STEERING.search(shown)
    if "\r" not in text and not re.search("[\x07\x08\x0b\x0c]", text):
        assert shown == printable(text) + "\n" or "\t" in text or "\n" in text


@pytest.mark.parametrize(
    "made",
    [
        lambda: Text(HOSTILE),
        lambda: Table(HOSTILE, title=HOSTILE, caption=HOSTILE),
        lambda: _table_of(HOSTILE),
    ],
)
def test_nothing_in_a_table_or_text_steers_the_terminal(made):
    shown = printed(made())
    assert not STEERING.search(shown)
    assert "\\x1b[31m[red]:smile:\\u202e[/nope]" in shown


def _table_of(text: str) -> Table:
    table = Table("name")
    table.add_row(text)
    return table


def test_a_log_line_and_a_progress_bar_are_literal_too():
    stream = io.StringIO()
    console = SafeConsole(file=stream, markup=False, emoji=False, width=200, force_terminal=True, color_system=None)
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s failed", (HOSTILE,), None)
    RichHandler(console=console).handle(record)
    with Progress(console=console) as progress:
        progress.add_task("working", total=1)
        progress.console.print(HOSTILE)
    assert stream.getvalue().count("\\x1b[31m[red]:smile:\\u202e[/nope]") == 2
    assert "\x1b[31m" not in stream.getvalue() and "\u202e" not in stream.getvalue()


def test_an_error_is_one_literal_sentence(cli, tmp_path):
    code, _, err = cli("verify", tmp_path / HOSTILE)
    assert code == 2 and "[red]:smile:" in err and "[/nope]" in err
    assert not STEERING.search(err)
    assert err.startswith("error: ")


def test_a_marked_line_takes_markup_in_its_text_as_text(capsys):
    print_marked("stopped", "red", ": [/nope] [red]x")
    assert capsys.readouterr().err == "stopped: [/nope] [red]x\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_of_a_terminal_is_too_small(encoding):
    name = os.fsdecode("日本 é ".encode() + b"caf\xe9")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    code = "from jobs.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", str(Path("/nowhere") / name)], env=environment, capture_output=True
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
    assert b"caf\\udce9" in done.stderr
