"""What every test starts from: one thread, a seed, reproducible Hypothesis examples. Each conftest.py at a top imports it.

`make fuzz` sets HYPOTHESIS_PROFILE=fuzz: many more examples, others each time.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("fuzz", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
