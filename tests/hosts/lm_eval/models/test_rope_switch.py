"""RoPE scaling that changes the frequencies of a whole batch: every text is scored as it is alone."""

from __future__ import annotations

import pytest
from support.hf_model import SWITCHING, TEXT, requests, stock, switched_off, tiny_model

from xent_metrics.hosts.lm_eval import XentHFLM


@pytest.mark.parametrize("name", SWITCHING)
def test_each_text_has_the_positions_that_it_has_alone(name, tokenizer):
    """Contexts and choices on both sides of the length at which the frequencies change."""
    lengths = (40, 100, 120, 160, 300)
    choices = (" the", " the loss", " a model that counts alike by everyone and is longer than the others", " Größe")
    pairs = requests("loglikelihood", [(TEXT[:length], choice) for length in lengths for choice in choices])
    sizes = [len(tokenizer.encode("".join(pair.args))) for pair in pairs]
    assert min(sizes) < 40 < 48 < max(sizes)
    ours = XentHFLM(pretrained=tiny_model(name), tokenizer=tokenizer, batch_size=8, max_length=88)
    assert switched_off(ours) == set()
    found = ours.loglikelihood(pairs)
    assert switched_off(ours) == set()
    for pair, result in zip(pairs, found, strict=True):
        alone = stock(
            tiny_model(name), tokenizer, max_length=88
        )  # a new one: some keep the frequencies of the longest text
        assert result[0] == pytest.approx(alone.loglikelihood([pair], disable_tqdm=True)[0][0], rel=1e-5)
