"""A real agent that runs real health checks, in the process that it starts for them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from loopback import NODE, EngineSide, Place, job, play, until

from healthchecks.report import parse
from supervisor import wire
from supervisor.core import events as ev

FULL = {"fs.local": {"fail_percent": 0, "warn_percent": 0}}


def plan(
    tags: tuple[str, ...] = ("preflight",), running_s: float = 0.0, **more: Any
) -> wire.Health:
    values: dict[str, Any] = {"tags": tags, "running_s": running_s, "deadline_s": 20.0, **more}
    return wire.Health(**values)


async def begin(place: Place, health: wire.Health | None, *args: str) -> EngineSide:
    engine = EngineSide(place, job(place.tmp, *args, health=health))
    place.write_keys(engine.endpoint)
    place.agent()
    await engine.joined()
    return engine


def test_the_node_is_looked_at_first_of_all_and_once(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        engine = await begin(place, plan(settings=FULL))
        seen = await engine.event(ev.HealthSeen)
        assert (seen.node, seen.agent, seen.status) == (NODE, engine.hellos[0].agent, "FAIL")
        fault = next(f for f in seen.faults if f.check.startswith("fs.local["))
        assert fault.status == "FAIL" and fault.own and "% of its" in fault.text
        report = parse(engine.looked[0].report)
        assert report.node == NODE and report.tags == ("preflight",)
        assert {f.check for f in report.findings} > {"fs.local"}

    play(tmp_path, scenario)


def test_a_run_without_health_checks_has_none(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        engine = await begin(place, None)
        await until(lambda: len(engine.beats) > 1)
        assert not engine.looked and not engine.of(ev.HealthSeen)

    play(tmp_path, scenario)


def test_beside_ranks_the_running_suite_runs_and_at_once_when_one_ends(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        engine = await begin(place, plan(tags=(), running_s=3600.0))
        await engine.started()
        await place.pids()
        (tmp_path / "exit1").write_text("3")
        await until(lambda: engine.looked, "a look")
        assert parse(engine.looked[0].report).tags == ("running",)

    play(tmp_path, scenario)


def test_what_did_not_change_is_told_once(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        engine = await begin(place, plan(running_s=0.01, settings=FULL))
        await until(lambda: len(engine.looked) >= 3, "three looks")
        assert len(engine.of(ev.HealthSeen)) < len(engine.looked)

    play(tmp_path, scenario)


def test_somebody_asks(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        engine = await begin(place, None)
        for key, order in (("a", json.dumps({"names": ["fs.local"]})), ("b", "[]"), ("c", "{")):
            look = wire.Look(epoch=1, key=key, order=order, deadline_s=20.0)
            assert await engine.channel.send(NODE, look)
            await until(lambda: len(engine.looked) > "abc".index(key), key)  # noqa: B023
        good, *bad = engine.looked
        assert {f.check for f in parse(good.report).findings} == {"fs.local"} and not good.error
        assert [b.error for b in bad] == ["the order is no JSON object"] * 2

    play(tmp_path, scenario)


def test_checks_that_can_not_run_are_unknown_and_say_why(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        bad = {"fs.local": {"no_such_key": 1}}
        engine = await begin(place, plan(settings=bad))
        seen = await engine.event(ev.HealthSeen)
        assert (seen.status, seen.faults[0].check) == ("UNKNOWN", "health")
        assert "no_such_key" in seen.faults[0].text
        await asyncio.sleep(0)

    play(tmp_path, scenario)
