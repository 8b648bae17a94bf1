"""What an older superv wrote is understood, and written the same way: journals, wire, status.

tests/data/journals holds what the first version wrote: `ring`, a run on one machine (a rank killed,
a node killed, stopped, resumed, stopped) with the status document and the story that it gave (what
is said of ends of ranks is in today's words), and `spelling`, one of each event, action and message
with all of its fields.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scenario import checked

from supervisor.channel import wire
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.machine import step
from supervisor.core.status import status
from supervisor.core.story import describe
from supervisor.core.types import Run
from supervisor.run import journal

SAMPLES = Path(__file__).resolve().parents[1] / "data/journals"
RING = SAMPLES / "ring.jsonl"
SPELLING: dict[str, list[Any]] = json.loads((SAMPLES / "spelling.json").read_text())


def test_an_old_journal_gives_the_same_status_as_before() -> None:
    run = journal.rebuild(journal.read(RING))
    assert run is not None
    before = json.loads((SAMPLES / "ring-status.json").read_text())
    added = {
        "violations": [],
        "drained": [],
        "attention": [],
        "ranks_per_node": 2,
        "launched": 1795656701.727574,
        "next": {"command": "superv resume ring", "why": "goes on from step 980", "runbook": None},
        **dict.fromkeys(("waits_for", "steps_per_s", "target_step", "left_s")),
    }  # keys that are newer than the sample
    for allocation in before["allocations"]:
        allocation |= {"folder": "", "means": "", "do": "", "starts_at": None}
    assert json.loads(json.dumps(status(run, before["now"]))) == before | added


def test_an_old_journal_tells_the_same_story_as_before() -> None:
    run: Run | None = None
    lines: list[str] = []
    for record in journal.read(RING):
        before = run
        run, _ = step(before, record.event)
        lines += describe(before, record.event, run) if before is not None else []
    reworded = [line.replace("waiting for 2 to 3 nodes", "waiting for 3 nodes") for line in lines]
    assert reworded == (SAMPLES / "ring-story.txt").read_text().splitlines()


NEW_FIELDS: dict[str, set[str]] = {
    "Submitted": {"folder"},
    "AllocationSeen": {"means", "do", "starts_at"},
    "SubmitRefused": {"definite"},
    "AgentJoined": {"key"},
    "Progress": {"loss_not_finite", "log", "per_epoch", "slow", "save", "finite_step"},
    "StepOverdue": {"suspects"},
}  # newer than the samples
NEW_IN_SPEC = {"shows_work", "last_ranks_timeout_s"}  # of the RunSpec, of its policy
NEW_IN_VALUES = {"fingerprint", "unreadable"}  # of a Checkpoint, of a Rejected


def without_new(record: dict[str, Any]) -> dict[str, Any]:
    """A journal's line as the first version would have written it; without the checksum."""
    event = dict(record["event"])
    for name in NEW_FIELDS.get(event["kind"], set()):
        event.pop(name, None)
    if "spec" in event:
        event["spec"] = {k: v for k, v in event["spec"].items() if k not in NEW_IN_SPEC}
        policy = event["spec"]["policy"].items()
        event["spec"]["policy"] = {k: v for k, v in policy if k not in NEW_IN_SPEC}
    for values in (event.get("found", ()), event.get("rejected", ()), (event.get("seed") or {},)):
        for value in values:
            for name in NEW_IN_VALUES & value.keys():
                del value[name]
    return {key: value for key, value in record.items() if key != "crc"} | {"event": event}


# A Stop under the key of one that was pending, without the grace that ranks had been given.
MENDED = {47: ()}


def test_an_old_journal_is_decided_as_before() -> None:
    """And none of its steps breaks an invariant."""
    run: Run | None = None
    for record in journal.read(RING):
        made = checked(run, record.event)
        run = made.run
        actions = tuple(a for a in made.actions if not isinstance(a, act.KeepLogs))
        for order in made.actions:
            if isinstance(order, act.KeepLogs):  # newer: nothing waited for an answer
                kept = {"key": order.key, "attempt": order.attempt, "ranks": 0}
                run = checked(run, ev.LogsKept(at=record.event.at, **kept)).run
        before = MENDED.get(record.n, tuple(map(_as_now, record.actions)))
        assert actions == before, f"line {record.n}: {record.event}"


def _as_now(action: Action) -> Action:
    """A request for nodes says since then how few will do."""
    return replace(action, min_nodes=2) if isinstance(action, act.Submit) else action


def test_a_journal_is_written_as_before(tmp_path: Path) -> None:
    copy = journal.Journal(tmp_path / "journal.jsonl")
    for record in journal.read(RING):
        copy.append(record.event, record.actions, epoch=record.epoch)
    copy.close()
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    written = [without_new(json.loads(line)) for line in lines]
    assert written == [without_new(json.loads(line)) for line in RING.read_text().splitlines()]


@pytest.mark.parametrize("data", SPELLING["events"], ids=lambda d: d["kind"])
def test_every_event_is_spelled_as_before(data: dict[str, Any]) -> None:
    told = {"event": json.loads(json.dumps(wire.plain(wire.event_from(data))))}
    assert without_new(told)["event"] == data


@pytest.mark.parametrize("data", SPELLING["actions"], ids=lambda d: d["kind"])
def test_every_action_is_spelled_as_before(data: dict[str, Any]) -> None:
    assert json.loads(json.dumps(wire.plain(wire.action_from(data)))) == data


@pytest.mark.parametrize("text", SPELLING["messages"])
def test_every_message_is_spelled_as_before(text: str) -> None:
    frame = base64.b64decode(text)
    try:
        message: wire.ToEngine | wire.ToAgent = wire.unpack_for_engine(frame)
    except wire.WireError:
        message = wire.unpack_for_agent(frame)
    written = msgspec.msgpack.decode(wire.pack(message))
    job = written[1].get("job") or {}
    assert job.pop("secret", []) == []  # new, and read by nobody who does not know it
    assert job.pop("newer_than_0_1", False) is False
    assert job.pop("entry", []) == []
    assert job.pop("container", None) is None
    assert msgspec.msgpack.encode(written) == frame


def test_a_new_field_of_a_report_is_written_only_where_it_says_something() -> None:
    """Engines of the first version refuse fields that they do not know."""
    free = ev.Prepared(at=1.0, key="a2/prepare/n1", node="n1", attempt=2, port=30000)
    held = replace(free, problems=("processes 4711 can't be killed",), stuck=(4711,))
    assert "stuck" not in wire.plain(free) and list(wire.plain(held)["stuck"]) == [4711]
    assert wire.event_from(wire.plain(free)) == free
    assert wire.event_from(wire.plain(held)) == held
