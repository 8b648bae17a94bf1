"""The fleet record's schema: records of older versions still open, newer ones say what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from supervisor.core.errors import UserError
from supervisor.fleet.database import VERSION
from supervisor.fleet.record import Fleet

ROOT = Path(__file__).parents[2]
T = 1_780_000_000.0  # when the samples begin
SAMPLES = sorted((ROOT / "tests/data/fleet").glob("*.db"))


@pytest.fixture(params=SAMPLES, ids=lambda path: path.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(request.param, tmp_path / "fleet.db"))


def version(path: Path) -> int:
    with closing(sqlite3.connect(path, isolation_level=None)) as link:
        number: int = link.execute("PRAGMA user_version").fetchone()[0]
    return number


def whole(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables."""
    with closing(sqlite3.connect(path, isolation_level=None)) as link:
        names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        tables = [name for (name,) in link.execute(names)]
        return {t: link.execute(f"SELECT * FROM {t} ORDER BY rowid").fetchall() for t in tables}


def check(fleet: Fleet) -> None:
    """That it says what was put into it."""
    n1, n2, n3 = fleet.nodes(T + 2000)
    assert (n1.name, n1.state, n1.why) == ("n1", "failed", "gpu.count: 7 of 8 GPUs")
    assert n1.drain is not None and n1.drain.reason == "superv: gpu.count: 7 of 8 GPUs"
    assert n1.strikes == (2 if "run demo" in {c.origin for c in fleet.changes(T, "n1")} else 1)
    assert (n2.state, n2.why) == ("excluded", "flaky cable")
    assert (n3.state, n3.why) == ("degraded", "fs.local: 85 %")
    (lifted,) = fleet.past_exclusions("n1", 0.0)
    assert lifted[1] == T + 1700
    temperatures = [
        values["gpu.temp.gpu0"][0]
        for _, _, values in fleet.series(0.0)
        if "gpu.temp.gpu0" in values
    ]
    assert sorted(temperatures) == [40, 40, 40, 41, 42, 55.5]
    baseline = fleet.baseline("n2")
    assert baseline is not None and baseline.findings[0].result.metrics["gpu0"].value == 39.0


def test_there_are_samples_of_each_form() -> None:
    assert [version(path) for path in SAMPLES] == [0, 0, 1]


def test_a_reader_takes_an_old_record_as_it_is(old: Path) -> None:
    before = old.read_bytes()
    old.chmod(0o444)
    with Fleet(old, write=False) as fleet:
        check(fleet)
    assert old.read_bytes() == before


def test_a_writer_migrates_it_and_loses_nothing(old: Path) -> None:
    before = whole(old)
    with Fleet(old) as fleet:
        check(fleet)
        assert fleet.unreported_changes("sweep")
        assert fleet.unreported_changes("sweep") == []
    assert version(old) == VERSION
    after = whole(old)
    after.pop("told")
    before.pop("told", None)
    for table, rows in before.items():  # a column more in two of them
        assert [row[: len(rows[0])] for row in after[table]] == rows
    with Fleet(old, write=False) as fleet:
        check(fleet)


def test_an_old_id_of_a_change_is_never_used_again(old: Path) -> None:
    with Fleet(old) as fleet:
        fleet.unreported_changes("sweep")
        for node in ("n1", "n2", "n3"):
            fleet.forget(node)
        fleet.strike("n4", "run demo", "silence", T + 3000)
        assert [change.node for change in fleet.unreported_changes("sweep")] == ["n4"]


def test_an_engine_from_before_the_upgrade_goes_on_writing(old: Path) -> None:
    """Its statements name these tables and columns."""
    with Fleet(old):
        pass
    with closing(sqlite3.connect(old, isolation_level=None)) as link:
        link.execute(
            "INSERT INTO look (node, at, origin, tags, status, took_s, metrics)"
            " VALUES ('n9', 1, 'run x', 'preflight', 'OK', 1, x'')"
        )
        link.execute("INSERT OR REPLACE INTO standing VALUES ('n9', 'a', 'a', 'OK', '{}', 1, 1)")
        link.execute(
            "INSERT INTO change (node, at, origin, finding, chk, was, status, blame, seen)"
            " VALUES ('n9', 1, 'run x', 'a', 'a', '', 'FAIL', 'node', 'x')"
        )
        link.execute("INSERT INTO exclusion (node, since, until, reason, who) VALUES (1,1,1,1,1)")
        link.execute("INSERT INTO drain (node, at, reason) VALUES ('n9', 1, 'x')")
        link.execute("INSERT OR REPLACE INTO told VALUES ('sweep', 1)")
        link.execute("INSERT OR REPLACE INTO baseline VALUES ('n9', 1, '{}')")


@pytest.mark.parametrize("write", [True, False])
def test_a_newer_record_is_refused_in_one_line(tmp_path: Path, write: bool) -> None:
    path = tmp_path / "fleet.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as link:
        link.execute("CREATE TABLE future (x)")
        link.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        Fleet(path, write=write)
    assert str(caught.value) == (
        f"{path}: written by a newer superv (schema {VERSION + 1}; this one knows up to "
        f"{VERSION}); use that superv here, or another fleet_file in site.yaml"
    )
    assert path.read_bytes() == before


def test_many_that_migrate_at_once_migrate_it_once(old: Path) -> None:
    before = whole(old)["change"]
    code = (
        "import sys\nfrom pathlib import Path\nfrom supervisor.fleet.record import Fleet\n"
        "sys.stdin.read()\n"
        "with Fleet(Path(sys.argv[1])) as fleet:\n"
        "    fleet.strike(sys.argv[2], 'run x', 'why', 1.0)\n"
    )
    argv = [sys.executable, "-c", code, str(old)]
    start, go = os.pipe()
    many = [subprocess.Popen([*argv, f"m{n}"], cwd=ROOT, stdin=start) for n in range(4)]
    os.close(start)
    os.close(go)  # all of them read the end of the pipe now
    assert [one.wait(timeout=60) for one in many] == [0, 0, 0, 0]
    after = whole(old)["change"]
    assert after[: len(before)] == before
    assert sorted(str(row[1]) for row in after[len(before) :]) == ["m0", "m1", "m2", "m3"]
    assert version(old) == VERSION


def test_a_migration_that_is_cut_off_leaves_the_old_record(old: Path) -> None:
    """The disk is full: the file is allowed no page more."""
    before = whole(old)
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from supervisor.fleet.record import Fleet\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "Fleet(Path(sys.argv[1]))\n"
    )
    argv = [sys.executable, "-c", code, str(old)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "the fleet record can't be opened" in done.stderr
    assert whole(old) == before and version(old) < VERSION
