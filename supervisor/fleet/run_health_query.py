"""How nodes that are in a run are asked for a health report: by its engine, from their agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from healthchecks.frame.report import Report, from_document
from healthchecks.many.remote import AskRun, Suite
from supervisor.config import Site
from supervisor.core.errors import UserError
from supervisor.run import folder

CHECKS_S = 20.0  # for the checks on a node
ROUND_TRIP_S = 8.0  # for the way there and back: the engine waits 5 s over the checks' time
MAX_BYTES = 16 << 20  # of an answer


def query_agents(site: Site, suite: Suite, deadline_s: float) -> AskRun:
    """Asks the agents of the user's own runs for the `running` suite, for no longer than that."""
    checks_s = max(1.0, min(CHECKS_S, deadline_s - ROUND_TRIP_S))

    async def ask(run: str, nodes: Sequence[str]) -> Mapping[str, Report]:
        try:
            socket = folder.find(site.state_dir, run).socket
        except UserError:
            return {}
        order = {"tags": ["running"], "settings": dict(suite.settings), "deadline_s": checks_s}
        found = await asyncio.gather(*(_one(socket, node, order, deadline_s) for node in nodes))
        return {n: r for n, r in zip(nodes, found, strict=True) if r is not None}

    return ask


async def _one(
    socket: Path, node: str, order: Mapping[str, Any], deadline_s: float
) -> Report | None:
    """One node's report; None where its engine has none, is gone or does not answer in time."""
    question = {"do": "look", "node": node, "order": order, "deadline_s": order["deadline_s"]}
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_unix_connection(socket, limit=MAX_BYTES)
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
        return from_document(json.loads(line))
    except (OSError, ValueError, TypeError, UserError):  # TimeoutError among them
        return None
