"""Which metrics the loaded model classes can score; what tasks say of it is in test_task.py and engines/test_engine_lm.py."""

import pytest
from lm_eval.api.model import LM

from xent_metrics.errors import MissingScoreError
from xent_metrics.hosts.lm_eval import TorchLM, loaded_models
from xent_metrics.hosts.lm_eval.engines.engine_lm import EngineLM
from xent_metrics.hosts.lm_eval.loaded_models import require_of_loaded_models
from xent_metrics.hosts.lm_eval.metric_entry import build_entry
from xent_metrics.hosts.lm_eval.models.scoring_lm import ScoringLM


def test_classes_that_are_bases_are_no_loaded_models():
    found = loaded_models._loaded_models()
    assert TorchLM in found
    assert not {LM, EngineLM, ScoringLM} & set(found)


@pytest.mark.parametrize(
    ("entry", "output_type"),
    [
        ({"metric": "perplexity"}, "loglikelihood"),
        ({"metric": "bits_per_byte", "over": "generated"}, "generate_until"),
        ({"metric": "bits_per_byte", "by": "position"}, "loglikelihood"),
    ],
    ids=str,
)
def test_what_needs_tokens(monkeypatch, entry, output_type):
    built = build_entry(entry, output_type, "task t")
    require_of_loaded_models(built, where="task t", has_choices=False)
    monkeypatch.setattr(loaded_models, "_loaded_models", list)
    with pytest.raises(MissingScoreError, match=r"^task t: .* is defined over .*token scores"):
        require_of_loaded_models(built, where="task t", has_choices=False)


def test_what_any_model_gives(monkeypatch):
    monkeypatch.setattr(loaded_models, "_loaded_models", list)
    for options in ({"metric": "bits_per_byte"}, {"metric": "perplexity", "over": "choices"}):
        built = build_entry(options, "multiple_choice", "task t")
        require_of_loaded_models(built, where="task t", has_choices=True)
