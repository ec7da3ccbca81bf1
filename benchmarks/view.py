"""`xent view` over 200 runs of 50 tasks: how long until a browser shows the table, from the command on and when it runs.

    python benchmarks/view.py [--quick]

The results files are as lm-eval writes them, with two metrics and a configuration for each task. The browser is headless
Chromium (packages chromium and chromium-driver). Claims: the page is open within 2 s of the browser's request while the server
runs, and within 2 s, too, when a run has been added; it shows every value of every run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import Claims
from report import chromium
from selenium import webdriver


def write_runs(root: Path, runs: int, tasks: int) -> None:
    """Checkpoints of two trainings, each a results file of lm-eval's format."""
    for place in range(runs):
        training, step = ("small", "large")[place % 2], 1_000 * (place // 2 + 1)
        write_run(root / training / f"step{step}", f"{training}-step{step}", place, tasks)


def write_run(folder: Path, model: str, place: int, tasks: int) -> None:
    names = [f"task_{number:02}" for number in range(tasks)]
    losses = {name: 1 + 3 / (1 + place) + number / 50 for number, name in enumerate(names)}
    config = {
        "tag": None, "dataset_path": "json", "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{text}}", "description": "A task that was made up to measure pages. " * 10, "num_fewshot": 0,
        "metric_list": [{"metric": "cross_entropy"}, {"metric": "bits_per_byte"}], "metadata": {"version": 1.0},
    }  # fmt: skip
    results = {
        "results": {
            name: {"alias": name, "cross_entropy,none": loss, "cross_entropy_stderr,none": loss / 50,
                   "bits_per_byte,none": loss / 3, "bits_per_byte_stderr,none": loss / 150}
            for name, loss in losses.items()
        },
        "configs": {name: {"task": name, **config} for name in names},
        "versions": dict.fromkeys(names, 1.0),
        "n-samples": {name: {"original": 500, "effective": 500} for name in names},
        "config": {"model": "xent-hf", "model_args": f"pretrained={model}"},
        "model_name": model,
    }  # fmt: skip
    folder.mkdir(parents=True)
    path = folder / "results_2026-11-01T12-00-00.000000.json"
    path.write_text(json.dumps(results, indent=2), encoding="utf-8")


def seconds_to_open(driver: webdriver.Chrome, address: str) -> float:
    """Until the script has made the table sortable and the browser has laid it out."""
    start = time.perf_counter()
    driver.get(address)
    while driver.execute_script("return document.documentElement.dataset.ready") != "yes":
        time.sleep(0.01)
    driver.execute_script("return document.body.offsetHeight")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    arguments = parser.parse_args()
    runs, tasks = (20 if arguments.quick else 200), 50
    claims = Claims(f"xent view, {runs} runs × {tasks} tasks", quick=arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "runs")
        write_runs(root, runs, tasks)
        with chromium(Path(folder, "profile")) as driver:
            driver.get("about:blank")  # the browser's own start isn't ours
            start = time.perf_counter()
            command = [sys.executable, "-m", "xent_metrics.cli", "view", str(root), "--port", "0"]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                assert server.stdout is not None
                address = server.stdout.readline().strip()
                seconds_to_open(driver, address)
                claims.note("from the command to the open page", f"{time.perf_counter() - start:.1f} s")
                claims.ratio("open in s", min(seconds_to_open(driver, address) for _ in range(3)), at_most=2)
                write_run(root / "small" / "step999000", "new", runs, tasks)
                time.sleep(1.1)  # the server looks at the folder once in a second
                claims.ratio("open in s, with a new run", seconds_to_open(driver, address), at_most=2)
                shown = driver.execute_script(
                    "return [...document.querySelectorAll('tbody tr')].map(r => [...r.cells].filter(c => c.textContent).length)"
                )
            finally:
                server.terminate()
                server.wait()
    claims.holds("every run with every task is shown", sorted(shown) == [4 + tasks] * (runs + 1), f"{len(shown)} rows")
    claims.report()


if __name__ == "__main__":
    main()
