"""What reaches a device: how many operators an update launches there, which copies wait, and which aren't deterministic."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xent_metrics import TokenMetric

#: Operators that launch nothing.
_FREE = ("prim.", "detach", "empty", "alias", "promote_types", "scalar_tensor", "split.", "split_with_sizes.")
#: Operators that `torch.use_deterministic_algorithms` documents as raising on CUDA, for tensors that need no gradient.
_REFUSED = (
    "put_.", "put.", "histc", "kthvalue", "median.dim", "nll_loss2d", "bincount", "mode.", "scatter_reduce", "max_unpool"
)  # fmt: skip
#: And matrix products, which raise without CUBLAS_WORKSPACE_CONFIG.
_CUBLAS = ("mm.", "mv.", "dot.", "bmm.", "addmm", "matmul")


class Launches(TorchDispatchMode):
    """Counts the operators that launch a kernel."""

    def __init__(self):
        super().__init__()
        self.by_name = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if not (func.is_view or any(free in name for free in _FREE)):
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.by_name.values())


class CopiesToHost(TorchDispatchMode):
    """Counts the copies from `device` to the CPU."""

    def __init__(self, device="meta"):
        super().__init__()
        self.device, self.total = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and str((kwargs or {}).get("device")) == "cpu":
            self.total += args[0].device.type == self.device
        return func(*args, **(kwargs or {}))


class OnlyDeterministic(TorchDispatchMode):
    """Refuses what `torch.use_deterministic_algorithms(True)` refuses on CUDA."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        cumulates_floats = name.startswith(("cumsum", "cumprod")) and args[0].is_floating_point()
        if cumulates_floats or name.startswith((*_REFUSED, *_CUBLAS)):
            raise RuntimeError(f"{name} has no deterministic implementation on CUDA")
        return func(*args, **(kwargs or {}))


def on_device(metric: TokenMetric, device: torch.device) -> TokenMetric:
    """The metric with its state and buffers on a device without data."""
    return metric._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
