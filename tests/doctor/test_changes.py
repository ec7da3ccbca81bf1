"""Changes of a YAML's content."""

import pytest

from xent_metrics.doctor.changes import one_near, remove_keys, rename_key, set_value


def test_only_one_near_name_is_taken():
    assert one_near("acc_nrom", ["acc", "acc_norm"]) == "acc_norm"
    assert one_near("acc_nor", ["acc_norm", "acc_nort"]) is None
    assert one_near("acc", ["acc", "acs"]) is None
    assert one_near(None, ["acc"]) is None
    assert one_near("rouge", ["acc"]) is None


def test_values_and_keys_are_changed_at_their_path():
    content = {"task": "t", "metric_list": [{"metric": "a"}, {"metric": "b", "agregation": "mean", "x": 1}]}
    set_value(("metric_list", 1, "metric"), "c", content)
    rename_key(("metric_list", 1), "agregation", "aggregation", content)
    remove_keys(("metric_list", 1), ("x", "y"), content)
    assert content["metric_list"] == [{"metric": "a"}, {"metric": "c", "aggregation": "mean"}]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: set_value(("metric_list", 0, "metric"), "c", content),
        lambda content: set_value(("other",), "c", content),
        lambda content: rename_key((), "other", "another", content),
        lambda content: remove_keys(("metric_list", 0), ("x",), content),
    ],
)
def test_what_is_not_in_this_file_is_a_lookup_error(change):
    with pytest.raises(LookupError):
        change({"task": "t"})
