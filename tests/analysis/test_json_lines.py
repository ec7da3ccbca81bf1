"""Lines found again by where they begin."""

from __future__ import annotations

import json

from xent_metrics.analysis.json_lines import JsonLines, encodable_json


def test_lines_are_found_again_in_any_order(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes("é\nb\n\nlast".encode())
    source = JsonLines(path)
    addresses = dict(source.documents())
    assert addresses == {0: "é\n".encode(), 3: b"b\n", 5: b"\n", 6: b"last"}
    assert list(source.at([6, 0, 3])) == [b"last", "é\n".encode(), b"b\n"]
    assert source.results(0) == {}


def test_json_that_an_encoding_can_hold_means_the_same():
    value = {"é": ["\ud800", "Σ", 1.5]}
    for encoding in ("ascii", "latin-1", "utf-8"):
        text = encodable_json(value, encoding)
        assert json.loads(text.encode(encoding)) == value
    assert encodable_json({"é": 1}) == '{"é": 1}'
