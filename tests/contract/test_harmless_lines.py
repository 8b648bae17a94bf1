"""No check takes a harmless kernel line for trouble: the corpus of harmless.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from checks import Case, both, looks
from harmless import HARMLESS
from healthy import logged
from reached import reads_a_log

from healthchecks.frame.check import Status
from healthchecks.frame.registry import registered

READERS = [
    name
    for name, one in registered().items()
    if reads_a_log(one.run) and one.resource == "host" and name != "kmsg.novelty"
]
AGO_S = 900.0  # when the first line was written


def cries(rows: Sequence[tuple[str, ...]], tmp_path: Path) -> list[str]:
    every = [line for lines in rows for line in lines]
    change = both(*(logged(line, ago_s=AGO_S - 2 * n) for n, line in enumerate(every)))
    found = []
    for name in READERS:
        case = Case(check=name, name="harmless", change=change, status=Status.OK)
        result = looks(case, tmp_path)[-1]
        if result.status in (Status.WARN, Status.FAIL):
            found.append(f"{name}: {result.seen}")
    return found


def test_nobody_cries_over_a_harmless_line(tmp_path: Path) -> None:
    """Each by itself only where all together are not quiet: that takes a hundred times longer."""
    every = [lines for _, lines in HARMLESS]
    # In both orders: a line that takes back a fault hides those of the rows before it.
    if cries(every, tmp_path) or cries(every[::-1], tmp_path):
        wrong = {source: cries((lines,), tmp_path) for source, lines in HARMLESS}
        pytest.fail("\n".join(f"{source}: {said}" for source, said in wrong.items() if said))


def test_every_row_says_where_it_is_from_and_stands_once() -> None:
    assert {"kernel", "xid", "nvme", "nic.kmsg", "pcie.kmsg"} <= {*READERS}
    lines = Counter(lines for _, lines in HARMLESS)
    assert [one for one, times in lines.items() if times > 1] == []
    assert all(source and lines for source, lines in HARMLESS)
