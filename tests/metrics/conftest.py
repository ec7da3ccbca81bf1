"""Models to measure: a calibrated one, and two of the same targets."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def calibrated_model():
    """Logits of 5 classes and targets that go with them: (2000, 5), (2000,)."""
    logits = 2 * torch.randn(2000, 5, dtype=torch.float64)
    return logits, torch.distributions.Categorical(logits=logits).sample()


@pytest.fixture
def pair_batch():
    """Logits of two models (3, 50, 70), and targets (3, 50), seven of them ignored."""
    generator = torch.Generator().manual_seed(0)
    base = 3 * torch.randn(3, 50, 70, generator=generator)
    other = base + torch.randn(3, 50, 70, generator=generator)
    target = torch.randint(70, (3, 50), generator=generator)
    target[0, :7] = -100
    return base, other, target
