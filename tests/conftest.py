"""What tests of several rooms share; every test starts from support/repeatable.py."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile

import pytest
import torch
from support.repeatable import seed  # noqa: F401

from xent_metrics.plugins import Plugin, Plugins, use_plugins

# Where xent-hf keeps what it found of a model's shortcuts, in this process and in those that it starts.
os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["HF_ASSETS_CACHE"], ignore_errors=True)


@pytest.fixture
def batch():
    """Logits (3, 8, 13) and targets (3, 8), three of them ignored."""
    logits, target = 3 * torch.randn(3, 8, 13), torch.randint(13, (3, 8))
    target[0, :2] = target[2, 7] = -100
    return logits, target


@pytest.fixture
def install():
    """Use these modules as the process' plugins, in this order of loading, until the test ends."""
    with contextlib.ExitStack() as stack:

        def install(*modules) -> Plugins:
            loaded = Plugins()
            for number, module in enumerate(modules, start=1):
                loaded.add(Plugin(f"backend{number}", "a-third-party", "1.0"), module)
            return stack.enter_context(use_plugins(loaded))

        yield install
