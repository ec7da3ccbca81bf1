"""YAMLs of tasks and groups."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a YAML of this name and text; returns its path."""

    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
