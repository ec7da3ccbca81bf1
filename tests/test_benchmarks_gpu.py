"""benchmarks/gpu.py without a card: a dry run, planted faults, and its CUDA calls with stand-ins of the same signatures."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from xent_metrics import hookimpl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as for a script that is run from there

import gpu  # noqa: E402
from card import cases, device, language_models, processes, record  # noqa: E402
from card.cases import TINY, make_route  # noqa: E402

SECTIONS = list(gpu.SECONDS)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`main` sets these for its process."""
    for name in ("COLUMNS", "HF_HUB_OFFLINE", "TRITON_INTERPRET", "XENT_METRICS_PLUGINS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("TRITON_INTERPRET")


def scores_of(logits, target, off=0.0):
    """nll (plus `off`), confidence and correct, in torch."""
    log_prob = logits.float().log_softmax(-1)
    top = log_prob.max(-1)
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    return off - log_prob.gather(-1, target[:, None]).squeeze(-1), top.values.exp(), first == target


def plugin(backend, hook="score_backend"):
    """A module in which this function implements the hook."""
    module = ModuleType("planted")
    setattr(module, hook, hookimpl(backend))
    return module


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Run sections dry with torch's route and, if one is given, a planted backend's; the JSON that is written."""

    def measure(*chosen, backend=None, hook="score_backend", card=None):
        routes = [make_route("torch")] + ([make_route("planted", plugin(backend, hook))] if backend else [])
        monkeypatch.setattr(cases, "find_routes", lambda: (routes, {}))
        gpu.measure(card or device.DryCard(), TINY, list(chosen), tmp_path / "found.json")
        return json.loads((tmp_path / "found.json").read_text())

    return measure


@pytest.mark.slow
def test_a_dry_run_goes_through_every_section_and_says_that_it_is_one(tmp_path):
    out, results = tmp_path / "dry.json", set((BENCHMARKS / "results").iterdir())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", "--dry", "--out", out], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set((BENCHMARKS / "results").iterdir()) == results
    found = json.loads(out.read_text())
    assert found["schema"] == 1
    assert found["dry"] is True
    assert found["device"]["name"] == "cpu (dry)"
    assert found["versions"]["torch"] == version("torch")  # torch.__version__ may say of which build
    assert {"python", "cuda", "driver", "triton", "transformers", "torchmetrics"} < found["versions"].keys()
    assert len(found["sources"]) == 16
    assert found["failed"] == []
    assert list(found["sections"]) == SECTIONS
    for name, section in found["sections"].items():
        assert section.keys() == {"seconds", "error", "failed", "warnings", "skipped", "rows"}, name
        assert section["error"] is None, name
        assert all(row["what"] for row in section["rows"])
        assert bool(section["rows"]) == (name != "graphs"), name
    times = [row for row in found["sections"]["rows"]["rows"] if ": ours, torch" in row["what"]]
    assert {"ms", "of_floor", "host_ms", "extra_mib", "runs", "nll_from_ours"} == times[0].keys() - {"what"}
    skipped = {each["what"]: each["why"] for each in found["sections"]["rows"]["skipped"]}
    assert "not installed" in skipped["quack.cross_entropy"]


def test_a_planted_backend_that_is_right_passes_and_one_that_is_off_by_a_thousandth_fails(measure):
    right = measure("agreement", backend=scores_of)
    assert right["failed"] == []
    wrong = measure("agreement", backend=lambda logits, target: scores_of(logits, target, off=1e-3))
    assert wrong["failed"] == [f"agreement: 515 {dtype}, planted" for dtype in ("float32", "bfloat16", "float16")]
    rows = {row["what"]: row for row in wrong["sections"]["agreement"]["rows"]}
    assert rows["515 float32, torch"]["held"] is True
    assert rows["515 float32, planted"]["nll"] == pytest.approx(1e-3, rel=0.1)  # where nll is about 0


@pytest.mark.parametrize(
    ("name", "backend"),
    {
        "an nll of 0 for nan": lambda logits, target: (
            scores_of(logits, target)[0].nan_to_num(0.0, posinf=torch.inf),
            *scores_of(logits, target)[1:],
        ),
        "the last of equal logits": lambda logits, target: (
            *scores_of(logits, target)[:2],
            logits.shape[-1] - 1 - (logits.flip(-1) == logits.amax(-1, keepdim=True)).int().argmax(-1) == target,
        ),
        "a backend that declines": lambda logits, target: None,
    }.items(),
)
def test_other_planted_faults_fail_the_agreement(measure, name, backend):
    assert "agreement: 515 float32, planted" in measure("agreement", backend=backend)["failed"]


def test_the_exit_status_is_that_of_the_checks(monkeypatch, capsys, tmp_path):
    planted = plugin(lambda logits, target: scores_of(logits, target, off=1e-3))
    routes = [make_route("torch"), make_route("planted", planted)]
    monkeypatch.setattr(cases, "find_routes", lambda: (routes, {"xent-metrics-triton": "no module"}))
    given = ["--dry", "--only", "agreement", "--out", str(tmp_path / "found.json")]
    assert gpu.main(given) == 1
    assert "not held: agreement: 515 float32, planted" in capsys.readouterr().out
    monkeypatch.setattr(cases, "find_routes", lambda: (routes[:1], {"xent-metrics-triton": "no module"}))
    assert gpu.main(given) == 0
    assert "not there: xent-metrics-triton: no module" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("differs", "backend"),
    [
        ("the first 1", lambda logits, target: scores_of(logits, target, off=1e-6 * len(logits))),
        ("permuted", lambda logits, target: scores_of(logits, target, off=1e-6 * torch.arange(len(target)))),
        ("1 elements on", lambda logits, target: scores_of(logits, target, off=1e-6 * logits.storage_offset())),
        ("columns first", lambda logits, target: scores_of(logits, target, off=1e-6 * (logits.stride(1) == 1))),
        ("the second time", lambda logits, target: scores_of(logits, target, off=1e-6 * torch.rand(len(target)))),
    ],
)
def test_bits_that_depend_on_more_than_the_row_are_found(measure, differs, backend):
    found = measure("bits", backend=backend)
    assert "bits: 515 float32, planted" in found["failed"]
    rows = {row["what"]: row for row in found["sections"]["bits"]["rows"]}
    assert differs in rows["515 float32, planted"]["differ"]
    assert rows["515 float32, torch"]["differ"] == []


def test_a_planted_backend_of_hidden_states_is_judged_too(measure):
    def backend(off):
        def score(hidden_states, head, target):
            return scores_of(head.logits(hidden_states), target, off=off * len(target))

        return measure("agreement", "bits", backend=score, hook="linear_cross_entropy_backend")

    assert backend(off=0.0)["sections"]["agreement"]["failed"] == []
    failed = backend(off=1e-3)["failed"]  # for four rows 0.004, and less for fewer
    assert "agreement: head float32, planted" in failed
    assert "agreement: head with bias, scale, softcap float32, planted" in failed
    assert {f"bits: head {dtype}, planted" for dtype in ("float32", "bfloat16", "float16")} <= set(failed)


def test_a_section_that_fails_is_recorded_and_the_next_ones_run(measure, monkeypatch):
    def broken(card, sizes, routes, section):
        section.note("before", ms=float("nan"))
        raise RuntimeError("an illegal memory access")

    sections = gpu.sections()
    monkeypatch.setattr(gpu, "sections", lambda: sections | {"agreement": broken})
    found = measure("agreement", "waits")
    assert found["failed"] == ["agreement: RuntimeError: an illegal memory access"]
    assert found["sections"]["agreement"]["rows"] == [{"what": "before", "ms": "nan"}]
    assert len(found["sections"]["waits"]["rows"]) == 7


def test_a_plugin_that_raises_or_warns_is_named_and_torchs_route_goes_on(measure):
    def backend(logits, target):
        raise ValueError("no such arch")

    found = measure("agreement", backend=backend)["sections"]["agreement"]
    rows = {row["what"]: row for row in found["rows"]}
    assert "no such arch" in rows["515 float32, planted"]["error"]
    assert rows["515 float32, torch"]["held"] is True


def test_a_plugin_that_is_set_aside_is_a_failure(monkeypatch):
    monkeypatch.setitem(sys.modules, "xent_metrics_triton", plugin(lambda logits: None, hook="no_such_hook"))
    with pytest.warns(UserWarning, match="set aside"):
        found = gpu.measure(device.DryCard(), TINY, ["waits"], None)
    assert found["failed"][0].startswith("routes: the plugin of route 'triton' was set aside")
    assert found["sections"]["waits"]["rows"]


def test_a_missing_plugin_is_listed(monkeypatch):
    monkeypatch.setitem(sys.modules, "xent_metrics_triton", None)
    routes, missing = cases.find_routes()
    assert [route.name for route in routes] == ["torch"]
    assert missing.keys() == {"xent-metrics-triton"}


def test_without_a_card_the_benchmark_says_how_to_run_it(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "no GPU: run with --dry, or on a card\n"


def test_time_that_is_over_and_memory_that_is_missing_skip_cases(measure, monkeypatch):
    monkeypatch.setattr(device.DryCard, "free_bytes", lambda card: 1000)
    rows = measure("rows")["sections"]["rows"]
    assert rows["rows"] == []
    assert "GiB of memory" in {each["what"]: each["why"] for each in rows["skipped"]}["4 × 515 float32"]
    monkeypatch.setattr(gpu, "TOTAL", 0.0)
    found = measure("bits")["sections"]["bits"]
    assert found["rows"] == []
    assert {each["why"] for each in found["skipped"]} == {"the section's time is over"}


def test_without_lm_eval_its_section_says_so(measure, monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(language_models.importlib, "import_module", import_module)
    found = measure("lm-eval")
    assert found["failed"] == []
    assert "can't be imported" in found["sections"]["lm-eval"]["skipped"][0]["why"]


def test_processes_that_fail_or_hang_are_reported(measure, monkeypatch):
    def join(timeout):
        if problem:
            raise RuntimeError(f"traceback\n{problem}")
        return False

    child = SimpleNamespace(is_alive=lambda: True, kill=lambda: killed.append(1))
    context = SimpleNamespace(processes=[child], join=join)
    monkeypatch.setattr(processes.mp, "start_processes", lambda *args, **kwargs: context)
    monkeypatch.setattr(processes, "TIMEOUT", 0.0)
    for problem in ("NCCL error", ""):
        killed: list[int] = []
        found = measure("sync")
        [row] = found["sections"]["sync"]["rows"]
        assert row["error"] == (problem or "no end after 0 s")
        assert row["held"] is False
        assert killed == [1]


# The card's own calls.


class StandIns:
    """torch.cuda's functions, called with arguments that the real ones take; what they were asked is in `asked`."""

    def __init__(self, monkeypatch):
        self.asked = []
        self.sync_mode = "default"
        properties = SimpleNamespace(
            name="Stand-in H100", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132,
            L2_cache_size=2**25,
        )  # fmt: skip
        functions = {
            "get_device_properties": properties, "empty_cache": None, "mem_get_info": (70 * 2**30, 80 * 2**30),
            "synchronize": None, "reset_peak_memory_stats": None, "memory_allocated": 2**20,
            "max_memory_allocated": 3 * 2**20, "current_stream": SimpleNamespace(wait_stream=lambda stream: None),
        }  # fmt: skip
        for name, result in functions.items():
            monkeypatch.setattr(torch.cuda, name, self.function(name, getattr(torch.cuda, name), result))
        mode = torch.cuda.set_sync_debug_mode
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.function("sync", mode, self.set_sync_mode))
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(wait_stream=lambda stream: None))
        monkeypatch.setattr(torch.cuda, "stream", self.nothing)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        monkeypatch.setattr(torch.cuda, "graph", self.nothing)
        monkeypatch.setattr(device, "profile", self.profile)

    def function(self, name, real, result):
        def call(*args, **kwargs):
            inspect.signature(real).bind(*args, **kwargs)
            self.asked.append(name)
            return result(*args) if callable(result) else result

        return call

    def set_sync_mode(self, mode):
        self.sync_mode = mode

    def event(self, **options):
        assert options == {"enable_timing": True}
        return SimpleNamespace(record=lambda: None, elapsed_time=lambda end: 2.5)

    @contextmanager
    def nothing(self, *args):
        yield

    @contextmanager
    def profile(self, activities):
        assert activities == [torch.profiler.ProfilerActivity.CUDA]
        kinds = [(DeviceType.CUDA, "softmax"), (DeviceType.CUDA, "Memcpy DtoD"), (DeviceType.CPU, "cudaLaunchKernel")]
        found = [SimpleNamespace(device_type=kind, name=name) for kind, name in kinds]
        found.append(SimpleNamespace(device_type=DeviceType.CUDA, name="mine", is_user_annotation=True))
        yield SimpleNamespace(events=lambda: found)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(device.Card, "compiler", "eager")
    return StandIns(monkeypatch)


