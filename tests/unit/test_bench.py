"""The bench's tables and verdicts are made from samples alone; no timing is asserted anywhere."""

from bench import tables
from bench.__main__ import measurements


def document(*seconds, **how):
    samples = [{"case": c, "values": {"took": s}, "load": 1.0, "more": {}} for c, s in seconds]
    column = {"key": "took", "title": "took", "unit": "ms"}
    targets = [
        {"case": "warm", "key": "took", "at_most": 0.010, "of": ""},
        {"case": "warm", "key": "took", "at_most": 0.5, "of": "cold"},
    ]
    measured = {"about": "a try", "columns": [column], "targets": targets, "samples": samples}
    return {"measurements": {"try": {**measured, **how}}}


def met(told):
    return [verdict for _, _, verdict in tables.verdicts(told)]


def test_a_target_is_held_against_the_median():
    told = document(("warm", 0.001), ("warm", 0.009), ("warm", 9.0), ("cold", 0.018))
    assert met(told) == [True, True]
    told = document(("warm", 0.011), ("cold", 0.018))
    assert met(told) == [False, False]


def test_what_was_not_measured_is_neither_met_nor_missed():
    assert met(document()) == [None, None]
    assert met(document(("warm", 0.001))) == [True, None]


def test_a_table_says_median_spread_and_verdict():
    lines = list(
        tables.table(
            "try", document(*(("warm", s / 1000) for s in range(1, 22)))["measurements"]["try"]
        )
    )
    row = next(line for line in lines if line.startswith("  warm"))
    assert row.split()[1:5] == ["took", "21", "11.0", "1.0-21.0"]
    assert row.endswith("10.0 ms <= 10.0 NOT met")  # the middle half is 10 ms wide


def test_a_table_says_why_nothing_is_in_it():
    told = document(not_measured="no Python with TorchTitan")["measurements"]["try"]
    assert "  not measured: no Python with TorchTitan" in tables.table("try", told)


def test_targets_name_columns_and_lines_fit_the_terminal():
    for name, measurement in measurements().items():
        keys = {column.key for column in measurement.columns}
        assert {target.key for target in measurement.targets} <= keys
        assert len(name) <= 14 and len(measurement.about) <= 84
        assert all(len(column.title) <= 33 for column in measurement.columns)
