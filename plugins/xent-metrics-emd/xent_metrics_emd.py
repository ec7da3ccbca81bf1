"""The earth mover's distance between the predicted distribution and the target, in the space of token embeddings.

A wrong prediction that means nearly the same as the target costs little, where cross entropy knows only right and wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from xent_metrics import ExtraScore, RatioMetric, TokenScores, hookimpl
from xent_metrics.errors import InvalidInputError, MetricOptionError

__all__ = ["EmbeddingDistance"]


class EmbeddingDistance(RatioMetric):
    """Embedding distance = mean over tokens of Σ_v p_v (1 − cos(e_v, e_target)), in [0, 2].

    The cost of moving the predicted probability to the target, a unit of probability from v to w costing 1 − cos(e_v, e_w).
    The target is one point, so there is one plan to move it all there, and the earth mover's distance is the expected cost,
    1 − ⟨E_p[ê], ê_target⟩ with ê the embeddings at unit length.

    Args:
        embeddings: ``(V, D)``, or the path of a file that `torch.save` wrote one to; no row is zero.

    Reference: Rubner, Tomasi and Guibas (2000), The Earth Mover's Distance as a metric for image retrieval.

    >>> metric = EmbeddingDistance(embeddings=torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    >>> metric.update(torch.zeros(1, 3), torch.tensor([0]))      # (0 + 1 + 2) / 3
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    name = "embedding_distance"
    formula = "Σ_tokens Σ_v p_v (1 − cos(e_v, e_target)) / tokens"
    value_unit = "cosine distance"
    reference = "Rubner et al. (2000), The Earth Mover's Distance"
    requires = frozenset[str]()
    row_kinds = frozenset({"token"})

    def __init__(self, embeddings: Tensor | str | PathLike[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        table = embeddings if isinstance(embeddings, Tensor) else self._read(embeddings)
        if not isinstance(table, Tensor) or table.ndim != 2 or not table.is_floating_point():
            got = f"{tuple(table.shape)} of {table.dtype}" if isinstance(table, Tensor) else type(table).__name__
            raise MetricOptionError(f"{self.name}: embeddings are a float tensor (V, D); got {got}")
        length = table.float().norm(dim=1, keepdim=True)
        if not bool((length > 0).all()):
            raise MetricOptionError(
                f"{self.name}: {int((length == 0).sum())} embeddings are zero and have no direction"
            )
        # Kept as its bits: `.to(torch.bfloat16)` on a parent module would round a float buffer.
        self.register_buffer("unit_bits", (table.detach().float() / length).view(torch.int32), persistent=False)
        self.embeddings = self.unit_bits  # by its hash in the names of sums

    def _read(self, path: Any) -> Any:
        how = "Write one: torch.save(model.get_input_embeddings().weight.detach().clone(), 'embeddings.pt')"
        if not isinstance(path, str | PathLike):
            raise MetricOptionError(
                f"{self.name}: embeddings are a float tensor (V, D) or a file's path; got {path!r}. {how}"
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            raise MetricOptionError(
                f"{self.name}: expected a file that torch.save wrote a tensor (V, D) to; got {path}: {error}. {how}"
            ) from error

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return {self._score_name(): ExtraScore(self._cost)}

    def _score_name(self) -> str:
        return f"embedding cost {self.described()}"

    def _cost(self, log_prob: Tensor, index: Tensor) -> Tensor:
        assert isinstance(self.unit_bits, Tensor)
        if self.unit_bits.device != log_prob.device:  # lm-eval's models may be elsewhere
            self.unit_bits = self.unit_bits.to(log_prob.device)
        unit = self.unit_bits.view(torch.float32)
        if len(unit) != log_prob.shape[-1]:
            raise InvalidInputError(f"{self.name}: {len(unit)} embeddings for {log_prob.shape[-1]} classes of logits")
        expected = log_prob.float().exp() @ unit  # (rows, D)
        return 1 - (expected * unit[index]).sum(-1)

    def sum_names(self) -> tuple[str, str]:
        return self._score_name(), "tokens"

    def per_token(self, scores: TokenScores) -> Tensor:
        return scores.extra_scores[self._score_name()]


@hookimpl
def register_metrics(register: Any) -> None:
    """Register the metric."""
    register(EmbeddingDistance)
