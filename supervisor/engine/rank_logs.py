"""Ranks' logs, fetched from many nodes at once, and kept in the run's folder."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path

import msgspec

from supervisor import proc
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress
from supervisor.core.secret import without
from supervisor.core.types import Run
from supervisor.engine.agent_rpc import AgentRpc
from supervisor.run import kept_logs
from supervisor.run.kept_logs import Index, KeptRank, Parcel

TAIL = 16 * 1024  # bytes of every rank's log …
SHORTEST_TAIL = 512  # … or fewer where ranks are many, but so many …
TAILS = 16 * 1024 * 1024  # … so that all of them are not much more than this
PIECE = 1024 * 1024  # bytes that one answer brings
HEAD = PIECE  # of the logs that are kept as a whole: the beginning …
END = 3 * PIECE  # … and the end
FETCH_S = 10.0  # nodes that have not answered by then are done without
AT_ONCE = 64  # questions to agents under way


def tail_of(ranks: int) -> int:
    """Bytes that are kept of each log where there are so many ranks."""
    return min(TAIL, max(SHORTEST_TAIL, TAILS // max(1, ranks)))


async def tails(
    rpc: AgentRpc, run: Run, size: int, only: int | None = None
) -> AsyncIterator[tuple[int, str, bytes, str]]:
    """The ends of the logs of the newest attempt's ranks, in order: rank, node, data, or why not.

    Raises TransientError where no rank was started, UserError where there is no such rank.
    """
    if run.attempt is None:
        raise TransientError("no rank was started yet")
    number, per_node, slots = run.attempt.number, run.spec.ranks_per_node, run.attempt.slots
    if only is not None and only >= len(slots) * per_node:
        raise UserError(f"there is no rank {only}; ranks are 0 to {len(slots) * per_node - 1}")
    ranks = range(len(slots) * per_node) if only is None else (only,)
    fetch = _Fetch(rpc)
    asked = {
        rank: asyncio.ensure_future(fetch.end(slots[rank // per_node], number, rank, size))
        for rank in ranks
    }
    try:
        for rank, task in asked.items():
            await asyncio.wait({task})
            yield (rank, slots[rank // per_node], *_had(task))
    finally:
        for task in asked.values():
            task.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)


class RankLogs:
    """What ranks of one run wrote, kept when their attempt has ended."""

    def __init__(
        self,
        rpc: AgentRpc,
        run: Callable[[], Run],
        *,
        home: Path | None,
        secrets: Collection[str],
        now: Callable[[], float],
    ) -> None:
        """Without a `home` nothing is kept."""
        self._fetch, self._run = _Fetch(rpc), run
        self._home, self._secrets, self._now = home, secrets, now

    async def keep(self, order: act.KeepLogs) -> ev.LogsKept:
        """Fetch and write what the order says. It always answers, and in time."""
        per_node = self._run().spec.ranks_per_node
        total = len(order.slots) * per_node
        ends = {end.rank: end for end in order.first}
        size = tail_of(total)
        wanted = {
            asyncio.ensure_future(
                self._fetch.whole(node, order.attempt, rank)
                if rank in ends or rank == 0
                else self._fetch.end(node, order.attempt, rank, size)
            ): (rank, node)
            for slot, node in enumerate(order.slots)
            for rank in range(slot * per_node, (slot + 1) * per_node)
        }
        late = (await asyncio.wait(wanted, timeout=FETCH_S))[1] if wanted else set()
        for task in late:
            task.cancel()
        await asyncio.gather(*wanted, return_exceptions=True)
        logs: dict[int, bytes] = {}
        ranks: dict[int, KeptRank] = {}
        for task, (rank, node) in wanted.items():
            end = ends.get(rank)
            data, missing = _had(task)
            if missing and end is not None:  # what its agent told with its end
                data = "".join(f"{line}\n" for line in end.tail).encode()
            if data:  # masked: what leaves a node for good shows no secret
                logs[rank] = without(self._secrets, data.decode(errors="replace")).encode()
            ranks[rank] = KeptRank(
                node=node,
                bytes=len(logs.get(rank, b"")),
                whole=not missing and (rank in ends or rank == 0),
                how=end.how if end is not None else "",
                missing=missing,
            )
        index = Index(attempt=order.attempt, at=self._now(), ranks=ranks, first=tuple(ends))
        why = await self._written(Parcel(index=index, logs=logs))
        return ev.LogsKept(
            at=self._now(),
            key=order.key,
            attempt=order.attempt,
            ranks=0 if why else sum(1 for rank in ranks.values() if not rank.missing),
            missing=(why,) if why else _in_words(ranks),
        )

    async def _written(self, parcel: Parcel) -> str:
        """Have a child write them; returns why they are not there."""
        if self._home is None:
            return "there is no folder for them"
        argv = (sys.executable, "-I", "-m", "supervisor.run.kept_logs", str(self._home))
        if proc.stuck(argv):
            return f"{self._home}: an earlier write there still hangs"
        data = msgspec.msgpack.encode(parcel)
        done = await proc.run(argv, stdin=data, deadline_s=kept_logs.DEADLINE_S)
        return "" if done.rc == 0 else f"{self._home}: {done.why()}"


class _Fetch:
    """Asks many agents for logs, a few at a time."""

    def __init__(self, rpc: AgentRpc) -> None:
        self._rpc = rpc
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def end(self, node: str, attempt: int, rank: int, size: int) -> bytes:
        """The last bytes of a log. Raises TransientError."""
        return (await self._piece(node, attempt, rank, -size, size))[1]

    async def whole(self, node: str, attempt: int, rank: int) -> bytes:
        """A log from its beginning to its end, without the middle of a long one."""
        start, end = await self._piece(node, attempt, rank, -END, END)
        if not start:
            return end
        _, head = await self._piece(node, attempt, rank, 0, min(HEAD, start))
        left = start - len(head)
        gap = f"\n--- {left} bytes are left out here ---\n".encode() if left else b""
        return head + gap + end

    async def _piece(
        self, node: str, attempt: int, rank: int, offset: int, most: int
    ) -> tuple[int, bytes]:
        """Where it begins, and up to so many bytes of a log from there. Raises TransientError."""
        start, found = 0, b""
        async with self._turn:
            while True:
                limit = min(PIECE, most - len(found))
                chunk = await self._rpc.fetch_from(
                    node, attempt=attempt, rank=rank, offset=offset, limit=limit
                )
                if not found:
                    start = chunk.offset
                found += chunk.data
                offset = chunk.offset + len(chunk.data)
                if not chunk.data or len(found) >= most:
                    return start, found


def _had(task: asyncio.Future[bytes]) -> tuple[bytes, str]:
    """What a question brought, or why it brought nothing."""
    if task.cancelled():
        return b"", f"no answer within {FETCH_S:.0f} s"
    error = task.exception()
    if error is None:
        return task.result(), ""
    if isinstance(error, TransientError | UserError):
        return b"", str(error)
    raise error


def _in_words(ranks: Mapping[int, KeptRank]) -> tuple[str, ...]:
    """Whose logs could not be had, each reason once."""
    alike: dict[str, list[str]] = {}
    for one in ranks.values():
        if one.missing:
            alike.setdefault(one.missing.replace(one.node, "it"), []).append(one.node)
    return tuple(f"{compress({*nodes})}: {why}" for why, nodes in alike.items())
