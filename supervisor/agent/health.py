"""Health checks on the agent's node: a process of their own, started by the clock and by faults.

The checks run in another interpreter, with a deadline: what they touch may hang, and the agent
never imports them. What they found is sent when it changed; a report that never came is UNKNOWN,
which is sent too, so that nobody waits for this node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from supervisor import proc
from supervisor.agent import tree
from supervisor.channel import wire
from supervisor.core import events as ev
from supervisor.core.check_status import NOT_FINE, PASSES, Status, worst
from supervisor.core.types import Fault
from supervisor.host.log import counted

logger = logging.getLogger(__name__)


IDLE_TIMES = 5  # spares run the whole preflight suite so much less often than `running` …
NO_REPORT = "health"  # the check whose fault says that there is no report
AFTER_EXIT_S = 5.0  # … and a rank's bad end is looked into at once, but not more often than this
AGAIN_S = 60.0  # between looks at a node that did not pass, where no other period is set
SLACK_S = 3.0  # over the checks' own deadline: interpreter start, and the way back


class HealthWatch:
    """Looks at the node, and tells what it found."""

    def __init__(
        self,
        node: str,
        agent: str,
        *,
        busy: Callable[[], bool],
        report: Callable[[ev.Event], None],
        send: Callable[[wire.HealthReport], None],
    ) -> None:
        self._node, self._agent = node, agent
        self._busy = busy  # whether ranks live here
        self._report, self._send = report, send
        self._plan: wire.Health | None = None
        self._last_sent: tuple[Fault, ...] | None = None  # None: nothing yet
        self._last_said = ""
        self._wanted = asyncio.Event()
        self._exit_at = 0.0

    def configure(self, plan: wire.Health | None) -> None:
        """What the engine wants looked at. What is new to this agent begins with a look."""
        news, self._plan = self._plan != plan, plan
        if news and plan is not None:
            self._wanted.set()

    @property
    def facts(self) -> dict[str, str]:
        """What was found last, for an engine that does not know it."""
        return {"health": self._last_said} if self._last_said else {}

    def rank_ended(self) -> None:
        """A rank ended badly: was it the node?"""
        wanted = self._plan is not None and self._plan.running_s > 0
        if wanted and time.monotonic() - self._exit_at > AFTER_EXIT_S:
            self._exit_at = time.monotonic()
            self._wanted.set()

    async def live(self) -> None:
        """For as long as the agent lives."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wanted.wait()
            self._wanted.clear()
            if self._plan is not None:
                await self._run(self._plan)

    def _pause(self) -> float | None:
        """Seconds until the next look; None: only when there is a reason."""
        if self._plan is None:
            return None
        well = self._last_sent is not None and _worst(self._last_sent) in PASSES
        if not self._plan.running_s:  # but who is not well may pass again
            return AGAIN_S if self._plan.tags and not well and not self._busy() else None
        return self._plan.running_s * (IDLE_TIMES if well and not self._busy() else 1)

    async def _run(self, plan: wire.Health) -> None:
        busy = self._busy()
        tags = ("running",) if busy else plan.tags
        if not tags:
            return
        order = {"tags": tags, "settings": plan.settings, "node": self._node}
        document, problem = await run_checks({**order, "deadline_s": plan.deadline_s})
        if document is None:
            logger.warning(f"health checks: {problem}", extra=counted(problem))
            fault = Fault(check=NO_REPORT, status=Status.UNKNOWN, text=problem[:300])
            self._send_changed((fault, *self._others({NO_REPORT})))
            return
        self._send(wire.HealthReport(agent=self._agent, key="", report=json.dumps(document)))
        if not busy and self._busy() and self._last_sent is not None:
            self._wanted.set()  # ranks came meanwhile: what they use was not idle any more
            return
        asked = {str(row["check"]) for row in document["results"]} | {NO_REPORT}
        faults = tuple(_last_known(document["results"], self._last_sent or ()))
        self._send_changed(faults + (self._others(asked) if tags == ("running",) else ()))

    def _others(self, asked: set[str]) -> tuple[Fault, ...]:
        """What was sent of checks that were not asked now: it is as it was."""
        return tuple(f for f in self._last_sent or () if f.check.partition("[")[0] not in asked)

    def _send_changed(self, faults: tuple[Fault, ...]) -> None:
        last, self._last_sent = self._last_sent, faults
        if last is not None and _signature(last) == _signature(faults):
            return
        status = _worst(faults)
        said = ev.HealthSeen(
            at=time.time(), node=self._node, agent=self._agent, status=status, faults=faults
        )
        self._last_said = json.dumps(wire.plain(said))
        self._report(said)

    async def answer(self, query: wire.HealthQuery) -> None:
        """Somebody wants a report now."""
        document, problem = None, "the order is no JSON object"
        with contextlib.suppress(ValueError):
            order = json.loads(query.order)
            if isinstance(order, dict):
                order |= {"node": self._node, "deadline_s": query.deadline_s}
                document, problem = await run_checks(order)
        text = json.dumps(document) if document is not None else ""
        self._send(wire.HealthReport(agent=self._agent, key=query.key, report=text, error=problem))


def _worst(faults: Iterable[Fault]) -> Status:
    """OK where there is none."""
    return worst([Status.OK, *(f.status for f in faults)])


def _signature(faults: Iterable[Fault]) -> object:
    """What makes two looks the same: not the measured values, which change every time."""
    return {(f.check, f.status, f.node_fault) for f in faults}


def _last_known(rows: Iterable[Mapping[str, Any]], before: Iterable[Fault]) -> Iterator[Fault]:
    """What failed and can't be measured now still fails: unknown cures nothing.

    A check that can't tell its targets is unknown as a whole. What was only not measured yet, or
    not with this user's rights, is no fault.
    """
    failed = [f for f in before if f.status is Status.FAIL]
    for row in rows:
        if row["status"] not in NOT_FINE:
            continue
        fault = fault_of(row)
        same = [
            f for f in failed if f.check == fault.check or f.check.startswith(f"{fault.check}[")
        ]
        if fault.status is Status.UNKNOWN and same:
            yield from same
        elif not row.get("gap"):
            yield fault


def fault_of(row: Mapping[str, Any]) -> Fault:
    """A row of a health report that is neither OK nor SKIP."""
    name = f"{row['check']}[{row['on']}]" if row.get("on") else str(row["check"])
    own = row.get("blame", "node") == "node" and not row.get("shared") and row.get("drains", True)
    return Fault(
        check=name, status=Status(row["status"]), text=str(row["seen"])[:300], node_fault=own
    )


async def run_checks(order: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Run `python -m healthchecks`; the report, or None and why there is none."""
    deadline = float(order["deadline_s"]) + SLACK_S
    argv = (sys.executable, "-I", "-m", "healthchecks")
    if proc.stuck(argv):
        return None, "an earlier run of the checks is still there, and can't be killed"
    env = {**os.environ, tree.MARK: tree.CHECKS}
    done = await proc.run(argv, deadline_s=deadline, stdin=json.dumps(order).encode(), env=env)
    if done.rc != 0:
        return None, done.why()
    try:
        document = json.loads(done.out)
        for row in document["results"]:
            fault_of(row)  # raises where it is no row of a report
        return dict(document), ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"the checks printed no report: {error!r}"
