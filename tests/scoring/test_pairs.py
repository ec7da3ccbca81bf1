"""The scores of a pair of models: limits, and input that can't be scored."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.pairs import score_pair
from xent_metrics.scoring.score import score_tokens


def test_impossible_tokens_are_infinitely_far_one_way_and_ln_2_the_other():
    left, right = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
    found = score_pair(left, right).extra_scores
    assert found["kl_divergence"].item() == math.inf
    assert found["jensen_shannon_divergence"].item() == pytest.approx(math.log(2))
    assert score_pair(left, left).extra_scores["kl_divergence"].item() == 0.0


def test_bad_input_says_why():
    base = torch.zeros(2, 4)
    with pytest.raises(InvalidInputError, match=r"got \(2, 4\) on cpu and \(2, 5\).*share their vocabulary"):
        score_pair(base, torch.zeros(2, 5))
    with pytest.raises(InvalidInputError, match="temperature is positive; got 0"):
        score_pair(base, base, temperature=0)


def noisy_pair(scale, dtype=torch.float32):
    """Float32 logits of a model and of the same with noise, 300 rows of 40."""
    generator = torch.Generator().manual_seed(2)
    base = 3 * torch.randn(300, 40, generator=generator)
    return base.to(dtype), (base + scale * torch.randn(300, 40, generator=generator)).to(dtype)


def exact_divergences(base, other):
    """KL and Jensen–Shannon of each row, in fifty digits."""
    with mpmath.workdps(50):
        found = []
        for x, y in zip(base.tolist(), other.tolist(), strict=True):
            p, q = ([mpmath.exp(mpmath.mpf(v)) for v in row] for row in (x, y))
            p, q = ([v / mpmath.fsum(row) for v in row] for row in (p, q))
            m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
            kl = [
                mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(*pq, strict=True)) for pq in ((p, q), (p, m), (q, m))
            ]
            found.append((float(kl[0]), float((kl[1] + kl[2]) / 2)))
        return torch.tensor(found, dtype=torch.float64).unbind(1)


@pytest.mark.parametrize("scale", [10.0, 1e-1, 1e-4, 1e-6])
def test_divergences_are_those_of_fifty_digits_however_near_the_models(scale):
    base, other = (x[:40] for x in noisy_pair(scale))
    found = score_pair(base, other).extra_scores
    for name, want in zip(("kl_divergence", "jensen_shannon_divergence"), exact_divergences(base, other), strict=True):
        torch.testing.assert_close(found[name], want, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-2, 1e-5, 0.0])
def test_no_divergence_is_negative(scale, dtype):
    found = score_pair(*noisy_pair(scale, dtype), temperature=0.7).extra_scores
    for name in ("kl_divergence", "jensen_shannon_divergence"):
        assert (found[name] >= 0).all()
        assert scale or (found[name] == 0).all()


def test_the_base_models_loss_has_the_bits_of_its_own_scores():
    base, other = noisy_pair(0.1)
    target = torch.arange(300) % 40
    pair = score_pair(base, other, target)
    assert torch.equal(pair.extra_scores["base_nll"], score_tokens(base, target).nll.double())
    same = score_pair(base, base, target)
    assert (same.nll == same.extra_scores["base_nll"]).all()
    assert (same.extra_scores["probability_change"] == 0).all()


def test_a_rows_divergences_do_not_depend_on_the_other_rows():
    base, other = noisy_pair(0.1)
    whole = score_pair(base, other).extra_scores
    for row in range(0, 300, 17):
        alone = score_pair(base[row : row + 1], other[row : row + 1]).extra_scores
        assert all(alone[name][0] == whole[name][row] for name in whole)


def test_batches_keep_their_shape():
    base, other = (x[:12] for x in noisy_pair(0.1))
    rows, batch = score_pair(base, other), score_pair(base.view(2, 6, 40), other.view(2, 6, 40))
    for name, scores in rows.extra_scores.items():
        assert torch.equal(batch.extra_scores[name], scores.view(2, 6))
