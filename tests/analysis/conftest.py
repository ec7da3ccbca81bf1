"""Fixtures of the tests of intervals and comparisons."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="module")
def documents() -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of 40 documents."""
    rng = np.random.default_rng(0)
    x = rng.integers(5, 200, size=40)
    return x * rng.gamma(4, 0.5, size=40), x
