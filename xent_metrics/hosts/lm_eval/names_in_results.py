"""The names under which lm-eval's files hold our standard errors and sums: `tidy_names`.

A document's sums are emitted as ``<name>_stderr``, so that the aggregation of that name gives the standard error. lm-eval then
looks for the error of this "metric", and logs the sums as if they were an error.
"""

from __future__ import annotations

from typing import Any

from xent_metrics.hosts.lm_eval.documents import DocumentSums

__all__ = ["tidy_names"]


def tidy_names(results: dict[str, Any]) -> None:
    """Leave ``<name>_stderr_stderr`` out of the results, and name the sums in the samples ``<name>_sums``, in place."""
    for found in (*results.get("results", {}).values(), *results.get("groups", {}).values()):
        for key in [key for key in found if "_stderr_stderr," in key]:
            del found[key]
    for samples in results.get("samples", {}).values():
        for sample in samples:
            _name_sums(sample)


def _name_sums(sample: dict[str, Any]) -> None:
    sums = {key: f"{key.removesuffix('_stderr')}_sums" for key in sample if isinstance(sample[key], DocumentSums)}
    new = {key: name for key, name in sums.items() if name not in sample}  # a metric may be called so
    renamed = {new.get(key, key): value for key, value in sample.items()}
    if "metrics" in renamed:
        renamed["metrics"] = [new.get(name, name) for name in renamed["metrics"]]
    sample.clear()
    sample.update(renamed)
