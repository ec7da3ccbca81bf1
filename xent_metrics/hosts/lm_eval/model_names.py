"""The names by which lm-eval finds our models: ``--model xent-hf`` and the others.

lm-eval 0.4.13 doesn't read the entry points `lm_eval.models` of other packages, so importing `xent_metrics.hosts.lm_eval`
registers the names. Later versions read them. Both name the module that defines a class, as lm-eval's registry expects.
"""

from __future__ import annotations

import lm_eval.models  # noqa: F401  # lm-eval registers its own models only while its registry is empty: before we add ours
from lm_eval.api.registry import model_registry

__all__ = ["MODELS", "register_models"]

_HOME = "xent_metrics.hosts.lm_eval"

#: The class of each model, as ``module:name``; imported when lm-eval first asks for it.
MODELS = {
    "xent-completions": f"{_HOME}.engines.completions:XentCompletions",
    "xent-hf": f"{_HOME}.models.hf_lm:XentHFLM",
    "xent-sglang": f"{_HOME}.engines.sglang:XentSGLang",
    "xent-torch": f"{_HOME}.models.torch_lm:TorchLM",
    "xent-vllm": f"{_HOME}.engines.vllm:XentVLLM",
}


def register_models() -> None:
    """Let lm-eval find our models by name, unless it has the names already."""
    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)
