"""Every form of a step's output, weights, and outputs without scores."""

import pytest
import torch
from support.lightning import METRICS, Sequences, T, bigrams, expected, loader, nats_and_tokens, trainer

from xent_metrics import score_tokens
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lightning import XentCallback


def give_scores(self, batch, batch_idx):
    return score_tokens(self(batch["ids"]), batch["targets"])


def give_scores_by_name(self, batch, batch_idx):
    return {"scores": score_tokens(self(batch["ids"]), batch["targets"])}


def give_unshifted(self, batch, batch_idx):
    ids = torch.cat([batch["ids"], batch["ids"][:, :1]], dim=1)
    labels = torch.cat([batch["ids"][:, :1], batch["targets"]], dim=1)
    return {"logits": self(ids), "labels": labels}


def give_nothing(self, batch, batch_idx):
    return None


def adapt(module, output, batch):
    return {"logits": module(batch["ids"]), "targets": batch["targets"]}


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (give_scores, {}),
        (give_scores_by_name, {}),
        (give_unshifted, {"shift": True}),
        (give_nothing, {"adapter": adapt}),
        (give_nothing, {"adapter": f"{__name__}:adapt"}),
    ],
)
def test_every_form_of_output_gives_the_same_values(step, options):
    (found,) = trainer(XentCallback(METRICS, **options)).validate(
        bigrams(validation_step=step), loader(), verbose=False
    )
    assert found == {name: value.item() for name, value in expected(Sequences(10)).items()}


def test_a_training_step_may_return_scores():
    def step(self, batch, batch_idx):
        scores = score_tokens(self(batch["ids"]), batch["targets"])
        return {"loss": self(batch["ids"]).sum(), "scores": scores}

    run = trainer(XentCallback(METRICS, stages=["train"]), max_epochs=1)
    run.fit(bigrams(training_step=step), loader())
    assert run.callback_metrics["train/perplexity"] == expected(Sequences(10), stage="train")["train/perplexity"]


def test_weights_count_by_sequence_and_by_token():
    def by_sequence(self, batch, batch_idx):
        return {"logits": self(batch["ids"]), "targets": batch["targets"], "weight": batch["ids"][:, 0] * 1.0}

    def by_token(self, batch, batch_idx):
        return by_sequence(self, batch, batch_idx) | {"weight": batch["ids"][:, :1].expand(-1, T) * 1.0}

    found = [
        trainer(XentCallback(METRICS)).validate(bigrams(validation_step=step), loader(), verbose=False)[0]
        for step in (by_sequence, by_token)
    ]
    y, x = nats_and_tokens(Sequences(10))
    weight = Sequences(10).ids[:, 0].numpy()
    assert found[0] == found[1]
    assert found[0]["val/cross_entropy"] == pytest.approx((weight * y).sum() / (weight * x).sum(), rel=1e-6)


def test_a_step_without_scores_raises_at_the_first_batch():
    with pytest.raises(InvalidInputError, match=r"the step returned a dict with the keys 'ids', 'targets'.*adapter"):
        trainer(XentCallback(METRICS)).validate(bigrams(validation_step=lambda self, batch, i: batch), loader())
    with pytest.raises(InvalidInputError, match="the step returned NoneType"):
        trainer(XentCallback(METRICS)).validate(bigrams(validation_step=give_nothing), loader())
