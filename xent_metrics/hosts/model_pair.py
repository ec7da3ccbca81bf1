"""Compare two Hugging Face models on the same text: what quantising, pruning or fine-tuning has changed.

    compare_models("base/", "quantised/", ["text.txt"])

The text is cut into windows that begin with the tokenizer's BOS token, if it has one. Both models read the same windows,
and every later token of a window is scored once. Standard errors treat windows as the samples.

Who syncs: nobody, there is only one process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xent_metrics.analysis import StandardError
from xent_metrics.collection import TokenMetricCollection
from xent_metrics.errors import InvalidInputError, MissingExtraError
from xent_metrics.plugins import get_metric
from xent_metrics.scoring.pairs import score_pair
from xent_metrics.sums.metric import TokenMetric

try:
    from tqdm import tqdm  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingExtraError("comparing models needs tqdm: pip install 'xent-metrics[analysis,lm-eval]'") from error

__all__ = ["PAIR_METRICS", "Finding", "compare_models"]

#: The metrics of each model alone, then of the pair.
_ALONE = {
    name: {"name": name} for name in ("cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error")
}
_QUANTILES = {"p50": 0.5, "p99": 0.99, "p99_9": 0.999, "maximum": 1.0}
_PAIR: dict[str, dict[str, Any]] = {
    "log_perplexity_ratio": {"name": "log_perplexity_ratio"},
    "kl_divergence": {"name": "kl_divergence"},
    **{
        f"kl_divergence_{called}": {"name": "kl_divergence_quantile", "quantile": quantile}
        for called, quantile in _QUANTILES.items()
    },
    "jensen_shannon_divergence": {"name": "jensen_shannon_divergence"},
    "probability_change": {"name": "probability_change"},
    "rms_probability_change": {"name": "rms_probability_change"},
    "same_top_token": {"name": "same_top_token"},
}
#: The registered metrics of two models that are measured.
PAIR_METRICS = frozenset(options["name"] for options in _PAIR.values())


@dataclass(frozen=True)
class Finding:
    """A value with its standard error over windows (nan for quantiles); `of` is "base", "other" or "both"."""

    name: str
    of: str
    value: float
    standard_error: float
    unit: str


def compare_models(
    base: Any,
    other: Any,
    texts: Sequence[str | Path],
    *,
    tokenizer: Any = None,
    max_length: int = 512,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    progress: bool | None = None,
) -> list[Finding]:
    """Run both models over the texts and measure how far `other` is from `base`.

    Args:
        base: a model, or a folder or name for `AutoModelForCausalLM.from_pretrained`.
        other: the model to compare with it, given in the same way.
        texts: files of UTF-8 text.
        tokenizer: a tokenizer, or its folder or name; by default the base's.
        max_length: the longest input of a model in ids, including BOS; limited to what both models can read.
        batch_size: windows per batch. The logits of a batch take 4 · batch_size · max_length · V bytes per model.
        device: by default a GPU if there is one, otherwise the CPU.
        dtype: as for `from_pretrained`; scores are float32 or wider in any case.
        progress: show a progress bar on stderr; by default only in a terminal.

    Returns:
        For each model cross entropy (nats per token), perplexity, accuracy and calibration error. For the pair the log ratio
        of their perplexities, KL(base‖other) with quantiles over tokens (to 1 %), the Jensen–Shannon divergence, the mean
        and RMS change of the target's probability, and how often both have the same top-1 token.

    Raises:
        InvalidInputError: the vocabularies differ, a text is too short to score, or a window is too long for a model.
        MissingExtraError: transformers is not installed.
    """
    if not texts:
        raise InvalidInputError("expected at least one text file; got none")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encode = _loaded_tokenizer(base if tokenizer is None else tokenizer)
    ids = [_ids(encode, Path(text)) for text in texts]
    for model in (base, other):
        _check_config(model)  # of both, before the first one is loaded
    models = [_loaded_model(model, device, dtype) for model in (base, other)]
    windows = _windows(ids, encode.bos_token_id, _window_length(models, encode, max_length))
    with _progress_bar(windows, progress) as bar:
        return _measure(models, _batches(windows, batch_size), device, bar)


def _progress_bar(windows: Sequence[Sequence[int]], progress: bool | None) -> Any:
    """A bar over all tokens; None shows it in a terminal only."""
    tokens = sum(len(window) - 1 for window in windows)
    disable = None if progress is None else not progress
    return tqdm(total=tokens, desc="Scoring", unit="tok", unit_scale=True, disable=disable)


def _measure(models: Sequence[nn.Module], batches: Iterable[Tensor], device: torch.device, bar: Any) -> list[Finding]:
    """Score batches of windows with the base and the other model."""
    of_base, of_other, of_both = (TokenMetricCollection(_with_errors(metrics)) for metrics in (_ALONE, _ALONE, _PAIR))
    for batch in batches:
        base_logits, other_logits = (_logits(model, batch[:, :-1].to(device)) for model in models)
        target = batch[:, 1:].to(device)
        pair = score_pair(base_logits, other_logits, target)
        of_base.update(base_logits, target)
        of_other.update(pair)
        of_both.update(pair)
        bar.update(target.numel())
    return [
        *_findings(of_base, _ALONE, "base"),
        *_findings(of_other, _ALONE, "other"),
        *_findings(of_both, _PAIR, "both"),
    ]


def _with_errors(chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, TokenMetric]:
    metrics = {key: get_metric(**options) for key, options in chosen.items()}
    errors = {f"{key}_stderr": StandardError(metric) for key, metric in metrics.items() if metric.has_standard_error}
    return metrics | errors


def _findings(metrics: TokenMetricCollection, chosen: Iterable[str], of: str) -> Iterator[Finding]:
    values, members = {key: float(value) for key, value in metrics.compute().items()}, metrics.members()
    for key in chosen:
        yield Finding(key, of, values[key], values.get(f"{key}_stderr", math.nan), members[key].value_unit)


# Models and tokenizers.


def _loaded_model(model: Any, device: torch.device, dtype: str | torch.dtype) -> nn.Module:
    if isinstance(model, nn.Module):
        return model.to(device).eval()
    loaded: nn.Module = _from_pretrained("AutoModelForCausalLM", model, dtype=dtype)
    return loaded.to(device).eval()


def _check_config(model: Any) -> None:
    if not isinstance(model, nn.Module):
        _from_pretrained("AutoConfig", model)


def _loaded_tokenizer(tokenizer: Any) -> Any:
    if isinstance(tokenizer, nn.Module):
        raise InvalidInputError("a model object has no tokenizer; pass tokenizer=…")
    return _from_pretrained("AutoTokenizer", tokenizer) if isinstance(tokenizer, str | Path) else tokenizer


def _from_pretrained(auto_class: str, name: str | Path, **options: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("this needs transformers: pip install 'xent-metrics[lm-eval]'") from error
    try:
        return getattr(transformers, auto_class).from_pretrained(str(name), **options)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{name}: {auto_class} can't be loaded: {error}. Expected a folder written by save_pretrained (model and "
            "tokenizer), or a name on the hub"
        ) from error


def _window_length(models: Sequence[nn.Module], tokenizer: Any, longest: int) -> int:
    """The longest input that both models can read, at most `longest`; raises unless they share a vocabulary."""
    sizes = [model.get_input_embeddings().weight.shape[0] for model in models]  # type: ignore[operator]
    if sizes[0] != sizes[1] or len(tokenizer) > sizes[0]:
        raise InvalidInputError(
            f"the base has {sizes[0]} ids, the other model {sizes[1]} and the tokenizer {len(tokenizer)}; models are compared "
            "token by token only over one vocabulary. Compare others by bits_per_byte with xent compare"
        )
    config_limits = [getattr(model.config, "max_position_embeddings", None) for model in models]
    length = min([longest, *(limit for limit in config_limits if isinstance(limit, int) and limit > 0)])
    if length < 2:
        raise InvalidInputError(f"max_length is at least 2, so that one token predicts another; got {length}")
    return length


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, use_cache=False).logits
    return logits


# Texts.


def _windows(texts: Sequence[Sequence[int]], bos: int | None, length: int) -> list[list[int]]:
    """Cut all texts' ids into windows; the first id of each, BOS if there is one, is read but not scored."""
    return [window for ids in texts for window in _cut(ids, bos, length)]


