r"""`xent lm-eval …`: lm-eval's own command, with our models, every task folder and three options.

    xent lm-eval run --model xent-hf --model_args pretrained=… --tasks wikitext,arc_easy \
        --xent_metrics "bits_per_byte,cross_entropy:unit=bits;name=bits_per_token"
    xent lm-eval run … --tasks gsm8k --xent_metrics bits_per_byte --xent_only          # the gold answers; no generation
    xent lm-eval run … --resume runs/gpt2                 # goes on after it was killed

All other options are lm-eval's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from xent_metrics.errors import MetricOptionError
from xent_metrics.hosts.lm_eval.loggers import command_loggers
from xent_metrics.hosts.lm_eval.metric_entry import OWN_KEYS
from xent_metrics.hosts.lm_eval.resume import resume
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager
from xent_metrics.hosts.lm_eval.upstream import as_command
from xent_metrics.plugins import get_metric

__all__ = ["parse_metrics", "run"]


def run(
    arguments: Sequence[str], metrics: str | None = None, *, only: bool = False, resume_from: str | Path | None = None
) -> None:
    """Run lm-eval's command.

    Args:
        arguments: the command line, without the program's name.
        metrics: added to every task; ``a,b:option=value;option=value``.
        only: leave lm-eval's own metrics out, so that nothing is generated.
        resume_from: the folder that keeps the results of requests, for a run that goes on after it was killed.
    """
    entries = parse_metrics(metrics)
    kept = nullcontext() if resume_from is None else resume(resume_from)
    manager = partial(XentTaskManager, entries=entries, only=only)
    with kept, as_command(arguments, manager, command_loggers()) as command:
        command()


def parse_metrics(text: str | None, option: str = "--xent_metrics") -> list[dict[str, Any]]:
    """Parse ``a,b:unit=bits;over=choices`` into entries of a `metric_list`, and check their names and options.

    Args:
        text: the list.
        option: of the command, for error messages.

    >>> parse_metrics("bits_per_byte,expected_calibration_error:num_bins=10;over=choices")
    [{'metric': 'bits_per_byte'}, {'metric': 'expected_calibration_error', 'num_bins': 10, 'over': 'choices'}]
    """
    return [_parse_metric(part.strip(), option) for part in (text or "").split(",") if part.strip()]


def _parse_metric(text: str, option_name: str) -> dict[str, Any]:
    name, _, given = text.partition(":")
    entry: dict[str, Any] = {"metric": name.strip()}
    for option in filter(None, given.split(";")):
        key, equals, value = option.partition("=")
        if not equals:
            raise MetricOptionError(f"{option_name} {text}: expected name:option=value;option=value; got {option!r}")
        try:
            entry[key.strip()] = (
                value if key.strip() == "doc_to_gold" else yaml.safe_load(value)
            )  # YAML would read {{…}}
        except (yaml.YAMLError, ValueError) as error:
            why = " ".join(str(error).split())
            raise MetricOptionError(f"{option_name} {text}: expected a value in YAML; got {value!r}: {why}") from error
    get_metric(entry["metric"], **{key: value for key, value in entry.items() if key not in OWN_KEYS})
    return entry
