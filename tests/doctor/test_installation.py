"""What is said of an installation: its versions, extras, plugins, backends, threads and GPUs."""

from importlib.metadata import EntryPoint, version

import pytest
import torch

import xent_metrics
from xent_metrics import hookimpl, plugins
from xent_metrics.doctor import installation
from xent_metrics.doctor.installation import check_installation, check_requirements


def by_kind(found, kind):
    return {finding.place: finding for finding in found if finding.kind == kind}


class Backend:
    """Takes rows of float32 logits, and nothing else."""

    @hookimpl
    def score_backend(self, logits, target):
        return (torch.zeros(len(target)),) * 3 if logits.dtype == torch.float32 else None


class Broken:
    @hookimpl
    def score_backend(self, logits):
        raise ZeroDivisionError("no rows today")


def test_an_installation_that_works_has_no_errors(install):
    install()
    found = check_installation()
    assert not [finding for finding in found if finding.severity == "error"]
    versions = by_kind(found, "versions")["python"].text
    assert f"xent-metrics {xent_metrics.__version__}" in versions
    assert f"torch {version('torch')}" in versions  # torch.__version__ may also name the build
    assert f"torch {torch.__version__}" in by_kind(found, "gpu")["torch"].text


def test_who_scores_rows_is_asked_of_the_plugins(install):
    install(Backend())
    scored = [(f.place, f.text) for f in check_installation() if f.kind == "scored-by" and f.place.startswith("cpu")]
    assert scored == [
        ("cpu, float32", "rows of logits: backend1 of a-third-party"),
        ("cpu, float32", "rows of hidden states: torch; no plugin takes them"),
        ("cpu, bfloat16", "rows of logits: torch; no plugin takes them"),
        ("cpu, bfloat16", "rows of hidden states: torch; no plugin takes them"),
    ]


def test_a_backend_that_raises_is_an_error_and_the_others_are_asked(install):
    install(Backend(), Broken())
    found = by_kind(check_installation(), "backend-raised")
    assert set(found) == {"cpu, float32", "cpu, bfloat16"}
    assert "score_backend raised ZeroDivisionError: no rows today" in found["cpu, float32"].text
    assert found["cpu, float32"].severity == "error"


def test_a_plugin_that_is_set_aside_is_an_error_with_its_reason():
    with pytest.warns(UserWarning, match="set aside"):
        loaded = plugins.Plugins([EntryPoint("broken", "no_such_module_anywhere", plugins.GROUP)])
    with plugins.use_plugins(loaded):
        found = check_installation()
    [broken] = by_kind(found, "plugin-set-aside").values()
    assert broken.severity == "error"
    assert "ModuleNotFoundError: No module named 'no_such_module_anywhere'" in broken.text
    assert [each.partition(" ")[0] for each in by_kind(found, "plugin")] == ["built-in"]


def test_what_an_extra_lacks_is_a_note_and_what_the_package_lacks_an_error():
    required = [
        "torch>=2",
        "nothing-of-this-name",
        "torchmetrics<1",
        'no-such-plot>=1; extra == "plots"',
        'no-such-linter; extra == "dev"',
        'no-such-windows; sys_platform == "win32"',
    ]
    found = {(f.kind, f.place, f.severity): f.text for f in check_requirements(required)}
    assert list(found) == [
        ("unsupported-version", "torchmetrics", "error"),
        ("missing-package", "python", "error"),
        ("missing-extra", "plots", "note"),
    ]
    assert "pip install 'xent-metrics[plots]'" in found["missing-extra", "plots", "note"]
    assert "nothing-of-this-name" in found["missing-package", "python", "error"]


def test_more_threads_than_cores_are_a_warning(monkeypatch, install):
    install()
    monkeypatch.setattr(installation.torch, "get_num_threads", lambda: 10_000)
    [warning] = by_kind(check_installation(), "too-many-threads").values()
    assert warning.severity == "warning"
    assert "10000 threads share" in warning.text
