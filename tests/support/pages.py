"""Pages of documentation that show what was run: their code, their commands and their output.

    PYTHONPATH=tests python -m support.pages docs/tutorials/*.md docs/guides/why_numbers_differ.md      (or `make pages`)

runs the commands of pages, or the script of a page's own name, and writes what they print into them. Numbers with a decimal
point depend on the processor in their last digits, and are compared to 1 %; the rest is compared as it stands.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.hosts.lm_eval.python_docs import CORPUS_SHA256

#: The corpus of the pages' figures: another Python has another documentation, and so other numbers in the same places.
MEASURED = "c3591dfe9e80b9699a432f2b5ffa1e87335aac86f33703e5aa652b097c62c3fb"
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?(?!\w)")


class Command(NamedTuple):
    """A command of a ``console`` block, and what the page says it prints."""

    line: str
    output: str


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[Command]:
    """The commands of the ``console`` blocks, in order."""
    found = []
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, output = re.match(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.DOTALL).groups()
            found.append(Command(line, output))
    return found


def code(text: str) -> list[str]:
    """The lines of code, without blank ones."""
    return [line for line in text.splitlines() if line.strip()]


def run(line: str, folder: Path) -> str:
    """What a command prints on stdout, run in `folder`: in this process, which has imported everything, but for torchrun."""
    program, *arguments = shlex.split(line.replace("\\\n", " "))
    if program == "torchrun":
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line} failed:\n{done.stderr[-3000:]}"
        return _tidy(done.stdout)
    with _inside(folder), warnings.catch_warnings():
        return _tidy({"python": _python, "xent": _xent}[program](*arguments))


def _python(script: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(script, run_name="__main__")
    return printed.getvalue()


def _xent(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before, environment = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)


def _tidy(text: str) -> str:
    """The lines that say something; gloo of torch 2.10 says on stdout whom it has connected, in lines that may run together."""
    lines = [line.rstrip() for line in text.splitlines() if "connected peer ranks" not in line]
    return "".join(f"{line}\n" for line in lines if line)


def unlike(shown: str, printed: str, *, numbers: bool = CORPUS_SHA256 == MEASURED) -> list[str]:
    """The lines in which two outputs differ by more than the last digits of numbers; `numbers` False compares the words alone."""
    pairs = [(shown.splitlines()[i : i + 1], printed.splitlines()[i : i + 1]) for i in range(_longer(shown, printed))]
    return [f"{''.join(a)!r} is {''.join(b)!r}" for a, b in pairs if not _alike("".join(a), "".join(b), numbers)]


def _longer(*texts: str) -> int:
    return max(len(text.splitlines()) for text in texts)


def _alike(shown: str, printed: str, numbers: bool) -> bool:
    if [word.split() for word in NUMBER.split(shown)] != [word.split() for word in NUMBER.split(printed)]:
        return False
    return not numbers or all(map(_close, NUMBER.findall(shown), NUMBER.findall(printed)))


def _close(shown: str, printed: str) -> bool:
    """Whole numbers are equal; others differ by at most 1 %, or by five in the last place."""
    if "." not in shown + printed:
        return shown == printed
    a, b = (float(text.replace(",", "").replace("−", "-")) for text in (shown, printed))
    decimals = len(shown.partition("e")[0].partition(".")[2])
    return abs(a - b) <= max(0.01 * max(abs(a), abs(b)), 5.01 * 10.0**-decimals)


def tables(text: str) -> str:
    """The lines of Markdown tables."""
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith("|"))


def rewritten(page: Path) -> str:
    """The page with what its commands print now, or with the tables that the script of its name prints.

    The folder's other files are beside them.
    """
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(page.parent, folder, dirs_exist_ok=True)
        if page.with_suffix(".py").exists():
            lines = iter(tables(run(f"python {page.stem}.py", Path(folder))).splitlines())
            return "".join(f"{next(lines) if line.startswith('|') else line}\n" for line in text.splitlines())
        for command in commands(text):
            printed = run(command.line, Path(folder))
            text = text.replace(f"$ {command.line}{command.output}", f"$ {command.line}{printed}")
    return text


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(rewritten(Path(name)))
