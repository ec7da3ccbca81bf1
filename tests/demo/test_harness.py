"""The demo's lm-eval command."""

import pytest

from xent_metrics.demo.data import BATCH_SIZE
from xent_metrics.demo.harness import TASK, command, evaluate
from xent_metrics.demo.model import METRICS


def test_a_failed_command_shows_its_output(tmp_path):
    with pytest.raises(RuntimeError, match="there is no such file"):
        evaluate(tmp_path / "missing.ckpt", tmp_path / "out", tmp_path / "log")


def test_the_command_is_one_that_a_user_would_type(tmp_path):
    typed = command(tmp_path / "x.ckpt", tmp_path / "out")
    assert typed[:3] == ["xent", "lm-eval", "run"]
    assert typed[typed.index("--tasks") + 1] == TASK == "xent_python_docs"
    assert typed[typed.index("--xent_metrics") + 1].split(",") == list(METRICS)
    arguments = typed[typed.index("--model_args") + 1].split(",")
    assert "keep_order=true" in arguments  # the batches of Lightning's validation
    assert typed[typed.index("--batch_size") + 1] == str(BATCH_SIZE)
