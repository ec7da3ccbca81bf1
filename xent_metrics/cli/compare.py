"""`xent compare`: runs of lm-eval against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xent_metrics.cli.output import AsJson, print_json, print_note, print_problems

if TYPE_CHECKING:
    from xent_metrics.analysis.comparison import Comparison
    from xent_metrics.analysis.run_comparison import RunComparison
    from xent_metrics.analysis.run_matrix import Pair
    from xent_metrics.analysis.runs import Run

__all__ = ["compare"]

_LEGEND = (
    "B − A: difference, with its 95 % interval over documents. p: p value of a permutation test (McNemar's if a metric is 0 or 1 "
    "on each document). Holm's p: corrected for all {tests} comparisons made here. documents: number compared. needed: how "
    "many would detect a difference of this size (80 % power at the 5 % level, corrected likewise). better: the better run, if "
    "the interval excludes 0 and Holm's p ≤ 0.05; – if the metric doesn't say which direction is better."
)
_MATRIX_LEGEND = (
    "B − row: run B minus the row's run. Holm's p: corrected for all {tests} comparisons made here; after it the better run, "
    "if the 95 % interval excludes 0 and this p ≤ 0.05; – if the metric doesn't say which direction is better. "
    "--json has intervals, uncorrected p values, Benjamini and Hochberg's, and documents. --baseline compares with A alone, in "
    "full."
)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="lm-eval output folders.")],
    as_json: AsJson = False,
    num_resamples: Annotated[int, typer.Option(help="Number of resamples of the permutation test.", min=99)] = 9999,
    shared_documents: Annotated[
        bool,
        typer.Option("--shared-documents", help="If the runs' documents differ, compare on those that both have."),
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Compare each run with the first only, as the report does.")
    ] = False,
) -> None:
    """Compare runs on the same documents: difference, 95 % interval, p value, and documents needed to detect it.

    Three runs or more are compared each with each, as a matrix per metric. p values are corrected for all that is compared.
    The exit status is 1 if nothing could be compared.
    """
    from xent_metrics.analysis.run_matrix import compare_all
    from xent_metrics.analysis.runs import read_run
    from xent_metrics.errors import ComparisonError

    if len(runs) < 2:
        raise ComparisonError(f"xent compare takes two or more runs; got {len(runs)}")
    read = [read_run(path) for path in runs]
    pairs = compare_all(read, baseline=baseline, num_resamples=num_resamples, shared_documents=shared_documents)
    if not any(pair.rows for pair in pairs):
        raise ComparisonError("; ".join(dict.fromkeys(str(pair.reason) for pair in pairs)))
    _note_too_few_resamples(pairs, num_resamples)
    if as_json:
        print_json([_as_json(pair, read) for pair in pairs])
    else:
        (_print_pairs if len(runs) == 2 or baseline else _print_matrix)(pairs, read)
    if not _results(pairs):
        print_note("Nothing could be compared; each metric says why.")
        raise typer.Exit(1)


def _results(pairs: Iterable[Pair]) -> list[Comparison]:
    return [row.result for pair in pairs for row in pair.rows if row.result]


def _note_too_few_resamples(pairs: Sequence[Pair], num_resamples: int) -> None:
    from xent_metrics.analysis.multiplicity import resamples_needed

    tests = len(_results(pairs))
    if resamples_needed(tests) > num_resamples and any(each.test == "permutation" for each in _results(pairs)):
        print_note(
            f"{tests} comparisons: the smallest p value of {num_resamples:,} resamples is not significant after Holm's "
            f"correction. Use --num-resamples {resamples_needed(tests)} or more"
        )


def _by_letter(runs: Sequence[Run]) -> dict[str, Run]:
    from xent_metrics.analysis.run_matrix import run_letters

    return dict(zip(run_letters(len(runs)), runs, strict=True))


def _as_json(pair: Pair, runs: Sequence[Run]) -> dict[str, Any]:
    first, second = (_by_letter(runs)[letter] for letter in (pair.first, pair.second))
    return {
        "a": str(first.path),
        "b": str(second.path),
        "names": [pair.first, pair.second],
        "reason": pair.reason,
        "problems": [*first.problems, *second.problems],
        "comparisons": [
            (row.result.to_json() if row.result else {})
            | {
                "task": row.task,
                "metric": row.metric,  # the name in the task; the result has the class'
                "unit": row.unit,
                "reason": row.reason,
                "value_a": row.value_a,
                "value_b": row.value_b,
            }
            for row in pair.rows
        ],
    }


def _print_pairs(pairs: Sequence[Pair], runs: Sequence[Run]) -> None:
    from xent_metrics.cli.tables import print_legend

    _print_runs(runs)
    for pair in pairs:
        for task in dict.fromkeys(row.task for row in pair.rows):
            _print_task(pair, task)
    if tests := len(_results(pairs)):
        print_legend(_LEGEND.format(tests=tests))
    _print_what_is_wrong(pairs, runs)


def _print_runs(runs: Sequence[Run]) -> None:
    from xent_metrics.cli.tables import print_run

    for letter, run in _by_letter(runs).items():
        print_run(letter, run)


def _print_what_is_wrong(pairs: Sequence[Pair], runs: Sequence[Run]) -> None:
    for run in runs:
        print_problems(run)
    for pair in pairs:
        if pair.reason is not None:
            print_note(f"{pair.second} is not compared with {pair.first}: {pair.reason}")


def _print_task(pair: Pair, task: str) -> None:
    from xent_metrics.cli.tables import METRIC_AND_UNIT, Column, print_reasons, print_table

    rows = [row for row in pair.rows if row.task == task]
    columns = [
        Column(METRIC_AND_UNIT, bold=True),
        Column(pair.first, drop=3, justify="right"),
        Column(pair.second, drop=2, justify="right"),
        Column(f"{pair.second} − {pair.first}\n95 % interval", justify="right"),
        Column("p\nHolm's p", drop=1, justify="right"),
        Column("documents\nneeded", drop=4, justify="right"),
        Column("better"),
    ]
    reasons = _reasons(rows)
    print_table(columns, [_cells(pair, row, reasons) for row in rows], title=task)
    print_reasons(reasons)


def _reasons(rows: Iterable[RunComparison]) -> list[str]:
    """Why metrics aren't compared, and why intervals may not cover, each once."""
    said = (row.reason or (row.result.note if row.result else "") for row in rows)
    return list(dict.fromkeys(filter(None, said)))


