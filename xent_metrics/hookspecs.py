"""The hooks that a plugin may implement; `hookimpl` marks its functions, `hooks` calls them.

A plugin is a module named in the entry point group `xent_metrics`. The hooks that register get a callable to register
with rather than return values, so that an error points at the line that registered.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from os import PathLike
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PROJECT", "attention_backend", "forward_context", "gated_backend", "hookimpl", "hooks", "hookspec", "linear_cross_entropy_backend",
    "norm_backend", "register_commands", "register_metrics", "register_task_configs", "rotary_backend", "score_backend", "set_hooks",
]  # fmt: skip

PROJECT = "xent_metrics"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
_source: Callable[[], pluggy.HookRelay] | None = None


def set_hooks(source: Callable[[], pluggy.HookRelay]) -> None:
    """Say where the hooks of the loaded plugins are found; `xent_metrics` itself does, when it is imported."""
    global _source
    _source = source


def hooks() -> pluggy.HookRelay:
    """The hooks of the loaded plugins, to be called by name: ``hooks().score_backend(logits=…, target=…)``."""
    assert _source is not None  # importing any module of the package imports the package
    return _source()


@hookspec
def register_metrics(register: Callable[[type[Any]], None]) -> None:
    """Register metrics: call ``register(MetricClass)`` for each; its class attribute `name` is the name users write."""


@hookspec
def register_task_configs(register: Callable[[str | PathLike[str]], None]) -> None:
    """Register folders of lm-eval task YAMLs: call ``register(path)`` for each."""


@hookspec
def register_commands(app: Any) -> None:
    """Register commands of `xent`: add them to `app`, a `typer.Typer`, as in ``@app.command()``.

    It is called when a command is asked for that isn't built in, and when `xent plugins` lists what each plugin brings.
    """


@hookspec(firstresult=True)
def score_backend(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Score rows of logits in torch's place, or return None for what this backend can't take; the first result wins.

    Args:
        logits: ``(N, V)`` with N ≥ 1, a plain tensor of any float dtype, device and strides, without gradients; a block of
            whole rows, as large as is worth splitting among threads.
        target: ``(N,)`` int64 on the same device, contiguous, every value in ``[0, V)``.

    Returns:
        ``(nll, confidence, correct)``, each ``(N,)`` on the same device: −ln softmax(logits)[target] in nats, float32 or
        wider; the largest probability, of the same dtype; whether the first of the largest logits is the target's, bool.
        As `torch.log_softmax` has it, nan and +inf among the logits make a row nan. A row's bits must depend on nothing
        but the row, and the caller's promise of no host sync is the backend's, too.

    It is not asked under `torch.compile`, for tensor subclasses (fake tensors among them) or soft targets; the losses of label
    smoothing and class weights, and extra scores, are always torch's. A backend that raises, or returns anything else, is
    a `PluginError` that names it.
    """


@hookspec(firstresult=True)
def linear_cross_entropy_backend(
    hidden_states: Tensor, weight: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Score rows of hidden states, whose logits are ``hidden_states @ weight.T``, or return None; the first result wins.

    Args:
        hidden_states: ``(N, H)`` with N ≥ 1, plain tensors without gradients, as for `score_backend`.
        weight: ``(V, H)``, of the same dtype.
        target: ``(N,)`` int64 on the same device, contiguous, every value in ``[0, V)``.

    Returns:
        ``(nll, confidence, correct)``, to the letter as `score_backend` gives them.

    It is asked where torch would go by blocks of the vocabulary: in full precision on a CPU, without a bias, a scale or a
    cap on the logits, and where no more is wanted than these three.
    """


@hookspec(firstresult=True)
def forward_context(model: Any) -> AbstractContextManager[Any] | None:
    """Return a context manager within which `model` computes the same, faster; None if this plugin can't; the first wins.

    Args:
        model: the causal language model that `xent-hf` has loaded, in evaluation mode.

    Returns:
        A reusable context manager: it is entered around every forward, without gradients, by one thread at a time.
        Outside of it the model must be as it was.

    `xent-hf` asks once, when the model is loaded, and compares the hidden states inside with the model's own: a context
    that raises or disagrees isn't used, and one line in the log says so.
    """


# Parts of a model's layers, for `xent-hf`. The tensors are plain ones without gradients; None leaves a part to the model, and
# so does a backend that doesn't agree with it at load. What a backend returns has the dtype and the device of its first
# argument; one that raises, or returns anything else, is a `PluginError` that names it.


@hookspec(firstresult=True)
def attention_backend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor | None:
    """softmax(scale · q kᵀ + causal mask) v, as `torch.nn.functional.scaled_dot_product_attention` computes it.

    Args:
        query: ``(B, H, S, D)``, any strides.
        key: ``(B, K, S, D)``, where each of the K heads serves H / K neighbouring heads of the queries.
        value: ``(B, K, S, E)``.
        scale: what the products of queries and keys are multiplied by.

    Returns:
        ``(B, H, S, E)``, best with memory as of ``(B, S, H, E)``.
    """


@hookspec(firstresult=True)
def rotary_backend(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """Rotary positions (Su et al., 2021): x · cos + (−x₂, x₁) · sin, where x₁ and x₂ are the halves of a head.

    Args:
        states: queries or keys ``(B, H, S, D)``, any strides.
        cos, sin: ``(B, S, D)`` or ``(1, S, D)``.

    Returns:
        of the shape of `states`.
    """


@hookspec(firstresult=True)
def norm_backend(states: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """RMSNorm (Zhang and Sennrich, 2019): weight · x / √(mean x² + eps).

    Args:
        states: ``(..., H)``.
        weight: ``(H,)``.
        eps: is added to the mean of squares.

    Returns:
        of the shape of `states`.
    """


@hookspec(firstresult=True)
def gated_backend(states: Tensor, gate: Tensor, up: Tensor) -> Tensor | None:
    """silu(x Gᵀ) · (x Uᵀ), of a gated MLP (Shazeer, 2020).

    Args:
        states: ``(..., H)``.
        gate, up: the weights G and U ``(I, H)``.

    Returns:
        ``(..., I)``.
    """
