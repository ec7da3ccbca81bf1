"""Every command with nowhere to write: one message, no traceback, and nothing half done."""

from __future__ import annotations

import errno
import os
import resource
import signal

import pytest
from support.forks import forked
from support.logged_runs import write_token_run

from xent_metrics.files import is_leftover

#: Commands that write files, with what they write.
WRITING = {
    "report": ["report", "{run}", "-o", "{out}/page.html"],
    "plot": ["plot", "position", "{run}", "-o", "{out}/plot.pdf"],
    "view": ["view", "{runs}", "--export", "{out}/site", "--documents", "1"],
    "rescore": ["rescore", "{run}", "--metrics", "perplexity", "-o", "{out}/new"],
    "new-plugin": ["new-plugin", "some-name", "--into", "{out}"],
    "doctor": ["doctor", "--write", "{out}/task.yaml"],
}
READING = {
    "version": ["--version"], "help": ["--help"], "metrics": ["metrics"], "json": ["metrics", "--json"], "plugins": ["plugins"],
    "explain": ["explain", "perplexity"], "doctor of a run": ["doctor", "{run}"], "tasks": ["tasks"],
    "intervals": ["intervals", "{run}", "--json"],
}  # fmt: skip
YAML = "task: t\noutput_type: multiple_choice\nmetric_list:\n  - metric: acc_nrom\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder that holds a run, whose name isn't easy."""
    folder = tmp_path_factory.mktemp("runs")
    write_token_run(folder / "a 'run' \n🙂")
    return folder


@pytest.fixture
def command(runs, tmp_path):
    """Fill in where things are."""
    out = tmp_path / "öut put"
    out.mkdir()
    (out / "task.yaml").write_text(YAML)
    [run] = runs.iterdir()
    places = {"{run}": str(run), "{runs}": str(runs), "{out}": str(out)}

    def filled(name):
        words = (READING | WRITING)[name]
        for each, place in places.items():
            words = [word.replace(each, place) for word in words]
        return words

    return filled


def files(folder):
    """What is in a folder, but for what a killed process left."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not is_leftover(path.name)
    }


def leaving():
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def full_disk(limit):
    """Files can't grow beyond this size. The signal would kill the process instead of failing the write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def interrupted(*_):
    raise KeyboardInterrupt


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", [*READING, *WRITING])
def test_nowhere_to_print(name, command, tmp_path):
    ended = forked(*command(name), stdout="/dev/full")
    assert ended.status == 2
    assert ended.error.splitlines()[-1] == f"OSError: [Errno {errno.ENOSPC}] No space left on device"
    assert "Traceback" not in ended.error
    is_written = files(tmp_path / "öut put") != {"task.yaml"} or (tmp_path / "öut put/task.yaml").read_text() != YAML
    assert is_written is (name in WRITING)  # what was asked for is done before it is said


@pytest.mark.parametrize("name", ["version", "help", "json", "tasks", "report", "doctor"])
def test_a_reader_that_leaves(name, command):
    ended = forked(*command(name), prepare=leaving)
    assert ended.status == 1
    assert "Error" not in ended.error


@pytest.mark.parametrize("stream", [0, 1, 2])
@pytest.mark.parametrize("name", ["version", "json", "intervals"])
def test_streams_that_are_closed(name, stream, command):
    assert forked(*command(name), prepare=lambda: os.close(stream)) == (0, "")


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk(name, command, tmp_path):
    ended = forked(*command(name), prepare=lambda: full_disk(50))
    assert (ended.status, ended.error.count("\n")) == (2, 1), ended.error
    assert ended.error.startswith(f"OSError: [Errno {errno.EFBIG}] File too large")
    assert files(tmp_path / "öut put") == {"task.yaml"}
    assert (tmp_path / "öut put/task.yaml").read_text() == YAML


@pytest.mark.parametrize(("fault", "status"), [(interrupted, 130), (killed, -signal.SIGKILL)])
@pytest.mark.parametrize("name", sorted(set(WRITING) - {"new-plugin"}))
def test_stopped_when_the_file_is_written_but_not_in_its_place(name, fault, status, command, tmp_path, monkeypatch):
    ended = forked(*command(name), prepare=lambda: monkeypatch.setattr("xent_metrics.files.os.replace", fault))
    assert ended.status == status
    assert "Traceback" not in ended.error
    assert files(tmp_path / "öut put") == {"task.yaml"}
    assert (tmp_path / "öut put/task.yaml").read_text() == YAML
    assert forked(*command(name)).status == 0  # what is left is in nobody's way
