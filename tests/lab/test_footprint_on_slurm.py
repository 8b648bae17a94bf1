"""On a real Slurm: all that a run leaves in folders that everybody may write to is in the table.

The umask is 0, which sbatch hands on to the job, so that no mode is right by chance.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from runs import Runs, runs, shared_lab  # noqa: F401

from supervisor.host.footprint import FILES, MOMENT, NODE, RUN
from tests.footprints import Seen, shown, unexplained, walk

pytestmark = pytest.mark.lab
NODES = ("login", "n1", "n2", "n3")
KINDS = {"d": "folder", "f": "file", "s": "socket", "l": "link"}


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def shared_folders(runs: Runs, node: str) -> set[Seen]:  # noqa: F811
    """What is the user's in a node's shared folders, as root sees it."""
    words = ("find", "/tmp", "/var/tmp", "/dev/shm", "-xdev", "-uid", str(runs.uid))
    done = runs.lab.run(node, [*words, "-printf", "%y %m %U %p\n"], user="root")
    found = set()
    for line in done.out.splitlines():
        kind, mode, owner, path = line.split(" ", 3)
        if path != "/tmp/agent.lock":  # of the launcher's tests on the same lab
            kind = KINDS.get(kind, "odd")
            found.add(Seen(path=path, kind=kind, mode=int(mode, 8), owner=int(owner)))
    return found


def test_the_table_explains_a_run_on_slurm(runs: Runs, open_umask: None) -> None:  # noqa: F811
    places = {
        "state_dir": str(runs.state),
        "node_dir": "/var/tmp",
        "fleet": f"{runs.state}/fleet.db",
        "fleet_stem": f"{runs.state}/fleet",
        "claims_dir": f"{runs.home}/claims",
        "checkpoints": f"{runs.home}/ring-checkpoints",
        "health": f"/var/tmp/superv-health-{runs.uid}",
        "tmp": "/tmp",
    }
    run = runs.launch()
    run.until_step(3)
    during = {seen for node in NODES for seen in shared_folders(runs, node)} | walk(runs.state)
    assert unexplained(during, places, runs.uid) == []
    missing = {row.path for row in NODE if row.shown_by == RUN} - {
        row.path for row in shown(during, places)
    }
    assert missing == set(), "rows that no run shows"
    runs.superv("stop", "--now", run.name)
    run.until_ended("stopped")
    after = {seen for node in NODES for seen in shared_folders(runs, node)} | walk(runs.state)
    assert unexplained(after, places, runs.uid) == []
    secret = {row for row in FILES if "**secret**" in row.holds and row in NODE}
    assert not shown(after, places) & {*secret, *(r for r in FILES if r.until == MOMENT)}