def _cells(pair: Pair, row: RunComparison, reasons: list[str]) -> list[str]:
    from xent_metrics.cli.tables import metric_and_unit

    name = metric_and_unit(row.metric, row.unit)
    values = ["" if value is None else f"{value:.4g}" for value in (row.value_a, row.value_b)]
    result = row.result
    if result is None:
        return [name, *values, "", "", "", f"not compared{_mark(row.reason, reasons)}"]
    interval = f"{result.shown(result.low)} … {result.shown(result.high)}{_mark(result.note, reasons)}"
    return [
        name,
        *values,
        f"{result.shown(result.difference)}\n{interval}",
        f"{result.p_value:.3g}\n{result.p_holm:.3g}",
        f"{result.documents:,}\n{_count(result.documents_needed)}",
        _verdict(pair, result),
    ]


def _mark(reason: str | None, reasons: list[str]) -> str:
    return f" [{reasons.index(reason) + 1}]" if reason else ""


def _count(documents: float) -> str:
    return f"{documents:,.0f}" if math.isfinite(documents) else "∞"


def _verdict(pair: Pair, result: Comparison) -> str:
    """The better run, or how many documents are missing for one."""
    if result.significant:
        return pair.letter_of(result.better) or "–"
    missing = result.documents_missing
    return "not significant" + (f"\n{_count(missing)} more documents" if 0 < missing < math.inf else "")


def _print_matrix(pairs: Sequence[Pair], runs: Sequence[Run]) -> None:
    from xent_metrics.cli.tables import print_legend

    _print_runs(runs)
    keys = dict.fromkeys((row.task, row.metric) for pair in pairs for row in pair.rows)
    for task, metric in keys:
        cells = {
            (pair.first, pair.second): (pair, row)
            for pair in pairs
            for row in pair.rows
            if (row.task, row.metric) == (task, metric)
        }
        _print_metric(cells, runs)
    if tests := len(_results(pairs)):
        print_legend(_MATRIX_LEGEND.format(tests=tests))
    _print_what_is_wrong(pairs, runs)


def _print_metric(found: dict[tuple[str, str], tuple[Pair, RunComparison]], runs: Sequence[Run]) -> None:
    """A row and a column per run; the values are in the row's name."""
    from xent_metrics.cli.tables import Column, print_reasons, print_table

    rows = [row for _, row in found.values()]
    letters, reasons = list(_by_letter(runs)), _reasons(rows)
    values: dict[str, set[float | None]] = {letter: set() for letter in letters}
    for (first, second), (_, row) in found.items():
        values[first].add(row.value_a)
        values[second].add(row.value_b)
    columns = [Column("run", bold=True), Column("value", justify="right")]
    columns += [
        Column(f"{letter} − row\nHolm's p, better", justify="right", drop=place)
        for place, letter in enumerate(letters[1:], 1)
    ]
    cells = [
        [
            letter,
            _only(values[letter]),
            *(_matrix_cell(found.get((letter, other)), reasons) for other in letters[1:]),
        ]
        for letter in letters
    ]
    unit = f" ({rows[0].unit})" if rows[0].unit else ""
    print_table(columns, cells, title=f"{rows[0].task}: {rows[0].metric}{unit}")
    print_reasons(reasons)


def _only(values: set[float | None]) -> str:
    """A run's value, unless its pairs share other documents and so have other values."""
    return f"{value:.4g}" if len(values) == 1 and (value := next(iter(values))) is not None else ""


def _matrix_cell(found: tuple[Pair, RunComparison] | None, reasons: list[str]) -> str:
    if found is None:
        return ""
    pair, row = found
    if row.result is None:
        return f"not compared{_mark(row.reason, reasons)}"
    better = (pair.letter_of(row.result.better) or "–") if row.result.significant else ""
    difference = f"{row.result.shown(row.result.difference)}{_mark(row.result.note, reasons)}"
    return f"{difference}\n{row.result.p_holm:.2g} {better}".rstrip()
