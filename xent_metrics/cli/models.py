"""`xent compare-models`: a model against the one it was made from."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xent_metrics.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from xent_metrics.hosts.model_pair import Finding

__all__ = ["compare_models"]


def compare_models(
    base: Annotated[str, typer.Argument(help="Folder or name of a Hugging Face causal model and its tokenizer.")],
    other: Annotated[str, typer.Argument(help="The model to compare with it: quantised, pruned, fine-tuned …")],
    text: Annotated[list[Path], typer.Option(help="UTF-8 text file; repeat for several.")],
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer, if not the base model's.")] = None,
    max_length: Annotated[int, typer.Option(help="Window length in tokens.", min=2)] = 512,
    batch_size: Annotated[int, typer.Option(help="Number of windows per forward pass.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda …; by default a GPU if available.")] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the models; auto keeps the dtype they were saved in.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure how far a model is from its base on a text: KL divergence, perplexity ratio, agreement on the top token."""
    from xent_metrics.hosts import model_pair

    found = model_pair.compare_models(
        base, other, text, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size, device=device, dtype=dtype
    )
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        _print(base, other, found)


def _print(base: str, other: str, found: list[Finding]) -> None:
    from xent_metrics.cli.tables import Column, print_table

    columns = [
        Column("model", drop=2),
        Column("metric", bold=True),
        Column("value", justify="right"),
        Column("± s.e.", drop=1, justify="right"),
        Column("unit", drop=3),
    ]
    names = {"base": "base", "other": "other", "both": "other vs. base"}
    rows = [
        [
            names[finding.of],
            finding.name,
            f"{finding.value:.6g}",
            "" if math.isnan(finding.standard_error) else f"{finding.standard_error:.2g}",
            finding.unit,
        ]
        for finding in found
    ]
    sections = {place for place in range(len(found) - 1) if found[place + 1].of != found[place].of}
    print_table(columns, rows, title=f"base: {base}\nother: {other}", sections=sections)
