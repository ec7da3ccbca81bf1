"""Two models over one text against plain loops in float64, and the command as a user runs it."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from support.hf_model import TEXT, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts import model_pair
from xent_metrics.hosts.model_pair import compare_models

LENGTH = 32


@pytest.fixture(scope="module")
def pair():
    """A model, and a copy with its weights rounded to a few bits."""
    base = tiny_model("llama_tied")
    other = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in other.parameters():
            step = parameter.abs().max() / 7
            parameter.copy_((parameter / step).round() * step)
    return base, other


@pytest.fixture(scope="module")
def folders(pair, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, model in zip(("base", "other"), pair, strict=True):
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    (root / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    return root


def by_hand(models, ids):
    """Both models' distributions at each scored token, its id, and the window sizes: window by window, in float64."""
    rows, targets = [[], []], []
    for start in range(0, len(ids), LENGTH):
        window = torch.tensor([[0, *ids[start : start + LENGTH]]])
        for found, model in zip(rows, models, strict=True):
            with torch.no_grad():
                found.append(torch.log_softmax(model(window[:, :-1]).logits[0].double(), -1))
        targets.append(window[0, 1:])
    return torch.cat(rows[0]).numpy(), torch.cat(rows[1]).numpy(), torch.cat(targets).numpy(), [len(t) for t in targets]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_value_equals_a_plain_loop(pair, folders, batch_size):
    found = compare_models(
        *pair, [folders / "text.txt"], tokenizer=tiny_tokenizer(), max_length=LENGTH, batch_size=batch_size
    )
    values = {(finding.of, finding.name): finding.value for finding in found}
    ids = tiny_tokenizer()(TEXT * 3)["input_ids"]
    log_p, log_q, target, _ = by_hand(pair, ids)
    assert len(target) == len(ids)  # every token once
    place = np.arange(len(target))
    divergences = (np.exp(log_p) * (log_p - log_q)).sum(1)
    change = np.exp(log_q)[place, target] - np.exp(log_p)[place, target]
    expected = {
        ("base", "cross_entropy"): -log_p[place, target].mean(),
        ("other", "perplexity"): math.exp(-log_q[place, target].mean()),
        ("other", "token_accuracy"): (log_q.argmax(1) == target).mean(),
        ("both", "kl_divergence"): divergences.mean(),
        ("both", "log_perplexity_ratio"): (log_p - log_q)[place, target].mean(),
        ("both", "probability_change"): change.mean(),
        ("both", "rms_probability_change"): np.sqrt((change**2).mean()),
        ("both", "same_top_token"): (log_p.argmax(1) == log_q.argmax(1)).mean(),
    }
    for key, value in expected.items():
        assert values[key] == pytest.approx(value, rel=1e-4), key
    for called, quantile in {"p50": 0.5, "p99": 0.99, "p99_9": 0.999, "maximum": 1.0}.items():
        exact = np.quantile(divergences, quantile, method="inverted_cdf")
        assert values["both", f"kl_divergence_{called}"] == pytest.approx(exact, rel=0.0101)


def test_the_standard_error_is_the_ratio_estimators_over_windows(pair, folders):
    found = compare_models(*pair, [folders / "text.txt"], tokenizer=tiny_tokenizer(), max_length=LENGTH)
    errors = {finding.name: finding.standard_error for finding in found if finding.of == "both"}
    log_p, log_q, _, sizes = by_hand(pair, tiny_tokenizer()(TEXT * 3)["input_ids"])
    divergences = (np.exp(log_p) * (log_p - log_q)).sum(1)
    windows = np.split(divergences, np.cumsum(sizes)[:-1])
    residuals = np.array([window.sum() - divergences.mean() * len(window) for window in windows])
    expected = math.sqrt(len(windows) / (len(windows) - 1) * (residuals**2).sum()) / len(divergences)
    assert errors["kl_divergence"] == pytest.approx(expected, rel=1e-3)
    assert math.isnan(errors["kl_divergence_p99"])


def test_a_model_does_not_differ_from_itself(pair, folders):
    found = compare_models(pair[0], pair[0], [folders / "text.txt"], tokenizer=tiny_tokenizer())
    values = {finding.name: finding.value for finding in found if finding.of == "both"}
    assert values.pop("same_top_token") == 1.0
    assert all(value == pytest.approx(0.0, abs=1e-6) for value in values.values()), values


def test_the_command_shows_a_table_and_prints_json(folders, pair):
    arguments = ["compare-models", str(folders / "base"), str(folders / "other"), "--text", str(folders / "text.txt")]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "kl_divergence_p99_9" in shown.stdout
    printed = CliRunner().invoke(app, [*arguments, "--json", "--max-length", str(LENGTH)])
    findings = json.loads(printed.stdout)
    same = compare_models(*pair, [folders / "text.txt"], tokenizer=tiny_tokenizer(), max_length=LENGTH)
    assert [finding["value"] for finding in findings] == [finding.value for finding in same]
    quantile = next(finding for finding in findings if finding["name"] == "kl_divergence_p99")
    assert quantile["standard_error"] is None
    assert quantile["unit"] == "nats"


def test_without_a_bos_token_the_first_token_is_not_scored(pair, folders):
    found = compare_models(
        *pair, [folders / "text.txt"], tokenizer=tiny_tokenizer(bos_token=None), max_length=LENGTH, progress=False
    )
    assert all(math.isfinite(finding.value) for finding in found)


def test_bad_input_is_refused_before_a_model_runs(pair, folders, tmp_path):
    text, tokenizer = [folders / "text.txt"], tiny_tokenizer()
    bigger = copy.deepcopy(pair[1])
    bigger.resize_token_embeddings(400)
    with pytest.raises(InvalidInputError, match=r"the base has 384 ids, the other model 400 and the tokenizer 384"):
        compare_models(pair[0], bigger, text, tokenizer=tokenizer)
    with pytest.raises(InvalidInputError, match="has no tokenizer; pass tokenizer="):
        compare_models(*pair, text)
    with pytest.raises(InvalidInputError, match=r"nowhere: AutoTokenizer can't be loaded"):
        compare_models(tmp_path / "nowhere", pair[1], text)
    with pytest.raises(InvalidInputError, match=r"missing\.txt: expected a file of UTF-8 text"):
        compare_models(*pair, [tmp_path / "missing.txt"], tokenizer=tokenizer)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InvalidInputError, match="expected at least two tokens of text; got 0"):
        compare_models(*pair, [tmp_path / "empty.txt"], tokenizer=tokenizer)
    with pytest.raises(InvalidInputError, match="max_length is at least 2"):
        compare_models(*pair, text, tokenizer=tokenizer, max_length=1)
    with pytest.raises(InvalidInputError, match="expected at least one text file"):
        compare_models(*pair, [], tokenizer=tokenizer)


def test_paths_are_looked_at_before_a_model_is_loaded(folders, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(model_pair, "_loaded_model", lambda *model: loaded.append(model))
    base, text = folders / "base", folders / "text.txt"
    with pytest.raises(InvalidInputError, match=r"nowhere: AutoConfig can't be loaded"):
        compare_models(base, tmp_path / "nowhere", [text])
    with pytest.raises(InvalidInputError, match=r"missing\.txt: expected a file of UTF-8 text"):
        compare_models(base, folders / "other", [text, tmp_path / "missing.txt"])
    assert not loaded
