"""A team's year: a checkpoint is evaluated every night, one night a task regresses. Is the night found, and nothing else?

    python benchmarks/year.py [--quick]

Writes folders as lm-eval does, 300 checkpoints of 20 tasks, and reads them back as `xent series` does. Each night's loss falls
along a curve, scatters with the night and with the document, and at one step one task becomes worse by 0.05 nats per token: six
times the scatter of its nights. Claims: the series of that task alone has a change, at that step, and the interval of its size
holds what was planted. Takes a few minutes; --quick writes 40 checkpoints of 4 tasks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from claims import Claims

from xent_metrics.analysis.series import Series, read_series

DATE = "2026-01-01T00-00-00.000000"
STEPS_PER_NIGHT = 1000


@dataclass(frozen=True)
class Year:
    """What is planted: `size` nats per token in `task`, from the night `night` on."""

    nights: int = 300
    tasks: int = 20
    documents: int = 24
    task: str = "task_7"
    night: int = 211
    size: float = 0.05
    seed: int = 0

    @property
    def step(self) -> int:
        """The step of the first worse checkpoint."""
        return (self.night + 1) * STEPS_PER_NIGHT

    def losses(self) -> Iterator[dict[str, np.ndarray]]:
        """For each night, each task's nats per document of 50 tokens, ``(D,)``."""
        rng = np.random.default_rng(self.seed)
        levels = {f"task_{number}": rng.gamma(9, 1 / 3, size=self.documents) for number in range(self.tasks)}
        for night in range(self.nights):
            curve = 0.5 * (1 + night / 30) ** -0.5
            means = {
                name: level + curve + 0.006 * rng.normal() + 0.03 * rng.normal(size=self.documents)
                for name, level in levels.items()
            }
            if night >= self.night:
                means[self.task] += self.size * (1 + 0.3 * rng.normal(size=self.documents))
            yield {name: 50 * mean for name, mean in means.items()}


def write_checkpoint(folder: Path, losses: dict[str, np.ndarray]) -> None:
    """Results and samples, as lm-eval writes them."""
    folder.mkdir(parents=True)
    config = {"output_type": "loglikelihood_rolling", "metric_list": [{"metric": "cross_entropy"}]}
    results = {
        "results": {name: {"cross_entropy,none": nats.sum() / (50 * len(nats))} for name, nats in losses.items()},
        "configs": dict.fromkeys(losses, config),
        "versions": dict.fromkeys(losses, 1),
        "n-samples": {name: {"original": len(nats), "effective": len(nats)} for name, nats in losses.items()},
        "model_name": "nightly",
    }
    (folder / f"results_{DATE}.json").write_text(json.dumps(results))
    for name, nats in losses.items():
        lines = [
            json.dumps(
                {
                    "doc_id": number,
                    "doc_hash": f"{name}-{number}",
                    "target_hash": "-",
                    "filter": "none",
                    "cross_entropy_sums": {"nats": float(each), "tokens": 50},
                }
            )
            for number, each in enumerate(nats)
        ]
        (folder / f"samples_{name}_{DATE}.jsonl").write_text("\n".join(lines) + "\n")


def write_year(root: Path, year: Year) -> list[Path]:
    """The folders of all nights' checkpoints."""
    folders = []
    for night, losses in enumerate(year.losses(), 1):
        folders.append(root / f"checkpoint-{night * STEPS_PER_NIGHT}")
        write_checkpoint(folders[-1], losses)
    return folders


def judge(claims: Claims, series: list[Series], year: Year) -> None:
    changed = [(each.task, change) for each in series for change in each.changes]
    claims.holds("every task is a series", len(series) == year.tasks and all(each.reason is None for each in series))
    claims.holds(
        "only the planted task changed", [task for task, _ in changed] == [year.task], f"{len(changed)} changes"
    )
    for task, change in changed:
        where = f"after {change.after}, by {change.by} ({change.earliest} … {change.latest})"
        claims.note(
            f"{task}, p {change.p_corrected:.1e}",
            f"{where}: {change.size:+.3f} ({change.low:+.3f} … {change.high:+.3f})",
        )
        claims.holds("its range holds the step", change.earliest < year.step <= change.latest, f"planted: {year.step}")
        claims.holds(
            "its interval holds the size", change.low <= year.size <= change.high, f"planted: {year.size:+.3f}"
        )
        claims.holds("it is called worse", change.better is False)
    slopes = [each for each in series if each.task != year.task]
    claims.holds("the loss of every other task falls", all(each.high < 0 for each in slopes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 checkpoints of 4 tasks")
    year = Year(nights=40, tasks=4, task="task_2", night=25) if parser.parse_args().quick else Year()
    claims = Claims(f"a year of {year.nights} checkpoints of {year.tasks} tasks")
    with tempfile.TemporaryDirectory() as root:
        folders = write_year(Path(root), year)
        start = time.perf_counter()
        series = read_series(folders)
        claims.note("read and searched in", f"{time.perf_counter() - start:.0f} s")
    judge(claims, series, year)
    claims.report()


if __name__ == "__main__":
    main()
