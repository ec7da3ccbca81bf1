"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from xent_metrics.errors import InvalidInputError
from xent_metrics.files import is_leftover, replacing, require_writable, require_writable_file


def write_half(path):
    with replacing(path) as new:
        new.write_text("half a pa")
        raise OSError("disk full")


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert (path.read_text(), new.parent) == ("old", tmp_path)
        assert [is_leftover(file.name) for file in sorted(tmp_path.iterdir())] == [True, False]
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


def test_two_that_write_one_file_at_once_are_both_whole(tmp_path):
    """Even with the same process id, as two containers have that share a folder."""
    path = tmp_path / "page.html"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the last that ended
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 255, "\u4e00" * 85, "\U0001f642" * 63, "a\nb c", "\udcff"])
def test_any_name_that_a_file_may_have(tmp_path, name):
    with replacing(tmp_path / name) as new:
        new.write_text("new")
        assert is_leftover(new.name)
    assert (tmp_path / name).read_text() == "new"


def test_the_new_file_may_be_read_by_those_who_could_read_the_old_one(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as new:
        new.write_text("new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "nowhere" / "page.html") as new:
        new.write_text("new")
    assert caught.value.filename == str(tmp_path / "nowhere" / "page.html")
    with pytest.raises(OSError, match="No space") as caught, replacing(tmp_path / "page.html"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "page.html")
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "page.html"):
        (tmp_path / "another").read_text()
    assert caught.value.filename == str(tmp_path / "another")


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


def test_where_a_file_can_be_made_nothing_is_made(tmp_path):
    (tmp_path / "page.html").write_text("old")
    for path in (tmp_path, tmp_path / "page.html", tmp_path / "other.html", tmp_path / "new" / "folder" / "page.html"):
        require_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_where_no_file_can_be_made_is_said_by_the_path_that_was_asked_for(tmp_path, monkeypatch):
    (in_the_way := tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as error:
        require_writable(in_the_way / "new" / "page.html")
    assert error.value.filename == str(in_the_way / "new" / "page.html")

    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(OSError, match="Read-only") as error:
        require_writable(tmp_path / "page.html")
    assert error.value.filename == str(tmp_path / "page.html")
    os.mkfifo(tmp_path / "pipe")
    require_writable(tmp_path / "pipe")  # written to directly


def test_a_single_file_needs_its_folder(tmp_path):
    require_writable_file(tmp_path / "page.html")
    with pytest.raises(InvalidInputError, match=r"the folder .*new doesn't exist; create it first"):
        require_writable_file(tmp_path / "new" / "page.html")
