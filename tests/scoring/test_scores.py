"""TokenScores: fields, slicing, joining, scores from loglikelihoods, and the messages for missing scores."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch

from xent_metrics import (
    CrossEntropy,
    ExtraScore,
    RatioMetric,
    TokenScores,
    from_loglikelihoods,
    get_metric,
    score_tokens,
)
from xent_metrics.errors import InvalidInputError, MissingScoreError


@pytest.fixture
def scores(batch):
    return score_tokens(*batch, token_bytes=torch.arange(13), weight=torch.rand(3, 8))


def same(one: TokenScores, other: TokenScores) -> None:
    assert one.fields().keys() == other.fields().keys()
    for name, value in one.fields().items():
        assert torch.equal(value, other.fields()[name]), name
    assert (one.row_kind, one.vocab_size) == (other.row_kind, other.vocab_size)


def test_slices_joined_again_are_the_whole(scores):
    flat = scores.flatten()
    same(TokenScores.cat([scores[0], scores[1:]]), flat)
    same(TokenScores.cat([flat[:5], flat[5:5], flat[5:]]), flat)
    assert scores[:, 2:].nll.shape == (3, 6)
    assert scores[1, 2].nll.shape == ()
    assert (len(scores), scores.num_rows) == (3, 24)
    assert (len(scores[:, :0]), scores[:, :0].num_rows) == (3, 0)
    assert scores[1, 2].num_rows == 1
    with pytest.raises(TypeError, match="0-d tensor"):
        len(scores[1, 2])


def test_copies_are_equal_and_sums_are_taken_anew_after_a_change(scores):
    CrossEntropy().update(scores)
    same(pickle.loads(pickle.dumps(scores)), scores)
    same(copy.deepcopy(scores), scores)
    doubled = dataclasses.replace(scores, nll=2 * scores.nll)
    for changed, factor in ((doubled, 2), (scores.to("cpu"), 1), (scores, 1)):
        metric = CrossEntropy()
        metric.update(changed)
        want = (
            factor * (scores.nll.double() * scores.weight)[scores.counted].sum() / scores.weight[scores.counted].sum()
        )
        torch.testing.assert_close(metric.compute(), want, rtol=1e-7, atol=0, check_dtype=False)


def test_joining_spells_out_what_absence_means(batch):
    weighted, plain = score_tokens(*batch, weight=torch.full((3, 8), 2.0)), score_tokens(*batch)
    loglikelihoods = from_loglikelihoods([-1.0], row_kind="token")
    joined = TokenScores.cat([weighted, plain, loglikelihoods])
    assert joined.weight.tolist() == [2.0] * 24 + [1.0] * 25
    assert joined.invalid.tolist() == [False] * 49
    assert joined.confidence is None
    assert TokenScores.cat([plain, plain]).weight is None


def test_scores_of_different_kinds_cannot_be_joined():
    with pytest.raises(InvalidInputError, match=r"cat needs scores of one row kind.*document.*token"):
        TokenScores.cat([from_loglikelihoods([-1.0]), from_loglikelihoods([-1.0], row_kind="token")])
    with pytest.raises(InvalidInputError, match="cat needs scores of one row kind"):
        TokenScores.cat([])


def test_scores_know_what_they_ignored(batch):
    logits, target = batch
    scores = score_tokens(logits, target, ignore_index=3)
    assert (scores.ignore_index, scores[:2].flatten().ignore_index) == (3, 3)
    assert pickle.loads(pickle.dumps(scores)).ignore_index == 3
    assert score_tokens(logits, logits.softmax(-1)).ignore_index is None, "no distribution is ignored"
    assert from_loglikelihoods([-1.0]).ignore_index is None
    assert TokenScores.cat([scores[0], from_loglikelihoods([-1.0], row_kind="token")]).ignore_index == 3
    with pytest.raises(InvalidInputError, match=r"one ignore_index; got \[-100, 3\]"):
        TokenScores.cat([scores, score_tokens(logits, target)])


def test_a_metric_refuses_scores_that_ignored_another_target(batch):
    logits, target = batch
    message = (
        r"cross_entropy has ignore_index=3; got scores made with ignore_index=-100\. Pass ignore_index=3 to score_t"
    )
    for call in ("update", "forward", "exact_sums"):
        metric = CrossEntropy(ignore_index=3)
        with pytest.raises(InvalidInputError, match=message):
            getattr(metric, call)(score_tokens(logits, target))
        assert not metric.state.any()
    own, from_logits = CrossEntropy(ignore_index=3), CrossEntropy(ignore_index=3)
    own.update(score_tokens(logits, target, ignore_index=3))
    from_logits.update(logits, target)
    assert torch.equal(own.state, from_logits.state)
    own.update(from_loglikelihoods([-1.0], row_kind="token"))  # no target could be ignored


def test_loglikelihoods_keep_their_float64():
    scores = from_loglikelihoods([-0.1, -700.0], num_bytes=[3, 4], num_words=[1, 0])
    assert scores.nll.tolist() == [0.1, 700.0]
    assert scores.nll.dtype == torch.float64
    assert (scores.row_kind, scores.num_bytes.tolist(), scores.num_words.tolist()) == ("document", [3, 4], [1, 0])


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda scores: pickle.loads(pickle.dumps(scores))])
def test_a_copy_has_no_sums_of_the_original(way, batch):
    """Their keys hold in one process: in another they may be those of other sums."""
    scores = score_tokens(*batch)
    get_metric("cross_entropy").exact_sums(scores)
    assert scores.memo
    copied = way(scores)
    assert not copied.memo
    assert torch.equal(copied.nll, scores.nll)


@pytest.mark.parametrize("name", ["nll", "confidence", "loss", "row_kind"])
def test_an_extra_score_cannot_hide_a_field(name, batch):
    score = ExtraScore(lambda log_prob, index: log_prob[:, 0])
    message = f"an extra score is named '{name}', as a field of TokenScores; choose another name"
    with pytest.raises(InvalidInputError, match=message):
        score_tokens(*batch, extra_scores={name: score})

    class Hiding(RatioMetric):
        name = "hiding"

        def extra_scores(self):
            return {field: score}

        def per_token(self, scores):
            return scores.extra_scores[field]

    field = name
    with pytest.raises(InvalidInputError, match=message):
        Hiding()


def test_fields_of_another_shape_are_named():
    with pytest.raises(
        InvalidInputError, match=r"TokenScores\.num_bytes has shape \(1,\); expected that of nll, \(2,\)"
    ):
        from_loglikelihoods([-1.0, -2.0], num_bytes=[3])
    with pytest.raises(InvalidInputError, match="row_kind is one of token, document, choice; got 'word'"):
        from_loglikelihoods([-1.0], row_kind="word")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "token_accuracy",
            r"token_accuracy needs `correct`, which these token scores don't have: .*`xent lm-eval run --model xent-hf",
        ),
        ("expected_calibration_error", r"needs `confidence`.*--model xent-torch"),
        ("bits_per_byte", r"needs `num_bytes`.*pass `token_bytes=token_bytes\(tokenizer\)`"),
        ("word_perplexity", r"needs `num_words`.*lm-eval task, which knows the text"),
    ],
)
def test_a_missing_score_says_how_to_get_it(metric, message):
    with pytest.raises(MissingScoreError, match=message):
        get_metric(metric).update(from_loglikelihoods([-1.0], row_kind="token"))


def test_document_scores_are_no_token_scores():
    message = r"over choice or token scores; got document scores.*stock lm-eval model.*`xent lm-eval run --model xent-hf.*bits_"
    for name in ("cross_entropy", "perplexity", "token_accuracy"):
        with pytest.raises(MissingScoreError, match=message):
            get_metric(name).update(from_loglikelihoods([-1.0]))


def test_weights_apply_and_rows_that_do_not_count_are_zero():
    scores = TokenScores(
        nll=torch.tensor([1.0, float("nan"), 3.0, float("nan")]),
        counted=torch.tensor([True, False, True, True]),
        invalid=torch.tensor([False, False, False, True]),
        weight=torch.tensor([0.1, 5.0, 2.0, 3.0]),
    )
    for weighted, scores_weight in ((scores, 0.1), (dataclasses.replace(scores, weight=None), 1.0)):
        first = torch.tensor(scores_weight).double().item()
        for ones in (torch.ones(4), torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)):
            assert weighted.weighted(ones)[:2].tolist() == [first, 0]
            assert weighted.weighted(ones)[3].isnan(), "an invalid row is nan in every sum"
    assert scores.weighted(scores.nll)[:3].tolist() == [torch.tensor(0.1).double().item(), 0, 6]
    assert scores.weighted(torch.ones(4, 2))[2:].tolist()[0] == [2, 2]


@pytest.mark.parametrize("name", ["num_bytes", "num_words"])
def test_a_text_has_no_negative_length(name):
    with pytest.raises(InvalidInputError, match=rf"{name} holds whole numbers from 0; got -4"):
        from_loglikelihoods([-1.0, -2.0], **{name: [3, -4]})


@pytest.mark.parametrize("row_kind", ["token", "choice", "document"])
def test_only_documents_are_told_of_models_that_give_tokens(row_kind):
    scores, other = TokenScores.empty(row_kind=row_kind), {"token": "choice"}.get(row_kind, "token")
    with pytest.raises(
        MissingScoreError, match=f"a metric is defined over {other} scores; got {row_kind} scores"
    ) as raised:
        scores.require(set(), row_kinds={other}, metric="a metric")
    assert ("For token scores use" in str(raised.value)) == (row_kind == "document")
