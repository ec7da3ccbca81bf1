"""The hook `score_backend`: when it is called, in which order, by pluggy's own rules, and errors that name the plugin."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from support.backends import Backend, ExtrasBackend, assert_same
from torch.nn import functional as F

from xent_metrics import hookimpl, score_hidden_states, score_tokens
from xent_metrics.errors import PluginError
from xent_metrics.scoring.backends import first_to_accept
from xent_metrics.scoring.scores import ExtraScore
from xent_metrics.testing import no_host_sync


def marked(nll: float) -> Backend:
    """A backend whose scores can be recognised by their nll."""
    return Backend(
        lambda logits, target: (
            torch.full(target.shape, nll),
            torch.full(target.shape, 0.25),
            torch.ones(target.shape, dtype=torch.bool),
        )
    )


def broken(logits, target):
    raise ZeroDivisionError("no rows today")


def test_a_backend_gives_nll_confidence_and_correct_and_the_core_the_rest(install, batch):
    backend = marked(7.5)
    install(backend)
    logits, target = batch
    target[1, 1] = 99
    scores = score_tokens(logits, target, weight=torch.full(target.shape, 2.0))
    counted = target != -100
    valid = counted & (target != 99)
    assert torch.equal(scores.nll[valid], torch.full((int(valid.sum()),), 7.5))
    assert torch.equal(scores.nll[~counted], torch.zeros(3))
    assert scores.nll[1, 1].isnan()
    assert torch.equal(scores.correct, valid)
    assert torch.equal(scores.confidence, torch.where(counted, 0.25, 0.0))
    assert torch.equal(scores.invalid, target == 99)


def test_the_plugin_that_will_be_asked_first_is_named(install, batch):
    logits, target = batch[0].flatten(0, 1), batch[1].flatten()
    given = {"logits": logits, "target": target, "extra_scores": {}}
    install()
    assert first_to_accept("score_backend", **given) is None
    install(marked(1.0), marked(2.0), Backend(lambda logits, target: None))
    assert first_to_accept("score_backend", **given) == "backend2 of a-third-party"  # the last is asked first


def test_a_backend_gets_all_rows_at_once_and_targets_that_it_can_index_with(install, batch):
    backend = marked(1.0)
    install(backend)
    logits, target = batch
    target[1, 1] = 99
    score_tokens(logits, target.to(torch.int32))
    ((rows, index),) = backend.asked
    assert torch.equal(rows, logits.reshape(24, 13))
    assert rows.data_ptr() == logits.data_ptr()
    assert index.dtype == torch.int64
    assert index.is_contiguous()
    valid = (target >= 0) & (target < 13)
    assert torch.equal(index, torch.where(valid, target, 0).reshape(24))


def test_rows_without_a_flat_view_come_in_parts_and_in_order(install):
    backend = Backend(lambda logits, target: (logits[:, 0].clone(), logits[:, 0].clone(), target == 0))
    install(backend)
    logits = torch.randn(3, 6, 5)[:, :-1]
    target = torch.ones(3, 5, dtype=torch.long)
    assert torch.equal(score_tokens(logits, target).nll, logits[..., 0])
    assert [rows.shape for rows, _ in backend.asked] == [(5, 5)] * 3


def test_hidden_states_in_half_precision_are_scored_by_the_backend_block_by_block(install, monkeypatch):
    monkeypatch.setattr("xent_metrics.scoring.devices._CPU_MATMUL", 70)
    backend = Backend(lambda logits, target: (logits.float().amax(-1), logits.float().amax(-1), target == 0))
    install(backend)
    hidden, head = torch.randn(2, 12, 3).bfloat16(), torch.randn(7, 3).bfloat16()
    target = torch.ones(2, 12, dtype=torch.long)
    scores = score_hidden_states(hidden, head, target)
    assert [rows.shape for rows, _ in backend.asked] == [(10, 7), (10, 7), (4, 7)]
    torch.testing.assert_close(scores.nll, (hidden @ head.T).amax(-1).float())


def test_hidden_states_in_full_precision_take_the_faster_way_by_blocks_of_the_vocabulary(install):
    backend = Backend(lambda logits, target: (logits.amax(-1), logits.amax(-1), target == 0))
    install(backend)
    hidden, head, target = torch.randn(2, 12, 3), torch.randn(7, 3), torch.ones(2, 12, dtype=torch.long)
    scores = score_hidden_states(hidden, head, target)
    assert backend.asked == []
    torch.testing.assert_close(
        scores.nll, torch.nn.functional.cross_entropy((hidden @ head.T).mT, target, reduction="none")
    )


def test_none_leaves_the_rows_to_torch(install, batch):
    backend = Backend(None)
    install(backend)
    declined = score_tokens(*batch)
    assert len(backend.asked) == 1
    install()
    assert_same(declined, score_tokens(*batch))


def test_the_first_result_wins_and_the_last_loaded_is_asked_first(install, batch):
    first, second, declines = marked(1.0), marked(2.0), Backend(None)
    install(first, second, declines)
    assert score_tokens(*batch).nll.max() == 2.0
    assert [len(backend.asked) for backend in (first, second, declines)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        (({}, {}, {}), 3.0),
        (({"tryfirst": True}, {}, {}), 1.0),
        (({}, {}, {"trylast": True}), 2.0),
        (({"trylast": True}, {}, {"trylast": True}), 2.0),
        (({"tryfirst": True}, {"tryfirst": True}, {}), 2.0),
    ],
)
def test_tryfirst_and_trylast_are_heeded(options, largest, install, batch):
    backends = [marked(float(place)) for place in (1, 2, 3)]
    for backend, chosen in zip(backends, options, strict=True):
        backend.score_backend = hookimpl(**chosen)(backend.score_backend)
    install(*backends)
    assert score_tokens(*batch).nll.max() == largest
    assert sum(len(backend.asked) for backend in backends) == 1


class Wrapper:
    """A plugin module that wraps the backends of others."""

    def __init__(self, change):
        self.seen = []

        @hookimpl(wrapper=True)
        def score_backend(logits):
            result = yield
            self.seen.append(result)
            return change(result)

        self.score_backend = score_backend


class OldWrapper:
    """The same in pluggy's old style."""

    def __init__(self, change):
        self.seen = []

        @hookimpl(hookwrapper=True)
        def score_backend(logits):
            outcome = yield
            self.seen.append(outcome.get_result())
            outcome.force_result(change(outcome.get_result()))

        self.score_backend = score_backend


