"""What the kernels are compiled to, for GPUs that aren't there: in a process of its own, for the interpreter compiles nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import version

import pytest
from packaging.version import Version
from support.triton_interpreter import PACKAGE

PROGRAM = """
import dataclasses, json, sys
from xent_metrics_triton import report
names = sys.argv[2:]
chosen = [variant for variant in report.variants() if not names or variant.name in names]
print(json.dumps({variant.name: dataclasses.asdict(report.compile_for(variant, sys.argv[1])) for variant in chosen}))
"""
#: Registers at most, so that this many programs of 4 warps fit a multiprocessor at a time: 4 with 128, 3 with 168.
REGISTERS = {
    "rows float32": 128,
    "rows bfloat16": 128,
    "rows float16": 128,
    "rows bfloat16, odd vocabulary": 168,
    "rows float32, bias": 128,
    "join": 64,
    "join, all extra scores": 64,
}
FEW = ("rows float32", "rows bfloat16", "rows bfloat16, odd vocabulary", "fused bfloat16", "sums of float32 in 16 bins")


@cache
def compiled(target: str, *names: str) -> dict[str, dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(PACKAGE), str(PACKAGE.parents[1]), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-c", PROGRAM, target, *names]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def all_of(target: str) -> dict[str, dict]:
    return compiled(target) if target == "sm_90" else compiled(target, *FEW)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_no_kernel_spills_and_registers_leave_room_for_others(target):
    found = all_of(target)
    spilled = {name: made["spilled"] for name, made in found.items() if made["spilled"]}
    if target == "sm_100" and Version(version("triton")) < Version("3.9"):
        assert spilled.keys() <= {"fused bfloat16"}  # 16 bytes with 3.6
    else:
        assert spilled == {}
    too_many = {name: made["registers"] for name, made in found.items() if made["registers"] > REGISTERS.get(name, 255)}
    assert too_many == {}
    assert max(made["shared"] for made in found.values()) <= 99 * 1024  # what the smallest GPUs have


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_aligned_logits_are_loaded_by_128_bits_and_heads_multiplied_by_tensor_cores(target):
    found = all_of(target)
    assert found["rows float32"]["wide_loads"] >= 8
    assert found["rows bfloat16"]["wide_loads"] >= 4
    assert found["fused bfloat16"]["wide_loads"] > 0
    assert found["fused bfloat16"]["matrix"] == {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}[target]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_no_instruction_of_a_row_is_an_approximation(target):
    """Nothing that differs among GPUs, flushes subnormals or was fused by the compiler: the source says each rounding."""
    for name in ("rows float32", "rows bfloat16", "rows bfloat16, odd vocabulary"):
        code = all_of(target)[name]["assembly"]
        assert re.findall(r"\bMUFU\.\w+|\w+\.approx\S*|\S+\.ftz\S*", code) == []
        assert len(re.findall(r"\bfma\.rn\.f32", code)) > 8


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_alignment_changes_no_order_of_additions(target):
    """Each sum of floats is one of two numbers, so no layout can order it otherwise, and there are as many of them."""
    found = all_of(target)
    orders = [float_sums(found[name]["ttgir"]) for name in ("rows bfloat16", "rows bfloat16, odd vocabulary")]
    assert orders[0] == orders[1]
    assert orders[0] == [f"tensor<{2**level}x2xf64>" for level in range(9, -1, -1)]


def float_sums(ttgir: str) -> list[str]:
    """The types of what `tl.sum` adds in floats, in their order."""
    pattern = r'"tt\.reduce"\(.*?\(\{(.*?)\}\) : \(tensor<([\dx]+xf\d+),'
    return [f"tensor<{kind}>" for body, kind in re.findall(pattern, ttgir, re.DOTALL) if "addf" in body]
