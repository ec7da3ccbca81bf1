"""What reaches a device: how many operators an update launches there, which copies wait, and which aren't deterministic."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xent_metrics import TokenMetric

#: Operators that aren't views, and launch nothing either.
_FREE = {"empty", "new_empty", "empty_strided", "empty_like", "scalar_tensor", "promote_types", "alias", "detach"}
#: Operators that `torch.use_deterministic_algorithms` documents as raising on CUDA, for tensors that need no gradient; of
#: those whose name begins with cum, only for floats.
_REFUSED = {
    "put", "put_", "histc", "kthvalue", "median", "nanmedian", "nll_loss", "nll_loss_forward", "nll_loss2d", "bincount",
    "mode", "scatter_reduce", "scatter_reduce_", "max_unpool2d", "max_unpool3d", "cumsum", "cumsum_", "cumprod",
    "cumprod_", "logcumsumexp",
}  # fmt: skip
#: And matrix products, which raise without CUBLAS_WORKSPACE_CONFIG.
_CUBLAS = {"mm", "mv", "dot", "bmm", "addmm", "addmv", "baddbmm"}


def _name(func) -> str:
    """An operator's name without its overload: "aten::sum.dim_IntList" is "sum"."""
    return func.name().split("::")[1].split(".")[0]


class Launches(TorchDispatchMode):
    """Counts the operators that launch a kernel, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and not func.is_view and _name(func) not in _FREE:
            self.counts[_name(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


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
    """Refuses what `torch.use_deterministic_algorithms(True)` refuses on CUDA.

    Args:
        products: whether matrix products are allowed, as they are where CUBLAS_WORKSPACE_CONFIG is set.
    """

    def __init__(self, *, products=False):
        super().__init__()
        self.refused = _REFUSED if products else _REFUSED | _CUBLAS

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = _name(func)
        of_integers = name.startswith("cum") and not args[0].is_floating_point()
        if name in self.refused and not of_integers:
            raise RuntimeError(f"{name} has no deterministic implementation on CUDA")
        return func(*args, **(kwargs or {}))


def on_device(metric: TokenMetric, device: torch.device) -> TokenMetric:
    """The metric with its state and buffers on a device without data."""
    return metric._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
