"""The earth mover's distance between the predicted distribution and the target, in the space of token embeddings.

Cross entropy knows only right and wrong tokens. This distance is small for a wrong token with nearly the target's meaning.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
from torch import Tensor

from xent_metrics import ExtraScore, RatioMetric, TokenScores, hookimpl
from xent_metrics.errors import InvalidInputError, MetricOptionError

__all__ = ["EmbeddingDistance", "nearest_tokens", "unit_embeddings"]

_NAME = "embedding_distance"
_HOW = "Write one: torch.save(model.get_input_embeddings().weight.detach().clone(), 'embeddings.pt')"


class EmbeddingDistance(RatioMetric):
    """Embedding distance = mean over tokens of Σ_v p_v (1 − cos(e_v, e_target)), in [0, 2].

    The cost of moving the predicted probability to the target, where a unit of probability costs 1 − cos(e_v, e_w) from v
    to w. The target is a single point, so all probability moves there, and the earth mover's distance is the expected cost
    1 − ⟨E_p[ê], ê_target⟩, with ê the embeddings scaled to unit length.

    Args:
        embeddings: ``(V, D)``, or the path of a file with such a tensor, written by `torch.save`; no row is zero.

    Reference: Rubner, Tomasi and Guibas (2000), The Earth Mover's Distance as a metric for image retrieval.

    >>> metric = EmbeddingDistance(embeddings=torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    >>> metric.update(torch.zeros(1, 3), torch.tensor([0]))      # (0 + 1 + 2) / 3
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    name = _NAME
    higher_is_better = False
    formula = "Σ_tokens Σ_v p_v (1 − cos(e_v, e_target)) / tokens"
    value_unit = "cosine distance"
    reference = "Rubner et al. (2000), The Earth Mover's Distance"
    requires = frozenset[str]()
    row_kinds = frozenset({"token"})

    def __init__(self, embeddings: Tensor | str | PathLike[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Kept as bits, because `.to(torch.bfloat16)` on a parent module would round a float buffer.
        self.register_buffer("unit_bits", unit_embeddings(embeddings).view(torch.int32), persistent=False)
        self.embeddings = self.unit_bits  # an option of the metric; the names of sums have its hash

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return {self._score_name(): ExtraScore(self._cost)}

    def _score_name(self) -> str:
        return f"embedding cost {self.described()}"

    def _cost(self, log_prob: Tensor, index: Tensor) -> Tensor:
        assert isinstance(self.unit_bits, Tensor)
        if self.unit_bits.device != log_prob.device:  # lm-eval may run the model on another device
            self.unit_bits = self.unit_bits.to(log_prob.device)
        unit = self.unit_bits.view(torch.float32)
        if len(unit) != log_prob.shape[-1]:
            raise InvalidInputError(f"{self.name}: {len(unit)} embeddings for {log_prob.shape[-1]} classes of logits")
        expected = log_prob.float().exp() @ unit  # (rows, D)
        return 1 - (expected * unit[index]).sum(-1)

    def per_token(self, scores: TokenScores) -> Tensor:
        return scores.extra_scores[self._score_name()]


def unit_embeddings(embeddings: Tensor | str | PathLike[str]) -> Tensor:
    """Embeddings ``(V, D)`` scaled to unit length, float32, from a tensor or a file that `torch.save` wrote.

    Raises:
        MetricOptionError: not a float tensor of two dimensions, a file without one, or a row of zeros.
    """
    table = embeddings if isinstance(embeddings, Tensor) else _read(embeddings)
    if not isinstance(table, Tensor) or table.ndim != 2 or not table.is_floating_point():
        got = f"{tuple(table.shape)} of {table.dtype}" if isinstance(table, Tensor) else type(table).__name__
        raise MetricOptionError(f"{_NAME}: expected embeddings to be a float tensor (V, D); got {got}")
    length = table.detach().float().norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise MetricOptionError(f"{_NAME}: {int((length == 0).sum())} embeddings are zero and have no direction")
    return table.detach().float() / length


def _read(path: Any) -> Any:
    if not isinstance(path, str | PathLike):
        raise MetricOptionError(
            f"{_NAME}: expected embeddings to be a float tensor (V, D) or a file's path; got {path!r}. {_HOW}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise MetricOptionError(
            f"{_NAME}: expected a file with a tensor (V, D), written by torch.save; got {path}: {error}. {_HOW}"
        ) from error


def nearest_tokens(unit: Tensor, token_id: int, count: int) -> list[tuple[int, float]]:
    """The ids of the tokens nearest to one, itself left out, each with its distance 1 − cos; nearest first.

    Args:
        unit: embeddings of unit length ``(V, D)``.
        token_id: the token.
        count: how many to find, at most.

    >>> nearest_tokens(unit_embeddings(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])), 0, count=5)
    [(1, 1.0), (2, 2.0)]
    """
    if not 0 <= token_id < len(unit):
        raise InvalidInputError(f"expected a token id from 0 to {len(unit) - 1}; got {token_id}")
    distance = 1 - unit @ unit[token_id]
    distance[token_id] = torch.inf
    found = distance.sort(stable=True)
    kept = slice(0, min(count, len(unit) - 1))
    return list(zip(found.indices[kept].tolist(), found.values[kept].tolist(), strict=True))


@hookimpl
def register_metrics(register: Any) -> None:
    """Register the metric."""
    register(EmbeddingDistance)


@hookimpl
def register_commands(app: Any) -> None:
    """Add `xent nearest-tokens`."""
    import typer  # here, because the metric doesn't need it

    @app.command("nearest-tokens")
    def command(
        embeddings: Annotated[Path, typer.Argument(help="File with a tensor (V, D), written by torch.save.")],
        token_id: Annotated[int, typer.Option("--id", help="Id of the token.", min=0)],
        count: Annotated[int, typer.Option(help="Number of tokens to list.", min=1)] = 10,
        tokenizer: Annotated[
            str | None, typer.Option(help="Hugging Face tokenizer, to show tokens beside their ids.")
        ] = None,
    ) -> None:
        """List the tokens nearest to one by the cosine distance that embedding_distance averages."""
        found = nearest_tokens(unit_embeddings(embeddings), token_id, count)
        tokens = _tokens(tokenizer, [other for other, _ in found]) if tokenizer else [""] * len(found)
        for (other, distance), token in zip(found, tokens, strict=True):
            print(f"{distance:.4f} {other:>8} {token}".rstrip())


def _tokens(tokenizer: str, ids: list[int]) -> list[str]:
    from transformers import AutoTokenizer

    return [repr(token) for token in AutoTokenizer.from_pretrained(tokenizer).convert_ids_to_tokens(ids)]
