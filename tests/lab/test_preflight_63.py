"""63 nodes, eight of them with a defect of a kind of its own: each is found, and no other."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from planted import DEFECTS, NODES, Planted

from lab.cluster import Lab

pytestmark = [pytest.mark.lab, pytest.mark.only("plain"), pytest.mark.alone]


@pytest.fixture
def planted() -> Iterator[Planted]:
    folder = Path(tempfile.mkdtemp(prefix="superv-test-", dir="/srv"))
    argv = ["mount", "-t", "tmpfs", "-o", "mode=0755", "superv-test", folder]  # 100,000 small files
    subprocess.run(argv, check=True)
    try:
        yield Planted(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def superv(lab: Lab, planted: Planted, *argv: str) -> tuple[int, str]:
    env = ("env", f"SUPERV_SITE={planted.site}")
    done = lab.run("login", [*env, sys.executable, "-m", "supervisor.cli", *argv])
    assert "Traceback" not in done.err, done.err
    return done.rc or 0, done.out


def test_eight_defects_are_found_and_no_other(
    planted: Planted, make_lab: Callable[..., Lab]
) -> None:
    there = make_lab(NODES)
    planted.plant(there)
    code, text = superv(there, planted, "preflight", f"n[1-{NODES}]", "--json")
    document = json.loads(text)
    assert code == 1
    assert all(entry["report"] for entry in document["nodes"].values()), document["nodes"]
    bad = {
        node: {
            row["check"]
            for row in entry["report"]["results"]
            if row["status"] in ("FAIL", "WARN", "UNKNOWN")
        }
        for node, entry in document["nodes"].items()
        if entry["report"] and entry["report"]["status"] != "OK"
    }
    assert set(bad) == {d.node for d in DEFECTS}, bad
    for defect in DEFECTS:
        assert defect.check in bad[defect.node], bad[defect.node]
    code, text = superv(there, planted, "nodes", "--json")
    states = {row["node"]: row["state"] for row in json.loads(text)["nodes"]}
    assert {n for n, state in states.items() if state != "healthy"} == set(bad)
