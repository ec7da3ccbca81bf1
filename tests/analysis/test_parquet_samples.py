"""Samples in Parquet: every bit comes back, and what is damaged is named."""

from __future__ import annotations

import builtins
import json
import math

import numpy as np
import pytest

from xent_metrics.analysis import parquet_samples
from xent_metrics.analysis.parquet_samples import ParquetSamples, write_parquet_samples
from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import InvalidInputError, MissingExtraError

pa = pytest.importorskip("pyarrow")


def token(number, dtype=np.float32, **more):
    nll = float(dtype(math.exp(number / 3 - 4)))
    found = {
        "text": f" wörd{number % 3}", "id": number, "nll": nll, "confidence": float(dtype(math.exp(-nll))),
        "correct": number % 2 == 0, "num_bytes": 6,
    }  # fmt: skip
    return found | more


def result(*tokens, dtype="float32"):
    return {"dtype": dtype, "vocab_size": 300, "tokens": list(tokens)}


ALTERNATIVES = [(" a", 0.654), ("🙂", 0.001), ("", 0.0)]
DOCUMENTS = [
    ("first", {0: result(token(1), token(2))}),
    ("no results", {}),
    ("no tokens", {0: result()}),
    ("with all", {0: result(token(3, invalid=True, alternatives=ALTERNATIVES), token(4, invalid=False, alternatives=[]))}),
    ("choices", {0: result(token(5)), 2: result(), 4: result(token(6), token(7, nll=math.nan), token(8, nll=math.inf))}),
    ("some without alternatives", {0: result(token(8, alternatives=[]), token(9, alternatives=[("b", 0.5)]))}),
    ("without bytes", {0: result({k: v for k, v in token(9).items() if k != "num_bytes"})}),
]  # fmt: skip


def same(found, expected):
    """Equal as JSON, where nan is equal to itself and pairs are lists."""
    return json.dumps(found, sort_keys=True, default=list) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize("group_tokens", [1, 10**6])
def test_documents_and_tokens_come_back_bit_for_bit(tmp_path, monkeypatch, group_tokens):
    monkeypatch.setattr(parquet_samples, "_GROUP_TOKENS", group_tokens)
    path = tmp_path / "samples.parquet"
    write_parquet_samples(path, iter(DOCUMENTS))
    problems = []
    source = ParquetSamples(path, problems.append)
    assert list(source.documents()) == list(enumerate(text for text, _ in DOCUMENTS))
    assert list(source.at([4, 0, 6])) == ["choices", "first", "without bytes"]
    for row in (6, 0, 4, 2, 1, 3, 5):
        found, expected = source.results(row), DOCUMENTS[row][1]
        assert same(found, expected), row
    assert problems == []
    chunks = list(source.tokens())
    assert sum(len(chunk.results) for chunk in chunks) == len(DOCUMENTS)
    assert [i for chunk in chunks for i in chunk.ids] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9]
    assert [size for chunk in chunks for size in chunk.sizes] == [2, 0, 2, 1, 0, 3, 2, 1]


@pytest.mark.parametrize("confidence", [0.0, 0.25, 0.6545, 1.0, math.nan, math.inf, None])
def test_alternatives_come_back_in_per_mille_whatever_the_confidence(tmp_path, confidence):
    path = tmp_path / "samples.parquet"
    plain = {"text": "a", "id": 1, "nll": 1.0} | (
        {} if confidence is None else {"confidence": float(np.float32(confidence))}
    )
    tokens = [plain | {"alternatives": given} for given in (ALTERNATIVES, [], ALTERNATIVES[1:])]
    write_parquet_samples(path, [("before", {}), ("document", {0: result(*tokens)})])
    found = ParquetSamples(path, pytest.fail).results(1)[0]["tokens"].columns["alternatives"]
    assert list(found) == [ALTERNATIVES, [], ALTERNATIVES[1:]]
    assert (found[-1], list(found[1:])) == (ALTERNATIVES[1:], [[], ALTERNATIVES[1:]])


def test_float64_keeps_its_bits_too(tmp_path):
    path = tmp_path / "samples.parquet"
    write_parquet_samples(path, [("x", {0: result(token(1, np.float64), dtype="float64")})])
    source = ParquetSamples(path, print)
    assert same(source.results(0), {0: result(token(1, np.float64), dtype="float64")})
    [chunk] = source.tokens()
    assert chunk.nll.dtype == np.float64


