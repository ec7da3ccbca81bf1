"""Lines found again by where they begin."""

from __future__ import annotations

from xent_metrics.analysis.json_lines import JsonLines


def test_lines_are_found_again_in_any_order(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes("é\nb\n\nlast".encode())
    source = JsonLines(path)
    addresses = dict(source.documents())
    assert addresses == {0: "é\n".encode(), 3: b"b\n", 5: b"\n", 6: b"last"}
    assert list(source.at([6, 0, 3])) == [b"last", "é\n".encode(), b"b\n"]
    assert source.results(0) == {}
