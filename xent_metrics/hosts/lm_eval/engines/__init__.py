"""Serving engines as lm-eval models with token scores: `xent-vllm`, `xent-sglang`, `xent-completions`.

An engine computes by itself and reports log-probabilities: for each token it reads its own, and the largest one at that
place. That is all there is to score; the distribution stays in the engine.

    logprobs.py     what an engine reports about a list of tokens, checked, as TokenScores
    engine_lm.py    the mixin: requests → windows → prompts → token scores → results
    probe.py        an engine is held to its own generation before anything is scored
    token_texts.py  whether the tokens that a server names are ours
    completions.py  XentCompletions          vllm.py  XentVLLM          sglang.py  XentSGLang
"""
