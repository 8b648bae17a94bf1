"""What health checks do in a run on real Slurm: who gets no slot, who is named, and who goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from runs import SAVE_EVERY, SETTINGS, Runs, runs, until  # noqa: F401

from lab.cluster import Lab
from supervisor.core import events as ev
from supervisor.fleet import Fleet

# An ordinary user may not read a strict node's kernel log: UNKNOWN there, and so it should be.
pytestmark = [pytest.mark.lab, pytest.mark.only("plain")]
LOCKUP = "watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [python:4242]"


@pytest.fixture(scope="module")
def shared_lab(fence: Path, strict: bool) -> Iterator[Lab]:
    """Two nodes that train and a spare; what a kernel's log says stays for the module."""
    there = Lab(f"{leftovers.NAME}-health")
    there.up(3, settings=SETTINGS, strict=strict)
    yield there
    there.down()


def test_an_ill_node_gets_no_slot_and_one_that_falls_ill_is_named(
    runs: Runs,  # noqa: F811
    lab: Lab,
) -> None:
    lab.kmsg("n1", LOCKUP)
    job = runs.ring(nodes=2, spares=1)
    job["preflight"] = {"tags": ["running"], "running_s": 1}
    run = runs.launch(job)
    before = run.until_step(SAVE_EVERY + 2)
    assert [slot["node"] for slot in before["slots"]] == ["n2", "n3"]
    (unusable,) = before["unusable"]
    assert unusable["node"] == "n1" and "health: kernel: " in unusable["reason"]

    lab.kmsg("n2", LOCKUP)

    def failed() -> list[ev.HealthSeen]:
        return [e for e in run.events(ev.HealthSeen) if (e.node, e.status) == ("n2", "FAIL")]

    until(failed, "the check of n2's kernel log")
    there = run.status()
    run.until_step(there["step"] + 3)  # a check stops no ranks whose steps advance
    assert not run.status()["incidents"]

    victim = next(r for r in run.ranks() if r.node == "n3")
    victim.signal(signal.SIGKILL)
    after = run.until(lambda s: s["excluded"], "the verdict")
    [incident] = after["incidents"]
    assert (incident["cause"], incident["culprits"]) == ("unhealthy-node", ["n2"])
    told = [e["text"] for e in incident["evidence"] if e["source"] == "health"]
    assert len(told) == 1 and told[0].startswith("n2 failed kernel: a CPU was stuck")
    assert f"rank {victim.rank} on n3" in incident["evidence"][0]["text"]
    run.until(lambda s: "no spare is left" in s["reason"], "no node for slot 0")

    with Fleet(runs.state / "fleet.db", write=False) as fleet:
        known = {n.name: n.state for n in fleet.nodes(0.0)}
    assert known == {"n1": "failed", "n2": "failed", "n3": known["n3"]} and known["n3"] != "failed"
    runs.superv("stop", "--now", run.name)
    run.until_ended("stopped")
