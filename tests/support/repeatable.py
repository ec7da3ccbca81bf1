"""What every test starts from: one thread, a seed, reproducible Hypothesis examples. Each conftest.py at a top imports it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
