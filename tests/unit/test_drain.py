"""When superv drains a node, and what it leaves alone."""

from __future__ import annotations

import shlex

import pytest

import healthchecks.checks.fs
from healthchecks.check import Result, Status
from healthchecks.report import Finding
from launchers.slurm import NodeStatus
from supervisor.drain import Decision, command, decide, reason_for
from supervisor.fleet import Drain

assert healthchecks.checks.fs  # registers fs.local


def bad(check="fs.local", status=Status.FAIL, seen="97 % used", shared=""):
    return Finding(check=check, result=Result(status=status, seen=seen, shared=shared))


def node(name, state="idle", reason="", answers=True):
    return NodeStatus(name=name, state=state, answers=answers, reason=reason)


def asked(confirmed=None, *, slurm=None, own=None, passes=None, looked=63):
    states = {f"n{i}": node(f"n{i}") for i in range(1, 64)} | (slurm or {})
    return decide(
        confirmed=confirmed or {}, looked=looked, slurm=states, own=own or {}, passes=passes or {}
    )


def test_a_confirmed_fault_of_its_own_drains_a_node():
    decisions, why = asked({"n4": [bad()]})
    assert decisions == [Decision(node="n4", act="drain", reason="superv: fs.local: 97 % used")]
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


def test_many_at_once_are_a_shared_cause():
    decisions, why = asked({f"n{i}": [bad()] for i in range(1, 5)})
    assert decisions == [] and "4 nodes would be drained at once" in why
    decisions, why = asked({f"n{i}": [bad()] for i in range(1, 4)})
    assert len(decisions) == 3 and why == ""
    assert asked({f"n{i}": [bad()] for i in range(1, 4)}, looked=4)[0] == []


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
    assert decide(confirmed={}, looked=1, slurm={}, own=OWN, passes={"n4": 9}) == ([], "")


def test_the_reason_fits_on_a_line_and_the_command_is_quoted():
    reason = reason_for([bad(seen="62 °C → it's\n'broken' \"badly\" | " + "x" * 300), bad()])
    assert len(reason) <= 200 and reason.isprintable() and not set("'\"|\\") & set(reason)
    assert reason.isascii() and "  " not in reason
    assert reason.endswith(" (and 1 more)")
    words = shlex.split(command(Decision(node="n4", act="drain", reason=reason)))
    assert words[-1] == f"Reason={reason}"
