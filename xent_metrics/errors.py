"""The errors that this package raises; each says what was got, what was expected and how to fix it.

The first line of a message ends in the code of its error, such as [E007], by which `xent explain E007` and docs/errors.md
find it. Codes never change; that of a deleted error isn't used again. A class' docstring says what causes the error and what
cures it, and raises it once.
"""

from __future__ import annotations

import re
from typing import ClassVar

__all__ = [
    "CapacityError",
    "CaptureError",
    "ComparisonError",
    "EngineError",
    "InvalidInputError",
    "InvalidTargetError",
    "MetricOptionError",
    "MissingExtraError",
    "MissingScoreError",
    "PluginError",
    "SyncError",
    "TokenBytesError",
    "UnknownMetricError",
    "XentMetricsError",
]


class XentMetricsError(Exception):
    """The base of every error that this package raises on purpose.

    Cause: only its subclasses are raised. A subclass of a plugin's own that sets no `code` shows this one.

    Cure: read the message. ``except XentMetricsError`` catches all errors of the package and of its plugins.

    >>> from xent_metrics import get_metric
    >>> from xent_metrics.errors import XentMetricsError
    >>> try:
    ...     get_metric("perplexty")
    ... except XentMetricsError as error:
    ...     print(type(error).__name__, error.code)
    UnknownMetricError E007
    """

    code: ClassVar[str] = "E000"

    @property
    def message(self) -> str:
        """What was said, without the code and without those of errors that it quotes: for a sentence or a table."""
        return re.sub(r" \[E\d{3}\]", "", super().__str__())

    def __str__(self) -> str:
        """The message with the code after its first line."""
        first, newline, rest = self.message.partition("\n")
        return f"{first} [{self.code}]".lstrip() + newline + rest


class InvalidInputError(XentMetricsError, ValueError):
    """Tensors, files or other inputs have shapes, dtypes or values that can't be used.

    Cause: logits that aren't floats, targets whose shape isn't that of the logits without their last dimension, scores made
    with another `ignore_index`, a file that isn't what it should be.

    Cure: the message says what was expected. Logits are ``(…, V)`` and targets ``(…)``; logits[t] scores target[t].

    >>> from xent_metrics import score_tokens
    >>> score_tokens([[1, 2]], [0])
    Traceback (most recent call last):
    xent_metrics.errors.InvalidInputError: expected logits (…, V) of dtype float64, float32, float16 or bfloat16 with V ≥ 1;
        got (1, 2) of torch.int64 [E001]
    """

    code = "E001"


class InvalidTargetError(InvalidInputError):
    """Targets lie outside ``[0, V)`` and aren't ``ignore_index``; counted in `update`, raised in `compute`.

    Cause: padding with another id than `ignore_index`, a tokenizer with more ids than the model has logits, soft targets that
    aren't distributions, or weights below 0. `update` doesn't raise, because that would wait for the device.

    Cure: mask what shouldn't count with `ignore_index` (−100), or ``compute(nan_policy="omit")`` for the value without
    these rows.

    >>> import torch
    >>> from xent_metrics import get_metric
    >>> metric = get_metric("cross_entropy")
    >>> metric.update(torch.zeros(1, 4), torch.tensor([7]))
    >>> metric.compute()
    Traceback (most recent call last):
    xent_metrics.errors.InvalidTargetError: cross_entropy: 1 targets were neither a class in [0, V) nor
        ignore_index=-100 (or, for soft targets, not a distribution), or had a weight or a number of bytes below 0. Mask what
        should not count with ignore_index; `compute(nan_policy='omit')` gives the value without them [E002]
    """

    code = "E002"


class CapacityError(XentMetricsError, OverflowError):
    """A sum left the range in which it is exact.

    Cause: a term of 2^62 (5·10^18) or more, or a sum beyond ±2^78 (3·10^23): usually weights or logits that are far too large.
    A sum never wraps. Or sums so small, usually by weights of 1e-14 and less, that rounding to 2^-64 may show in their sixth
    digit.

    Cure: look for enormous or tiny weights. Scaling all weights of a metric by the same factor doesn't change its value.

    >>> import torch
    >>> from xent_metrics import get_metric
    >>> metric = get_metric("cross_entropy")
    >>> metric.update(torch.zeros(1, 4), torch.tensor([1]), weight=torch.tensor([1e30]))
    >>> metric.compute()
    Traceback (most recent call last):
    xent_metrics.errors.CapacityError: cross_entropy: a sum left ±2^78, the range in which it is exact [E003]
    """

    code = "E003"


