"""`superv doctor` on a real cluster: its settings, and a probe's step on a node."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.cluster import Lab

pytestmark = pytest.mark.lab


def doctor(lab: Lab, *argv: str, site: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code, and findings by check."""
    folder = Path(lab.home)
    (folder / "doctor.yaml").write_text(yaml.safe_dump(site or {"log_cap_mb": 1}))
    job = {
        "name": "doctor",
        "nodes": 2,
        "spares": 1,
        "trainer": {"module": "json.tool", "python": "/usr/bin/python3"},
    }
    (folder / "doctor-job.yaml").write_text(yaml.safe_dump(job))
    done = lab.run(
        "login",
        [
            *(sys.executable, "-m", "supervisor.cli", "doctor", "--json", *argv),
            str(folder / "doctor-job.yaml"),
        ],
        env={"SUPERV_SITE": str(folder / "doctor.yaml")},
        deadline_s=150,
    )
    assert done.out, done.why()
    document = json.loads(done.out)
    assert done.rc is not None
    return done.rc, {finding["check"]: finding for finding in document["findings"]}


def states(found: dict[str, Any], *checks: str) -> list[str]:
    return [found[check]["state"] for check in checks]


def test_the_labs_own_settings(lab: Lab) -> None:
    rc, found = doctor(lab)
    assert rc == 0
    assert found["slurm"]["text"].startswith("Slurm 2")
    assert found["partition"]["text"] == "main: 3 nodes, 3 usable, 3 wanted"
    assert states(found, "AccountingStorageType", "KillWait", "channel") == [
        *("WARN", "WARN", "UNKNOWN")
    ]


def test_a_probe_of_a_node(lab: Lab) -> None:
    rc, found = doctor(lab, "--probe")
    assert rc == 0, found
    both = ("node to engine", "engine to node", "clocks", "superv on nodes", "node_dir", "trainer")
    assert states(found, *both) == ["OK"] * 6, found
    assert "on n" in found["trainer"]["text"]


def test_an_address_that_nodes_do_not_reach(lab: Lab) -> None:
    """An interface that the login node has and compute nodes have no way to."""
    address = "198.51.100.7"
    lab.run("login", ["ip", "address", "add", f"{address}/32", "dev", "eth0"], user="root")
    try:
        rc, found = doctor(lab, "--probe", site={"engine_address": address})
    finally:
        lab.run("login", ["ip", "address", "del", f"{address}/32", "dev", "eth0"], user="root")
    assert rc == 1, found
    assert states(found, "engine_address", "node to engine") == ["OK", "FAIL"]
    assert f"can't reach {address}:" in found["node to engine"]["text"]


def test_loopback_is_no_address_for_nodes(lab: Lab) -> None:
    rc, found = doctor(lab, "--probe", site={"engine_address": "127.0.0.1"})
    assert (rc, states(found, "engine_address", "channel")) == (1, ["FAIL", "UNKNOWN"])


def test_a_node_that_is_off_is_named(lab: Lab) -> None:
    lab.poweroff("n3")
    end = time.monotonic() + 90
    while True:
        rc, found = doctor(lab)
        if found["partition"]["state"] == "WARN":
            break
        assert time.monotonic() < end, found["partition"]
        time.sleep(1)
    assert (rc, found["partition"]["text"]) == (0, "main: 3 nodes, 2 usable, 3 wanted")
    assert "sinfo -R -n n3" in found["partition"]["fix"]


def test_a_paused_controller_is_unknown(lab: Lab) -> None:
    lab.pause_controller()
    rc, found = doctor(lab)
    assert (rc, found["slurm"]["state"]) == (0, "UNKNOWN")
    assert "timed out" in found["slurm"]["text"] or "did not answer" in found["slurm"]["text"]
