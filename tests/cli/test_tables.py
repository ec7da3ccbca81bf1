"""Tables: what fits, what is left out, and that text from files can't format or control the terminal."""

import pytest
from support.cli import fits

from xent_metrics.cli.tables import METRIC_AND_UNIT, Column, metric_and_unit, print_table

COLUMNS = [Column("name", bold=True), Column("path", drop=2, fold=True), Column("a number", drop=1, justify="right")]
ROWS = [["a_name_of_thirty_characters_xx", "/a/long/path/" * 5, "1,234"], ["short", "p", "5"]]


def printed(capsys, monkeypatch, width, columns=COLUMNS, rows=ROWS, **options):
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(columns, rows, **options)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(200, None), (70, None), (60, "path"), (45, "path"), (41, "path, a number"), (40, "path, a number")],
)
def test_the_columns_of_the_largest_drop_go_first(width, left_out, capsys, monkeypatch):
    table = printed(capsys, monkeypatch, width)
    assert fits("\n".join(line for line in table.splitlines() if line[0] in "┏│"), width)
    assert "a_name_of_thirty_characters_xx" in table
    note = f"No room for: {left_out}. Use a wider terminal or --json."
    assert (" ".join(table.split()).endswith(note)) if left_out else ("No room" not in table)


def test_a_long_path_folds_and_stays_whole(capsys, monkeypatch):
    table = printed(capsys, monkeypatch, 75)
    path = "".join(line.split("│")[2].strip() for line in table.splitlines() if line.startswith("│"))
    assert path.startswith(ROWS[0][1])


def test_a_name_wider_than_the_terminal_is_not_cut_off(capsys, monkeypatch):
    assert "a_name_of_thirty_characters_xx" in printed(capsys, monkeypatch, 20)


def test_markup_and_control_characters_are_shown_as_text(capsys, monkeypatch):
    rows = [["[red]\x1b[31mx:smile:", "a\nb", "1"]]
    table = printed(capsys, monkeypatch, 100, rows=rows, title="[b]title\x07")
    assert r"[red]\x1b[31mx:smile:" in table
    assert r"[b]title\x07" in table
    assert "\x1b" not in table


def test_lines_follow_every_row_or_those_that_are_named(capsys, monkeypatch):
    rows = [["a", "b", "c"]] * 4
    assert printed(capsys, monkeypatch, 100, rows=rows).count("├") == 3
    assert printed(capsys, monkeypatch, 100, rows=rows, sections={1}).count("├") == 1


def test_a_metric_without_a_unit_is_its_name():
    assert metric_and_unit("top_k_accuracy", "") == "top k accuracy"


def test_a_title_is_a_line_of_its_own_however_narrow_the_table(capsys, monkeypatch):
    title = "a_task: a_metric_with_a_long_name (nats per token)"
    table = printed(capsys, monkeypatch, 100, [Column("run")], [["A"]], title=title)
    assert table.splitlines()[0] == title


def test_a_heading_names_each_quantity_of_its_cells_on_its_own_line(capsys, monkeypatch):
    columns = [Column(METRIC_AND_UNIT), Column("value"), Column("documents\neffective", drop=1)]
    rows = [[metric_and_unit("bits_per_byte", "bits per byte"), "3.1", "20\n16.2"]]
    head = [line.split("┃")[1:-1] for line in printed(capsys, monkeypatch, 100, columns, rows).splitlines()[1:3]]
    assert [[cell.strip() for cell in line] for line in head] == [
        ["metric", "value", "documents"],
        ["unit", "", "effective"],
    ]
    narrow = " ".join(printed(capsys, monkeypatch, 25, columns, rows).split())
    assert "No room for: documents and effective." in narrow
