"""The facts as Markdown: a metric's page, the page of errors, the README's table of metrics.

Formulas are in blocks of ```math, which code hosts show and docs/tools/docs_site.py turns into MathML.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from xent_metrics.explain.errors import ErrorFacts, all_errors, error_facts
from xent_metrics.explain.metrics import SCORES, MetricFacts, by_family, is_built_in, metric_facts
from xent_metrics.plugins import list_metrics

__all__ = ["SYMBOLS", "errors_page", "metric_page", "metrics_page", "metrics_table"]

#: The letters of the formulas.
SYMBOLS = """\
t runs over the counted tokens, of which there are N; tokens with weights count as their weights. p_t(v) is the model's
probability of class v in place of token t, z_t(v) its logit, q_t(v) the probability of a second model, and y_t the target. A
condition in brackets, [v = y_t], is 1 if it is true and 0 if not. b is one of M bins of the top-1 confidence, with n_b tokens,
the accuracy acc_b and the mean confidence conf_b."""


def metric_page(facts: MetricFacts, picture: str = "") -> str:
    """The page of a metric; sections without content are left out.

    Args:
        facts: what is known of it.
        picture: the address of its picture, if it has one.
    """
    sections = {
        "": f"{facts.summary}\n\n{_formula(facts)}\n\n{_at_a_glance(facts)}",
        "When to use it": _linked(facts.use_when, but=facts.name),
        "What it hides": _linked(facts.hides, but=facts.name),
        "Details": facts.details,
        "Options": _options(facts),
        "Scores that it needs": _scores(facts),
        "Example": f"```pycon\n{facts.example}\n```" if facts.example else "",
        "Picture": f"![{facts.name} of made-up data]({picture})\n\n{_CAPTION}" if picture else "",
    }
    written = [f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text.strip()]
    return "\n\n".join([f"# {facts.name}", *written]) + "\n"


_CAPTION = (
    "`metric.plot()` of made-up data: a model that learns to predict 32 classes in a dozen steps and is overconfident."
)


def _formula(facts: MetricFacts) -> str:
    latex = f"```math\n{facts.latex}\n```\n\n" if facts.latex else ""
    return latex + (f"In words: `{facts.formula}`" if facts.formula else "")


def _at_a_glance(facts: MetricFacts) -> str:
    rows = {
        "name": f"`{facts.name}`",
        "class": f"`{facts.import_path}`",
        "unit": facts.unit,
        "better": facts.better,
        "reference": facts.reference,
    }
    return "\n".join(f"- **{name}**: {text}" for name, text in rows.items() if text)


def _linked(text: str, *, but: str) -> str:
    """The text with links to the pages of other metrics; names of one word may be mere words."""
    names = {name for name in list_metrics() if "_" in name} - {but}
    return re.sub(r"\w+", lambda word: f"[{word[0]}]({word[0]}.md)" if word[0] in names else word[0], text)


def _options(facts: MetricFacts) -> str:
    every = "`ignore_index=-100`, the target that doesn't count, is an option of every metric."
    if not facts.options:
        return f"None of its own. {every}"
    rows = [(f"`{each.name}`", f"`{each.default}`", each.meaning) for each in facts.options]
    return f"{_table(('option', 'default', 'meaning'), rows)}\n\n{every}"


def _scores(facts: MetricFacts) -> str:
    needs = "\n".join(f"- `{name}`: {SCORES.get(name, 'a score of its own')}" for name in facts.needs)
    if not facts.hosts:
        return needs
    rows = [(host, "yes" if able else "no") for host, able in facts.hosts.items()]
    return f"{needs}\n\n{_table(('given by', ''), rows)}"


def metrics_page() -> str:
    """The list of all metrics, with a link to the page of each."""
    parts = ["# The metrics", f"In the formulas, {SYMBOLS}"]
    for family, metrics in by_family().items():
        rows = [
            (f"[{f.name}]({f.name}.md)", f.unit, re.split(r"(?<=[.]) ", f.use_when)[0])
            for f in map(metric_facts, metrics)
        ]
        if rows:
            parts.append(f"## {family}\n\n{_table(('metric', 'unit', 'use'), rows)}")
    return "\n\n".join(parts) + "\n"


def metrics_table() -> str:
    """The README's table: name, formula with options, and unit of every registered metric."""
    rows = []
    for metric in (metric for family in by_family().values() for metric in family):
        facts = metric_facts(metric)
        name = f"`{facts.name}`" if is_built_in(metric) else f"`{facts.name}` (plugin)"
        rows.append((name, "; ".join([facts.formula, *filter(None, [_option_names(facts)])]), facts.unit))
    return _table(("name", "formula; options", "unit"), rows)


def _option_names(facts: MetricFacts) -> str:
    return ", ".join(f"`{o.name}`" if o.default == "required" else f"`{o.name}={o.default}`" for o in facts.options)


def errors_page() -> str:
    """The page of all errors: causes, cures, and an example that raises each."""
    intro = (
        "The first line of an error's message ends in its code. `xent explain E007` shows what is written here. The examples run "
        "in the tests.\n\nEvery error is a `XentMetricsError`, and also the built-in error that it is a kind of: "
        "`InvalidInputError` is a `ValueError`, too."
    )  # fmt: skip
    found = [error_facts(error) for error in all_errors()]
    index = _table(("code", "error", ""), [(f"[{f.code}](#{_anchor(f)})", f"`{f.name}`", f.summary) for f in found])
    return "\n\n".join(["# Errors", _wrapped(intro), index, *map(_error, found)]) + "\n"


def _error(facts: ErrorFacts) -> str:
    example = f"```pycon\n{facts.example}\n```"
    texts = (facts.summary, f"**Cause.** {facts.cause}", f"**Cure.** {facts.cure}")
    return "\n\n".join([f"## {facts.code} {facts.name}", *map(_wrapped, texts), example])


def _anchor(facts: ErrorFacts) -> str:
    return f"{facts.code}-{facts.name}".lower()


def _wrapped(text: str) -> str:
    return "\n\n".join(
        textwrap.fill(part, 125, break_long_words=False, break_on_hyphens=False) for part in text.split("\n\n")
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(each.replace('|', chr(92) + '|') for each in line)} |" for line in lines)
