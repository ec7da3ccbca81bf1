"""``pytest --xent-plugin NAME`` in this process, by pytest's own `pytester`; the real processes are in test_processes.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.broken_metrics import Broken
from support.registered import plugin_of

from xent_metrics import RatioMetric, hookimpl
from xent_metrics.testing import processes, pytest_plugin
from xent_metrics.testing.promises import PROMISES
from xent_metrics.testing.routes import FURTHER_PROMISES

pytest_plugins = ["pytester"]
PLUGIN = "xent_metrics.testing.pytest_plugin"


class Nats(RatioMetric):
    """Σ nll / tokens, in nats per token."""

    name = "nats_per_token"
    formula = "Σ nll / tokens"
    value_unit = "nats per token"
    higher_is_better = False

    def per_token(self, scores):
        return scores.nll


class NeedsATable(Nats):
    """Σ table[target] · nll / tokens, in nats per token."""

    name = "needs_a_table"

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("table", table, persistent=False)

    def per_token(self, scores):
        return scores.nll * self.table[scores.target]


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest in an empty folder, with answers of this process in place of two new ones."""

    def alone(cases):
        return {name: [(case.used().compute(), case.used().state)] * 2 for name, case in cases.items()}

    monkeypatch.setattr(processes, "on_two_processes", alone)
    pytest_plugin._answers.cache_clear()
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider")

    def run(*arguments):
        return pytester.runpytest_inprocess("-p", PLUGIN, *arguments)

    return run


def test_each_promise_of_each_metric_is_an_item(run, install):
    install(plugin_of(Nats))
    result = run("--xent-plugin", "backend1", "-v")
    checks = [check.__name__ for check in (*PROMISES.values(), *FURTHER_PROMISES.values())] + ["two_processes"]
    result.assert_outcomes(passed=len(checks))
    result.stdout.fnmatch_lines([f"backend1::nats_per_token::{check} PASSED*" for check in checks])


def test_a_broken_promise_is_one_message(run, install):
    install(plugin_of(Broken))
    result = run("--xent-plugin", "backend1", "-v", "-k", "described or direction or finite")
    result.assert_outcomes(passed=1, failed=2, deselected=16)
    result.stdout.fnmatch_lines(
        [
            "backend1::broken::described FAILED*",
            "backend1::broken::direction FAILED*",
            "broken breaks a promise: the class has a docstring, a formula and a unit. Broken has no formula; set it*",
        ]
    )
    assert "Traceback" not in str(result.stdout)


def test_the_distribution_names_it_too_and_k_and_conftest_see_its_items(run, install, pytester):
    install(plugin_of(Nats))
    pytester.makeconftest("def pytest_collection_modifyitems(items):\n    print('SEEN:', len(items))\n")
    result = run("--xent-plugin", "a-third-party", "-k", "exact_merge or two_processes")
    result.assert_outcomes(passed=2, deselected=17)
    result.stdout.fnmatch_lines(["*SEEN: 19"])


def test_paths_run_as_well_where_they_are_given(run, install, pytester):
    install(plugin_of(Nats))
    pytester.makepyfile(test_own="def test_mine():\n    pass\n")
    run("--xent-plugin", "backend1", "-k", "finite or mine").assert_outcomes(passed=1, deselected=18)
    run("--xent-plugin", "backend1", "-k", "finite or mine", ".").assert_outcomes(passed=2, deselected=18)


def test_options_come_from_conftest(run, install, pytester):
    install(plugin_of(NeedsATable))
    wanted = ("--xent-plugin", "backend1", "-k", "exact_merge or two_processes")
    result = run(*wanted)
    result.assert_outcomes(failed=2, deselected=17)
    result.stdout.fnmatch_lines(["*needs_a_table can't be built with the options {}: *table*pytest_xent_options*"])
    pytest_plugin._answers.cache_clear()
    pytester.makeconftest(
        "import torch\n"
        "def pytest_xent_options(metric):\n"
        "    return {'table': torch.arange(11.0)} if metric == 'needs_a_table' else None\n"
    )
    run(*wanted).assert_outcomes(passed=2, deselected=17)


def no_metrics():
    module = plugin_of()

    @hookimpl
    def score_backend():
        return None

    module.score_backend = score_backend
    return module


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        (
            "nowhere",
            plugin_of(Nats),
            "--xent-plugin nowhere: no such plugin; loaded: built-in (xent-metrics *backend1*",
        ),
        ("backend1", no_metrics(), "*backend1 (a-third-party 1.0) registers no metrics, so there is nothing to check"),
        (
            "backend1",
            plugin_of(torch.nn.Linear),
            "*is set aside: backend1*expected a subclass of xent_metrics.TokenMetric*",
        ),
    ],
    ids=["unknown", "no metrics", "set aside"],
)
@pytest.mark.filterwarnings("ignore:xent-metrics plugin")
def test_a_name_with_nothing_to_check_is_an_error(name, module, message, run, install):
    install(module)
    result = run("--xent-plugin", name)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_without_the_option_pytest_is_as_before_and_imports_no_torch(tmp_path):
    (tmp_path / "test_own.py").write_text("import sys\ndef test_mine():\n    assert 'torch' not in sys.modules\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", tmp_path],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
