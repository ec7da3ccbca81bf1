"""The process' plugins are the built-ins and this one, as it is in the tree, and Triton's interpreter runs its kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import triton_interpreter

from xent_metrics.plugins import Plugin, Plugins, use_plugins

triton_interpreter.prepare()


@pytest.fixture
def loaded() -> Iterator[Plugins]:
    """Use the built-ins and this plugin, whatever else is installed."""
    import xent_metrics_triton

    found = Plugins()
    found.add(Plugin("triton", "xent-metrics-triton", "0.1.0"), xent_metrics_triton)
    assert found.plugins[-1].error is None
    with use_plugins(found):
        yield found


@pytest.fixture
def small(monkeypatch):
    """Tiles of 64 columns and segments of 128, so that short rows have many: the interpreter takes its time per operation."""
    from xent_metrics_triton import rows

    monkeypatch.setattr(rows, "SHAPES", {4: (16, 4), 2: (32, 2)})
    monkeypatch.setattr(rows, "TILES", 2)