def test_every_call_of_a_card_is_made(measure, stand_ins):
    found = measure("agreement", "bits", "waits", "rows", "head", "launches", card=device.Card("cpu"))
    assert found["failed"] == []
    assert found["dry"] is False
    assert found["device"]["name"] == "Stand-in H100"
    assert set(stand_ins.asked) >= {"synchronize", "sync", "mem_get_info", "empty_cache", "max_memory_allocated"}
    rows = {row["what"]: row for row in found["sections"]["rows"]["rows"]}
    assert rows["4 × 515 float32: read"]["ms"] == 1.25  # half of a copy's
    ours = rows["4 × 515 float32: ours, torch"]
    assert (ours["ms"], ours["of_floor"], ours["extra_mib"]) == (2.5, 2.0, 2.0)
    launches = {row["what"]: row for row in found["sections"]["launches"]["rows"]}
    assert (launches["score_tokens, torch"]["kernels"], launches["score_tokens, torch"]["copies"]) == (1, 1)
    assert gpu.default_path(device.Card("cpu")).name.startswith("stand-in-h100-20")


def test_a_backend_that_waits_for_the_card_is_found(measure, stand_ins):
    def backend(logits, target):
        if stand_ins.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return scores_of(logits, target)

    found = measure("waits", backend=backend, card=device.Card("cpu"))
    rows = {row["what"]: row for row in found["sections"]["waits"]["rows"]}
    assert "synchronizing" in rows["score_tokens, planted"]["error"]
    assert "waits: CrossEntropy.update, planted" in found["failed"]
    assert rows["CrossEntropy.update, torch"]["held"] is True
    assert stand_ins.sync_mode == "default"


