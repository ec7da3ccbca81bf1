"""Mutants of the kernels in C and in Triton, made by hand: is there a test that fails when a kernel is wrong?

    PYTHONPATH=tests python -m mutation.kernel_mutants native

Each mutant is one replacement of a text that a file has exactly once. It is made in a copy of the tree, where the plugin is
built anew, and has to pass the plugin's tests. `--only N` tries one of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mutation.runner import ROOT, Runner


class Mutant(NamedTuple):
    """The replacement of `old`, which `file` has once, by `new`."""

    file: str
    old: str
    new: str

    def text(self, folder: Path) -> str:
        before = (folder / self.file).read_text()
        assert before.count(self.old) == 1, f"{self.file} has {self.old!r} {before.count(self.old)} times, not once"
        return before.replace(self.old, self.new)


KERNEL = ["test_logits.py", "test_build.py"]
LAYERS = [
    f"test_{name}.py" for name in ("products", "attention", "rms_norm", "rotary", "layers", "layers_changed", "xent_hf")
]
ROWS = ["test_arithmetic.py", "test_rows.py", "test_core.py"]
HEAD = ["test_head.py"]
SUMS = ["test_sums.py", "test_core_sums.py"]

#: By plugin: mutants with the files of tests that they have to pass.
MUTANTS = {
    "native": [
        (Mutant("kernel.c", "#define HIGHEST 680.0f", "#define HIGHEST 720.0f"), KERNEL),
        (Mutant("kernel.c", "#define LOWEST (-640.0f)", "#define LOWEST (-740.0f)"), KERNEL),
        (Mutant("kernel.c", "(uint32_t)(half & 0x8000) << 16", "0"), KERNEL),
        (Mutant("kernel.c", "value = (half & 0x7c00) == 0x7c00 ? bits | 0x7f800000 : value;", ""), KERNEL),
        (Mutant("kernel.c", "floor > x ? floor : x", "x > floor ? x : floor"), KERNEL),
        (Mutant("kernel.c", "    f = __builtin_fmaf(k, 0x1.05c610p-29f, f);", "    "), KERNEL),
        (Mutant("kernel.c", "0x1.6a524ep-10f", "0x1.6a524ep-9f"), KERNEL),
        (Mutant("kernel.c", "count == BLOCK && shift", "shift"), KERNEL),
        (Mutant("kernel.c", "j % LANES; j++) block[j] = -INFINITY", "j % LANES; j++) block[j] = 0"), KERNEL),
        (Mutant("kernel.c", "if (top[lane] > totals.top)", "if (top[lane] >= totals.top)"), KERNEL),
        (Mutant("kernel.c", "return start + j;", "return j;"), KERNEL),
        (Mutant("kernel.c", "isinf(totals.top) || target < 0", "target < 0"), KERNEL),
        (Mutant("kernel.c", "target >= job->vocab_size", "target > job->vocab_size"), KERNEL),
        (Mutant("kernel.c", "top = shift + totals.top;", "top = totals.top;"), KERNEL),
        (Mutant("kernel.c", "log1p(rest) + ((double)top - logit)", "(float)log1p(rest) + (top - logit)"), KERNEL),
        (Mutant("kernel.c", "first_top(job, row, shift, totals) == target", "1"), KERNEL),
        (Mutant("layers.c", "x = -87.0f > x ? -87.0f : x;", ""), LAYERS),
        (Mutant("layers.c", "return less_one * power + power;", "return less_one * power + power * 1.000001f;"), LAYERS),
        (Mutant("layers.c", "squares / (float)size + eps", "squares / (float)size"), LAYERS),
        (Mutant("layers.c", "size > 87.0f ? 0.0f : exp_of(-size)", "exp_of(-size)"), LAYERS),
        (Mutant("layers.c", "right * cos[i + half] + left * sin[i + half]", "right * cos[i] + left * sin[i]"), LAYERS),
        (Mutant("attention.h", "least(size, first + i + 1 - start)", "least(size, first + i + 2 - start)"), LAYERS),
        (Mutant("attention.h", "sum += *total * less;", "sum += *total;"), LAYERS),
        (Mutant("attention.h", "of_batch / (job->heads / job->key_heads)", "of_batch % job->key_heads"), LAYERS),
        (Mutant("products.h", "high == INFINITY ? NAN : sum", "sum"), LAYERS),
        (Mutant("products.h", "index = here < index ? here : index;", "index = here;"), LAYERS),
        (Mutant("products.h", "if (tops[j] > high)", "if (tops[j] >= high)"), LAYERS),
        (Mutant("products.h", "if (high == -INFINITY) rest = NAN;", ""), LAYERS),
        (Mutant("products.h", "start > 0, size,", "0, size,"), LAYERS),
    ],
    "triton": [
        (Mutant("arithmetic.py", "f = tl.fma(k, -_LN2_LOW, f)", "f = f"), ROWS),
        (Mutant("arithmetic.py", "tl.where(size < 0.625, small,", "tl.where(size < 0.25, small,"), ROWS),
        (Mutant("arithmetic.py", "has_nan = tl.max((x != x).to(tl.int32), axis=0) > 0", "has_nan = False"), ROWS),
        (Mutant("rows.py", "(x == target_logit) & (column < wanted)", "(x == target_logit) & (column <= wanted)"), ROWS),
        (Mutant("rows.py", "((peak > target_logit) | (before == target_logit))", "(peak > target_logit)"), ROWS),
        (Mutant("rows.py", "before = tl.where(start < wanted, peak, -_INFINITY)", "before = peak"), ROWS),
        (Mutant("rows.py", "moment = (moment + total * gap) * fade", "moment = moment * fade"), ROWS),
        (Mutant("rows.py", "square = square * (fade * fade)", "square = square * fade"), ROWS),
        (Mutant("rows.py", "(top != top) | (tl.abs(top) == _INFINITY)", "(top != top) | (top == _INFINITY)"), ROWS),
        (Mutant("rows.py", "+ of_segment * gap) * weight", ") * weight"), ROWS),
        (Mutant("rows.py", "is_first & (invalid == 0) & ", "is_first & "), ROWS),
        (Mutant("rows.py", "tanh(tl.div_rn(x, softcap)) * softcap", "tanh(tl.div_rn(x, softcap))"), ROWS),
        (Mutant("fused.py", "first = tl.where(peak > top, at, first)", "first = tl.where(peak >= top, at, first)"), HEAD),
        (Mutant("fused.py", "x = tl.where(is_class[None, :], shaped_logits(x, None, scale, softcap), -_INFINITY)",
                            "x = shaped_logits(x, None, scale, softcap)"), HEAD),
        (Mutant("fused.py", "here = wanted // (CLASSES * TILES) == part", "here = wanted >= 0"), HEAD),
        (Mutant("sums.py", "(size >= _LIMIT) & (size < float(\"inf\"))", "(size > _LIMIT) & (size < float(\"inf\"))"), SUMS),
        (Mutant("sums.py", "tl.where(x < 0, down + _TWO_52, up - _TWO_52)", "x"), SUMS),
        (Mutant("sums.py", "+ (limb1 >> _BITS)", ""), SUMS),
        (Mutant("sums.py", "(tl.abs(limb3) > _TOP)", "(limb3 > _TOP)"), SUMS),
    ],
}  # fmt: skip
SOURCES = {"native": "", "triton": "xent_metrics_triton"}
ENVIRONMENT = {"native": {}, "triton": {"TRITON_INTERPRET": "1", "XENT_METRICS_PLUGINS": "triton"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", choices=MUTANTS)
    parser.add_argument("--only", type=int, nargs="*", help="these numbers alone")
    options = parser.parse_args()
    package = Path("plugins") / f"xent-metrics-{options.plugin}"
    folder = package / SOURCES[options.plugin]
    mutants = dict(enumerate(MUTANTS[options.plugin], start=1))
    texts = {number: mutant.text(ROOT / folder) for number, (mutant, _) in mutants.items()}
    survived = []
    with tempfile.TemporaryDirectory() as tree:
        runner = Runner(Path(tree), **ENVIRONMENT[options.plugin])
        for number in options.only or mutants:
            started = time.monotonic()
            mutant, tests = mutants[number]
            with runner.holding(str(folder / mutant.file), texts[number]):
                killer = runner.failure([str(package / "tests" / name) for name in tests], 1200, 3600)
            survived += [number] * (not killer)
            took = time.monotonic() - started
            print(
                f"{number:3} {took:6.1f} s  {mutant.file}: {mutant.new or 'without'} ← {mutant.old}: {killer or 'SURVIVED'}",
                flush=True,
            )
    tried = len(options.only or mutants)
    print(f"{options.plugin}: {tried - len(survived)} of {tried} killed; survived: {survived or 'none'}")


if __name__ == "__main__":
    main()
