"""When superv drains a node, and what it leaves alone."""

from __future__ import annotations

import shlex

import pytest

import healthchecks.checks.fs
from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding
from launchers.slurm_rows import SlurmNode
from supervisor.config import DrainRule
from supervisor.fleet.brake import counted, too_many
from supervisor.fleet.drain import DrainDecision, decide, reason_for, scontrol_command
from supervisor.fleet.types import Drain

assert healthchecks.checks.fs  # registers fs.local


def bad(check="fs.local", status=Status.FAIL, seen="97 % used", shared=""):
    return Finding(check=check, result=Result(status=status, seen=seen, shared=shared))


def node(name, state="idle", reason=""):
    return SlurmNode(name=name, state=state, reason=reason)


def asked(confirmed=None, *, slurm=None, own=None, passes=None, nodes=63, rule=None):
    states = {f"n{i}": node(f"n{i}") for i in range(1, nodes + 1)} | (slurm or {})
    return decide(
        confirmed=confirmed or {},
        brake=counted(states, rule or DrainRule(mode="on"), 0.0),
        slurm=states,
        own=own or {},
        passes=passes or {},
    )


def test_a_confirmed_fault_of_its_own_drains_a_node():
    decisions, why = asked({"n4": [bad()]})
    assert decisions == [
        DrainDecision(node="n4", act="drain", reason="superv: fs.local: 97 % used")
    ]
    assert why == ""


@pytest.mark.parametrize(
    "finding",
    [bad(status=Status.UNKNOWN), bad(status=Status.WARN), bad(shared="nfs server s")],
    ids=["unknown", "warning", "a server's"],
)
def test_what_never_drains(finding):
    assert asked({"n4": [finding]}) == ([], "")


@pytest.mark.parametrize("state", ["drained", "draining", "down", "maint"])
def test_a_node_that_is_out_already_is_left_alone(state):
    slurm = {"n4": node("n4", state, "ops: fan")}
    assert asked({"n4": [bad()]}, slurm=slurm) == ([], "")


ADDED = ("Not responding", "ResumeTimeout reached", "reboot issued", "reboot complete")


@pytest.mark.parametrize("added", [*ADDED, "reboot timed out", "Not responding : reboot issued"])
def test_what_slurm_adds_to_a_reason_is_no_persons(added):
    own = {"n4": Drain(node="n4", at=1.0, reason="superv: fs.local: 97 % used")}
    for state in ("drained", "drained*", "draining"):
        slurm = {"n4": node("n4", state, f"superv: fs.local: 97 % used : {added}")}
        assert asked(slurm=slurm, own=own) == ([], "")
        decisions, _ = asked(slurm=slurm, own=own, passes={"n4": 2})
        assert [d.act for d in decisions] == ["resume"]


@pytest.mark.parametrize("added", ["Not responding to me", "fan : Not responding", "rebooted"])
def test_what_a_person_adds_is_a_persons(added):
    own = {"n4": Drain(node="n4", at=1.0, reason="superv: fs.local: 97 % used")}
    slurm = {"n4": node("n4", "drained", f"superv: fs.local: 97 % used : {added}")}
    decisions, _ = asked(slurm=slurm, own=own, passes={"n4": 2})
    assert [d.act for d in decisions] == ["forget"]


@pytest.mark.parametrize(
    ("state", "reason", "given"),
    [
        ("idle", "superv: a: b : Not responding", ""),  # 24.11 leaves it there
        ("mixed", "ops: fan", ""),
        ("down*", "superv: a: b : Not responding", "Not responding"),  # and adds to it
        ("down", "Not responding", "Not responding"),
        ("drained", "Not responding", "Not responding"),
        ("drained*", "ops: fan : Not responding", "ops: fan"),
        ("drained", "ops: a : b", "ops: a : b"),
        ("idle*", "Not responding", "Not responding"),
        ("inval", "gres/gpu count reported lower", "gres/gpu count reported lower"),
    ],
)
def test_a_reason_counts_for_the_state_that_it_was_given_for(state, reason, given):
    assert node("n4", state, reason).given_reason == given


def test_a_failed_prolog_counts_in_each_wording():
    states = {"n1": node("n1", "drained", "Prolog/Epilog failure"), "n2": node("n2", "drained")}
    assert counted(states, DrainRule(mode="on"), 0.0).nodes == ("n1",)
    left = {"n1": node("n1", "idle", "superv: fs.local: 97 % used")}
    assert counted(left, DrainRule(mode="on"), 0.0).nodes == ()


def test_many_at_once_are_a_shared_cause():
    decisions, why = asked({f"n{i}": [bad()] for i in range(1, 5)})
    assert decisions == [] and why.startswith("4 nodes at once not drained (n[1-4]): the drain bra")
    decisions, why = asked({f"n{i}": [bad()] for i in range(1, 4)})
    assert len(decisions) == 3 and why == ""
    assert asked({f"n{i}": [bad()] for i in range(1, 4)}, nodes=4)[0] == []


