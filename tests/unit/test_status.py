"""The document that scripts read: its keys stay, and it says what is so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scenario import Scenario

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.attention import EngineView
from supervisor.core.status import SCHEMA, status
from supervisor.core.types import Deadline, DeadlineKind, Phase, Violation

KEYS = {
    "schema": int,
    "name": str,
    "run_id": str,
    "ranks_per_node": int,
    "launched": float,
    "phase": str,
    "since": float,
    "now": float,
    "reason": str,
    "attention": ["what", "since", "text", "fix"],
    "next": ["command", "why", "runbook"],
    "waits_for": ["what", "until", "then"],
    "epoch": int,
    "step": int,
    "loss": float,
    "step_at": float,
    "steps_per_s": float,
    "target_step": int,
    "left_s": float,
    "attempt": int,
    "attempt_cold": list,
    "attempt_resumed_from": int,
    "slots": ["slot", "node", "state", "reason"],
    "spares": list,
    "drained": list,
    "unusable": ["node", "state", "reason", "since"],
    "excluded": ["node", "reason", "since"],
    "health": ["node", "status", "checked_at", "faults"],
    "allocations": [
        *("job_id", "job_name", "state", "raw", "nodes", "reason", "means", "do", "starts_at"),
        "folder",
    ],
    "last_checkpoint": ["step", "path", "verified", "verified_at"],
    "lineage": ["step", "path", "attempt", "verified_at", "bytes"],
    "retired_checkpoints": ["step", "path", "at", "why", "quarantined", "done", "problem"],
    "rejected_checkpoints": ["step", "path", "why"],
    "incidents": [
        "attempt",
        "cause",
        "culprits",
        "confidence",
        "why",
        "runbook",
        "remedy",
        "fault",
        "suspected",
        "confirmed",
        "stopped",
        "judged",
        "relaunched",
        "first_step",
        "warm",
        "marks",
        "step",
        "resumed_from",
        "steps_lost",
        "evidence",
    ],
    "pending": list,
    "violations": ["invariant", "what", "at", "times", "refused", "undone"],
}


@pytest.fixture
def full() -> Scenario:
    """A run with a value for every key."""
    p = Scenario(nodes=2, spares=2).to(Phase.RUNNING)
    p.save(10)
    p.corrupt.add(p.save(20))
    p.progress(24)
    p.lose("n2")
    p.recover_to_first_step()
    p.save(30)
    p.take(ev.Scanned, key="look", **p.scan_found())
    p.take(ev.QuarantineRequested, who="ann", step=30, reason="a spike")
    p.silent("n4")
    return p


def test_the_keys_and_kinds_of_the_document(full):
    """A key that is added comes here too; one that goes or changes needs another SCHEMA."""
    full.run = replace(full.run, violations=(Violation(at=1.0, invariant=1, what="a fault"),))
    full.run = replace(full.run, isolated_since=full.now)
    last_ranks = Deadline(at=full.now + 60, kind=DeadlineKind.LAST_RANKS)
    full.run = replace(full.run, deadline=last_ranks)
    seen = EngineView(steps_per_s=0.5, target_step=100)
    document = json.loads(json.dumps(status(full.run, full.now, seen)))
    assert SCHEMA == 1
    assert list(document) == list(KEYS)
    for key, kind in KEYS.items():
        value = document[key]
        if isinstance(kind, list):
            rows = value if isinstance(value, list) else [value]
            assert rows, f"{key} is empty"
            assert all(list(row) == kind for row in rows), key
        else:
            assert isinstance(value, kind), key
    assert list(document["incidents"][0]["evidence"][0]) == ["node", "at", "source", "text"]


def test_it_says_what_happened(full):
    document = status(full.run, full.now)
    assert [s["node"] for s in document["slots"]] == ["n1", "n3"]
    assert (document["phase"], document["step"], document["attempt"]) == ("running", 11, 2)
    assert document["attempt_resumed_from"] == 10
    assert [x["node"] for x in document["excluded"]] == ["n2"]
    assert {u["node"]: u["state"] for u in document["unusable"]} == {
        "n2": "lost",
        "n4": "suspect",
    }
    assert document["spares"] == []
    assert document["last_checkpoint"]["step"] == 10
    assert [r["step"] for r in document["rejected_checkpoints"]] == [20]
    told = document["incidents"][0]
    assert (told["cause"], told["culprits"], told["steps_lost"]) == ("node-lost", ["n2"], 14)
    order = ["suspected", "confirmed", "stopped", "judged", "relaunched", "first_step"]
    assert [told[key] for key in order] == sorted(told[key] for key in order)


def test_how_long_the_rest_takes(full):
    told = status(full.run, full.now, EngineView(steps_per_s=0.5, target_step=111))
    assert (told["step"], told["left_s"]) == (11, 200.0)
    assert status(full.run, full.now)["left_s"] is None


@pytest.mark.parametrize("kind", DeadlineKind)
def test_what_is_waited_for_has_words_for_every_deadline(full, kind):
    run = replace(full.run, deadline=Deadline(at=full.now + 9, kind=kind))
    told = status(run, full.now)["waits_for"]
    assert told["what"] and told["then"] and told["until"] == full.now + 9


def test_what_is_waited_for_names_the_nodes():
    p = Scenario(nodes=2, spares=1)
    told = {}
    for phase in list(Phase)[:8]:
        if p.run.phase is not phase:
            p = Scenario(nodes=2, spares=1, backoff_s=(5.0,)).to(phase)
        told[phase] = status(p.run, p.now)["waits_for"]
    assert told[Phase.PENDING]["what"] == "Slurm to take the request for nodes"
    assert told[Phase.GATHERING]["what"].startswith("agents: ")
    assert told[Phase.CHECKING]["what"] == "n[1-2] to say that no older rank is left there"
    assert told[Phase.STARTING]["what"] == "the first step of attempt 1"
    assert told[Phase.RUNNING] is None
    assert told[Phase.STOPPING]["what"].startswith("the old ranks' end on n")
    assert told[Phase.TRIAGE]["what"] == "checkpoints to be verified"
    assert told[Phase.BACKOFF]["then"] == "the next attempt begins"


def test_before_anything_happened_absent_values_are_null():
    document = status(Scenario().run, 1000.0)
    for key in ("step", "loss", "step_at", "attempt", "attempt_resumed_from", "last_checkpoint"):
        assert document[key] is None, key
    assert (document["slots"], document["incidents"]) == ([], [])
    assert document["pending"] == ["submit/1"]


def test_a_slot_that_waits_for_a_node_is_null():
    p = Scenario(nodes=2, spares=0).to(Phase.RUNNING)
    p.lose("n2")
    p.finish_stop_and_scan()
    assert status(p.run, p.now)["slots"][1] == {
        "slot": 1,
        "node": None,
        "state": None,
        "reason": "",
    }


def test_it_can_be_printed_in_every_phase():
    for phase in list(Phase)[:8]:
        p = Scenario(backoff_s=(5.0,)).to(phase)
        assert json.loads(json.dumps(status(p.run, p.now)))["phase"] == phase.value
    p.expire_deadline()
    p.answer(act.Prepare)
    assert status(p.run, p.now)["phase"] == "starting"
