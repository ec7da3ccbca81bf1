"""JSON that every parser reads, and messages that can't control the terminal."""

import io
import json
import math
from pathlib import Path

from xent_metrics.cli.output import print_error, print_json, print_note, printable


def test_json_has_null_for_what_is_not_finite(capsys):
    print_json([{"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "path": Path("x"), "text": "é"}])
    printed = capsys.readouterr().out
    assert json.loads(printed) == [{"a": None, "b": [None, 1.5], "c": {"d": None}, "path": "x", "text": "é"}]
    assert "é" in printed


def test_json_loses_nothing_where_the_output_lacks_a_character(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr("sys.stdout", output)
    print_json([{"formula": "Σ nll", "path": "a\udcff"}])
    output.flush()
    assert json.loads(output.buffer.getvalue()) == [{"formula": "Σ nll", "path": "a\udcff"}]


def test_a_note_that_nobody_can_read_is_no_error(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError("disk full")

    monkeypatch.setattr("sys.stderr", Full())
    print_note("done")


def test_an_error_is_shown_on_stderr_as_it_is_written(capsys):
    print_error(ValueError("[red]name[/red] \x1b]0;title\x07 :smile: " + "x" * 200))
    printed = capsys.readouterr()
    assert printed.err == r"ValueError: [red]name[/red] \x1b]0;title\x07 :smile: " + "x" * 200 + "\n"
    assert printed.out == ""


def test_a_note_is_shown_on_stderr(capsys):
    print_note("[bold]see\x1b[2J")
    assert capsys.readouterr().err == "[bold]see\\x1b[2J\n"


def test_printable_text_is_left_alone():
    assert printable("Σ p (1 − cos) 🙂\nline") == "Σ p (1 − cos) 🙂\nline"
    assert printable("\r\x00\u202e") == r"\r\x00\u202e"
