"""The client that reads jobs and nodes through pyslurm instead of squeue and sinfo.

Where site.yaml names an interpreter with pyslurm (`pyslurm_python`). What is written (sbatch,
scancel, sbcast, srun, scontrol) and asked of accounting stays with Slurm's commands: their answers
are known. pyslurm's calls block for MessageTimeout and more, and libslurm ends its process where it
has no slurm.conf. So they run in a child that is killed at the deadline, and made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess  # noqa: TID251 - for the type of a child only; supervisor.proc starts it
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from launchers.slurm import DEADLINE_S, Slurm
from launchers.slurm_answers import AwayError, away
from launchers.slurm_rows import (
    Partition,
    SlurmNode,
    expanded,
    node_of_complete,
    state_of,
)
from supervisor import proc
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import JobStatus
from supervisor.host import trusted

CHILD = Path(__file__).with_name("pyslurm_child.py")
_PIECE = 1 << 16


class PyslurmClient(Slurm):
    """As Slurm, with pyslurm for what is read often. It belongs to one event loop at a time."""

    def __init__(
        self,
        python: str,
        *,
        deadline_s: float = DEADLINE_S,
        env: Mapping[str, str] | None = None,
        run: proc.Runner = proc.run,
    ) -> None:
        """`python` is an interpreter with pyslurm. Raises UserError where root may not run it."""
        super().__init__(deadline_s=deadline_s, env=env, run=run)
        if why := trusted.code(python):
            raise UserError(f"site.yaml: pyslurm_python: not used as root: {why}")
        self._python = python
        self._child: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._said = -1  # a memory file: what libslurm wrote

    def close(self) -> None:
        """End the child."""
        if self._link is not None:
            self._link.close()
        if self._child is not None:
            proc.give_up(self._child)
        if self._said >= 0:
            os.close(self._said)
        self._link, self._child, self._said = None, None, -1

    async def jobs(
        self, *, name: str | None = None, ids: Collection[str] | None = None
    ) -> list[JobStatus]:
        """See Slurm.jobs."""
        rows = await self._rows("jobs")
        mine = [
            row for row in rows if (row[0] in ids if ids is not None else row[5] == os.getuid())
        ]
        return [
            JobStatus(
                job_id=str(job),
                job_name=job_name or "",
                state=state_of(raw),
                raw=raw,
                nodes=expanded(nodes or ""),
                reason="" if reason in (None, "None") else reason,
            )
            for job, raw, reason, nodes, job_name, _ in mine
            if name is None or job_name == name
        ]

    async def partitions(self) -> list[Partition]:
        """See Slurm.partitions."""
        return [
            Partition(name=name, default=bool(default), nodes=frozenset(expanded(nodes or "")))
            for name, default, nodes in await self._rows("partitions")
        ]

    async def nodes(
        self, names: Iterable[str] = (), *, partition: str | None = None
    ) -> dict[str, SlurmNode]:
        """See Slurm.nodes."""
        wanted = {*names}
        found = {}
        for name, state, partitions, gres, idle, reason in await self._rows("nodes"):
            if (not wanted or name in wanted) and (partition is None or partition in partitions):
                found[name] = node_of_complete(
                    name=name,
                    complete=state,
                    partitions=(partition,) if partition else tuple(partitions),
                    gres=",".join(gres),
                    idle_cpus=int(idle),
                    reason=(reason or "").strip(),
                )
        return found

    async def version(self) -> str:
        """pyslurm's own."""
        return str((await self._rows("version"))[0][0])

    async def _rows(self, ask: str) -> list[Any]:
        """Put a question to the child. AwayError: no answer; the next one finds a new child."""
        try:
            async with asyncio.timeout(self.deadline_s):
                answer = await self._put(ask)
        except TimeoutError:
            raise self._lost(f"pyslurm did not answer within {self.deadline_s:g} s") from None
        except (OSError, EOFError):
            raise self._lost("pyslurm's process ended") from None
        except BaseException:
            self.close()  # half an answer may be on its way
            raise
        if "error" in answer:
            raise self._lost(f"pyslurm: {answer['error']}")
        rows: list[Any] = answer["rows"]
        return rows

    def _lost(self, how: str) -> TransientError:
        """What an error of pyslurm means, with the last line that libslurm wrote."""
        lines = self._written().splitlines()
        self.close()
        found = away(f"{how}\n" + "\n".join(lines))
        last = lines[-1] if lines else ""
        said = f"{how}: {last}" if last and last not in how else how
        if found is not None:
            cause, line = found
            return AwayError(said if line in said else f"{how}: {line}", cause)
        if "ModuleNotFoundError" in how or "ImportError" in how:
            said += f"; {self._python} is site.yaml's pyslurm_python: see docs/pyslurm.md"
        return AwayError(said, None)

    def _written(self) -> str:
        if self._said < 0:
            return ""
        size = os.fstat(self._said).st_size
        return os.pread(self._said, _PIECE, max(0, size - _PIECE)).decode(errors="replace")

    async def _put(self, ask: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        if self._child is not None and self._child.poll() is not None:
            self.close()
        link = self._link or self._start()
        await loop.sock_sendall(link, json.dumps({"ask": ask}).encode() + b"\n")
        data = bytearray()
        while not data.endswith(b"\n"):
            piece = await loop.sock_recv(link, _PIECE)
            if not piece:
                raise EOFError
            data += piece
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _start(self) -> socket.socket:
        self.close()
        ours, theirs = socket.socketpair()
        self._said = os.memfd_create("pyslurm", os.MFD_CLOEXEC)
        with contextlib.closing(theirs):
            self._child = proc.spawn(
                (self._python, "-I", str(CHILD), str(theirs.fileno())),
                env=self.env,
                cwd="/",
                stdout=self._said,
                pass_fds=(theirs.fileno(),),
            )
        ours.setblocking(False)
        self._link = ours
        return ours
