"""Compiles the kernels for GPUs that needn't be there, and tells what came of it: `python -m xent_metrics_triton.report`.

Registers, spills and shared memory are read from the cubin by the `cuobjdump` that Triton's wheel brings, instructions
from its SASS. For AMD GPUs there is no such tool in the wheel: what Triton's metadata and the assembly say is shown.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xent_metrics_triton import fused, rows, sums
from xent_metrics_triton.arithmetic import NUMERICS

__all__ = ["TARGETS", "Compiled", "Variant", "compile_for", "main", "variants"]

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64", "int64": "i64"}
#: What a kernel's arguments are, unless a variant says otherwise.
_ARGUMENTS = {
    **dict.fromkeys(("maxima", "target_logits", "nll", "confidence", "entropy", "squared_error"), "*fp32"),
    **dict.fromkeys(("squared_log_normaliser", "scale", "softcap"), "*fp32"),
    **dict.fromkeys(("scale", "softcap"), "fp32"),
    **dict.fromkeys(("sums", "moments", "squares"), "*fp64"),
    **dict.fromkeys(("aheads", "firsts"), "*i32"),
    **dict.fromkeys(("target", "target_rank", "bins", "finished"), "*i64"),
    "correct": "*i1",
}


@dataclass(frozen=True)
class Variant:
    """A kernel with its arguments' types and constants, as a launch would have them."""

    name: str
    kernel: Any
    types: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    unaligned: tuple[str, ...] = ()

    def source(self) -> ASTSource:
        """What Triton compiles; all pointers and strides but those `unaligned` are multiples of 16."""
        given = {"type": "i32"}
        names = list(inspect.signature(self.kernel.fn).parameters)
        signature = {
            name: "constexpr" if name in self.constants else self.types.get(name, _ARGUMENTS.get(name, given["type"]))
            for name in names
        }
        free = {"num_rows", "num_segments", "num_values", "num_bins", "num_sums"}
        attributes = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if signature[name] not in ("constexpr", "fp32") and name not in {*free, *self.unaligned}
        }
        return ASTSource(fn=self.kernel, signature=signature, constexprs=dict(self.constants), attrs=attributes)


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes and how it loads and multiplies."""

    registers: int
    spilled: int
    shared: int
    wide_loads: int
    matrix: str
    ttgir: str
    assembly: str


def variants() -> Iterator[Variant]:
    """Every kernel in the variants that hooks launch most."""
    plain = dict.fromkeys(("bias", "scale", "softcap", "moments", "squares"))
    for dtype in ("float32", "bfloat16", "float16"):
        yield _rows(f"rows {dtype}", dtype, plain)
    yield _rows("rows bfloat16, odd vocabulary", "bfloat16", plain, unaligned=("row_stride", "vocab_size"))
    shape = dict.fromkeys(("scale", "softcap", "moments", "squares"))
    yield _rows("rows float32, bias", "float32", shape)
    yield _rows("rows float32, softcap", "float32", dict.fromkeys(("bias", "scale", "moments", "squares")))
    most = dict.fromkeys(("bias", "scale", "softcap"))
    yield _rows("rows bfloat16, all extra scores", "bfloat16", most, rank=True)
    extras = dict.fromkeys(("entropy", "squared_error", "squared_log_normaliser", "target_rank"))
    numbers = dict.fromkeys(("firsts", "moments", "squares"))
    yield Variant("join", rows.join_segments, {}, {**extras, **numbers, "ROWS": 128}, {"num_warps": 4})
    yield Variant("join, all extra scores", rows.join_segments, {}, {"firsts": None, "ROWS": 128}, {"num_warps": 4})
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        yield _fused(f"fused {dtype}", dtype, size, plain)
    yield _fused("fused bfloat16, all it can", "bfloat16", 2, {})
    for name, dtype, bins in (("", "float32", 1), (" in 16 bins", "float32", 16), (" in many bins", "float32", 0)):
        yield _sums(f"sums of {dtype}{name}", dtype, bins)
    yield _sums("sums of int64", "int64", 1)


def _rows(
    name: str, dtype: str, absent: Mapping[str, Any], rank: bool = False, unaligned: tuple[str, ...] = ()
) -> Variant:
    lanes, depth = rows.SHAPES[4 if dtype == "float32" else 2]
    constants = {"column_stride": 1, "RANK": rank, "TILES": rows.TILES, "LANES": lanes}
    constants |= {"LANE_LEVELS": lanes.bit_length() - 1, "LEVELS": depth.bit_length() - 1}
    types = {"logits": f"*{_TYPES[dtype]}", "bias": f"*{_TYPES[dtype]}"}
    options = {"num_warps": rows.THREADS // 32}
    return Variant(name, rows.score_segments, types, {**constants, **absent}, options, unaligned)


def _fused(name: str, dtype: str, size: int, absent: Mapping[str, Any]) -> Variant:
    sizes = fused.SIZES[size]
    constants = {key: value for key, value in sizes.items() if key.isupper()}
    constants |= {"TILES": fused.TILES, "NEIGHBOURS": 8, "state_stride": 1, "weight_stride": 1}
    types = dict.fromkeys(("hidden", "weight", "bias"), f"*{_TYPES[dtype]}")
    options = {key: value for key, value in sizes.items() if not key.isupper()}
    return Variant(name, fused.score_classes, types, {**constants, **absent}, options)


def _sums(name: str, dtype: str, bins: int) -> Variant:
    constants = {"BLOCK": 128 if bins > 1 else 1024, "BINS": bins, "CARRY": True, "SUMS": 128, "value_stride": 1}
    constants |= {"bins": None} if bins == 1 else {}
    types = {"values": f"*{_TYPES[dtype]}", "sums": "*i64"}
    return Variant(name, sums.add_values, types, {**constants, "bin_stride": 1}, {"num_warps": 4})


def compile_for(variant: Variant, target: str) -> Compiled:
    """Compile a variant for one of `TARGETS`."""
    options = {**NUMERICS, **variant.options}
    if variant.kernel is rows.score_segments:
        options["num_warps"] = rows.THREADS // TARGETS[target].warp_size
    kernel = triton.compile(variant.source(), target=TARGETS[target], options=options)
    if "cubin" not in kernel.asm:
        assembly = kernel.asm["amdgcn"]
        return Compiled(
            registers=_number(r"\.vgpr_count:\s+(\d+)", assembly),
            spilled=_number(r"\.private_segment_fixed_size:\s+(\d+)", assembly),
            shared=kernel.metadata.shared,
            wide_loads=len(re.findall(r"(?:global|buffer)_load_dwordx4", assembly)),
            matrix="MFMA" if "v_mfma" in assembly else "",
            ttgir=kernel.asm["ttgir"],
            assembly=assembly,
        )
    usage, sass = _read_cubin(kernel.asm["cubin"])
    matrix = [name for name in ("UTCHMMA", "UTCMMA", "HGMMA", "HMMA") if re.search(rf"\b{name}\b", sass)]
    return Compiled(
        registers=_number(r"REG:(\d+)", usage),
        spilled=_number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage),
        shared=kernel.metadata.shared,
        wide_loads=len(re.findall(r"LDG\.\S*128|LDGSTS\.\S*128|UTMALDG", sass)),
        matrix=", ".join(matrix),
        ttgir=kernel.asm["ttgir"],
        assembly=kernel.asm["ptx"] + sass,
    )


def _number(pattern: str, text: str) -> int:
    return max(map(int, re.findall(pattern, text)), default=0)


def _read_cubin(cubin: bytes) -> tuple[str, str]:
    """Resource usage and SASS."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    return usage, sass


def main(targets: list[str]) -> None:
    """Print a table of every variant for each target."""
    print("| kernel | target | registers | spilled bytes | shared bytes | loads of 128 bits | matrix instructions |")
    print("|---|---|---|---|---|---|---|")
    for variant in variants():
        for target in targets:
            made = compile_for(variant, target)
            cells = (made.registers, made.spilled, made.shared, made.wide_loads, made.matrix or "–")
            print(f"| {variant.name} | {target} | {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TARGETS))
