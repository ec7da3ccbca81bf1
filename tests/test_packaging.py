"""What a user gets: the wheel has all that belongs into it, and the README's Python runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from xent_metrics import RatioMetric
from xent_metrics.testing import check_metric

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_wheel_has_the_task_configs_and_the_types(tmp_path):
    """Built as `pip install` builds it, but with the hatchling that is installed."""
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT],
        env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("xent_metrics-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        f"xent_metrics/{path.relative_to(ROOT / 'xent_metrics')}" for path in (ROOT / "xent_metrics").rglob("*.py")
    }
    configs = {f"xent_metrics/task_configs/{path.name}" for path in (ROOT / "task_configs").glob("*.yaml")}
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "xent_metrics").rglob("*.j2")}
    assert len(configs) >= 10
    assert sources | configs | templates | {"xent_metrics/py.typed"} <= packed
    assert not [name for name in packed if name.startswith(("tests/", "plugins/", "task_configs/"))]
    [entry_points] = [name for name in packed if name.endswith("/entry_points.txt")]
    told = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "xent = xent_metrics.cli:main" in told
    assert "xent-hf = xent_metrics.hosts.lm_eval.models.hf_lm:XentHFLM" in told


@pytest.mark.parametrize("block", BLOCKS, ids=[block.strip().splitlines()[0][:40] for block in BLOCKS])
def test_the_readmes_python_runs(block, monkeypatch):
    made = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", made)  # what it defines can be pickled
    exec(compile(block, "README.md", "exec"), vars(made))
    for metric in list(vars(made).values()):
        if isinstance(metric, type) and issubclass(metric, RatioMetric) and metric.__module__ == "readme":
            check_metric(metric())


def test_the_readme_has_python():
    assert len(BLOCKS) >= 3