class CopyingCard(device.Card):
    """Replays a captured call as a graph does: into the memory of its first results."""

    def capture(self, call):
        first = call()

        def replay():
            again = call()
            if first is not None:
                for name, value in cases.columns(first).items():
                    value.copy_(cases.columns(again)[name])
            return first

        return replay


def test_wrong_replays_of_a_graph_are_found_and_a_capture_may_raise(measure, stand_ins, monkeypatch):
    names = [f"graphs: {name}, torch" for name in ("score_tokens", "CrossEntropy.update", "collection of 8, update")]
    assert measure("graphs", card=device.Card("cpu"))["failed"] == names  # replays that do nothing
    assert measure("graphs", card=CopyingCard("cpu"))["failed"] == []

    @contextmanager
    def refusing(graph):
        raise RuntimeError("update can't be captured")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    found = measure("graphs", card=device.Card("cpu"))
    assert found["failed"] == []
    assert all("can't be captured" in row["raises"] for row in found["sections"]["graphs"]["rows"])


def test_a_row_kernel_is_timed_under_the_matmul_too_and_a_plugin_that_declines_says_so(measure, stand_ins):
    def backend(logits, target):
        return scores_of(logits, target) if len(target) > 2 else None

    rows = {row["what"]: row for row in measure("head", backend=backend)["sections"]["head"]["rows"]}
    assert rows["4 × 16 → 515 bfloat16: ours, planted rows"]["by_plugin"] == ["score_backend"]
    assert rows["2 × 16 → 515 bfloat16: ours, planted rows"]["by_plugin"] == "no"
    assert "by_plugin" not in rows["4 × 16 → 515 bfloat16: ours, torch"]