def test_drains_that_stand_count_whoever_of_superv_set_them():
    reasons = ["superv: gpu.count: 7 of 8 GPUs", "Prolog error", "superv:  x"]
    slurm = {f"n{60 + i}": node(f"n{60 + i}", "drained", r) for i, r in enumerate(reasons)}
    decisions, why = asked({"n4": [bad()]}, slurm=slurm)
    assert decisions == [] and why == (
        "1 node not drained (n4): the drain brake holds: 3 of 63 nodes are drained by superv or a "
        "failed Prolog (n[60-62]), 3 may be (drain: max_percent, max_nodes); look for what they "
        "share; it lifts by itself when fewer are"
    )
    slurm["n60"] = node("n60", "drained", "ops: superv: said so")  # a person's does not count
    assert [d.node for d in asked({"n4": [bad()]}, slurm=slurm)[0]] == ["n4"]
    slurm["n60"] = node("n60", "idle", "superv: lifted")
    assert [d.node for d in asked({"n4": [bad()]}, slurm=slurm)[0]] == ["n4"]


@pytest.mark.parametrize(
    ("percent", "most", "nodes", "limit"),
    [(5, 2, 63, 3), (5, 2, 10, 2), (50, 0, 10, 5), (0, 0, 1000, 0), (0, 1, 1000, 1), (1, 2, 10, 2)],
)
def test_the_limit_is_the_larger_of_share_and_number(percent, most, nodes, limit):
    rule = DrainRule(mode="on", max_percent=percent, max_nodes=most)
    for bad_ones in range(1, 8):
        confirmed = {f"n{i}": [bad()] for i in range(1, bad_ones + 1) if i <= nodes}
        decisions, why = asked(confirmed, nodes=nodes, rule=rule)
        assert (len(decisions) == len(confirmed)) is (len(confirmed) <= limit) is (why == "")


def test_nodes_that_drain_at_the_same_moment_give_back_what_is_too_much():
    """Each counted before the others had drained; each looks again, and all come to the same."""
    rule = DrainRule(mode="on")
    drained = [f"n{i}" for i in range(1, 9)]
    states = {f"n{i}": node(f"n{i}") for i in range(1, 64)}
    states |= {n: node(n, "drained", "superv: x: y") for n in drained}
    kept = [n for n in drained if not too_many(states, rule, [n])]
    assert kept == ["n1", "n2", "n3"]
    assert too_many(dict.fromkeys([]), rule, []) == []


OWN = {"n4": Drain(node="n4", at=1.0, reason="superv: fs.local: 97 % used")}


def test_an_own_drain_is_lifted_after_two_passes():
    slurm = {"n4": node("n4", "drained", OWN["n4"].reason)}
    assert asked(slurm=slurm, own=OWN, passes={"n4": 1}) == ([], "")
    (decision,), _ = asked(slurm=slurm, own=OWN, passes={"n4": 2})
    assert decision.act == "resume"


def test_a_drain_that_a_person_took_over_or_lifted_is_forgotten_not_touched():
    slurm = {"n4": node("n4", "drained", "ops: keep out, RMA 123")}
    (decision,), _ = asked(slurm=slurm, own=OWN, passes={"n4": 5})
    assert (decision.act, decision.reason) == ("forget", "a person's now: ops: keep out, RMA 123")
    (decision,), _ = asked(slurm={"n4": node("n4")}, own=OWN, passes={"n4": 5})
    assert decision.act == "forget"


def test_slurms_spacing_of_a_reason_makes_no_person_of_it():
    own = {"n4": Drain(node="n4", at=1.0, reason="superv: x:  two  blanks ")}
    slurm = {"n4": node("n4", "drained", "superv: x: two blanks")}
    (decision,), _ = asked(slurm=slurm, own=own, passes={"n4": 2})
    assert decision.act == "resume"


@pytest.mark.parametrize("state", ["down", "reboot", "powered_down", "unknown"])
def test_a_state_that_may_hide_a_drain_says_nothing_of_it(state):
    assert asked(slurm={"n4": node("n4", state)}, own=OWN, passes={"n4": 5}) == ([], "")


def test_nothing_is_lifted_while_slurm_does_not_say():
    brake = counted({}, DrainRule(mode="on"), 0.0)
    assert decide(confirmed={}, brake=brake, slurm={}, own=OWN, passes={"n4": 9}) == ([], "")


def test_the_reason_fits_on_a_line_and_the_command_is_quoted():
    reason = reason_for([bad(seen="62 °C → it's\n'broken' \"badly\" | " + "x" * 300), bad()])
    assert len(reason) <= 200 and reason.isprintable() and not set("'\"|\\") & set(reason)
    assert reason.isascii() and "  " not in reason
    assert reason.endswith(" (and 1 more)")
    words = shlex.split(scontrol_command(DrainDecision(node="n4", act="drain", reason=reason)))
    assert words[-1] == f"Reason={reason}"
