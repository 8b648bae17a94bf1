"""The agent's side of the channel: reports that are repeated until acknowledged, and beats."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
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


class Link:
    """A connection to the engine that outlives it."""

    def __init__(self, keys: Keys, agent: str) -> None:
        self.agent = agent
        self._context = zmq.asyncio.Context()
        self._socket = self._connect(keys)
        self._seq = 0
        self._unacked: OrderedDict[int, tuple[Report, float]] = OrderedDict()
        self.dropped = 0
        self.last_word: float | None = None  # monotonic time at which the engine was last heard
        self.garbage = ""

    def _connect(self, keys: Keys) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.DEALER)
        socket.identity = self.agent.encode()
        socket.linger = 500
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

    def send(self, message: ToEngine) -> None:
        """Send what may get lost; dropped where the engine takes nothing."""
        with contextlib.suppress(zmq.Again):
            # send() of an asyncio socket answers with a future that is done at once for NOBLOCK
            future: Any = self._socket.send(pack(message), flags=zmq.NOBLOCK)
            if future.done():
                future.exception()

    def report(self, event: Event) -> None:
        """Send what must not get lost."""
        self._seq += 1
        report = Report(agent=self.agent, seq=self._seq, event=plain(event))
        self._unacked[self._seq] = (report, time.monotonic())
        if len(self._unacked) > MAX_REPORTS:
            self._unacked.popitem(last=False)
            self.dropped += 1
        self.send(report)

    def acknowledged(self, ack: Ack) -> None:
        if ack.seq is not None:
            self._unacked.pop(ack.seq, None)

    @property
    def unacknowledged(self) -> int:
        return len(self._unacked)

    def repeat(self, *, everything: bool = False) -> None:
        """Send again what was not acknowledged in time, in order."""
        now = time.monotonic()
        for seq, (report, sent) in list(self._unacked.items()):
            if everything or now - sent > REPEAT_S:
                self._unacked[seq] = (report, now)
                self.send(report)

    async def messages(self) -> AsyncIterator[ToAgent]:
        """What the engine says; what can't be read is noted and dropped."""
        while True:
            socket = self._socket
            try:
                frame = await socket.recv()
            except (zmq.ZMQError, asyncio.CancelledError):
                if socket is self._socket:
                    raise
                continue  # redialled meanwhile
            try:
                message = unpack_for_agent(frame)
            except WireError as error:
                self.garbage = str(error)
                continue
            self.last_word = time.monotonic()
            yield message

    def close(self) -> None:
        self._socket.close()
        self._context.term()
