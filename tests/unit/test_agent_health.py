"""A real agent that runs real health checks, in the process that it starts for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import NODE, EngineSide, LoopbackNode, job, play, until

from healthchecks.frame.report import parse
from supervisor.agent.health import HealthWatch
from supervisor.channel import wire
from supervisor.core import events as ev
from supervisor.host import procfs
from tests.processes import children

FULL = {"fs.local": {"fail_percent": 0, "warn_percent": 0}}


def plan(
    tags: tuple[str, ...] = ("preflight",), running_s: float = 0.0, **more: Any
) -> wire.Health:
    values: dict[str, Any] = {"tags": tags, "running_s": running_s, "deadline_s": 20.0, **more}
    return wire.Health(**values)


async def begin(place: LoopbackNode, health: wire.Health | None, *args: str) -> EngineSide:
    engine = EngineSide(place, job(place.tmp, *args, health=health))
    place.write_keys(engine.endpoint)
    place.agent()
    await engine.joined()
    return engine


def test_the_node_is_looked_at_first_of_all_and_once(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, plan(settings=FULL))
        seen = await engine.event(ev.HealthSeen)
        assert (seen.node, seen.agent, seen.status) == (NODE, engine.hellos[0].agent, "FAIL")
        fault = next(f for f in seen.faults if f.check.startswith("fs.local["))
        assert fault.status == "FAIL" and fault.node_fault and "% of its" in fault.text
        report = parse(engine.looked[0].report)
        assert report.node == NODE and report.tags == ("preflight",)
        assert {f.check for f in report.findings} > {"fs.local"}

    play(tmp_path, scenario)


def test_a_run_without_health_checks_has_none(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, None)
        await until(lambda: len(engine.beats) > 1)
        assert not engine.looked and not engine.of(ev.HealthSeen)

    play(tmp_path, scenario)


def test_beside_ranks_the_running_suite_runs_and_at_once_when_one_ends(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, plan(tags=(), running_s=3600.0))
        await engine.started()
        await place.pids()
        (tmp_path / "exit1").write_text("3")
        await until(lambda: engine.looked, "a look")
        assert parse(engine.looked[0].report).tags == ("running",)

    play(tmp_path, scenario)


def test_what_did_not_change_is_told_once(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, plan(running_s=0.01, settings=FULL))
        await until(lambda: len(engine.looked) >= 3, "three looks")
        assert len(engine.of(ev.HealthSeen)) < len(engine.looked)

    play(tmp_path, scenario)


def test_somebody_asks(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, None)
        for key, order in (("a", json.dumps({"names": ["fs.local"]})), ("b", "[]"), ("c", "{")):
            look = wire.HealthQuery(epoch=1, key=key, order=order, deadline_s=20.0)
            assert await engine.channel.send(NODE, look)
            await until(lambda: len(engine.looked) > "abc".index(key), key)  # noqa: B023
        good, *bad = engine.looked
        assert {f.check for f in parse(good.report).findings} == {"fs.local"} and not good.error
        assert [b.error for b in bad] == ["the order is no JSON object"] * 2

    play(tmp_path, scenario)


def test_checks_that_can_not_run_are_unknown_and_say_why(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        bad = {"fs.local": {"no_such_key": 1}}
        engine = await begin(place, plan(settings=bad))
        seen = await engine.event(ev.HealthSeen)
        assert (seen.status, seen.faults[0].check) == ("UNKNOWN", "health")
        assert "no_such_key" in seen.faults[0].text
        await asyncio.sleep(0)

    play(tmp_path, scenario)


def test_checks_that_hang_are_given_up_in_time_and_looked_at_again(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, plan(running_s=0.05, deadline_s=1.0))

        def stopped() -> bool:
            for pid in children(place.agents[0].pid):
                if "healthchecks" in " ".join(procfs.argv(pid)):
                    os.kill(pid, signal.SIGSTOP)
                    return True
            return False

        await until(stopped, "the process of the checks")
        seen = await engine.event(ev.HealthSeen)
        assert (seen.status, seen.faults[0].check) == ("UNKNOWN", "health")
        assert "did not answer within" in seen.faults[0].text
        again = await engine.event(ev.HealthSeen, 2)
        assert "health" not in {f.check for f in again.faults}

    play(tmp_path, scenario)


class Scripted:
    """An agent's looks at a node whose interpreter answers as the test says."""

    def __init__(self, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer_file, self.calls = tmp / "answer", tmp / "calls"
        self.answer_file.write_text("")
        python = tmp / "python"
        python.write_text(f"#!/bin/sh\necho x >>{self.calls}\ncat {self.answer_file}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        self.busy = False
        self.seen: list[Any] = []
        self.health = HealthWatch(
            "n1",
            "life",
            busy=lambda: self.busy,
            report=self.seen.append,
            send=lambda _: None,
        )
        self.health.configure(plan(running_s=0.01, deadline_s=5.0))

    def answers(self, **rows: str) -> None:
        results = [{"check": c.replace("_", "."), "status": s, "seen": s} for c, s in rows.items()]
        self.answer_file.write_text(json.dumps({"schema": 1, "results": results}))

    async def looks(self, count: int = 2) -> tuple[str, dict[str, str]]:
        """What was told last, after so many more looks have begun."""
        before = len(self.calls.read_text()) if self.calls.exists() else 0
        await until(
            lambda: self.calls.exists() and len(self.calls.read_text()) > before + 2 * count
        )
        last = self.seen[-1]
        return last.status, {f.check: f.status for f in last.faults}


def scripted(
    tmp: Path, monkeypatch: pytest.MonkeyPatch, story: Callable[[Scripted], Awaitable[None]]
) -> None:
    async def whole() -> None:
        node = Scripted(tmp, monkeypatch)
        node.answers(a_x="OK")
        living = asyncio.ensure_future(node.health.live())
        try:
            await story(node)
        finally:
            living.cancel()

    asyncio.run(whole())


def test_unknown_cures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(node: Scripted) -> None:
        node.answers(a_x="FAIL", b_y="OK")
        assert await node.looks() == ("FAIL", {"a.x": "FAIL"})
        node.answers(a_x="UNKNOWN", b_y="UNKNOWN")
        assert await node.looks() == ("FAIL", {"a.x": "FAIL", "b.y": "UNKNOWN"})
        node.answer_file.write_text("Segmentation fault")
        told = {"health": "UNKNOWN", "a.x": "FAIL", "b.y": "UNKNOWN"}
        assert await node.looks() == ("FAIL", told)
        node.answers(a_x="OK", b_y="OK")
        assert await node.looks() == ("OK", {})

    scripted(tmp_path, monkeypatch, story)


def test_what_the_engine_wants_anew_is_looked_at_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(node: Scripted) -> None:
        rare: Any = {"running_s": 600.0, "deadline_s": 5.0}
        node.health.configure(plan(**rare))
        await until(lambda: node.seen, "the first look")
        node.answers(a_x="FAIL")
        node.health.configure(plan(**rare))  # as it is: no reason to look
        assert not node.health._wanted.is_set()
        node.health.configure(plan(**rare, settings={"repairs": {"n1": {"a": 7.0}}}))
        await until(lambda: node.seen[-1].status == "FAIL", "a look by what is new")

    scripted(tmp_path, monkeypatch, story)


def test_a_check_that_can_not_tell_its_targets_cures_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(node: Scripted) -> None:
        row = {"check": "a.x", "on": "/shared", "status": "FAIL", "seen": "it"}
        node.answer_file.write_text(json.dumps({"schema": 1, "results": [row]}))
        assert await node.looks() == ("FAIL", {"a.x[/shared]": "FAIL"})
        node.answers(a_x="UNKNOWN")
        assert await node.looks() == ("FAIL", {"a.x[/shared]": "FAIL"})
        node.answers(a_x="SKIP")
        assert await node.looks() == ("OK", {})

    scripted(tmp_path, monkeypatch, story)


def test_beside_ranks_what_is_not_asked_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(node: Scripted) -> None:
        node.answers(a_x="WARN", b_y="OK")
        assert await node.looks() == ("WARN", {"a.x": "WARN"})
        node.busy = True
        node.answers(b_y="FAIL")
        assert await node.looks() == ("FAIL", {"b.y": "FAIL", "a.x": "WARN"})
        node.answer_file.write_text("[]")
        assert (await node.looks())[1]["health"] == "UNKNOWN"
        node.answers(b_y="OK")
        assert await node.looks() == ("WARN", {"a.x": "WARN"})

    scripted(tmp_path, monkeypatch, story)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", '{"results": [1]}', '{"results": [{"check": "x"}]}', "{}"]
)
def test_what_is_no_report_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    async def story(node: Scripted) -> None:
        node.answer_file.write_text(text)
        assert await node.looks() == ("UNKNOWN", {"health": "UNKNOWN"})

    scripted(tmp_path, monkeypatch, story)


def test_a_check_that_does_not_drain_names_no_node() -> None:
    from supervisor.agent.health import fault_of

    row = {"check": "ib.counters", "status": "FAIL", "seen": "x", "blame": "node"}
    assert fault_of(row).node_fault
    assert not fault_of({**row, "drains": False}).node_fault
    assert not fault_of({**row, "shared": "switch s"}).node_fault
