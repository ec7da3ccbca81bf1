"""Tokens by column, the same from lines and from Parquet."""

from __future__ import annotations

import gc
import json

from xent_metrics.analysis import token_columns
from xent_metrics.analysis.json_lines import JsonLines
from xent_metrics.analysis.parquet_samples import ParquetSamples, write_parquet_samples
from xent_metrics.analysis.samples import read_samples
from xent_metrics.analysis.token_columns import TokenColumns

#: Of each question the tokens of its answers, and the gold one; the last has no tokens in its gold answer, one has none at all.
QUESTIONS = [([[1, 2], [3], [4, 5, 6]], 1), ([], 0), ([[7], [8, 9]], 1), ([[10, 11], [12]], 0), ([[13], []], 1)]


def documents():
    """Each document under two filters, with its tokens by place."""
    for filter_name in ("b", "a"):
        for number, (answers, gold) in enumerate(QUESTIONS):
            results = {
                2 * place: {"dtype": "float32", "tokens": [{"text": "x", "id": i, "nll": i / 8} for i in ids]}
                for place, ids in enumerate(answers)
            }
            given = {f"gen_args_{i}": {"arg_0": "why", "arg_1": f" {i}"} for i in range(max(1, len(answers)))}
            raw = {
                "doc_id": number, "doc_hash": f"d{number}", "target_hash": "t", "filter": filter_name,
                "target": str(gold), "arguments": given,
                "resps": [[["-1.0", "False"]] for _ in answers],
            }  # fmt: skip
            yield raw, results


def with_tokens(raw, results):
    resps = [[[json.dumps({"loglikelihood": -1.0, **results[2 * i]}), "False"]] for i in range(len(raw["resps"]))]
    return json.dumps({**raw, "resps": resps})


def test_the_gold_tokens_of_each_filter_are_the_same_from_both(tmp_path, monkeypatch):
    monkeypatch.setattr(token_columns, "_CHUNK_TOKENS", 2)
    lines, parquet = tmp_path / "s.jsonl", tmp_path / "s.parquet"
    lines.write_text("".join(with_tokens(*document) + "\n" for document in documents()))
    write_parquet_samples(parquet, ((json.dumps(raw), results) for raw, results in documents()))
    for source in (JsonLines(lines), ParquetSamples(parquet, print)):
        for samples in read_samples(source, "t", []).values():
            columns = TokenColumns(samples)
            for _ in range(2):  # lines are parsed the first time
                chunks = list(columns)
                assert bool(columns)
                assert [place for chunk in chunks for place in chunk.places] == [0, 2, 3]
                assert [size for chunk in chunks for size in chunk.sizes] == [1, 2, 2]
                assert [i for chunk in chunks for i in chunk.ids] == [3, 8, 9, 10, 11]
                assert [nll for chunk in chunks for nll in chunk.nll] == [i / 8 for i in (3, 8, 9, 10, 11)]
            assert [sample.tokens.ids if sample.tokens else [] for sample in samples] == [[3], [], [8, 9], [10, 11], []]


def test_without_tokens_there_are_no_columns(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"doc_hash": "d", "target_hash": "t", "resps": [["-1.0"]]}))
    [samples] = read_samples(JsonLines(path), "t", []).values()
    assert not TokenColumns(samples)


def test_the_temporary_file_is_closed_when_the_columns_are_gone(tmp_path):
    lines = tmp_path / "samples.jsonl"
    lines.write_text("".join(f"{with_tokens(*document)}\n" for document in documents()), encoding="utf-8")
    columns = TokenColumns(read_samples(JsonLines(lines), "t", [])["b"])
    assert list(columns)
    file = columns._parsed
    del columns
    gc.collect()
    assert file.closed