class CaptureError(XentMetricsError, RuntimeError):
    """A metric is updated while a CUDA graph is captured; replays of the graph would not update it.

    Cause: `update` or `forward` inside ``torch.cuda.graph(…)``.

    Cure: capture the model alone, and update the metric with the graph's outputs after each replay.

    >>> from unittest import mock
    >>> import torch
    >>> from xent_metrics.sums.placement import refuse_capture            # what update calls first
    >>> captured = {"is_initialized": lambda: True, "is_current_stream_capturing": lambda: True}    # as within a capture
    >>> with mock.patch.multiple(torch.cuda, **captured):
    ...     refuse_capture("cross_entropy", torch.device("cuda"))
    Traceback (most recent call last):
    xent_metrics.errors.CaptureError: cross_entropy is updated while a CUDA graph is captured, but replays of the graph would
        not update it: its state is replaced, not written in place. Capture the model alone, and call update(logits, target)
        with the graph's outputs after each replay [E004]
    """

    code = "E004"


class MissingScoreError(XentMetricsError, LookupError):
    """A metric needs a score that the host doesn't give.

    Cause: bytes without a table of them, a metric of tokens with a model that gives one loglikelihood per document, a metric
    of whole distributions with a serving engine.

    Cure: the message names the option that gives the score. ``xent explain METRIC`` lists what a metric needs and which
    models give it; `xent-hf` and `xent-torch` give everything.

    >>> import torch
    >>> from xent_metrics import get_metric
    >>> get_metric("bits_per_byte").update(torch.zeros(1, 4), torch.tensor([1]))
    Traceback (most recent call last):
    xent_metrics.errors.MissingScoreError: bits_per_byte needs `num_bytes`, which these token scores don't have: pass
        `token_bytes=token_bytes(tokenizer)` to the metric or to score_tokens [E005]
    """

    code = "E005"


class EngineError(XentMetricsError, RuntimeError):
    """A serving engine gives no answer, or one that can't be scored; the message says what it gave.

    Cause: a server that is down, doesn't echo the prompt or gives no log-probabilities, makes other tokens of a text than
    the tokenizer, or gives the log-probabilities of other places.

    Cure: start it with the options that docs/engines.md names, pass the tokenizer of its model, or score with `xent-hf`.

    >>> from xent_metrics.hosts.lm_eval.engines.answers import listed      # reads a server's answer
    >>> listed({"text": "The sea", "logprobs": None})
    Traceback (most recent call last):
    xent_metrics.errors.EngineError: the server gives no log-probabilities (`logprobs` is empty), so it can't score [E006]
    """

    code = "E006"


class UnknownMetricError(XentMetricsError, LookupError):
    """No loaded plugin registers a metric of this name.

    Cause: a misspelt name, or the name of a plugin's metric while the plugin isn't installed, isn't selected by
    `XENT_METRICS_PLUGINS`, or is set aside with an error of its own.

    Cure: take one of the names that the message suggests. ``xent metrics`` lists all names, ``xent plugins`` says which
    plugins are set aside and why.

    >>> from xent_metrics import get_metric
    >>> get_metric("perplexty")
    Traceback (most recent call last):
    xent_metrics.errors.UnknownMetricError: unknown metric 'perplexty'. Did you mean 'perplexity' or
        'word_perplexity'? ... [E007]
    """

    code = "E007"


class ComparisonError(XentMetricsError, ValueError):
    """Runs can't be compared or read back; the message says why.

    Cause: a folder without a run, a run written without `--log_samples`, runs of other documents, or of metrics with other
    options.

    Cure: run lm-eval with ``--output_path`` and ``--log_samples``, and compare runs of the same tasks and documents.

    >>> from xent_metrics.analysis.runs import read_run
    >>> read_run("no_such_folder")
    Traceback (most recent call last):
    xent_metrics.errors.ComparisonError: no_such_folder: there is no such folder or file; expected lm-eval's
        --output_path, or a results file [E008]
    """

    code = "E008"


