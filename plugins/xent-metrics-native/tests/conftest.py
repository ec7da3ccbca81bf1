"""The process' plugins are the built-ins and this one, as it is in the tree."""

from __future__ import annotations

import pytest
from support import native as native_build

import xent_metrics.plugins
from xent_metrics.plugins import Plugin, Plugins


@pytest.fixture
def loaded(monkeypatch) -> Plugins:
    """The built-ins and this plugin, whatever else is installed."""
    found = Plugins()
    found.add(Plugin("native", "xent-metrics-native", "0.1.0"), native_build.build())
    monkeypatch.setattr(xent_metrics.plugins, "plugins", lambda: found)
    return found
