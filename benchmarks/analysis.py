"""Runs of many documents: bytes of their logs, and time and memory of `xent intervals`, `compare`, `report` and `view`.

    python benchmarks/analysis.py [--quick] [--documents 1000 10000] [--plain 10000 100000] [--peer FOLDER]

Made-up runs are written as lm-eval writes them: documents of 200 tokens, each with its five likeliest alternatives, as JSON lines
and as Parquet; and documents without tokens, as JSON lines. Two runs of each are read by the commands, each in a process
of its own, whose peak of resident memory and processor time are taken. All answers of the two formats are compared, to the last
bit. More than 10,000 documents with tokens are the first 10,000 again and again under other hashes, in Parquet alone. With
`--peer`, the same is done by another version of this package, unpacked in FOLDER, on the JSON lines:

    git archive 79cdf31 | tar x -C FOLDER

Claims: bytes of Parquet against JSON lines from 1,000 documents of 200 tokens on, time and memory from 10,000 on, and memory
without tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claims

from xent_metrics.analysis.parquet_samples import write_parquet_samples

TOKENS = 200
VOCABULARY = 20_000
BINS = 15
WRITTEN = 10_000  # documents with tokens that are written one by one
METRICS = [{"metric": "cross_entropy"}, {"metric": "bits_per_byte"}, {"metric": "expected_calibration_error"}]
ROOT = Path(__file__).parent.parent
#: Reads a run with one command and says what it took. The arguments of `xent` follow.
CHILD = r"""
import re, resource, sys
from pathlib import Path
from xent_metrics.cli import main
sys.argv[0] = "xent"
try:
    main()
