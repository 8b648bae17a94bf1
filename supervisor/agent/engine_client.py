"""The agent's side of the channel: reports that are repeated until acknowledged, and heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Collection
from typing import Any

import zmq
import zmq.asyncio

from supervisor.channel.identity import routing_id
from supervisor.channel.wire import (
    MAX_MESSAGE,
    Ack,
    AgentReport,
    Keys,
    ToAgent,
    ToEngine,
    WireError,
    pack,
    plain,
    unpack_for_agent,
)
from supervisor.core.events import Event, RankExited, RanksExited
from supervisor.core.secret import masked
from supervisor.host.log import counted

logger = logging.getLogger(__name__)


REPEAT_S = 2.0  # an unacknowledged report is sent again after this
MAX_REPORTS = 4096  # kept while there is no engine; beyond it the oldest are dropped and counted
MAX_JOINED = 64  # ends of ranks in one report: with all their lines a message takes a tenth
DIAL_S = 5.0  # how long `connected` looks for a connection
DIAL_POLL_S = 0.02


class EngineClient:
    """A connection to the engine that outlives it.

    Reports travel one at a time, the next one when the last is acknowledged: so they arrive in
    their order and once, also where a connection breaks or another engine takes over in between.
    """

    def __init__(self, keys: Keys, agent: str, own_key: str) -> None:
        self.agent = agent
        self._routing_id = routing_id(agent, own_key)
        self._context = zmq.asyncio.Context()
        self._socket = self._connect(keys)
        self._seq = 0
        self._reports: deque[AgentReport] = deque()
        self._newest: Event | None = None  # as it was before it became the last of the reports
        self._joins_exits = False  # the engine takes RanksExited
        self._sent_at: float | None = None  # when the first of them was sent; None: it was not
        self.dropped = 0
        self.welcome = False  # this engine knows the agent; reports to another one are wasted
        self.last_heard: float | None = None  # monotonic time at which the engine was last heard

    def _connect(self, keys: Keys) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.DEALER)
        socket.identity = self._routing_id
        socket.linger = 500
        # Only what can be sent now: heartbeats that pile up would bury an engine that comes back.
        socket.immediate = True
        socket.sndhwm = 1000
        # What the engine says is all taken: libzmq 4.3.5 aborts where an engine goes while messages
        # of it wait for room (see supervisor.channel.router).
        socket.rcvhwm = 0
        socket.maxmsgsize = MAX_MESSAGE
        socket.reconnect_ivl = 100
        socket.reconnect_ivl_max = 2000
        # The kernel doubles its pauses, up to a minute and more, between SYNs that nobody answers
        # and between tries to send again: a link that is back would be found so much later.
        socket.connect_timeout = 2000
        socket.set(zmq.TCP_MAXRT, 4000)
        # A host that vanished says nothing: notice it, and dial again.
        socket.heartbeat_ivl = 2000
        socket.heartbeat_timeout = 10_000
        socket.curve_serverkey = keys.server_key.encode()
        socket.curve_publickey = keys.public_key.encode()
        socket.curve_secretkey = keys.secret_key.encode()
        socket.connect(keys.endpoint)
        return socket

    def reconnect(self, keys: Keys) -> None:
        """The engine has moved."""
        self._socket.close(linger=0)
        self._socket = self._connect(keys)
        self.welcome = False

    async def connected(self) -> None:
        """Return when there is a connection, or after a while without one."""
        deadline = time.monotonic() + DIAL_S
        while not int(self._socket.get(zmq.EVENTS)) & zmq.POLLOUT and time.monotonic() < deadline:
            await asyncio.sleep(DIAL_POLL_S)

    def send(self, message: ToEngine) -> None:
        """Send what may get lost; dropped where there is no connection or it takes nothing."""
        with contextlib.suppress(zmq.Again):
            # send() of an asyncio socket answers with a future that is done at once for NOBLOCK
            future: Any = self._socket.send(pack(message), flags=zmq.NOBLOCK)
            if future.done():
                future.exception()

    def report(self, event: Event, *, secrets: Collection[str] = ()) -> None:
        """Send what must not get lost; a line that a rank wrote may hold a secret."""
        joined = self._with_the_last(event)
        if joined is not None:
            self._reports.pop()
            event = joined
        else:
            self._seq += 1
        event_data = masked(secrets, plain(event)) if secrets else plain(event)
        self._reports.append(AgentReport(agent=self.agent, seq=self._seq, event=event_data))
        self._newest = event
        if len(self._reports) > MAX_REPORTS:
            self._reports.popleft()
            self._sent_at = None
            self.dropped += 1
        if self._sent_at is None:
            self.repeat()

    def _with_the_last(self, event: Event) -> Event | None:
        """One report in place of the last one and this, where both are of ranks that ended.

        The first report may be on its way: it stays as it is.
        """
        last, same = self._newest, (RankExited, RanksExited)
        if not self._joins_exits or len(self._reports) < 2 or not isinstance(event, RankExited):
            return None
        if not isinstance(last, same) or last.attempt != event.attempt:
            return None
        exits = last.exits if isinstance(last, RanksExited) else (last.exit,)
        if len(exits) >= MAX_JOINED:
            return None
        return RanksExited(
            at=event.at, attempt=event.attempt, node=event.reporter, exits=(*exits, event.exit)
        )

    def repeat(self) -> None:
        """Send the oldest report, unless it was sent a moment ago."""
        if not self._reports or not self.welcome:
            return
        now = time.monotonic()
        if self._sent_at is None or now - self._sent_at > REPEAT_S:
            self._sent_at = now
            self.send(self._reports[0])

    def welcomed(self, *, joins_exits: bool) -> None:
        """The engine knows this agent: whatever it was sent before may be lost."""
        self.welcome, self._sent_at, self._joins_exits = True, None, joins_exits
        if self.dropped:
            logger.warning(f"{self.dropped} reports were dropped while there was no engine")
            self.dropped = 0
        self.repeat()

    def acknowledged(self, ack: Ack) -> None:
        if self._reports and ack.seq == self._reports[0].seq:
            self._reports.popleft()
            self._sent_at = None
            self.repeat()

    @property
    def unacknowledged(self) -> int:
        return len(self._reports)

    def mark_heard(self) -> None:
        """The engine that is obeyed said something."""
        self.last_heard = time.monotonic()

    async def messages(self) -> AsyncIterator[ToAgent]:
        """What the engine says; what can't be read is logged and dropped."""
        task = asyncio.current_task()
        while True:
            socket = self._socket
            try:
                frame = await socket.recv()
            except (zmq.ZMQError, asyncio.CancelledError):
                if socket is self._socket or (task is not None and task.cancelling()):
                    raise
                continue  # redialled meanwhile
            try:
                message = unpack_for_agent(frame)
            except WireError as error:
                text = f"message of the engine dropped: {str(error)[:200]}"
                logger.warning(text, extra=counted("message of the engine dropped"))
                continue
            yield message

    def close(self) -> None:
        self._socket.close()
        self._context.term()
