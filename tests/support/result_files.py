"""Results files of lm-eval's format, without samples: as many runs as a test needs, at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATE = "2026-11-01T12-00-00.000000"


def results(values: dict[str, dict[str, float]], **more: Any) -> dict[str, Any]:
    """What a results file says. `values` are the numbers by task and metric; ``acc_stderr`` is the error of ``acc``."""
    return {
        "results": {task: {f"{key},none": value for key, value in found.items()} for task, found in values.items()},
        "configs": {task: {"task": task, "metric_list": []} for task in values},
        "n-samples": {task: {"original": 100, "effective": 100} for task in values},
        "config": {"model": "hf", "model_args": "pretrained=m"},
        "model_name": "m",
        **more,
    }


def write_results(folder: Path, values: dict[str, dict[str, float]], *, date: str = DATE, **more: Any) -> Path:
    """Write a results file into a folder, which is made; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"results_{date}.json"
    path.write_text(json.dumps(results(values, **more)), encoding="utf-8")
    return path