except SystemExit as end:
    if end.code:
        raise
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss, which begins with what the parent process held.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]
    print("USED", int(peak) * 1024, used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def words(rng: np.random.Generator) -> list[str]:
    """A vocabulary whose frequent words are short, as those of tokenizers are."""
    letters = np.array(list("etaoinshrdlcumwfgypbvkjxqz"))
    lengths = np.minimum(1 + np.log2(np.arange(VOCABULARY) + 2) / 3 + rng.exponential(1.5, VOCABULARY), 12).astype(int)
    drawn = (letters[np.minimum(rng.exponential(6, length).astype(int), 25)] for length in lengths)
    return [(" " if place % 4 else "") + "".join(each) for place, each in enumerate(drawn)]


class Corpus:
    """Documents with the losses of a made-up model; the same texts for every seed of the losses.

    Ids are drawn by Zipf's law. Confidences are spread as those of language models are: many near 1, many small.

    Args:
        decimals: of the alternatives' probabilities; three are logged, and six were at first.
    """

    def __init__(self, documents: int, tokens: int, seed: int, decimals: int = 3) -> None:
        self.documents, self.tokens, self.seed, self.decimals = documents, tokens, seed, decimals
        self.words = words(np.random.default_rng(0))
        share = 1 / (np.arange(VOCABULARY) + 2.7)
        self.share = np.cumsum(share / share.sum())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ids, losses = np.random.default_rng(1), np.random.default_rng(self.seed)
        for number in range(self.documents):
            yield self._document(number, np.searchsorted(self.share, ids.random((self.tokens, 6))), losses)

    def _document(self, number: int, ids: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
        rest = rng.beta(0.7, 0.9, self.tokens)
        shares = np.sort(rng.dirichlet([0.4] * 8, self.tokens), axis=1)[:, :2:-1] * (1 - 0.98 * rest[:, None])
        confidence = shares[:, 0].astype(np.float32)
        correct = rng.random(self.tokens) < confidence
        nll = np.where(correct, -np.log(confidence), 2 + rng.gamma(2, 1.6, self.tokens)).astype(np.float32)
        ids[correct, 1] = ids[correct, 0]
        texts = [self.words[i] for i in ids[:, 0]]
        return {
            "number": number, "text": "".join(texts), "texts": texts, "ids": ids[:, 0].tolist(),
            "nll": nll, "confidence": confidence, "correct": correct,
            "num_bytes": [len(text.encode()) for text in texts],
            "alternatives": [
                [(self.words[i], round(share, self.decimals)) for i, share in zip(row, own, strict=True)]
                for row, own in zip(ids[:, 1:].tolist(), shares.tolist(), strict=True)
            ],
        }  # fmt: skip


def sums(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the metrics log of a document."""
    nll, confidence = (document[name].astype(np.float64) for name in ("nll", "confidence"))
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    columns = {"confidence": confidence, "correct": document["correct"].astype(np.float64), "tokens": np.ones(len(nll))}
    binned = {name: np.bincount(bins, values, BINS).tolist() for name, values in columns.items()}
    nats = float(nll.sum())
    return {
        "cross_entropy": {"nats": nats, "tokens": float(len(nll))},
        "bits_per_byte": {"nats[num_bytes > 0]": nats, "num_bytes": float(sum(document["num_bytes"]))},
        "expected_calibration_error": {f"confidence_bins[{BINS}].{name}": value for name, value in binned.items()},
    }


def listed(document: dict[str, Any], alternatives: bool) -> list[dict[str, Any]]:
    """The tokens as models log them."""
    columns = {
        "text": document["texts"], "id": document["ids"], "nll": document["nll"].tolist(),
        "confidence": document["confidence"].tolist(), "correct": document["correct"].tolist(),
        "num_bytes": document["num_bytes"],
    }  # fmt: skip
    if alternatives:
        columns["alternatives"] = document["alternatives"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class Run:
    """Writes one run to a folder.

    Args:
        log: where tokens go: "json", "parquet" or "" for none.
    """

    def __init__(self, folder: Path, corpus: Corpus, log: str, alternatives: bool = True) -> None:
        folder.mkdir()
        self.corpus, self.log, self.alternatives = corpus, log, alternatives
        self.samples = folder / "samples_t_2026-01-01T00-00-00.jsonl"
        self.totals: dict[str, Any] = {}
        if log == "parquet":
            write_parquet_samples(self.samples.with_suffix(".parquet"), self.written())
        else:
            with self.samples.open("w", encoding="utf-8") as lines:
                lines.writelines(f"{line}\n" for line, _ in self.written())
        (folder / "results_2026-01-01T00-00-00.json").write_text(json.dumps(self.results()), encoding="utf-8")

    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.samples.parent.iterdir())

    def written(self) -> Iterator[tuple[str, dict[int, Any]]]:
        """Each document's line, and its tokens by place."""
        for document in self.corpus:
            loglikelihood = -float(np.sum(document["nll"].astype(np.float64)))
            logged = {"dtype": "float32", "vocab_size": VOCABULARY, "tokens": []}
            if self.log:
                logged["tokens"] = listed(document, self.alternatives)
            text = str(loglikelihood)
            if self.log == "json":
                text = json.dumps({"loglikelihood": loglikelihood, **logged}, ensure_ascii=False)
            yield json.dumps(self.sample(document, text, loglikelihood), ensure_ascii=False), {0: logged}

    def sample(self, document: dict[str, Any], result: str, loglikelihood: float) -> dict[str, Any]:
        number, text, found = document["number"], document["text"], sums(document)
        for name, own in found.items():
            total = self.totals.setdefault(name, {key: np.zeros(np.shape(value)) for key, value in own.items()})
            for key, value in own.items():
                total[key] += value
        named = {f"{name}_sums": own for name, own in found.items()}
        return {
            "doc_id": number, "doc": {"text": text}, "target": text, "arguments": {"gen_args_0": {"arg_0": text}},
            "resps": [[result]], "filtered_resps": [str(loglikelihood)], "filter": "none",
            "metrics": [*found, *named], "doc_hash": f"{number:064x}", "prompt_hash": f"{number:064x}",
            "target_hash": f"{number:064x}", **dict.fromkeys(found, 1.0), **named,
        }  # fmt: skip

    def results(self) -> dict[str, Any]:
        (nats, tokens), (_, size), bins = (list(own.values()) for own in self.totals.values())
        gaps = np.abs(bins[0] - bins[1]).sum() / bins[2].sum()
        values = {
            "cross_entropy,none": float(nats / tokens), "bits_per_byte,none": float(nats / size / np.log(2)),
            "expected_calibration_error,none": float(gaps),
        }  # fmt: skip
        return {
            "results": {"t": values}, "versions": {"t": 1}, "model_name": "made up",
            "configs": {"t": {"task": "t", "output_type": "loglikelihood_rolling", "metric_list": METRICS}},
            "higher_is_better": {"t": dict.fromkeys(("cross_entropy", "bits_per_byte"), False)},
            "n-samples": {"t": {"original": self.corpus.documents, "effective": self.corpus.documents}},
            "config": {"model_args": {"log_tokens": self.log or False}}, "lm_eval_version": "0.4.13",
        }  # fmt: skip


def write_again(folder: Path, first: Path, copies: int) -> None:
    """Write a run in Parquet whose documents are those of another, so many times, each time under other hashes."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder.mkdir()
    [results], [samples] = first.glob("results_*"), first.glob("samples_*")
    found = json.loads(results.read_text(encoding="utf-8"))
    found["n-samples"]["t"] = {name: copies * count for name, count in found["n-samples"]["t"].items()}
    (folder / results.name).write_text(json.dumps(found), encoding="utf-8")
    source = pq.ParquetFile(samples)
    with pq.ParquetWriter(
        folder / samples.name, source.schema_arrow, compression="zstd", compression_level=1
    ) as written:
        for copy in range(copies):
            for group in range(source.num_row_groups):
                table = source.read_row_group(group)
                renamed = pc.replace_substring(table["sample"], '_hash": "', f'_hash": "{copy} ')
                written.write_table(table.set_column(0, table.schema.field(0), renamed))


class Used:
    """What a command printed, and its peak of memory in bytes and processor time in seconds."""

    def __init__(self, *command: str | Path, package: Path = ROOT) -> None:
        environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", CHILD, *map(str, command)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=package,  # the folder comes first in Python's path
        )
        used = re.search(r"USED (\S+) (\S+)", run.stderr)
        if run.returncode or used is None:
            raise SystemExit(f"xent {command[0]} failed:\n{run.stderr[-2000:]}")
        self.memory, self.seconds, self.printed = float(used[1]), float(used[2]), run.stdout

    def __str__(self) -> str:
        return f"{self.memory / 1e9:.2f} GB, {self.seconds:.1f} s"


def answer(printed: str, folder: Path) -> Any:
    """What `--json` printed, without the paths of the runs."""
    return json.loads(printed.replace(f"{folder}{os.sep}", ""))


def values(found: Any) -> Iterator[float]:
    """The metrics' values in an answer, without intervals and p values, which other versions compute in other ways."""
    if isinstance(found, list):
        for each in found:
            yield from values(each)
    elif isinstance(found, dict):
        for name, each in found.items():
            if name in ("value", "value_a", "value_b"):
                yield each
            else:
                yield from values(each)


def page(path: Path) -> str:
    """The documents in a report, packed."""
    [found] = re.findall(r'<script id="data"[^>]*>(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return found.strip()


def pages(site: Path) -> dict[str, str]:
    """What `xent view` writes of documents, without the state of the folder."""
    kinds = ("documents", "document", "pairs", "pair")
    found = sorted(path for kind in kinds for path in site.glob(f"{kind}--*.html"))
    return {path.name: re.sub(r'data-version="\w+"', "", path.read_text(encoding="utf-8")) for path in found}


def measure(folder: Path, package: Path = ROOT, resamples: int = 999) -> dict[str, tuple[Used, Any]]:
    """Run the commands over the runs a and b in a folder; what they used and answered.

    The first version of the package has no view.
    """
    runs, html = (folder / "a", folder / "b"), folder / "report.html"
    intervals = Used("intervals", runs[0], "--json", package=package)
    compared = Used("compare", *runs, "--json", "--num-resamples", str(resamples), package=package)
    report = Used("report", *runs, "-o", html, package=package)
    viewed = {}
    if package == ROOT:
        used = Used("view", folder, "--export", folder / "site", "--documents", "5")
        viewed = {"view": (used, pages(folder / "site"))}
    return viewed | {
        "intervals": (intervals, answer(intervals.printed, folder)),
        "compare": (compared, answer(compared.printed, folder)),
        "report": (report, page(html)),
    }


def with_tokens(base: Path, documents: int, peer: Path | None, claims: Claims) -> None:
    """Documents with tokens: JSON lines against Parquet, and against the peer's JSON lines."""
    if documents > WRITTEN:
        _many_with_tokens(base, documents, claims)
        return
    made = {
        log: [Run(base / log / name, Corpus(documents, TOKENS, seed), log) for seed, name in ((2, "a"), (3, "b"))]
        for log in ("json", "parquet")
        if (base / log).mkdir() is None
    }
    sizes = {log: runs[0].bytes() for log, runs in made.items()}
    sizes["json of six decimals"] = Run(base / "six", Corpus(documents, TOKENS, 2, decimals=6), "json").bytes()
    large = documents >= 10_000
    packed = sizes.pop("parquet")
    for log, size in sizes.items():
        seen = f"{size / 1e6:.1f} MB / {packed / 1e6:.1f} MB"
        claims.ratio(f"{documents:,} × {TOKENS}: bytes, {log} / parquet", size / packed, seen=seen, at_least=10)
    ours = {log: measure(base / log) for log in made}
    theirs = measure(base / "json", peer) if peer is not None else ours["json"]
    called = "before" if peer is not None else "JSON"
    for command, (used, found) in ours["parquet"].items():
        through_json, same = ours["json"][command]
        before, _ = theirs.get(command, (through_json, same))
        claims.holds(f"{command}: the same answer from both", found == same)
        claims.ratio(
            f"{command}: time, {called} / Parquet", before.seconds / used.seconds, seen=f"{before} / {used}",
            at_least=5.0 if large and command == "report" else None,
        )  # fmt: skip
        claims.ratio(f"{command}: GB", used.memory / 1e9, at_most=1.0 if documents == 10_000 else None)
        claims.note(f"{command}: JSON now", str(through_json))


def _many_with_tokens(base: Path, documents: int, claims: Claims) -> None:
    """More documents with tokens than are written one by one: Parquet alone."""
    with tempfile.TemporaryDirectory(dir=base.parent) as first:
        for seed, name in ((2, "a"), (3, "b")):
            Run(Path(first) / name, Corpus(WRITTEN, TOKENS, seed), "parquet")
            write_again(base / name, Path(first) / name, documents // WRITTEN)
    for command, (used, _) in measure(base, resamples=99).items():
        claims.ratio(
            f"{documents:,} × {TOKENS}, {command}: GB", used.memory / 1e9, seen=f"{used.seconds:.1f} s", at_most=2.5
        )


def without_tokens(base: Path, documents: int, peer: Path | None, claims: Claims) -> None:
    """Documents without tokens."""
    for seed, name in ((2, "a"), (3, "b")):
        Run(base / name, Corpus(documents, 8, seed), "")
    ours = measure(base, resamples=99)
    theirs = measure(base, peer, resamples=99) if peer is not None else {}
    for command, (used, found) in ours.items():
        claims.ratio(
            f"{documents:,} without tokens, {command}: GB", used.memory / 1e9, seen=f"{used.seconds:.1f} s", at_most=2.0
        )
        if command in theirs:
            before, answered = theirs[command]
            claims.ratio("  memory, before / now", before.memory / used.memory, seen=str(before))
            if command in ("intervals", "compare"):
                claims.holds("  the same values as before", list(values(found)) == list(values(answered)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 documents with tokens, 1,000 without")
    parser.add_argument("--documents", type=int, nargs="*", default=[1_000, 10_000], help="with 200 tokens each")
    parser.add_argument("--plain", type=int, nargs="*", default=[10_000, 100_000], help="without tokens; up to 1000000")
    parser.add_argument("--peer", type=Path, help="a folder with another version of the package")
    given = parser.parse_args()
    claims = Claims("runs of many documents", quick=given.quick)
    for measured, sizes in ((with_tokens, given.documents), (without_tokens, given.plain)):
        for documents in ([200] if measured is with_tokens else [1_000]) if given.quick else sizes:
            with tempfile.TemporaryDirectory() as folder:
                measured(Path(folder), documents, given.peer, claims)
    claims.note("this process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    claims.report()


if __name__ == "__main__":
    main()
