"""Which findings may drain a node, over all checks: none that a user can bring about."""

from __future__ import annotations

import pytest

from healthchecks.frame.catalogue import DRAIN_SUITES, drain_rule
from healthchecks.frame.check import Blame, Result, Status
from healthchecks.frame.registry import registered
from healthchecks.frame.report import Finding, parse
from supervisor.fleet.drain import drainable, drainable_of

# What users can bring about on a node that they may use, and the checks that see it.
BY_USERS = {
    "their limits (ulimit, srun --propagate)": ["nccl.limits"],
    "their files in /dev/shm": ["nccl.shm"],
    "their processes on a GPU": ["gpu.leftover", "accel.leftover"],
    "their step's CPUs": ["cpu.binding"],
    "their Python environment": ["cuda.libs"],
    "their traffic": ["ib.counters", "roce.counters", "roce.discards"],
    "what their programs make the kernel warn of": ["kmsg.novelty"],
}
BY_THE_NETWORK = ["path.mtu", "host.name"]  # a peer, a switch, a name server
NEVER = sorted([*(name for names in BY_USERS.values() for name in names), *BY_THE_NETWORK])


def found(check: str, **more: object) -> Finding:
    return Finding(check=check, result=Result(status=Status.FAIL, seen="x", **more))


def test_every_check_of_the_suites_is_decided() -> None:
    """A new one that a user can make fail belongs into the table above."""
    here = {n: c for n, c in registered().items() if c.tags & DRAIN_SUITES}
    assert sorted(n for n in here if not drainable(found(n))) == NEVER
    for name, check in here.items():
        rule = drain_rule(check)
        assert rule.startswith("May drain") is (name not in NEVER)
        assert check.blame is Blame.NODE or not check.drains, f"{name}: says both"


def test_what_reads_lines_about_gpus_wants_a_witness() -> None:
    assert [n for n, c in registered().items() if c.witness] == ["accel.kernel", "xid"]
    assert drainable_of([found("xid")]) == []
    both = [found("xid"), found("gpu.recovery_action")]
    assert drainable_of(both) == both
    assert drainable_of([found("xid"), found("mem.size")]) == [found("mem.size")]
    assert drainable_of([found("accel.kernel"), found("gpu.count")]) == [found("gpu.count")]
    amd = [found("accel.kernel"), found("accel.memory")]
    assert drainable_of(amd) == amd
    gone = found("xid", corroborated=True)
    assert drainable_of([gone]) == [gone]


@pytest.mark.parametrize("more", [{"by_users": True}, {"shared": "nfs server 10.0.0.5"}])
def test_a_finding_may_say_that_it_is_not_the_nodes(more: dict[str, object]) -> None:
    assert drainable(found("fs.local")) and not drainable(found("fs.local", **more))


def test_what_a_finding_says_of_itself_survives_the_wire() -> None:
    from healthchecks.frame.report import Report

    sent = Report(
        node="n1",
        at=1.0,
        findings=(found("fs.local", by_users=True), found("xid", corroborated=True)),
    )
    import json

    kept = parse(json.dumps(sent.document()))
    assert drainable_of(kept.findings) == [f for f in kept.findings if f.check == "xid"]
