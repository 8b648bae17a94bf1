"""The probe's side on a node: `python -I -m supervisor.doctor.on_node`, its order on stdin.

Dials the engine's machine, says what it sees, tells its clock, and lets itself be dialled at a
rank's port. It writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from supervisor import __version__, proc
from supervisor.agent.node import problems
from supervisor.host import private

LIVES_S = 90.0
TRAINER_S = 60.0
DIAL_S = 10.0


async def facts(order: dict[str, Any]) -> dict[str, Any]:
    """What this node is like."""
    node_dir = Path(order["node_dir"])
    ask = ("stat", "--file-system", "--format=%T|%a|%S", str(node_dir))
    disk = await proc.run(ask, deadline_s=5.0)
    answer: dict[str, Any] = {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "version": __version__,
        "problems": list(problems({})[0]),
        "node_dir": disk.out.strip() if disk.rc == 0 else "",
        "node_dir_why": "" if disk.rc == 0 else disk.why(),
        "node_dir_open": disk.rc == 0 and private.problem(node_dir, inside=True) != "",
        "node_dir_writable": disk.rc == 0 and os.access(node_dir, os.W_OK | os.X_OK),
    }
    if order["trainer"]:
        cwd = order["workdir"] if Path(order["workdir"]).is_dir() else "/"
        done = await proc.run(
            order["trainer"], deadline_s=TRAINER_S, env={**os.environ, **order["env"]}, cwd=cwd
        )
        answer["trainer"] = {"rc": done.rc, "out": done.out[-4000:], "why": done.why()}
    return answer


async def _listen(
    dialled: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    address: str,
    first: int,
    last: int,
) -> tuple[asyncio.Server, int]:
    """On the first port of the range that is free. Raises OSError where none is."""
    for port in range(first, last + 1):
        with contextlib.suppress(OSError):
            return await asyncio.start_server(dialled, host=address, port=port), port
    raise OSError(f"no free port in {first}-{last} on {address}")


async def main(order: dict[str, Any]) -> None:
    """Raises OSError where the engine's machine can't be reached."""
    async with asyncio.timeout(DIAL_S):
        reader, writer = await asyncio.open_connection(order["address"], order["port"])
    here = writer.get_extra_info("sockname")[0]

    async def dialled(_: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        back.write(order["nonce"].encode() + b"\n")
        await back.drain()
        back.close()

    server, port = await _listen(dialled, here, *order["rank_ports"])
    hello = {"nonce": order["nonce"], "address": here, "rank_port": port}
    writer.write(json.dumps(hello).encode() + b"\n")
    async for line in reader:
        asked = line.decode().strip()
        if asked == "time":
            answer: Any = time.time()
        elif asked == "facts":
            answer = await facts(order)
        else:
            break
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
    writer.close()
    server.close()


if __name__ == "__main__":
    try:
        asyncio.run(asyncio.wait_for(main(json.loads(sys.stdin.read())), LIVES_S))
    except (OSError, TimeoutError) as error:
        sys.exit(f"superv doctor on {socket.gethostname()}: {error or 'no answer'}")
