"""Compare two runs of lm-eval document by document; `xent compare runs/early runs/late` prints the same as a table."""

from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run

for row in compare_runs(read_run("runs/early"), read_run("runs/late")):
    a = row.result  # A is early, B is late
    print(f"{row.metric}: {a.value_a:.4f}, {a.value_b:.4f}, difference {a.difference:+.4f}, "
          f"95 % interval {a.low:+.4f} to {a.high:+.4f}, better: {a.better}")  # fmt: skip
