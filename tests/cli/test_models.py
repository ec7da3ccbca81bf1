"""`xent compare-models`: its table; what it measures is tested in tests/hosts."""

import json

import pytest
from support.cli import fits, xent

from xent_metrics.hosts import model_pair
from xent_metrics.hosts.model_pair import Finding

FOUND = [
    Finding("perplexity", "base", 12.3456789, 0.5, "perplexity"),
    Finding("perplexity", "other", 12.5, 0.5, "perplexity"),
    Finding("root_mean_square_probability_change", "both", 0.1, float("nan"), "probability"),
]


@pytest.fixture
def asked(monkeypatch):
    """What the command asks to be measured."""
    asked = []
    monkeypatch.setattr(model_pair, "compare_models", lambda *args, **options: asked.append((args, options)) or FOUND)
    return asked


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_stay_whole_in_a_narrow_terminal(width, asked):
    table = xent("compare-models", "[b]base", "other", "--text", "a.txt", width=width)
    assert fits(table, width)
    assert "root_mean_square_probability_change" in table
    assert table.startswith("base: [b]base")
    assert table.count("├") == 2
    assert "nan" not in table
    assert ("No room for: model" in table) == (width == 60)


def test_options_are_passed_on(asked):
    printed = xent(
        "compare-models", "b", "o", "--text", "a", "--text", "c", "--max-length", 8, "--dtype", "float32", "--json"
    )
    [((base, other, texts), options)] = asked
    assert (base, other, [str(text) for text in texts]) == ("b", "o", ["a", "c"])
    assert (options["max_length"], options["dtype"], options["batch_size"]) == (8, "float32", 1)
    assert json.loads(printed)[2]["standard_error"] is None
