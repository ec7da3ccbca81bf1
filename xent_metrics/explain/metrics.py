"""What is known of a metric, read from its class; each kind of lm-eval model is asked whether it can give the scores.

Nothing is written down twice: formula, unit, use and reference are the class' attributes, options and their meanings are in
its signature and docstring, and models are asked as they are before a run.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass

from xent_metrics.errors import MissingExtraError
from xent_metrics.explain.made_up import made_up_metric
from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.plugins import plugins
from xent_metrics.sums.metric import TokenMetric

__all__ = ["FAMILIES", "SCORES", "MetricFacts", "Option", "by_family", "is_built_in", "metric_facts", "needed_scores"]

#: The headings under which metrics are listed, and the modules of `xent_metrics.metrics` that each has, in this order.
FAMILIES = {
    "Loss": ("cross_entropy", "bits_per_byte", "binary"),
    "Accuracy and rank": ("accuracy", "ranking"),
    "The whole distribution": ("distribution",),
    "Calibration": ("calibration", "class_calibration", "calibration_split", "temperature", "calibration_weighted"),
    "Two models": ("divergence",),
}
_PLUGINS = "Plugins"
_BUILT_IN = "xent_metrics.metrics"

#: What the scores are that a metric may need.
SCORES = {
    "nll": "−ln p(target) of each row, in nats",
    "confidence": "the largest probability of each row",
    "correct": "whether the target is the likeliest class",
    "target": "the target's id",
    "num_bytes": "the bytes of each row's text: by `token_bytes`, or by the host, which knows the text",
    "num_words": "the words of each row's text, which the host counts",
    "logits": "all logits of each row, from which a score of the metric's own is computed in the same pass",
    "logits of two models": "all logits of both models for the same rows",
}


@dataclass(frozen=True)
class Option:
    """An option of a metric.

    Attributes:
        name: its keyword.
        default: as Python; "required" if there is none.
        meaning: what the docstrings say of it.
    """

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class MetricFacts:
    """What is known of a metric; texts that a plugin's metric doesn't have are empty.

    Attributes:
        name: the registered name.
        import_path: of its class.
        summary: the docstring's first line.
        details: the docstring's other paragraphs, without its sections and its example.
        formula, latex, unit, use_when, hides, reference: the class' attributes.
        better: "lower" or "higher"; empty if neither is better.
        options: all but `ignore_index`, which every metric has.
        needs: the scores that it needs, by name.
        hosts: who gives these scores, each with whether it does; empty if that isn't known without options.
        example: a doctest.
    """

    name: str
    import_path: str
    summary: str
    details: str
    formula: str
    latex: str
    unit: str
    use_when: str
    hides: str
    reference: str
    better: str
    options: tuple[Option, ...]
    needs: tuple[str, ...]
    hosts: dict[str, bool]
    example: str


def metric_facts(metric: type[TokenMetric]) -> MetricFacts:
    """Read what is known of a metric.

    >>> from xent_metrics.metrics import BitsPerByte
    >>> facts = metric_facts(BitsPerByte)
    >>> facts.unit, facts.better, facts.needs, facts.options[0].name
    ('bits per byte', 'lower', ('nll', 'num_bytes'), 'token_bytes')
    """
    summary, *paragraphs = _own_doc(metric).split("\n\n")
    texts = [each for each in paragraphs if not re.match(r"(Args|Raises):\n|>>>", each)]
    return MetricFacts(
        name=metric.name,
        import_path=f"{_public_module(metric)}.{metric.__name__}",
        summary=" ".join(summary.split()),
        details="\n\n".join(texts),
        formula=metric.formula,
        latex=metric.latex,
        unit=metric.value_unit,
        use_when=metric.use_when,
        hides=metric.hides,
        reference=metric.reference,
        better={True: "higher", False: "lower", None: ""}[metric.higher_is_better],
        options=tuple(_options(metric)),
        needs=tuple(needed_scores(metric)),
        hosts=_hosts(metric),
        example=_example(metric, next((each for each in paragraphs if each.startswith(">>>")), "")),
    )


def _own_doc(documented: type) -> str:
    """A class' own docstring, rather than that of a base."""
    return inspect.cleandoc(vars(documented).get("__doc__") or "")


