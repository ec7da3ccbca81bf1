"""A metric on made-up data: for models to be asked about it, and for its picture.

The data are those of a model that learns to predict 32 classes in a dozen steps and is overconfident; a second model, such
as a student, comes nearer to it with every step.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.plots import figure
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric

__all__ = ["made_up_metric", "picture", "scores_in_training"]

_CLASSES, _ROWS, _STEPS = 32, 512, 12


def made_up_metric(metric: type[TokenMetric]) -> TokenMetric | None:
    """The metric with its default options, and made-up tables for some that have to suit the data.

    None if it has other options without a default, or can't be built with them.
    """
    embeddings = torch.randn(_CLASSES, 8, generator=torch.Generator().manual_seed(0))
    known: dict[str, Any] = {"classes": _CLASSES, "embeddings": embeddings}
    options = metric.options()
    if any(option.default is option.empty and name not in known for name, option in options.items()):
        return None
    try:
        return metric(**{name: value for name, value in known.items() if name in options})
    except Exception:  # a plugin's option of this name may mean something else
        return None


def picture(metric: type[TokenMetric]) -> str | None:
    """The metric's own plot of made-up data, as SVG: over the steps of a training, or a diagram of all of them.

    None if the metric has options that aren't known here.
    """
    built = made_up_metric(metric)
    if built is None:
        return None
    is_diagram = metric.plot is not TokenMetric.plot
    values = []
    for scores in scores_in_training(built):
        if not is_diagram:
            built.reset()
        built.update(scores)
        values.append(built.compute())
    written = io.StringIO()
    with figure(written, size=(6, 3.6), format="svg", metadata={"Date": None}) as drawn:
        built.plot(None if is_diagram else values, drawn.add_subplot())
    return re.sub(r"[ \t]+$", "", written.getvalue(), flags=re.MULTILINE)


def scores_in_training(metric: TokenMetric) -> Iterator[TokenScores]:
    """The made-up scores of each step, as the metric takes them, with the bytes and words that a host would count."""
    generator = torch.Generator().manual_seed(0)
    for step in range(1, _STEPS + 1):
        target = torch.randint(_CLASSES, (_ROWS,), generator=generator)
        noise = torch.randn(2, _ROWS, _CLASSES, generator=generator)
        signal = 3 * (1 - 0.8**step)
        seen = noise[0] + signal * torch.nn.functional.one_hot(target, _CLASSES)
        logits = 1.5 * signal * seen  # `signal * seen` would be calibrated
        given: Any = (logits, logits + noise[1] / step) if isinstance(metric, PairMetric) else logits
        if metric.scoring_options().get("binary"):
            given, target = _of_two_classes(logits, target)
        yield replace(metric.score(given, target), num_bytes=1 + target % 5, num_words=(target % 3 == 0).long())


def _of_two_classes(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of "the target is in the upper half" against the lower half."""
    lower, upper = (half.logsumexp(-1) for half in logits.chunk(2, dim=-1))
    return upper - lower, target // (_CLASSES // 2)
