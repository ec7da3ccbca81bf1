"""Tensors without data on a device that has no float64, such as Apple's MPS: an operator that makes float64 there raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xent_metrics.testing.host_sync import OperatorsForMethods

__all__ = ["no_float64"]

_TOO_WIDE = (torch.float64, torch.complex128)


@contextmanager
def no_float64(device: str = "mps") -> Iterator[torch.device]:
    """Inside, tensors on `device` without data: an operator whose result there is float64 or complex128 raises.

    Works on any machine and with any build of torch; yields the device to put tensors on. Reading a value raises too, as
    in `no_host_sync`.

    Args:
        device: the type of the device. On "xpu", builds of torch without XPU refuse `Tensor.to`.

    >>> with no_float64() as device:
    ...     torch.ones(3, device=device).double()
    Traceback (most recent call last):
    TypeError: aten._to_copy.default makes float64 on mps, which has no such dtype
    """
    with FakeTensorMode(), _NoFloat64(device), OperatorsForMethods():
        yield torch.device(device)


class _NoFloat64(TorchDispatchMode):
    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type == self.device and value.dtype in _TOO_WIDE:
                dtype = str(value.dtype).removeprefix("torch.")
                raise TypeError(f"{func} makes {dtype} on {self.device}, which has no such dtype")
        return result