def test_a_profiler_that_sees_nothing_is_no_count_of_zero(measure, stand_ins, monkeypatch):
    @contextmanager
    def blind(activities):
        yield SimpleNamespace(events=list)

    monkeypatch.setattr(device, "profile", blind)
    rows = measure("launches", card=device.Card("cpu"))["sections"]["launches"]["rows"]
    assert all("CUPTI" in row["profiler"] for row in rows)


def test_calls_that_run_out_of_memory_leave_the_others_their_times():
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = device.medians(device.DryCard(), {"full": full, "fits": lambda: None}, repeats=4, deadline=0.0)
    assert found["full"] == "OutOfMemoryError: CUDA out of memory"
    assert found["fits"].runs == 3  # the time is over


def test_bits_and_distances_tell_nan_zeros_and_infinities_apart():
    one = torch.tensor([1.0, float("nan"), 0.0, float("inf")])
    assert cases.same_bits(one, one.clone())
    assert cases.distance(one, one) == 0
    for place, value in enumerate((1.0000001, 0.0, -0.0, -float("inf"))):
        other = one.clone()
        other[place] = value
        assert not cases.same_bits(one, other)
        off = cases.distance(other, one)
        assert off == (float("inf") if place in (1, 3) else 0 if place == 2 else pytest.approx(6e-8, rel=0.1))
    assert not cases.same_bits(one, one.double())


def test_results_are_written_whole(tmp_path):
    path = tmp_path / "results" / "card.json"
    record.write({"a": [float("inf"), 1.5]}, path)
    assert json.loads(path.read_text()) == {"a": ["inf", 1.5]}
    assert [each.name for each in path.parent.iterdir()] == ["card.json"]
