"""The engine's socket for people's commands: JSON lines over a unix socket in the run's folder.

The folder's mode (0700) says who may connect, and who may put anything at the socket's name.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from supervisor.core.errors import TransientError, UserError
from supervisor.engine.loop import Engine
from supervisor.engine.rank_logs import tails
from supervisor.host.shortage import shortage

ANSWER_S = 10.0
MOST_OF_A_TAIL = 4 * 1024 * 1024  # bytes of one rank's log, where all ranks' are asked for
FOLLOW_S = 2.0  # an agent waits so long for more of a log; then it is asked again


class NoEngineError(Exception):
    """Nobody listens on the run's socket: its engine does not run on this machine."""


async def serve(engine: Engine, path: Path) -> asyncio.Server:
    """Listen; a socket file that an engine before this one left is replaced."""
    path.unlink(missing_ok=True)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            try:
                request = _understood(await reader.readline())
                async for answer in _answers(engine, request):
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
            except TransientError as error:
                writer.write(json.dumps({"error": str(error)}).encode() + b"\n")
            except UserError as error:
                writer.write(json.dumps({"refused": str(error)}).encode() + b"\n")
            except (ValueError, KeyError, TypeError) as error:
                answer = {"error": f"the engine does not understand this: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
            except (OSError, MemoryError, RuntimeError) as error:
                if isinstance(error, ConnectionError) or not (why := shortage(error)):
                    raise
                writer.write(json.dumps({"error": why}).encode() + b"\n")
            await writer.drain()
        writer.close()  # a client that left has no answer to wait for

    server = await asyncio.start_unix_server(client, path=path)
    path.chmod(0o600)
    return server


def _understood(line: bytes) -> dict[str, Any]:
    """A client's request. Raises ValueError where it is none."""
    try:
        request = msgspec.json.decode(line)  # strict: no half characters, NaN or Infinity
    except RecursionError:
        raise ValueError("brackets within brackets") from None
    if not isinstance(request, dict):
        raise ValueError("not a JSON object")
    for name in ("rank", "attempt", "offset"):
        if request.get(name) is not None:
            request[name] = int(request[name])
            if abs(request[name]) >= 1 << 53:
                raise ValueError(f"{name} is too large")
    return request


async def _answers(engine: Engine, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    match request["do"]:
        case "status":
            yield engine.status()
        case "stop":
            engine.stop(str(request["who"]), now=bool(request["now"]))
            yield {"ok": True}
        case "include":
            engine.include(str(request["who"]), [str(node) for node in request["nodes"]])
            yield {"ok": True}
        case "quarantine":
            engine.quarantine(
                str(request["who"]),
                int(request["step"]),
                str(request["reason"]),
                and_later=request["and_later"],
            )
            yield {"ok": True}
        case "look":
            report = await engine.agent_rpc.health_report(
                str(request["node"]), json.dumps(request["order"]), float(request["deadline_s"])
            )
            yield json.loads(report.report)
        case "watch":
            async for answer in _watch(engine):
                yield answer
        case "tails":
            size = min(int(request["size"]), MOST_OF_A_TAIL)
            async for rank, node, data, missing in tails(
                engine.agent_rpc, engine.run, size, request.get("rank")
            ):
                text = data.decode(errors="replace")
                yield {"rank": rank, "node": node, "data": text, "missing": missing}
        case "logs":
            async for answer in _logs(engine, request):
                yield answer
        case other:
            raise ValueError(f"no command {other!r}")


async def _watch(engine: Engine) -> AsyncIterator[dict[str, Any]]:
    """What happens, as it happens, with a status line at least every second."""
    queue = engine.listen()
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # wait_for can lose a cancel (Python 3.11)
                    line = await queue.get()
                yield {"at": line.at, "text": line.text}
            if queue.empty():
                yield {"status": engine.status()}
                if engine.run.ended:
                    return
    finally:
        engine.unlisten(queue)


async def _logs(engine: Engine, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """A rank's log from an offset on, to its end or for as long as the reader follows.

    A follower waits where there is no log: its node may be lost, the next attempt not started.
    """
    offset, follow = int(request["offset"]), bool(request["follow"])
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end within a letter
    shown: int | None = None
    while True:
        attempt = request.get("attempt")
        if attempt is None and engine.run.attempt is not None:
            attempt = engine.run.attempt.number
        another = shown is not None and attempt != shown
        try:
            chunk = await engine.agent_rpc.fetch(
                rank=int(request["rank"]),
                attempt=attempt,
                offset=0 if another else offset,
                limit=256 * 1024,
                wait_s=FOLLOW_S if follow else 0.0,
                node=str(request.get("node") or ""),
            )
        except TransientError:
            if not follow:
                raise
            if engine.run.ended:
                return
            await asyncio.sleep(FOLLOW_S / 4)
            continue
        if another:
            decoder.reset()
            yield {"offset": 0, "data": f"--- attempt {attempt} ---\n"}
        shown = attempt
        if chunk.data:
            yield {"offset": chunk.offset, "data": decoder.decode(chunk.data)}
        elif not follow:
            if rest := decoder.decode(b"", final=True):
                yield {"offset": chunk.offset, "data": rest}
            return
        offset = chunk.offset + len(chunk.data)


def engine_pid(path: Path) -> int:
    """The process that listens on a run's socket. Raises NoEngineError."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(ANSWER_S)
        try:
            link.connect(str(path))
        except OSError as error:
            raise NoEngineError(f"{path}: {error.strerror}") from None
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])


def ask(
    path: Path, request: dict[str, Any], *, stream: bool = False, within_s: float = ANSWER_S
) -> Iterator[dict[str, Any]]:
    """Send one request to a run's engine; yields its answers.

    Raises NoEngineError where none listens, TransientError where it does not answer, UserError
    where it refuses.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(within_s)
        try:
            link.connect(str(path))
            link.sendall(json.dumps(request).encode() + b"\n")
        except (FileNotFoundError, ConnectionError):  # no engine, or one that is just ending
            raise NoEngineError from None
        except PermissionError as error:  # the run is another user's
            raise UserError(f"{path}: {error.strerror}; only its user may ask a run") from None
        except (TimeoutError, BlockingIOError):  # more clients wait for it than the kernel keeps
            raise TransientError("the engine takes no connections") from None
        if stream:
            link.settimeout(None)
        rest = b""
        while True:
            try:
                data = link.recv(65536)
            except TimeoutError:
                raise TransientError(f"the engine did not answer within {within_s:.0f} s") from None
            except ConnectionError:
                return
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                answer: dict[str, Any] = json.loads(line)
                if "error" in answer:
                    raise TransientError(answer["error"])
                if "refused" in answer:
                    raise UserError(answer["refused"])
                yield answer
