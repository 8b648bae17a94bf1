"""What an engine asks agents for people: a health report, a piece of a rank's log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from supervisor.channel import wire
from supervisor.channel.router import Channel
from supervisor.core.errors import TransientError, UserError
from supervisor.core.types import Run

ANSWER_S = 5.0  # over the time that the agent itself may take
A = TypeVar("A", bound=wire.HealthReport | wire.Chunk)


class AgentRpc:
    """Questions that agents have not answered yet; an answer that nobody waits for is dropped."""

    def __init__(
        self, channel: Channel, epoch: int, run: Callable[[], Run], now: Callable[[], float]
    ) -> None:
        self._channel, self._epoch = channel, epoch
        self._run, self._now = run, now
        self._open: dict[str, tuple[str, asyncio.Future[wire.HealthReport | wire.Chunk]]] = {}
        self._count = 0

    async def health_report(self, node: str, order: str, deadline_s: float) -> wire.HealthReport:
        """A health report of a node in this run. Raises TransientError where there is none."""
        key = self._key(f"look/{node}")
        query = wire.HealthQuery(epoch=self._epoch, key=key, order=order, deadline_s=deadline_s)
        return await self._call(node, query, wire.HealthReport, deadline_s)

    async def fetch(
        self,
        *,
        rank: int,
        attempt: int | None,
        offset: int,
        limit: int,
        wait_s: float,
        node: str = "",
    ) -> wire.Chunk:
        """A piece of a rank's log from its node, or from one that it ran on before.

        Raises TransientError where it can't be had, UserError where there is no such rank.
        """
        run = self._run()
        current = run.attempt
        if current is None:
            raise TransientError("no rank was started yet")
        if attempt is not None and attempt > current.number:
            raise UserError(
                f"there is no attempt {attempt} yet; the newest is {current.number}, and the last "
                "ten have logs"
            )
        slot = rank // run.spec.ranks_per_node
        if slot >= len(current.slots):
            top = len(current.slots) * run.spec.ranks_per_node - 1
            raise UserError(f"there is no rank {rank}; ranks are 0 to {top}")
        return await self.fetch_from(
            node or current.slots[slot],
            attempt=attempt if attempt is not None else current.number,
            rank=rank,
            offset=offset,
            limit=limit,
            wait_s=wait_s,
        )

    async def fetch_from(
        self, node: str, *, attempt: int, rank: int, offset: int, limit: int, wait_s: float = 0.0
    ) -> wire.Chunk:
        """A piece of the log of a rank that ran on the node. Raises TransientError."""
        order = wire.Fetch(
            epoch=self._epoch,
            key=self._key(f"fetch/{rank}"),
            attempt=attempt,
            rank=rank,
            offset=offset,
            limit=limit,
            wait_s=wait_s,
        )
        return await self._call(node, order, wire.Chunk, wait_s)

    def answered(self, node: str, answer: wire.HealthReport | wire.Chunk) -> None:
        """Only the node that was asked may answer."""
        asked, future = self._open.get(answer.key, ("", None))
        if future is not None and asked == node and not future.done():
            future.set_result(answer)

    def _key(self, about: str) -> str:
        self._count += 1
        return f"{about}/{self._now():.3f}/{self._count}"

    async def _call(
        self, node: str, question: wire.HealthQuery | wire.Fetch, kind: type[A], patience_s: float
    ) -> A:
        future: asyncio.Future[wire.HealthReport | wire.Chunk]
        future = asyncio.get_running_loop().create_future()
        self._open[question.key] = (node, future)
        try:
            if not await self._channel.send(node, question):
                raise TransientError(f"the agent on {node} is not connected")
            async with asyncio.timeout(patience_s + ANSWER_S):
                answer = await future
        except TimeoutError:
            raise TransientError(f"the agent on {node} did not answer") from None
        finally:
            del self._open[question.key]
        if not isinstance(answer, kind):
            raise TransientError(f"{node} answered something else")
        if answer.error:
            raise TransientError(f"{node}: {answer.error}")
        return answer