def doubled(result):
    return result and (result[0] * 2, *result[1:])


@pytest.mark.parametrize("kind", [Wrapper, OldWrapper])
def test_a_wrapper_changes_the_scores_of_the_backend_that_it_wraps(kind, install, batch):
    wrapper = kind(doubled)
    install(wrapper, marked(1.5))
    assert score_tokens(*batch).nll.max() == 3.0
    assert len(wrapper.seen) == 1


@pytest.mark.parametrize("kind", [Wrapper, OldWrapper])
def test_a_wrapper_around_no_result_leaves_the_rows_to_torch(kind, install, batch):
    install()
    expected = score_tokens(*batch)
    for others in ([], [Backend(None)]):
        wrapper = kind(doubled)
        install(wrapper, *others)
        assert_same(score_tokens(*batch), expected)
        assert wrapper.seen == [None]


def test_a_backend_that_raises_within_a_wrapper_is_named_alone(install, batch):
    install(Wrapper(doubled), Backend(broken), Wrapper(doubled))
    with pytest.raises(PluginError, match=r"^backend2 of a-third-party: score_backend raised ZeroDivisionError"):
        score_tokens(*batch)


def test_a_wrapper_that_raises_is_named_alone(install, batch):
    install(OldWrapper(doubled), marked(1.0), Wrapper(lambda result: 1 / 0))
    with pytest.raises(PluginError, match=r"^backend3 of a-third-party: score_backend raised ZeroDivisionError"):
        score_tokens(*batch)


def test_a_wrapper_that_spoils_a_result_is_named_and_a_bad_result_is_the_backends(install, batch):
    install(marked(1.0), Wrapper(lambda result: result[:2]))
    with pytest.raises(
        PluginError,
        match=r"^backend2 of a-third-party: score_backend returned \[\(24,\) of float32 on cpu, .*\]; expected three",
    ):
        score_tokens(*batch)
    install(Backend("scores"), Wrapper(lambda result: result))
    with pytest.raises(PluginError, match=r"^backend1 of a-third-party: score_backend returned 'scores'"):
        score_tokens(*batch)
    install(Wrapper(lambda result: "scores"), Backend(None))
    with pytest.raises(PluginError, match=r"^backend1 of a-third-party: score_backend returned 'scores'"):
        score_tokens(*batch)


class Raises:
    """A plugin whose function no other plugin has."""

    @staticmethod
    @hookimpl
    def score_backend(logits):
        raise ZeroDivisionError("no rows today")


def test_among_several_the_one_that_breaks_the_contract_is_named(install, batch):
    install(Backend(broken), marked(1.0), Backend("scores"), Backend(None))
    with pytest.raises(PluginError, match=r"^backend3 of a-third-party: score_backend returned 'scores'"):
        score_tokens(*batch)
    install(Backend(broken), marked(1.0), Raises, Backend(None))
    with pytest.raises(PluginError, match=r"^backend3 of a-third-party: score_backend raised ZeroDivisionError"):
        score_tokens(*batch)