class MetricOptionError(XentMetricsError, TypeError):
    """The metric has no such option, or the option can't have this value.

    Cause: a misspelt option, or a value out of its range.

    Cure: ``xent explain METRIC`` lists the options with their defaults and meanings.

    >>> from xent_metrics import get_metric
    >>> get_metric("top_k_accuracy", k=0)
    Traceback (most recent call last):
    xent_metrics.errors.MetricOptionError: top_k_accuracy: k is a whole number from 1 to 2^31; got 0 [E009]
    """

    code = "E009"


class PluginError(XentMetricsError):
    """A plugin can't be loaded, registers something invalid, or breaks a hook's contract.

    Cause: a hook of the plugin raised or returned something else than it should, two plugins register the same name, or
    `XENT_METRICS_PLUGINS` names a plugin that isn't installed.

    Cure: ``xent plugins`` shows each plugin with its error. `XENT_METRICS_PLUGINS` chooses those that are loaded; its empty
    value loads none.

    >>> import torch
    >>> from xent_metrics import hookimpl, score_tokens
    >>> from xent_metrics.plugins import Plugin, Plugins, use_plugins
    >>> class Broken:
    ...     @hookimpl
    ...     def score_backend(self, logits, target):
    ...         return "three tensors"
    >>> loaded = Plugins()
    >>> loaded.add(Plugin("broken", "a-package", "1.0"), Broken())
    >>> with use_plugins(loaded):
    ...     score_tokens(torch.zeros(1, 4), torch.tensor([1]))
    Traceback (most recent call last):
    xent_metrics.errors.PluginError: broken of a-package: score_backend returned 'three tensors'; expected three
        tensors: nll, confidence, correct [E010]
    """

    code = "E010"


class SyncError(XentMetricsError, RuntimeError):
    """Adding up over processes failed, or a shared total is out of date; the local sums are unchanged.

    Cause: another process died, hung or computed other metrics; a metric was updated between the parts of one sync, or while
    it held the total.

    Cure: make the same calls on every process. Since the local sums are unchanged, `compute` can be called again.

    >>> import torch
    >>> from torch import distributed
    >>> from xent_metrics import get_metric
    >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    >>> metric = get_metric("cross_entropy")
    >>> metric.update(torch.zeros(1, 4), torch.tensor([1]))
    >>> metric.sync()                                                      # from here on it holds the total
    >>> metric.update(torch.zeros(1, 4), torch.tensor([1]))
    Traceback (most recent call last):
    xent_metrics.errors.SyncError: cross_entropy holds the sums of all processes, to which nothing can be added;
        unsync it first [E011]
    >>> distributed.destroy_process_group()
    """

    code = "E011"


class TokenBytesError(XentMetricsError, ValueError):
    """A tokenizer's ids can't be mapped to UTF-8 byte counts.

    Cause: a tokenizer that changes text before it splits it, so that its tokens' bytes aren't those of the text, or one of
    an unknown kind.

    Cure: pass a function from an id to its bytes, with `vocab_size`, or a table of your own as `token_bytes`.

    >>> from xent_metrics import token_bytes
    >>> token_bytes(lambda token_id: chr(token_id))
    Traceback (most recent call last):
    xent_metrics.errors.TokenBytesError: <lambda> is a callable, which has no vocabulary: expected vocab_size as
        well. Pass token_bytes(f, vocab_size=V) with V the size of the model's logits [E012]
    """

    code = "E012"


class MissingExtraError(XentMetricsError, ImportError):
    """An optional dependency that this feature needs is not installed.

    Cause: the core installs no host, no matplotlib and no scipy: they are extras.

    Cure: the message has the command that installs it.

    >>> import sys
    >>> from unittest import mock
    >>> from xent_metrics.plots import figure
    >>> with mock.patch.dict(sys.modules, matplotlib=None), figure("curve.svg"):    # as without matplotlib
    ...     pass
    Traceback (most recent call last):
    xent_metrics.errors.MissingExtraError: plots need matplotlib: ... [E013]
    """

    code = "E013"
