"""What the repository has of generated documentation is current."""

from __future__ import annotations

import docs_reference
import pytest

GENERATED = docs_reference.generated()


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_documentation_is_current(path):
    assert path.read_text(encoding="utf-8") == GENERATED[path], "run `make reference`"


def test_a_changed_table_is_noticed(tmp_path, monkeypatch):
    readme = (docs_reference.ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(readme.replace("| nats per token |", "| bits |"), encoding="utf-8")
    monkeypatch.setattr(docs_reference, "ROOT", tmp_path)
    assert docs_reference.generated()[tmp_path / "README.md"] == readme
