"""xent-metrics-triton on CPU tensors: Triton's interpreter runs the kernels if TRITON_INTERPRET=1 before Triton is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).parents[2] / "plugins" / "xent-metrics-triton"


def prepare() -> None:
    """Import the plugin as it is in the tree, with kernels that are interpreted."""
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("Triton was imported before the tests of xent-metrics-triton: set TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(PACKAGE))
    np.seterr(all="ignore")  # nan and infinities are meant
    _prepare_once_per_launch()


def _prepare_once_per_launch() -> None:
    """Take most of the interpreter's time away from it, read in Triton 3.9.

    It prepares `triton.language` again whenever a kernel calls a function. Once per launch and module of functions is enough.
    """
    from triton.runtime import interpreter

    launch = interpreter.GridExecutor.__call__
    prepared: set[int] = set()

    def start(executor, *args, **kwargs):
        prepared.clear()
        return launch(executor, *args, **kwargs)

    def call(function, *args, **kwargs):
        if id(function.fn.__globals__) not in prepared:
            interpreter._patch_lang(function.fn)
            prepared.add(id(function.fn.__globals__))
        return function.rewrite()(*args, **kwargs)

    interpreter.GridExecutor.__call__ = start
    interpreter.InterpretedFunction.__call__ = call