def _cut(ids: Sequence[int], bos: int | None, length: int) -> Iterator[list[int]]:
    """Windows of at most ``length + 1`` ids: `length` inputs, and the target of the last one.

    >>> list(_cut([1, 2, 3, 4, 5], 0, 3)), list(_cut([1, 2, 3, 4, 5], None, 2))
    ([[0, 1, 2, 3], [0, 4, 5]], [[1, 2, 3], [3, 4, 5]])
    """
    if bos is None:  # each window begins with the last target of the previous one
        yield from (list(ids[start : start + length + 1]) for start in range(0, len(ids) - 1, length))
    else:
        yield from ([bos, *ids[start : start + length]] for start in range(0, len(ids), length))


def _ids(tokenizer: Any, path: Path) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: expected a file of UTF-8 text; got {error}") from error
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise InvalidInputError(f"{path}: expected at least two tokens of text; got {len(ids)}")
    return ids


def _batches(windows: Sequence[Sequence[int]], batch_size: int) -> Iterator[Tensor]:
    """Batches of windows of equal length, ``(≤ batch_size, length)``, longest first."""
    if batch_size < 1:
        raise InvalidInputError(f"batch_size is at least 1; got {batch_size}")
    for _, same in groupby(sorted(windows, key=len, reverse=True), key=len):
        rows = torch.tensor(list(same))
        yield from torch.split(rows, batch_size)
