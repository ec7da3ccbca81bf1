"""`xent-hf` beside `hf` for a run of ten requests, loading included: what the checks of a model's shortcuts cost.

    python benchmarks/startup.py [--quick] [--repeats 3] [--threads 2]

The model is a Llama of 135M parameters with random weights, in fp32: 30 layers, hidden size 576, vocabulary 49,152. Requests are
two continuations of each of five texts of 200 bytes, one token per byte. Every start is a process of its own, and imports aren't
timed. The first start of `xent-hf` checks the shortcuts and keeps the verdict; later ones find it. Claims:

- a later start runs no forward before the first request
- all starts give the same loglikelihoods, those of `hf` within 1e-4 of theirs
- the first run of ten requests takes at most 1.6 times as long as with `hf`, and a later one at most 0.9 times
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from claims import Claims
from invariance import tokenizer
from lm_eval_hf import llama


def save(folder: str, quick: bool) -> None:
    """A model and a tokenizer."""
    llama(1 if quick else 30).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def run(kind: str, folder: str, threads: int) -> None:
    """Load the model and score the requests; print what was found as JSON. Runs in a process of its own."""
    torch.set_num_threads(threads)
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from xent_metrics.hosts.lm_eval import XentHFLM
    from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward

    forwards, counted = [], HFForward._run

    def counting(*arguments: Any, **options: Any) -> Any:
        forwards.append(1)
        return counted(*arguments, **options)

    HFForward._run = counting  # type: ignore[method-assign]
    texts = [text[:200] for text in list(pydoc_data.topics.topics.values())[:5]]
    pairs = [(text, ending) for text in texts for ending in (" the", " and so on")]
    start = time.perf_counter()
    lm = {"hf": HFLM, "xent-hf": XentHFLM}[kind](folder, device="cpu", batch_size=4)
    if isinstance(lm, XentHFLM):
        lm.forward  # noqa: B018  # checked on first use
    checks = len(forwards)
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "forwards": checks, "found": [float(value) for value, _ in found]}))


def start(kind: str, folder: Path, threads: int) -> dict[str, Any]:
    """What `run` finds in a process of its own."""
    command = [sys.executable, __file__, "--run", kind, "--folder", str(folder / "model"), "--threads", str(threads)]
    environment = os.environ | {"HF_ASSETS_CACHE": str(folder / "assets"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def off(one: dict[str, Any], two: dict[str, Any]) -> float:
    """The largest relative difference of two runs' loglikelihoods."""
    return max(abs(a - b) / abs(b) for a, b in zip(one["found"], two["found"], strict=True))


def compare(claims: Claims, folder: Path, threads: int, repeats: int) -> None:
    runs: dict[str, list[dict[str, Any]]] = {"hf": [], "first": [], "later": []}
    for _ in range(repeats):
        for file in folder.glob("assets/**/*.json"):
            file.unlink()
        for name, kind in (("hf", "hf"), ("first", "xent-hf"), ("later", "xent-hf")):
            runs[name].append(start(kind, folder, threads))
    seconds = {name: statistics.median(each["seconds"] for each in found) for name, found in runs.items()}
    for name, most in (("first", 1.6), ("later", 0.9)):
        ratio = seconds[name] / seconds["hf"]
        claims.ratio(f"seconds, {name} / hf", ratio, at_most=most, seen=f"{seconds[name]:.2f} / {seconds['hf']:.2f}")
    claims.note("forwards of the first start", str(runs["first"][0]["forwards"]))
    claims.holds("a later start runs no forward", not any(each["forwards"] for each in runs["later"]))
    every = [each["found"] for name in ("first", "later") for each in runs[name]]
    claims.holds("a later start gives the same bits", all(found == every[0] for found in every))
    claims.error("relative difference from hf", off(runs["first"][0], runs["hf"][0]), at_most=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 layer, one run: a smoke test")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.folder, arguments.threads)
        return
    claims = Claims(f"{arguments.threads} threads", quick=arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        save(f"{folder}/model", arguments.quick)
        compare(claims, Path(folder), arguments.threads, 1 if arguments.quick else arguments.repeats)
    claims.report()


if __name__ == "__main__":
    main()
