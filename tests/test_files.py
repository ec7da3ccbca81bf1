"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading

import pytest

from xent_metrics.files import replacing


def write_half(path):
    with replacing(path) as new:
        new.write_text("half a pa")
        raise OSError("disk full")


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert (path.read_text(), new.suffix, new.parent) == ("old", ".html", tmp_path)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_as_it_was(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_first_file_that_failed(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        write_half(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "page.html").write_text("old")
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    with replacing(tmp_path / "link.html") as new:
        new.write_text("new")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").read_text() == "new"


def test_a_pipe_is_written_to_directly(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with replacing(pipe) as new:
        new.write_text("through")
    reader.join()
    assert read == ["through"]
    assert list(tmp_path.iterdir()) == [pipe]
