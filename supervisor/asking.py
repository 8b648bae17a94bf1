"""How nodes that are in a run are asked for a health report: by its engine, from their agents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from healthchecks.remote import AskRun, Suite
from healthchecks.report import Report, from_document
from supervisor import control, runs
from supervisor.config import Site
from supervisor.core.errors import TransientError, UserError

BESIDE_RANKS_S = 20.0  # for the checks on a node


def agents(site: Site, suite: Suite) -> AskRun:
    """Asks the agents of the user's own runs for the `running` suite."""

    async def ask(run: str, nodes: Sequence[str]) -> Mapping[str, Report]:
        try:
            socket = runs.find(site.state_dir, run).socket
        except UserError:
            return {}
        order = {
            "tags": ["running"],
            "settings": dict(suite.settings),
            "deadline_s": BESIDE_RANKS_S,
        }

        def one(node: str) -> Report | None:
            question = {
                "do": "look",
                "node": node,
                "order": order,
                "deadline_s": BESIDE_RANKS_S,
            }
            try:
                for answer in control.ask(socket, question, within_s=BESIDE_RANKS_S + 10):
                    return from_document(answer)
            except (control.NoEngineError, TransientError, UserError):
                pass
            return None

        found = await asyncio.gather(*(asyncio.to_thread(one, node) for node in nodes))
        return {n: r for n, r in zip(nodes, found, strict=True) if r is not None}

    return ask
