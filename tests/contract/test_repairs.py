"""After a repair what was seen before says nothing, and what comes later does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sick
import test_checks_kernel
from checks import NOW, Case, looks

from healthchecks.frame.check import Status

DAY_S = 86_400.0
# Checks that fail for what was: their evidence stays where it is, whatever was repaired.
OF_THE_PAST = ("accel.kernel", "ib.flap", "ipmi.sel", "kernel", "mem.poison", "nic.kmsg", "xid")
CASES = [
    case
    for case in [*sick.CASES, *test_checks_kernel.CASES]
    if case.check in OF_THE_PAST and case.status is Status.FAIL and not case.none
]


def last(case: Case, tmp_path: Path) -> Status:
    return looks(case, tmp_path)[-1].status


@pytest.mark.parametrize("check", OF_THE_PAST)
def test_what_a_check_fails_for_is_over_with_a_repair_and_counts_after_one(
    check: str, tmp_path: Path
) -> None:
    cases: Sequence[Case] = [case for case in CASES if case.check == check]
    assert cases
    for case in cases:
        assert last(replace(case, repaired=NOW), tmp_path) is not Status.FAIL, case
        assert last(replace(case, repaired=NOW - 30 * DAY_S), tmp_path) is Status.FAIL, case
