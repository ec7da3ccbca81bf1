"""The demo's table."""

from rich.console import Console

from xent_metrics.demo.harness import Evaluation
from xent_metrics.demo.model import METRICS
from xent_metrics.demo.report import comparison

SAME = dict.fromkeys(METRICS, 0.1)


def test_the_table_shows_a_difference_of_one_bit():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    other = SAME | {"bits_per_byte": 0.1 + 2**-56}
    console.print(comparison(SAME, Evaluation(other, SAME, "")))
    text = console.export_text()
    assert "-1e-17" in text
    assert max(map(len, text.splitlines())) <= 80
    assert all(name.split("_")[0] in text for name in METRICS)