def test_a_backend_may_ask_for_the_logits_alone(install):
    class Module:
        @staticmethod
        @hookimpl
        def score_backend(logits):
            return logits[:, 0].clone(), logits[:, 0].clone(), logits[:, 0] > 0

    install(Module)
    assert score_tokens(torch.full((2, 3), 5.0), torch.tensor([0, 1])).nll.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"class_weight": torch.ones(13)},
        {"extra_scores": {"entropy": ExtraScore(lambda log_prob, index: -(log_prob.exp() * log_prob).sum(-1))}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_else_is_asked_comes_from_torch_and_changes_nothing_of_the_backend_s(install, batch, options, monkeypatch):
    monkeypatch.setattr("xent_metrics.scoring.inputs.chunk_rows", lambda *_: 5)
    install()
    by_torch = score_tokens(*batch, **options)
    backend = marked(7.5)
    install(backend)
    plain, scores = score_tokens(*batch), score_tokens(*batch, **options)
    assert [len(rows) for rows, _ in backend.asked] == [24, 24]
    for name in ("nll", "confidence", "correct"):
        assert torch.equal(scores.fields()[name], plain.fields()[name])
    further = (by_torch.fields().keys() | by_torch.extra_scores.keys()) - plain.fields().keys()
    assert further in ({"loss", "loss_weight"}, {"entropy"})
    for name in further:
        values = (getattr(s, name, None) if name != "entropy" else s.extra_scores[name] for s in (scores, by_torch))
        assert torch.equal(*values)


def reads(name: str, seen: list[str]) -> ExtraScore:
    """An extra score that notes when torch computes it: the row's number of classes."""

    def function(log_prob, index):
        seen.append(name)
        return torch.full(index.shape, log_prob.shape[-1])

    return ExtraScore(function)


def test_torch_computes_only_the_extra_scores_that_a_backend_leaves_out(install, batch):
    seen: list[str] = []
    wanted = {name: reads(name, seen) for name in ("one", "two")}
    backend = ExtrasBackend(lambda rows: {"two": torch.arange(rows)})
    install(backend)
    scores = score_tokens(*batch, extra_scores=wanted)
    assert backend.wanted == [wanted]
    assert backend.wanted[0]["two"].function is wanted["two"].function
    assert seen == ["one"]
    assert torch.equal(scores.extra_scores["two"], torch.arange(24).reshape(3, 8))
    assert torch.equal(scores.extra_scores["one"], torch.full((3, 8), 13))
    assert scores.nll.max() == 7.5


def test_torch_reads_no_logits_if_a_backend_gives_all_extra_scores(install, batch, monkeypatch):
    monkeypatch.setattr("xent_metrics.scoring.rows.RowScorer._by_torch", broken)
    wanted = {"pair": ExtraScore(broken, shape=(2,))}
    install(ExtrasBackend(lambda rows: {"pair": torch.ones(rows, 2)}))
    assert torch.equal(score_tokens(*batch, extra_scores=wanted).extra_scores["pair"], torch.ones(3, 8, 2))
    install(ExtrasBackend(lambda rows: {}))
    assert score_tokens(*batch).extra_scores == {}


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        (lambda rows: {"other": torch.ones(rows)}, r"extra scores \['other'\], which aren't wanted; expected pair"),
        (lambda rows: {"pair": torch.ones(rows)}, r"the extra score 'pair' as \(24,\) .*, of shape \(24, 2\) on cpu"),
        (lambda rows: {"pair": torch.ones(rows, 2).bfloat16()}, r"'pair' as .* of bfloat16 on cpu; expected whole"),
        (lambda rows: {"pair": [1.0] * rows}, r"the extra score 'pair' as \[1.0"),
        (lambda rows: {"pair": torch.ones(rows, 2, device="meta")}, r"'pair' as .* on meta"),
        (lambda rows: torch.ones(rows, 2), r"expected three tensors and, perhaps, the extra scores by name"),
    ],
    ids=["unknown", "another shape", "too narrow", "a list", "other device", "no dict"],
)
def test_a_backend_that_returns_other_extra_scores_is_named(install, batch, extras, message):
    install(ExtrasBackend(extras))
    with pytest.raises(PluginError, match="backend1 of a-third-party: score_backend returned .*" + message):
        score_tokens(*batch, extra_scores={"pair": ExtraScore(lambda rows, index: rows[:, :2], shape=(2,))})


def test_a_fifth_result_is_an_error(install, batch):
    install(Backend((real, real, truth, {}, {})))
    with pytest.raises(PluginError, match="expected three tensors and, perhaps, the extra scores by name"):
        score_tokens(*batch)


def test_soft_targets_and_empty_batches_are_left_to_torch(install):
    install(Backend(broken))
    logits = torch.randn(4, 9)
    soft = logits.softmax(-1)
    torch.testing.assert_close(score_tokens(logits, soft).nll, F.cross_entropy(logits, soft, reduction="none"))
    assert score_tokens(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long)).nll.shape == (0,)


