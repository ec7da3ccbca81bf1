"""The hooks that a plugin may implement; `hookimpl` marks its functions, `hooks` calls them.

A plugin is a module named in the entry point group `xent_metrics`. The `register_…` hooks are given something to register
with, rather than return values, so that the traceback of an error shows the line that registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from os import PathLike
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    Scores = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Mapping[str, Tensor]]

__all__ = [
    "HOOK_VERSION", "PROJECT", "VERSION_ATTRIBUTE", "exact_sums_backend", "forward_context", "hookimpl", "hooks", "hookspec",
    "linear_cross_entropy_backend", "register_commands", "register_metrics", "register_task_configs", "score_backend",
    "set_hooks",
]  # fmt: skip

PROJECT = "xent_metrics"
#: The version of the hooks below. It is raised when an implementation that was right would no longer be: a hook is removed or
#: renamed, or asks for something else. New hooks and new arguments don't raise it, because pluggy passes an implementation
#: only the arguments that it names.
HOOK_VERSION = 1
#: A plugin's module says by this attribute for which version it was made; without it, for version 1.
VERSION_ATTRIBUTE = "XENT_METRICS_HOOKS"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
_source: Callable[[], pluggy.HookRelay] | None = None


def set_hooks(source: Callable[[], pluggy.HookRelay]) -> None:
    """Set the function that returns the hooks of the loaded plugins; importing `xent_metrics` does it."""
    global _source
    _source = source


def hooks() -> pluggy.HookRelay:
    """Return the hooks of the loaded plugins, which are called by name: ``hooks().forward_context(model=…)``."""
    assert _source is not None  # importing any module of the package imports the package
    return _source()


@hookspec
def register_metrics(register: Callable[[type[Any]], None]) -> None:
    """Register metrics: call ``register(MetricClass)`` for each. Users write the name in its class attribute `name`."""


@hookspec
def register_task_configs(register: Callable[[str | PathLike[str]], None]) -> None:
    """Register folders of lm-eval task YAMLs: call ``register(path)`` for each."""


@hookspec
def register_commands(app: Any) -> None:
    """Register commands of `xent`: add them to `app`, a `typer.Typer`, as in ``@app.command()``.

    It is called when a command isn't built in, and when `xent plugins` lists the commands of each plugin.
    """


@hookspec(firstresult=True)
def score_backend(logits: Tensor, target: Tensor, extra_scores: Mapping[str, Any]) -> Scores | None:
    """Score rows of logits instead of torch, or return None to leave these rows to others; the first result wins.

    Args:
        logits: ``(N, V)`` with N ≥ 1, a plain tensor of any float dtype, device and strides, without gradients. It is a
            block of whole rows, large enough to be worth splitting among threads.
        target: ``(N,)`` int64 on the same device, contiguous, every value in ``[0, V)``.
        extra_scores: the `ExtraScore`s that are wanted of these rows, by name; empty if none are. A backend recognises one
            by its function: ``extra_scores[name].function is xent_metrics.metrics.distribution.entropy``.

    Returns:
        ``(nll, confidence, correct)``, each ``(N,)`` on the same device, or ``(nll, confidence, correct, extras)``.
        `nll` is −ln softmax(logits)[target] in nats, float32 or wider.
        `confidence` is the largest probability, of the same dtype.
        `correct` is bool: the target is the first of the classes with the largest logit.
        `extras` holds, by name, those of the wanted extra scores that the backend computed, ``(N, *shape)``: whole numbers,
        bools, or floats in float32 or wider. Torch reads the logits again only for the others.
        A row with nan or +inf among its logits gets nan, as from `torch.log_softmax`. The bits of a row must depend on
        that row alone. On a GPU the backend must not synchronise with the host.

    The hook isn't called under `torch.compile`, for tensor subclasses (fake tensors included) or for soft targets. The
    losses with label smoothing or class weights always come from torch. A backend that raises or returns something else
    causes a `PluginError` that names the plugin.
    """


@hookspec(firstresult=True)
def linear_cross_entropy_backend(
    hidden_states: Tensor, head: Any, target: Tensor, extra_scores: Mapping[str, Any]
) -> Scores | None:
    """Score rows of hidden states by the logits that `head` makes of them, or return None; the first result wins.

    Args:
        hidden_states: ``(N, H)`` with N ≥ 1, a plain tensor without gradients in the dtype of ``head.weight``.
        head: a `xent_metrics.scoring.linear.LMHead`, which has the formula: `weight` ``(V, H)``, `bias` ``(V,)``, `scale`
            and `softcap`, where the last three are None if they aren't used. It is `plain` if all three are None.
        target: ``(N,)`` int64 on the same device, contiguous, every value in ``[0, V)``.
        extra_scores: the extra scores that are wanted, as for `score_backend`.

    Returns:
        What `score_backend` returns, with *all* wanted extra scores: there are no logits that torch could read again. A
        backend that can't compute one of them returns None.

    The hook is called on every device and for every float dtype, with all rows at once where torch wouldn't go by blocks of
    the vocabulary. It isn't called when `score_backend` isn't, nor for label smoothing and class weights.
    """


@hookspec(firstresult=True)
def forward_context(model: Any) -> AbstractContextManager[Any] | None:
    """Return a context manager within which `model` computes the same faster, or None; the first result wins.

    Args:
        model: the causal language model that `xent-hf` has loaded, in evaluation mode.

    Returns:
        A reusable context manager, entered around every forward, without gradients and by one thread at a time. Outside
        of it the model must be unchanged.

    `xent-hf` calls the hook once, when the model is loaded, and compares the hidden states inside the context with the
    model's own. A context that raises or disagrees isn't used, and one line in the log says so.
    """


@hookspec(firstresult=True)
def exact_sums_backend(values: Tensor, bins: Tensor | None, num_bins: int) -> Tensor | None:
    """Take exact sums instead of torch, or return None to leave these values to others; the first result wins.

    Args:
        values: ``(K, N)`` with K, N ≥ 1, a plain tensor of floats, integers or bools on any device: K sums over one batch.
        bins: ``(N,)`` int64 on the same device, each in ``[0, num_bins)``, the same for all K; or None, and then `num_bins`
            is 1.
        num_bins: the number of bins.

    Returns:
        ``(K, num_bins, 8)`` int64 on the same device: rows in their carried form, bit for bit those of
        `xent_metrics.sums.exact_sum.exact_sums_by_bin`, whose module says what a row holds. On a GPU the backend must not
        synchronise with the host. Integer additions have the same sum in any order, so atomics are fine.

    The hook isn't called under `torch.compile` or for tensor subclasses (fake tensors included). A backend that raises, or
    returns another shape or dtype, causes a `PluginError` that names the plugin.
    """
