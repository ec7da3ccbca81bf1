"""`make test-lm-eval`: what it would install and where, which is all of it that runs in a second."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr).strip()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("0.4.13", "lm_eval[api,hf]==0.4.13 in build/lm-eval-0.4.13"),
        ("0.5.0.dev1", "lm_eval[api,hf]==0.5.0.dev1 in build/lm-eval-0.5.0.dev1"),
        ("pre", "lm_eval[api,hf]>=0.dev0 in build/lm-eval-pre"),  # a specifier that admits pre-releases
    ],
)
def test_a_version_is_installed_beside_the_pinned_one(given, shown):
    assert run(".ci/test_lm_eval.sh", "--show", given) == (0, shown)


def test_a_checkout_is_installed_as_it_is(tmp_path):
    checkout = tmp_path / "harness"
    (checkout / "lm_eval").mkdir(parents=True)
    code, message = run(".ci/test_lm_eval.sh", "--show", str(checkout))
    assert (code, message) == (2, f"{checkout} is no checkout of lm-evaluation-harness: no lm_eval/__init__.py in it")
    (checkout / "lm_eval" / "__init__.py").touch()
    shown = f"{checkout}[api,hf] in build/lm-eval-harness"
    assert run(".ci/test_lm_eval.sh", "--show", str(checkout)) == (0, shown)


def test_anything_else_is_refused():
    assert run(".ci/test_lm_eval.sh", "--show", "newest") == (
        2,
        "expected a version, pre or the path of a checkout (./name); got newest",
    )
    code, message = run(".ci/test_lm_eval.sh")
    assert code
    assert "usage: .ci/test_lm_eval.sh [--show] VERSION|pre|CHECKOUT" in message


def test_make_passes_the_version_on():
    code, commands = run(
        "make", "--no-print-directory", "-n", "test-lm-eval", "LM_EVAL=0.4.13", "TEST_ARGS=-m 'not slow'"
    )
    assert (code, commands) == (0, ".ci/test_lm_eval.sh 0.4.13 -m 'not slow'")