def test_fake_tensors_and_torch_compile_never_meet_a_backend(install):
    install(Backend(broken))
    with no_host_sync() as device:
        assert (
            score_tokens(
                torch.empty(4, 9, device=device), torch.zeros(4, dtype=torch.long, device=device)
            ).nll.device.type
            == device.type
        )
    logits, target = torch.randn(4, 9), torch.arange(4)
    graph = torch.compile(lambda *args: score_tokens(*args).nll, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(graph(logits, target), F.cross_entropy(logits, target, reduction="none"))


def test_memory_that_runs_out_in_a_backend_is_the_devices_error_so_that_callers_take_fewer_rows(install):
    sizes = []

    def limited(logits, target):
        sizes.append(len(logits))
        if len(logits) > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")

    install(Backend(limited))
    with pytest.raises(torch.OutOfMemoryError):
        score_tokens(torch.randn(40, 5), torch.arange(40) % 5)
    sizes.clear()
    with pytest.warns(UserWarning, match="out of memory for the logits of 40 rows; going on with 20"):
        score_hidden_states(torch.randn(40, 5).bfloat16(), torch.randn(5, 5).bfloat16(), torch.arange(40) % 5)
    assert sizes == [40, 20, 20]


def test_a_backend_that_raises_is_named(install, batch):
    install(Backend(broken))
    with pytest.raises(
        PluginError, match=r"backend1 of a-third-party: score_backend raised ZeroDivisionError: no rows"
    ) as caught:
        score_tokens(*batch)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


real, truth = torch.zeros(24), torch.zeros(24, dtype=torch.bool)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("scores", "returned 'scores'; expected three tensors"),
        ((real, real), "expected three tensors"),
        ((real, real, truth.tolist()), "expected three tensors"),
        ((real[1:], real, truth), r"returned \[\(23,\) of float32 on cpu, \(24,\) .* each of shape \(24,\) on cpu"),
        ((real, real[:, None], truth), r"\(24, 1\) of float32"),
        ((real.half(), real.half(), truth), r"\(24,\) of float16 .* float32 or wider"),
        ((real.double(), real, truth), r"\(24,\) of float64"),
        ((real, real, real), "correct as bool"),
        ((real, real, truth.to("meta")), "of bool on meta"),
    ],
    ids=["no tuple", "two", "a list", "too few", "two dimensions", "too narrow", "mixed", "no truth", "other device"],
)
def test_a_backend_that_returns_something_else_is_named(install, batch, result, message):
    install(Backend(result))
    with pytest.raises(
        PluginError, match=f"backend1 of a-third-party: score_backend returned.*{message.removeprefix('returned ')}"
    ):
        score_tokens(*batch)


def test_float64_scores_are_taken_as_they_are(install, batch):
    backend = Backend(lambda logits, target: (target.double() / 3, target.double() / 7, target == 0))
    install(backend)
    scores = score_tokens(*batch)
    assert scores.nll.dtype == torch.float64
    counted = batch[1] != -100
    assert torch.equal(scores.nll[counted], batch[1][counted].double() / 3)


def test_a_backend_with_another_signature_is_set_aside(install, batch):
    class Module:
        @staticmethod
        @hookimpl
        def score_backend(logits, targets):
            raise AssertionError("never asked")

    with pytest.warns(UserWarning, match=r"backend1 \(a-third-party 1.0\) is set aside: PluginValidationError"):
        loaded = install(Module)
    assert "targets" in str(loaded.plugins[-1].error)
    score_tokens(*batch)


def test_a_plugin_that_is_set_aside_for_another_reason_gives_no_scores(install, batch):
    backend = marked(7.5)
    backend.register_metrics = hookimpl(lambda register: register(int))
    with pytest.warns(UserWarning, match="is set aside: PluginError"):
        install(backend)
    score_tokens(*batch)
    assert backend.asked == []


PROGRAM = """
import torch
from xent_metrics import score_tokens
print(score_tokens(torch.zeros(2, 3), torch.tensor([0, 1])).nll.max().item())
"""


@pytest.mark.parametrize(("chosen", "largest"), [("marks", 7.5), ("", math.log(3))])
def test_the_environment_chooses_among_backends(chosen, largest, tmp_path):
    """The plugin is installed, and each choice runs in its own process."""
    (tmp_path / "marks_rows.py").write_text(
        "import torch\nfrom xent_metrics import hookimpl\n\n@hookimpl\ndef score_backend(target):\n"
        "    return torch.full(target.shape, 7.5), torch.ones(target.shape), target == 0\n"
    )
    metadata = tmp_path / "marks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: marks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[xent_metrics]\nmarks = marks_rows\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"XENT_METRICS_PLUGINS": chosen, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(largest, rel=1e-6)
