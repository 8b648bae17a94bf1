"""What health checks do in a run on real Slurm: who gets no slot, who is named, and who goes on."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from runs import SAVE_EVERY, SETTINGS, Runs, runs, until  # noqa: F401

from lab.cluster import Lab
from supervisor import proc
from supervisor.core import events as ev
from supervisor.fleet.record import Fleet

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
    texts = [e["text"] for e in incident["evidence"] if e["source"] == "health"]
    assert len(texts) == 1 and texts[0].startswith("n2 failed kernel: a CPU was stuck")
    assert f"rank {victim.rank} on n3" in incident["evidence"][0]["text"]
    run.until(lambda s: "no spare is left" in s["reason"], "no node for slot 0")

    with Fleet(runs.state / "fleet.db", write=False) as fleet:
        known = {n.name: n.state for n in fleet.nodes(0.0)}
    assert known == {"n1": "failed", "n2": "failed", "n3": known["n3"]} and known["n3"] != "failed"

    runs.superv("nodes", "n1", "--repaired", "new CPU")  # while the run goes on
    run.until(lambda s: {x["node"] for x in s["slots"]} == {"n1", "n3"}, "the repaired node")
    run.until(lambda s: s["phase"] == "running" and s["attempt"] == 2, "the run on it")
    runs.superv("stop", "--now", run.name)
    run.until_ended("stopped")


def state(lab: Lab, node: str) -> tuple[str, str]:
    done = lab.run("ctl", ["sinfo", "-h", "-N", "-n", node, "-o", "%T|%E"], user="root")
    word, _, reason = done.out.strip().partition("|")
    return word, reason


def test_a_sweep_drains_what_two_looks_found_and_knows_its_own_drain(
    runs: Runs,  # noqa: F811
    lab: Lab,
) -> None:
    lab.kmsg("n1", LOCKUP)
    # Root reads no site file and writes no record where others could put their own.
    roots = Path(tempfile.mkdtemp(prefix="superv-test-", dir="/srv"))
    roots.chmod(0o755)
    site = roots / "root.yaml"
    site.write_text(f"state_dir: {roots}/root\ndrain: {{mode: 'on', look_again_s: 1}}\n")
    argv = [sys.executable, "-m", "supervisor.cli", "sweep", "n1"]
    command = lab.enter("login", argv, user="root", cwd="/", env={"SUPERV_SITE": str(site)})
    try:
        first = proc.run_sync(command, deadline_s=60)
        assert first.rc == 1 and "n1: drained: superv: kernel: a CPU was stuck" in first.out
        word, reason = state(lab, "n1")
        assert word == "drained" and reason.startswith("superv: kernel: a CPU was stuck")
        again = proc.run_sync(command, deadline_s=60)  # through ssh now, and nobody lets it in
        assert "a person" not in again.out and state(lab, "n1") == (word, reason)
        words = ["scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=ops: CPU 3, RMA 12"]
        assert lab.run("ctl", words, user="root").rc == 0
        theirs = proc.run_sync(command, deadline_s=60)
        assert "superv's no longer: a person's now: ops: CPU 3, RMA 12" in theirs.out
        assert state(lab, "n1") == ("drained", "ops: CPU 3, RMA 12")
    finally:
        lab.run("ctl", ["scontrol", "update", "NodeName=n1", "State=RESUME"], user="root")
        shutil.rmtree(roots)
    until(lambda: state(lab, "n1")[0] == "idle", "n1 in service again")


def test_people_keep_nodes_out_of_a_run_and_a_sweep_asks_its_agents(
    runs: Runs,  # noqa: F811
    lab: Lab,
) -> None:
    typo = runs.superv("exclude", "n9", "--reason=link 3 flaps", rc=2)
    assert "n9: Slurm knows no such node" in typo.err
    runs.superv("exclude", "n[1-2]", "--reason=link 3 flaps", "--for=2d")
    job = runs.ring(nodes=1, spares=0)
    job["preflight"] = {"tags": ["running"], "running_s": 0}
    run = runs.launch(job)
    status = run.until_step(2)
    assert [slot["node"] for slot in status["slots"]] == ["n3"]
    document = json.loads(proc.run_sync(runs.enter("sweep", "n3", "--json"), deadline_s=60).out)
    assert document["nodes"]["n3"]["asked"] == "agent"
    assert document["nodes"]["n3"]["report"]["tags"] == ["running"]
    assert run.status()["attempt"] == 1 and not run.status()["incidents"]
    runs.superv("stop", "--now", run.name)
    run.until_ended("stopped")
