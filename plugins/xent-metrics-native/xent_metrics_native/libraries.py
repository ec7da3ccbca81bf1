"""Loads the compiled C libraries and picks the instruction set.

`_kernel.so` (from kernel.c) scores logits. `_layers.so` (from layers.c) has the matrix products and the parts of a decoder
layer; without it the plugin still scores logits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["declare", "kernel", "layers", "level", "load_kernel", "load_layers"]


def load_kernel(path: Path) -> ctypes.CDLL:
    """Load the library that scores logits.

    Raises:
        ImportError: the plugin is of no use here, so it is set aside with this message.
    """
    if not path.exists():
        raise ImportError(
            "xent-metrics-native was installed without a C compiler, so it has no kernel and torch scores. Install gcc or "
            "clang, then `pip install --force-reinstall --no-deps --no-cache-dir xent-metrics-native`"
        )
    library = ctypes.CDLL(str(path))
    if library.xent_level() == 0:
        raise ImportError(
            "this processor has no AVX2 or NEON, without which torch scores faster; uninstall xent-metrics-native"
        )
    return library


def load_layers(path: Path) -> ctypes.CDLL | None:
    """Load the library of products and layers; None if it couldn't be compiled."""
    return ctypes.CDLL(str(path)) if path.exists() else None


def declare(library: ctypes.CDLL | None, name: str, *argument_types: Any) -> Callable[..., None]:
    """Return the C function `name`, which returns nothing, with its argument types declared."""
    if library is None:
        return _missing
    function: Any = getattr(library, name)
    function.argtypes, function.restype = argument_types, None
    return function  # type: ignore[no-any-return]


def _missing(*arguments: Any) -> None:
    raise AssertionError("_layers.so was not compiled")  # tensors.py lets no tensors come here without it


_FOLDER = Path(__file__).parent
kernel = load_kernel(_FOLDER / "_kernel.so")
layers = load_layers(_FOLDER / "_layers.so")
#: The instruction set: 2 is AVX-512; 1 is AVX2 or NEON; 0 is the compiler's default, which only kernel.c has.
level: int = kernel.xent_level()
