"""xent-metrics-native as it is in the tree, compiled and loaded, whether or not some version of it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[2] / "plugins" / "xent-metrics-native"
POINT = EntryPoint("native", "xent_metrics_native", "xent_metrics")

_FOLDER = tempfile.TemporaryDirectory()
SITE = Path(_FOLDER.name)  # where it is installed


def hatch_build() -> ModuleType:
    """The build hook; hatchling itself is only there while pip builds."""
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object
    names = ("hatchling", "hatchling.builders", "hatchling.builders.hooks", "hatchling.builders.hooks.plugin")
    stand_ins = {name: ModuleType(name) for name in names} | {interface.__name__: interface}
    absent = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        spec = importlib.util.spec_from_file_location("hatch_build", PACKAGE / "hatch_build.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        for name in absent:
            del sys.modules[name]


def copy_package(folder: Path) -> Path:
    """What pip would install where there is no compiler: the package with its entry point, without a kernel."""
    package = folder / "xent_metrics_native"
    shutil.copytree(PACKAGE / package.name, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    metadata = folder / "xent_metrics_native-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: xent-metrics-native\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{POINT.group}]\n{POINT.name} = {POINT.value}\n")
    return package


@contextmanager
def importable_from(folder: Path) -> Iterator[None]:
    """Within it the package is imported from `folder`; afterwards `sys.path` and `sys.modules` are as before."""

    def take_out() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == POINT.value}

    before = take_out()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        take_out()
        sys.modules.update(before)


@cache
def build() -> ModuleType:
    """Install into `SITE` and load from there."""
    package = copy_package(SITE)
    build = hatch_build()
    assert build.compile_all(PACKAGE, package) == build.LIBRARIES.keys(), "these tests need a C compiler"
    return load(SITE)


def load(folder: Path) -> ModuleType:
    """The package as installed in `folder`."""
    with importable_from(folder):
        return importlib.import_module(POINT.value)


def every_level(native: ModuleType) -> Any:
    """A fixture that runs every test of a module with every instruction set of this processor."""

    @pytest.fixture(params=range(1, native.libraries.level + 1), ids="level{}".format, autouse=True)
    def level(request, monkeypatch) -> int:
        monkeypatch.setattr(native.libraries, "level", request.param)
        return request.param

    return level
