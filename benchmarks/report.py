"""A report of 10,000 documents: the size of the page, and how fast a browser opens it.

    python benchmarks/report.py [--quick]

The documents have 60 to 139 tokens, each with its five likeliest alternatives. The browser is headless Chromium (packages
chromium and chromium-driver). Claims: the page is under 20 MB and opens in under 5 s; it lists every document, and the
losses in it sum to ours.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import torch
from claims import Claims

from xent_metrics.analysis.report import write_report
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.analysis.samples import Sample

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from support.browser import chromium, open_page  # the tests' browser


def made_up_run(documents: int) -> Run:
    """A run whose documents have as many different tokens and alternatives as real text."""
    generator = torch.Generator().manual_seed(0)
    words = [f" w{number}" for number in range(20_000)]
    samples = []
    for number in range(documents):
        size = 60 + number % 80
        nll = (torch.rand(size, generator=generator) * 6).tolist()
        drawn = torch.randint(len(words), (size, 6), generator=generator).tolist()
        shares = torch.rand(size, 5, generator=generator).sort(descending=True).values.tolist()
        tokens = [
            {
                "text": words[ids[0]], "id": ids[0], "nll": cost,
                "alternatives": [[words[i], share] for i, share in zip(ids[1:], own, strict=True)],
            }
            for ids, cost, own in zip(drawn, nll, shares, strict=True)
        ]  # fmt: skip
        logged = json.dumps({"loglikelihood": -sum(nll), "tokens": tokens})
        samples.append(Sample(str(number), {"doc": {}, "resps": [[logged]], "target": "", "arguments": {}}))
    return Run(Path("results.json"), "made up", {"text": TaskRun("text", 1, {}, {}, {}, samples)}, [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the documents")
    arguments = parser.parse_args()
    count = 1_000 if arguments.quick else 10_000
    claims = Claims(f"report of {count:,} documents", quick=arguments.quick)
    run = made_up_run(count)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        start = time.perf_counter()
        write_report([run], page)
        claims.note("written in", f"{time.perf_counter() - start:.1f} s")
        claims.ratio("size in MB", page.stat().st_size / 1e6, at_most=20)
        with chromium(Path(folder, "profile")) as driver:
            open_page(driver, page.as_uri())  # includes the browser's own start
            claims.ratio("open in s", min(open_page(driver, page.as_uri()) for _ in range(3)), at_most=5)
            listed = driver.execute_script("return document.getElementById('list').options.length")
            loss = driver.execute_script("return documents.reduce((sum, d) => sum + d.runs.A.loss, 0)")
    claims.holds("every document is listed", listed == count)
    ours = math.fsum(sample.tokens.mean_nll for sample in run.tasks["text"].samples if sample.tokens)
    claims.error("relative error of the sum of losses", abs(loss / ours - 1), at_most=1e-3)
    claims.report()


if __name__ == "__main__":
    main()
