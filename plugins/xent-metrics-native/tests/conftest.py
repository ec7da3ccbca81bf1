"""The process' plugins are the built-ins and this one, as it is in the tree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import native as native_build

from xent_metrics.plugins import Plugin, Plugins, use_plugins


@pytest.fixture
def loaded() -> Iterator[Plugins]:
    """Use the built-ins and this plugin, whatever else is installed."""
    found = Plugins()
    found.add(Plugin("native", "xent-metrics-native", "0.1.0"), native_build.build())
    with use_plugins(found):
        yield found


@pytest.fixture
def instead(monkeypatch):
    """Replace C functions by others, by default all by `right`, and count their calls."""
    from support.native_parts import PARTS, Calls, right  # compiles: only when a test needs it

    def instead(**others):
        functions = {name: lambda *given, name=name: right(name, *given) for name in PARTS}
        return Calls(monkeypatch, functions | others)

    return instead