def _public_module(metric: type[TokenMetric]) -> str:
    return _BUILT_IN if is_built_in(metric) else metric.__module__


def is_built_in(metric: type[TokenMetric]) -> bool:
    """False for a plugin's metric."""
    return bool(_built_in_module(metric))


def _built_in_module(metric: type[TokenMetric]) -> str:
    """The last name of a built-in metric's module; empty for a plugin's metric."""
    package, _, module = metric.__module__.rpartition(".")
    return module if package == _BUILT_IN else ""


def needed_scores(metric: type[TokenMetric]) -> list[str]:
    """The scores that the metric requires; `logits` too if it computes extra scores of them."""
    if issubclass(metric, PairMetric):
        return ["logits of two models"]
    return sorted(metric.requires) + ["logits"] * (metric.extra_scores is not TokenMetric.extra_scores)


def _example(metric: type[TokenMetric], doctest: str) -> str:
    """A docstring's example with the imports that its module has."""
    imports = {
        "math.": "import math",
        "torch.": "import torch",
        f"{metric.__name__}(": f"from {_public_module(metric)} import {metric.__name__}",
    }
    needed = [line for name, line in imports.items() if name in doctest and line not in doctest]
    return "\n".join([*(f">>> {line}" for line in needed), doctest])


def _options(metric: type[TokenMetric]) -> list[Option]:
    return [
        Option(name, _default(option), _meaning(metric, name))
        for name, option in metric.options().items()
        if name != "ignore_index"
    ]


def _default(option: inspect.Parameter) -> str:
    if option.default is option.empty:
        return "required"
    return f'"{option.default}"' if isinstance(option.default, str) else repr(option.default)


def _meaning(metric: type[TokenMetric], option: str) -> str:
    """What the nearest docstring says of an option; "as for `Other`" is what that metric's says."""
    for base in metric.__mro__:
        text = _args(base).get(option, "")
        if named := re.match(r"as for `(\w+)`", text):
            text = next((_args(m).get(option, "") for m in plugins().metrics.values() if m.__name__ == named[1]), "")
        if text:
            return text
    return ""


def _args(documented: type) -> dict[str, str]:
    """The section `Args` of a class' own docstring, by name."""
    section = next((part for part in _own_doc(documented).split("\n\n") if part.startswith("Args:\n")), "Args:\n")
    found: dict[str, str] = {}
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
        found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _hosts(metric: type[TokenMetric]) -> dict[str, bool]:
    """Who gives the scores; hosts that aren't installed are left out."""
    built = made_up_metric(metric)
    if built is None:
        return {}
    if isinstance(built, PairMetric):
        return {"PyTorch, with the logits of both models": True} | _model_pair(built)
    return {"PyTorch, Lightning and the Trainer": "num_words" not in built.requires} | _lm_eval_models(built)


def _model_pair(metric: TokenMetric) -> dict[str, bool]:
    try:
        from xent_metrics.hosts.model_pair import PAIR_METRICS
    except MissingExtraError:
        return {}
    return {"`xent compare-models`": metric.name in PAIR_METRICS}


def _lm_eval_models(metric: TokenMetric) -> dict[str, bool]:
    try:
        from xent_metrics.hosts.lm_eval.requirements import models_that_score
    except MissingExtraError:
        return {}
    return models_that_score(metric)


def by_family() -> dict[str, list[type[TokenMetric]]]:
    """The registered metrics under their headings: built-in ones in the order of `FAMILIES` and of their modules.

    >>> [metric.name for metric in by_family()["Accuracy and rank"]]
    ['token_accuracy', 'top_k_accuracy', 'mean_reciprocal_rank']
    """
    registered = list(plugins().metrics.values())
    found = {
        family: [m for module in modules for m in _defined_in(module, registered)]
        for family, modules in FAMILIES.items()
    }
    others = {m for m in registered if not is_built_in(m)}
    return found | {_PLUGINS: sorted(others, key=lambda metric: metric.name)}


def _defined_in(module: str, registered: Iterable[type[TokenMetric]]) -> list[type[TokenMetric]]:
    """The registered metrics of a module of ours, in their order there."""
    found = [metric for metric in registered if _built_in_module(metric) == module]
    return sorted(found, key=lambda metric: inspect.getsourcelines(metric)[1])