def test_scores_of_two_types_are_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "samples.parquet"
    with pytest.raises(InvalidInputError, match=r"expected scores of .*float32.* in all documents; got .*float64"):
        write_parquet_samples(path, [*DOCUMENTS, ("x", {0: result(token(1), dtype="float64")})])
    assert list(tmp_path.iterdir()) == []


def run_in_parquet(folder, name="samples_t_2026-01-01T00-00-00.parquet"):
    """A run of four documents; returns its samples file."""
    lines = [json.dumps({"doc_id": i, "doc_hash": f"d{i}", "target_hash": "t", "resps": [["-1.0"]]}) for i in range(4)]
    write_parquet_samples(folder / name, [(line, {0: result(token(i), token(9))}) for i, line in enumerate(lines)])
    results = {"results": {"t": {"acc,none": 0.5}}, "configs": {"t": {}}, "n-samples": {"t": {"effective": 4}}}
    (folder / "results_2026-01-01T00-00-00.json").write_text(json.dumps(results))
    return folder / name


def read(folder):
    run = read_run(folder)
    assert run.tasks["t"].values == {"acc": 0.5}  # whatever happened to the samples
    return run.tasks["t"], run.problems


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named_and_the_values_are_there(tmp_path, share):
    path = run_in_parquet(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    task, [problem] = read(tmp_path)
    assert f"task t: {path.name} isn't read: it is cut off, still being written, or not Parquet (" in problem
    assert len(task.samples) == 0
    path.with_suffix(".jsonl").write_text('{"doc_hash": "d", "target_hash": "t"}\n')
    task, problems = read(tmp_path)
    assert problems == [problem]
    assert len(task.samples) == 1  # the same in lines


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda table: table.drop_columns(["nll"]), "it has another schema: no column nll of the expected type"),
        (lambda table: table.set_column(0, "sample", [list(range(4))]), "no column sample of the expected type"),
        (lambda table: table.rename_columns(["a", *table.column_names[1:]]), "no column sample of the expected type"),
        (lambda table: table.drop_columns(["alternatives"]), "no column alternatives of the expected type"),
        (lambda table: table.drop_columns(["text"]), "no column text of the expected type"),
        (lambda table: pa.table({"x": [1]}), "no column alternatives, alternatives_per_mille, "),
        (lambda table: table.replace_schema_metadata({}), "its metadata don't name the scores' type"),
    ],
)
def test_another_schema_is_named(tmp_path, spoil, said):
    path = run_in_parquet(tmp_path)
    pa.parquet.write_table(spoil(pa.parquet.read_table(path)), path)
    _, [problem] = read(tmp_path)
    assert said in problem


def test_a_missing_file_is_named(tmp_path):
    run_in_parquet(tmp_path).unlink()
    _, [problem] = read(tmp_path)
    assert "no samples beside the results (samples_t_2026-01-01T00-00-00.jsonl, or .parquet)" in problem


def test_a_damaged_row_group_is_named_once_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_samples, "_GROUP_TOKENS", 2 * (64 + 2))
    path = run_in_parquet(tmp_path)
    data = bytearray(path.read_bytes())
    column = pa.parquet.ParquetFile(path).metadata.row_group(1).column(4)
    assert column.path_in_schema == "id.list.element"
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    task, problems = read(tmp_path)
    assert len(task.samples) == 4
    assert [len(sample.tokens or ()) for sample in task.samples] == [2, 2, 0, 0]
    assert sum(len(chunk.places) for chunk in task.token_columns) == 2
    [problem] = problems
    assert f"task t: the tokens in rows 3 to 4 of {path.name} can't be read" in problem


def test_without_pyarrow_the_extra_is_named_and_values_are_there(tmp_path, monkeypatch):
    run_in_parquet(tmp_path)
    real = builtins.__import__

    def without(name, *more):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    _, [problem] = read(tmp_path)
    assert "isn't read: samples in Parquet need pyarrow: pip install 'xent-metrics[parquet]'" in problem
    with pytest.raises(MissingExtraError):
        write_parquet_samples(tmp_path / "x.parquet", [])
