"""The agent's side of the channel: reports that are repeated until acknowledged, and beats."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import zmq
import zmq.asyncio

from supervisor.core.events import Event
from supervisor.wire import (
    MAX_MESSAGE,
    Ack,
    Keys,
    Report,
    ToAgent,
    ToEngine,
    WireError,
    pack,
    plain,
    unpack_for_agent,
)

REPEAT_S = 2.0  # an unacknowledged report is sent again after this
MAX_REPORTS = 4096  # kept while there is no engine; beyond it the oldest are dropped and counted
DIAL_S = 5.0  # how long `dialled` looks for a connection
DIAL_LOOK_S = 0.02


class Link:
    """A connection to the engine that outlives it.

    Reports travel one at a time, the next one when the last is acknowledged: so they arrive in
    their order and once, also where a connection breaks or another engine takes over in between.
    """

    def __init__(self, keys: Keys, agent: str, note: Callable[[str], None]) -> None:
        self.agent = agent
        self._note = note
        self._context = zmq.asyncio.Context()
        self._socket = self._connect(keys)
        self._seq = 0
        self._reports: deque[Report] = deque()
        self._sent_at: float | None = None  # when the first of them was sent; None: it was not
        self.dropped = 0
        self.welcome = False  # this engine knows the agent; reports to another one are wasted
        self.last_word: float | None = None  # monotonic time at which the engine was last heard

    def _connect(self, keys: Keys) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.DEALER)
        socket.identity = self.agent.encode()
        socket.linger = 500
        # Only what can be sent now: beats that pile up would bury an engine that comes back.
        socket.immediate = True
        socket.sndhwm = socket.rcvhwm = 1000
        socket.maxmsgsize = MAX_MESSAGE
        socket.reconnect_ivl = 100
        socket.reconnect_ivl_max = 2000
        # A host that vanished says nothing: notice it, and dial again.
        socket.heartbeat_ivl = 2000
        socket.heartbeat_timeout = 10_000
        socket.curve_serverkey = keys.server_key.encode()
        socket.curve_publickey = keys.public_key.encode()
        socket.curve_secretkey = keys.secret_key.encode()
        socket.connect(keys.endpoint)
        return socket

    def redial(self, keys: Keys) -> None:
        """The engine has moved."""
        self._socket.close(linger=0)
        self._socket = self._connect(keys)
        self.welcome = False

    async def dialled(self) -> None:
        """Return when there is a connection, or after a while without one."""
        deadline = time.monotonic() + DIAL_S
        while not int(self._socket.get(zmq.EVENTS)) & zmq.POLLOUT and time.monotonic() < deadline:
            await asyncio.sleep(DIAL_LOOK_S)

    def send(self, message: ToEngine) -> None:
        """Send what may get lost; dropped where there is no connection or it takes nothing."""
        with contextlib.suppress(zmq.Again):
            # send() of an asyncio socket answers with a future that is done at once for NOBLOCK
            future: Any = self._socket.send(pack(message), flags=zmq.NOBLOCK)
            if future.done():
                future.exception()

    def report(self, event: Event) -> None:
        """Send what must not get lost."""
        self._seq += 1
        self._reports.append(Report(agent=self.agent, seq=self._seq, event=plain(event)))
        if len(self._reports) > MAX_REPORTS:
            self._reports.popleft()
            self._sent_at = None
            self.dropped += 1
        if self._sent_at is None:
            self.repeat()

    def repeat(self) -> None:
        """Send the oldest report, unless it was sent a moment ago."""
        if not self._reports or not self.welcome:
            return
        now = time.monotonic()
        if self._sent_at is None or now - self._sent_at > REPEAT_S:
            self._sent_at = now
            self.send(self._reports[0])

    def welcomed(self) -> None:
        """The engine knows this agent: whatever it was told before may be lost."""
        self.welcome, self._sent_at = True, None
        if self.dropped:
            self._note(f"{self.dropped} reports were dropped while there was no engine")
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

    def heard(self) -> None:
        """The engine that is obeyed said something."""
        self.last_word = time.monotonic()

    async def messages(self) -> AsyncIterator[ToAgent]:
        """What the engine says; what can't be read is noted and dropped."""
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
                self._note(f"message of the engine dropped: {error}")
                continue
            yield message

    def close(self) -> None:
        self._socket.close()
        self._context.term()
