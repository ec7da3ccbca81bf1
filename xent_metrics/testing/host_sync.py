"""CUDA tensors without data, on any machine: what waits for the device raises, where on a GPU it would only be slow.

A CPU build of torch makes such tensors too (`FakeTensorMode`), and runs every operator on them. A few methods of Tensor
ask for the device before they come to an operator, which such a build refuses: here their operators are called instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperatorsForMethods", "no_host_sync"]


@contextmanager
def no_host_sync() -> Iterator[torch.device]:
    """Inside, tensors on CUDA without data: what waits for the device raises.

    That is reading a value, a shape that depends on data, a copy to the host, and a copy of a CPU tensor to the device. A
    copy to the device with ``non_blocking=True`` is taken to be from pinned memory, which waits for nothing, and 0-d tensors
    go along with the kernel's arguments.

    Works on any machine and with any build of torch; yields the device to put tensors on.

    >>> with no_host_sync() as device:
    ...     torch.ones(3, device=device).sum().item()
    Traceback (most recent call last):
    torch._subclasses.fake_tensor.DataDependentOutputException: aten._local_scalar_dense.default
    """
    with FakeTensorMode(), _NoWaitingCopy(), OperatorsForMethods():  # type: ignore[no-untyped-call]
        yield torch.device("cuda")


class _NoWaitingCopy(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            _check_copy(args[0], torch.device(kwargs.get("device") or args[0].device), kwargs)
        elif func is torch.ops.aten.copy_.default:
            _check_copy(args[1], args[0].device, dict(zip(["non_blocking"], args[2:], strict=False)) | kwargs)
        return func(*args, **kwargs)


def _check_copy(source: Tensor, device: torch.device, kwargs: Mapping[str, Any]) -> None:
    if device.type == "cpu" != source.device.type:
        raise RuntimeError("a tensor is copied from the device to the host, which waits for the device")
    nothing_to_copy = (
        source.ndim == 0 or source.numel() == 0
    )  # a number is an argument of the kernel that fills the tensor
    arrives = source.device.type == "cpu" and device.type not in ("cpu", "meta")
    if arrives and not nothing_to_copy and not kwargs.get("non_blocking"):
        raise RuntimeError(
            f"a tensor {tuple(source.shape)} is copied from the host's pageable memory to the device, which waits for the "
            "device; move it there once, or from pinned memory with non_blocking=True"
        )


class OperatorsForMethods(TorchFunctionMode):
    """Calls the operators of methods that a build of torch without the tensor's device refuses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__invert__:
            return torch.ops.aten.bitwise_not(*args)
        if func is Tensor.__getitem__:
            return _get(*args)
        if func is Tensor.__setitem__:
            return _set(*args)
        return func(*args, **(kwargs or {}))


def _get(tensor: Tensor, index: Any) -> Any:
    parts = _parts(index)
    if not any(isinstance(part, Tensor) for part in parts):
        return _view(tensor, index)
    return torch.ops.aten.index(tensor, _positions(parts))


def _set(tensor: Tensor, index: Any, value: Any) -> None:
    parts = _parts(index)
    if not isinstance(value, Tensor):
        value = tensor.new_full((), value)
    if not any(isinstance(part, Tensor) for part in parts):
        torch.ops.aten.copy_(_view(tensor, index), value)
    elif len(parts) == 1 and parts[0].dtype is torch.bool and value.numel() == 1:  # waits for nothing
        torch.ops.aten.masked_fill_(tensor, parts[0], value)
    else:
        torch.ops.aten.index_put_(tensor, _positions(parts), value)


def _parts(index: Any) -> list[Any]:
    return list(index) if isinstance(index, tuple) else [index]


def _view(tensor: Tensor, index: Any) -> Tensor:
    """The view, with the shape and strides that a meta tensor gives for it."""
    twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")[index]
    return tensor.as_strided(twin.shape, twin.stride(), tensor.storage_offset() + twin.storage_offset())


def _positions(parts: list[Any]) -> list[Tensor]:
    """Index tensors; how many positions a mask has depends on its data, which raises."""
    if not all(isinstance(part, Tensor) for part in parts):
        raise NotImplementedError(f"no_host_sync takes slices or tensors as an index; got both in {parts}")
    for mask in (part for part in parts if part.dtype is torch.bool):
        torch.ops.aten.nonzero(mask)
    return parts
