"""Findings and their counts."""

from xent_metrics.doctor.findings import Finding, counted


def test_findings_are_counted_by_severity():
    found = [Finding("a", "b", "c", severity) for severity in ("note", "error", "note", "error", "warning")]
    assert counted(found) == "2 errors, 1 warning, 2 notes"
    assert counted([]) == "0 errors, 0 warnings, 0 notes"
