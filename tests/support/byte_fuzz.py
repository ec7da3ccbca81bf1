"""`make fuzz-bytes`: coverage-guided fuzzing of what reads files, by atheris.

Hypothesis (`make fuzz`) puts anything in place of anything in files of the right shape. This changes bytes of good files, and
keeps the changes that reach new code. Anything but one of our own errors ends it, and is printed with the bytes.

    PYTHONPATH=tests python -m support.byte_fuzz samples -max_total_time=60

Names after the target are options of libFuzzer. The bytes that reached new code stay in build/fuzz, for the next time.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["xent_metrics"]):
    from xent_metrics.analysis.parquet_samples import write_parquet_samples
    from xent_metrics.analysis.report_documents import pack_documents
    from xent_metrics.analysis.run_comparison import compare_runs
    from xent_metrics.analysis.runs import read_run
    from xent_metrics.doctor.tasks import check_yaml
    from xent_metrics.errors import XentMetricsError
    from xent_metrics.hosts.lm_eval.command import parse_metrics
    from xent_metrics.hosts.lm_eval.journal import Journal

from support.logged_runs import write_token_run

YAML = b"""task: t
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [a, b]
metric_list:
  - metric: brier_score
    over: choices
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
METRICS = b"bits_per_byte,expected_calibration_error:num_bins=10;over=choices,quantile:q=0.9"
JOURNAL = b'{"request": "k", "result": [-1.5, true]}'


class Fuzzing:
    """A good run in a folder, and what is done with bytes in place of one of its files."""

    def __init__(self, folder: Path) -> None:
        self.good = write_token_run(folder / "good")
        [self.results] = self.good.rglob("results_*")
        [self.samples] = self.good.rglob("samples_*")
        self.folder = folder / "tried"
        lines = self.samples.read_text(encoding="utf-8").splitlines()
        tokens = [{"text": "a", "id": 1, "nll": 0.5, "confidence": 0.6, "correct": True, "alternatives": [("a", 0.6)]}]
        logged = {"dtype": "float32", "vocab_size": 7, "tokens": tokens}
        self.parquet = folder / "samples.parquet"
        write_parquet_samples(self.parquet, [(line, {0: logged}) for line in lines[:2]])

    def run(self, name: str, data: bytes) -> None:
        """Read, compare and pack a run with one file of these bytes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for file in (self.results, self.samples):
            (self.folder / file.name).write_bytes(file.read_bytes())
        (self.folder / name).write_bytes(data)
        run = read_run(self.folder / self.results.name)
        with suppress(XentMetricsError):
            compare_runs(run, run, num_resamples=9)
        pack_documents([run], ["A"])

    def yaml(self, data: bytes) -> None:
        """Check the YAML of a task."""
        path = self.folder / "t.yaml"
        self.folder.mkdir(exist_ok=True)
        path.write_bytes(data)
        check_yaml(path)

    def metrics(self, data: bytes) -> None:
        """Read what `--xent_metrics` is given."""
        parse_metrics(data.decode(errors="surrogateescape"))

    def journal(self, data: bytes) -> None:
        """Read what `--resume` kept, under a checksum that is right."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "results_20261101T120000_0_00000000.jsonl").write_bytes(b"%08x %s\n" % (zlib.crc32(data), data))
        Journal(self.folder, 0).close()

    def targets(self) -> dict[str, tuple[bytes, Callable[[bytes], None]]]:
        """By name, bytes to begin with and what is done with others."""
        in_parquet = self.samples.with_suffix(".parquet").name
        return {
            "results": (self.results.read_bytes(), lambda data: self.run(self.results.name, data)),
            "samples": (self.samples.read_bytes(), lambda data: self.run(self.samples.name, data)),
            "parquet": (self.parquet.read_bytes(), lambda data: self.run(in_parquet, data)),
            "yaml": (YAML, self.yaml),
            "metrics": (METRICS, self.metrics),
            "journal": (JOURNAL, self.journal),
        }


def main() -> None:
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        seed, function = Fuzzing(Path(folder)).targets()[name]

        def test(data: bytes) -> None:
            with suppress(XentMetricsError):
                function(data)

        corpus = Path("build/fuzz") / name
        corpus.mkdir(parents=True, exist_ok=True)
        (corpus / "good").write_bytes(seed)
        atheris.Setup([sys.argv[0], str(corpus), "-max_len=16384", *options], test)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
