"""Run rows of ids through any causal module, and score what they predict: `Forward`.

`xent-torch` uses it as it is: it runs the module on padded rows of ids. `HFForward` adds the shortcuts of `xent-hf`. The
runner (runner.py) drives both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.packing import Costs, Row
from xent_metrics.hosts.lm_eval.models.rope_switch import RopeSwitch
from xent_metrics.hosts.lm_eval.models.transfer import send
from xent_metrics.scoring.score import score_tokens
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["Forward"]


class Forward:
    """Runs rows of ids through a causal module and scores the logits that predict their targets.

    Args:
        module: ids ``(B, T)`` to logits ``(B, T, V)``, to an object with `.logits`, or to a tuple that begins with them.
        device: where the ids go.
        fill: the id that rows are padded with, on the right.
        row_length: the length that every row is padded to; by default that of the longest row in the batch.
        context: makes a context manager within which the module runs.
        bytes_table: gives UTF-8 bytes by id for a number of logits; None for a tokenizer whose bytes can't be counted.

    Attributes:
        extra_scores: extra scores of each token, for the following calls. They are computed in a separate pass, so that the
            other scores don't change by a bit.
        packing, caching: whether rows may be trees, and may start after a cached prefix. Always off here.
        costs: what sharing costs.
        rope_switch: the length at which a batch changes its rotary frequencies, if the module does that.
        rounding: the measured relative change of the outputs by rounding alone.
    """

    packing = caching = False
    costs = Costs()
    rope_switch: RopeSwitch | None = None
    rounding = 0.0

    def __init__(
        self,
        module: nn.Module,
        *,
        device: torch.device,
        fill: int = 0,
        row_length: int | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        bytes_table: Callable[[int], Tensor | None] = lambda vocab_size: None,
    ) -> None:
        self.model, self.device, self.fill, self.row_length, self.context = module, device, fill, row_length, context
        self.extra_scores: Mapping[str, ExtraScore] = {}
        self._bytes_table = bytes_table
        self._tables: dict[tuple[int, torch.device], Tensor | None] = {}

    @property
    def name(self) -> str:
        """The name of the model's class, for messages."""
        return type(self.model).__name__

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the module computes in."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    # Running.

    def prefix_cache(self, prefix: Sequence[int]) -> Any:
        """The keys and values of a prefix. Called only if `caching` is on."""
        raise NotImplementedError

    @torch.no_grad()
    def states(self, rows: Sequence[Row], cache: Any = None) -> Tensor:
        """The logits (or hidden states) that predict the targets of the rows, ``(N, V or H)``, in the order of `places`."""
        found = self._outputs(rows, cache)
        starts = self._starts(rows, found.shape[1])
        wanted = [
            start + column
            for start, row in zip(starts, rows, strict=True)
            for _, columns, _ in row.places
            for column in columns
        ]
        flat = found.flatten(0, 1)
        if wanted == list(range(len(flat))):
            return flat  # no copy of all logits
        return flat[send(wanted, flat.device)]

    @torch.no_grad()
    def logits_of(self, ids: Tensor) -> Tensor:
        """The logits of every position ``(B, T, V)``.

        Raises:
            InvalidInputError: the module returns something else.
        """
        with self.context():
            output = self.model(send(ids, self.device))
        logits = getattr(output, "logits", output)
        if isinstance(logits, tuple | list):
            logits = logits[0]
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            raise InvalidInputError(
                f"{self.name} gave {got} for ids {tuple(ids.shape)}; expected logits (B, T, V), "
                "an object with `.logits`, or a tuple that begins with them"
            )
        return logits

    def _outputs(self, rows: Sequence[Row], cache: Any) -> Tensor:
        """The logits (or hidden states) of every position, ``(B, T, V or H)``."""
        return self.logits_of(self._ids(rows))

    def _starts(self, rows: Sequence[Row], width: int) -> list[int]:
        """Where each row begins among the outputs of a batch, of which each row has `width`."""
        virtual = width - self._length(rows)  # the virtual tokens of a prompt-tuned model
        return [i * width + virtual for i in range(len(rows))]

    def _length(self, rows: Sequence[Row]) -> int:
        return self.row_length or max(map(len, rows))

    def _ids(self, rows: Sequence[Row]) -> Tensor:
        """The padded ids ``(B, T)``."""
        ids = torch.full((len(rows), self._length(rows)), self.fill)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row.tokens)
        return ids

    # Scoring.

    def score(self, states: Tensor, targets: Sequence[int]) -> TokenScores:
        """The scores of targets under logits (or hidden states), in float32 or wider, on the device of these."""
        scores = self._scored(states, targets)
        if self.extra_scores:
            extra_scores = self._scored(states, targets, self.extra_scores).extra_scores
            scores = dataclasses.replace(scores, extra_scores=extra_scores)
        return scores

    def _scored(
        self, states: Tensor, targets: Sequence[int], extra_scores: Mapping[str, ExtraScore] | None = None
    ) -> TokenScores:
        target, token_bytes = send(targets, states.device), self._num_bytes(states.shape[-1], states.device)
        return score_tokens(states, target, token_bytes=token_bytes, extra_scores=extra_scores)

    def _num_bytes(self, vocab_size: int, device: torch.device) -> Tensor | None:
        """UTF-8 bytes by id, looked up and copied to the device once."""
        key = vocab_size, device
        if key not in self._tables:
            table = self._bytes_table(vocab_size)
            self._tables[key] = None if table is None else send(table, device)
        return self._tables[key]
