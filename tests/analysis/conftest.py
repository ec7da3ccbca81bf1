"""What tests of analyses start from: documents' sums, and runs of lm-eval in folders."""

from __future__ import annotations

import numpy as np
import pytest
from support.logged_runs import write_pair, write_token_run


@pytest.fixture(scope="module")
def documents() -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of 40 documents."""
    rng = np.random.default_rng(0)
    x = rng.integers(5, 200, size=40)
    return x * rng.gamma(4, 0.5, size=40), x


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with the runs a and b, and the values of each."""
    base = tmp_path_factory.mktemp("runs")
    return base, write_pair(base)


@pytest.fixture
def damaged(runs, tmp_path):
    """A copy of run a for a test to damage: its folder, its samples file and its results file."""
    base, _ = runs
    for file in (base / "a").rglob("*.json*"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path, next(tmp_path.glob("samples_*")), next(tmp_path.glob("results_*"))


@pytest.fixture(scope="session")
def token_runs(tmp_path_factory):
    """The folders of two runs that logged tokens."""
    base = tmp_path_factory.mktemp("token_runs")
    return [write_token_run(base / name, temperature) for name, temperature in (("a", 1.0), ("b", 2.0))]
