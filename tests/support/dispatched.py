"""What is dispatched on tensors without data: which kernels a GPU would launch."""

from __future__ import annotations

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that aren't views, and launch nothing either.
_NO_KERNELS = {"empty", "new_empty", "empty_strided", "empty_like", "scalar_tensor", "promote_types"}


class Launches(TorchDispatchMode):
    """Counts the operators that launch a kernel, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func.name().split("::")
        if namespace == "aten" and not func.is_view and name.split(".")[0] not in _NO_KERNELS:
            self.counts[name.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


#: These raise on CUDA under `torch.use_deterministic_algorithms(True)`, says its documentation; cumsum only for floats.
_NONDETERMINISTIC = {
    "bincount", "cumsum", "cumsum_", "histc", "kthvalue", "logcumsumexp", "median", "nanmedian", "nll_loss",
    "nll_loss_forward", "put", "put_", "scatter_reduce", "scatter_reduce_",
}  # fmt: skip


class Deterministic(TorchDispatchMode):
    """Refuses operators that raise on CUDA under `torch.use_deterministic_algorithms(True)`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        if name in _NONDETERMINISTIC and not (name.startswith("cumsum") and not args[0].is_floating_point()):
            raise RuntimeError(f"{name} has no deterministic implementation on CUDA")
        return func(*args, **(kwargs or {}))
