"""Steps and tokens are read from metadata and from the names that trainers give to checkpoints."""

from pathlib import Path

import pytest

from xent_metrics.analysis.training import Training, step_of, training_of
from xent_metrics.errors import ComparisonError


@pytest.mark.parametrize(
    ("name", "step", "tokens"),
    [
        ("pythia/step1000", 1000, None),
        ("checkpoint-500", 500, None),
        ("epoch=0-step=1000.ckpt", 1000, None),
        ("global_step250", 250, None),
        ("stage1-step1000-tokens4B", 1000, 4e9),
        ("tokens=2.5M", None, 2.5e6),
        ("300B-tokens", None, 3e11),
        ("iter_0000040", 40, None),
        ("a run", None, None),
        ("num_steps=100", None, None),
        ("max_tokens=512,log_tokens=true", None, None),
        ("checkpoint=2024/weights", None, None),
        ("step20261101120000123456", None, None),
        ("footstep7", None, None),
    ],
)
def test_numbers_in_names(name, step, tokens):
    found = training_of(name, {})
    assert (found.step, found.tokens) == (step, tokens)


def test_the_models_arguments_go_before_the_folder_and_metadata_before_both():
    arguments = {"config": {"model_args": "pretrained=p,revision=step20"}}
    assert training_of("step10", arguments) == Training(20, None, "step…")
    assert training_of("step10", {"config": {"model_args": {"revision": "step30"}}}).step == 30
    assert training_of("step10", {"config": {"model_args": "pretrained=out/checkpoint-25"}}).step == 25
    said = {"configs": {"t": {"metadata": {"step": 40, "tokens": 5e6, "series": "mine"}}}}
    assert training_of("step10", arguments | said) == Training(40, 5e6, "mine")


def test_the_name_of_the_model_is_read():
    assert training_of("a", {"model_name": "org/model-step70"}).step == 70


@pytest.mark.parametrize("step", ["40", -1, float("nan"), float("inf"), True, None, [1]])
def test_metadata_that_is_no_number_is_passed_over(step):
    assert training_of("step10", {"configs": {"t": {"metadata": {"step": step}}}}).step == 10


@pytest.mark.parametrize(
    "results", [{"configs": 3}, {"configs": {"t": []}}, {"config": "x"}, {"config": {"model_args": 3}}]
)
def test_other_schemas_are_no_error(results):
    assert training_of("step10", results).step == 10


def test_checkpoints_of_one_training_are_one_series():
    trainer = {training_of(f"ck/checkpoint-{step}/checkpoint-{step}", {}).series for step in (100, 200)}
    assert trainer == {"ck/checkpoint-…/checkpoint-…"}  # lm-eval's folder in one named alike
    names = ["a/step10-tokens1B", "a/step20-tokens2B", "b/step10-tokens1B"]
    assert [training_of(name, {}).series for name in names] == [
        "a/step…-tokens…",
        "a/step…-tokens…",
        "b/step…-tokens…",
    ]


def test_a_step_that_must_be_there_is_the_same_or_else_the_last_number():
    said = {"configs": {"t": {"metadata": {"step": 40}}}}
    assert step_of(Path("a/step10-seed3"), "x", said) == 40
    assert step_of(Path("a/step10-seed3"), "x", {}) == 10
    assert step_of(Path("a/step10-seed3"), "y", {"config": {"model_args": "revision=step20"}}) == 20
    assert step_of(Path("a/llama-7b-300"), "x", {}) == 300
    assert step_of(Path("a/latest"), "run-2/night-40", {}) == 40
    with pytest.raises(ComparisonError, match=r"a/latest: no step in the metadata.*--steps"):
        step_of(Path("a/latest"), "x", {})
