"""A model on a device without data, on any machine: `on_fake_device` counts copies between it and the host.

Reading a value raises there, as in `no_host_sync`; but transformers reads none of tensors without data, so what it reads is
counted on the CPU (`Reads`).
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xent_metrics.testing import no_host_sync


class Reads(TorchDispatchMode):
    """Counts values that become numbers of Python, each of which would wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    """Counts copies from the host to the device, their bytes, and tensors of float64 on the device."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.seen["float64"] += any(t.dtype == torch.float64 and t.device.type != "cpu" for t in made)
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" != result.device.type:
            self.seen["copies"] += 1
            self.seen["bytes"] += result.nbytes
        return result


class _To(TorchFunctionMode):
    """`Tensor.to` by its operator: the method refuses a device that this build of torch doesn't know."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.contiguous:
            return torch.ops.aten.clone(args[0], memory_format=torch.contiguous_format)
        if func is Tensor.float:
            func, args = Tensor.to, (args[0], torch.float32)
        if func is not Tensor.to:
            return func(*args, **kwargs)
        tensor, *given = args
        for value in given:
            if isinstance(value, Tensor):
                kwargs |= {"device": value.device, "dtype": value.dtype}
            elif not isinstance(value, bool):
                kwargs["dtype" if isinstance(value, torch.dtype) else "device"] = value
        device = torch.device(kwargs.get("device") or tensor.device)
        dtype = kwargs.get("dtype") or tensor.dtype
        if (device.type, dtype) == (tensor.device.type, tensor.dtype):
            return tensor
        waits_not = kwargs.get("non_blocking", False)
        return torch.ops.aten._to_copy(tensor, device=device, dtype=dtype, non_blocking=waits_not)


@contextmanager
def on_fake_device(model: nn.Module):
    """Inside, the model's weights are on a device without data, where reading a value or copying one back raises."""
    with no_host_sync() as device, _To(), _Watch() as watch:
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=value.dtype, device=device)
                    module._parameters[name] = nn.Parameter(empty, requires_grad=False)
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=device)
        watch.seen.clear()
        yield device, watch.seen
