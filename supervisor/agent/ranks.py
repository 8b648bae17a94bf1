"""The ranks of one attempt on one node: started, watched, adopted, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess  # noqa: TID251 - for the type of a child only; supervisor.proc starts it
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor import proc
from supervisor.agent import tree
from supervisor.agent.warm import Cold, Starter, write_files
from supervisor.core.actions import Start
from supervisor.wire import Job

TAIL_SHOWN = 20  # lines of a rank's log that travel with its end
ERROR_SHOWN = 500  # characters of the message in a rank's error file
LOOK_S = 20.0  # storage that does not show the trainer within this is taken to hang
KEPT = 10  # attempts whose logs stay on the node, the current one included

# Storage may hang, and the ranks' own start would say so only in their end.
_LOOK = """
cd -- "$1" || exit 3
if [ -n "$3" ]; then
  home=$3
  until [ -e "$home" ]; do home=${home%/*}; : "${home:=/}"; done
  [ -d "$home" ] && [ -w "$home" ] && [ -x "$home" ] || exit 5
fi
case $2 in */*) [ -f "$2" ] && [ -x "$2" ] && exit; exit 4 ;; esac
IFS=:
for folder in $PATH; do [ -f "$folder/$2" ] && [ -x "$folder/$2" ] && exit; done
exit 4
"""


class CantStart(Exception):
    """Ranks can't be started, and none is left; the text says why in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a local rank ended; both are None where no agent saw it."""

    rank: int
    code: int | None
    signal: int | None


@dataclass(slots=True)
class Rank:
    """A process of this node's ranks."""

    rank: int
    pid: int
    started: int  # start time in clock ticks: with the pid it names the process
    child: subprocess.Popen[bytes] | None = None  # where this agent itself started it
    starter: Starter | None = None  # where it was forked by this agent's starter
    alive: bool = True

    async def ended(self) -> int | None:
        """How it ended, as subprocess tells it; None where nobody of this agent's saw it."""
        if self.child is not None:
            return self.child.poll()
        if self.starter is not None:
            status = await self.starter.exit_status(self.pid)
            return None if status is None else os.waitstatus_to_exitcode(status)
        return None


def rank_env(
    job: Job, order: Start, local: int, node_dir: Path, node: str, base: Mapping[str, str]
) -> dict[str, str]:
    """torchrun's contract with a rank, and what superv adds.

    The names are those of torch 2.13, distributed/elastic/agent/server/local_elastic_agent.py.
    """
    per_node = job.ranks_per_node
    rank, world = order.slot * per_node + local, order.nnodes * per_node
    contract = {
        "RANK": rank,
        "LOCAL_RANK": local,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": per_node,
        "GROUP_RANK": order.slot,
        "GROUP_WORLD_SIZE": order.nnodes,
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": world,
        "ROLE_NAME": "default",
        "MASTER_ADDR": order.master_addr,
        "MASTER_PORT": order.master_port,
        "TORCHELASTIC_RUN_ID": job.run_id,
        "TORCHELASTIC_RESTART_COUNT": order.attempt - 1,
        "TORCHELASTIC_MAX_RESTARTS": order.attempt - 1,
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": error_file(node_dir, order.attempt, rank),
        "SUPERV_RUN": job.name,
        "SUPERV_ATTEMPT": order.attempt,
        "SUPERV_SAVE_DIR": order.save_dir or "",
        "SUPERV_RESUME_PATH": order.resume_path or "",
        "SUPERV_RESUME_STEP": order.resume_step or 0,
        tree.MARK: f"{job.run_id}/{node}/{order.attempt}",
    }
    default = {"PYTHONUNBUFFERED": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    if per_node > 1:
        default["OMP_NUM_THREADS"] = "1"  # as torchrun does: ranks share the cores
    values = placeholders(order)
    own = {name: fill(value, values) for name, value in job.env.items()}
    return default | dict(base) | own | {k: str(v) for k, v in contract.items()}


def placeholders(order: Start) -> dict[str, str]:
    """The values of {placeholders} in the trainer's command line and environment."""
    return {
        "node_rank": str(order.slot),
        "nnodes": str(order.nnodes),
        "master_addr": order.master_addr,
        "master_port": str(order.master_port),
        "save_dir": order.save_dir or "",
        "resume_path": order.resume_path or "",
        "resume_step": str(order.resume_step or 0),
    }


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace the known placeholders; other braces are the trainer's own."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)


def attempt_dir(node_dir: Path, attempt: int) -> Path:
    return node_dir / f"a{attempt:04d}"


def log_file(node_dir: Path, attempt: int, rank: int) -> Path:
    return attempt_dir(node_dir, attempt) / f"rank{rank}.log"


def state_file(node_dir: Path, attempt: int, rank: int) -> Path:
    return attempt_dir(node_dir, attempt) / f"rank{rank}.state"


def stacks_file(node_dir: Path, attempt: int, rank: int) -> Path:
    return attempt_dir(node_dir, attempt) / f"rank{rank}.stacks"


def error_file(node_dir: Path, attempt: int, rank: int) -> Path:
    return attempt_dir(node_dir, attempt) / f"rank{rank}.error.json"


class Ranks:
    """The ranks that this node runs for one attempt.

    `on_end` is called once for every rank, at once, pushed by the kernel.
    """

    def __init__(
        self, node_dir: Path, node: str, run_id: str, attempt: int, on_end: Callable[[Ended], None]
    ) -> None:
        self._dir = node_dir
        self._mark = f"{run_id}/{node}/"
        self._on_end = on_end
        self.attempt = attempt
        self.ranks: dict[int, Rank] = {}
        self.stopping = False
        self.spare: Callable[[], frozenset[int]] = frozenset  # pids that are the starter's own
        self._watches: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> int:
        return sum(1 for rank in self.ranks.values() if rank.alive)

    async def start(self, job: Job, order: Start, node: str, starter: Starter | None) -> str:
        """Start every local rank; returns why they were not forked, empty where they were.

        Of attempts long past the logs are removed. Raises CantStart.
        """
        try:
            return await self._start(job, order, node, starter)
        except (OSError, CantStart, ValueError) as error:  # ValueError: a NUL in an argument
            self.watch()
            await self.stop(0)
            what = getattr(error, "filename", None) or ""
            why = f"{what}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise CantStart(why.removeprefix(": ")) from error
        except asyncio.CancelledError:
            self.watch()
            await self.stop(0)
            raise

    async def _start(self, job: Job, order: Start, node: str, starter: Starter | None) -> str:
        _forget_old(self._dir, self.attempt)
        attempt_dir(self._dir, self.attempt).mkdir(mode=0o700, exist_ok=True)
        base = dict(os.environ)  # decoded once: it costs 0.5 ms
        told = [self._told(job, order, local, node, base) for local in range(job.ranks_per_node)]
        why = "nothing to preload is configured (trainer.preload)"
        if starter is not None:
            try:
                pids = await starter.fork(told)
            except Cold as cold:
                why = str(cold)
            else:
                why = ""
                for rank, pid in pids.items():
                    started = tree.start_time(pid) or 0
                    self.ranks[rank] = Rank(rank=rank, pid=pid, started=started, starter=starter)
        if why:
            await self._look(job, told[0])
            for words in told:
                self._cold(job, words)
        self._remember()
        self.watch()
        return why

    def _told(
        self, job: Job, order: Start, local: int, node: str, base: Mapping[str, str]
    ) -> dict[str, Any]:
        """Everything that a rank needs to know, as supervisor.agent.starter reads it."""
        values = placeholders(order)
        rank = order.slot * job.ranks_per_node + local
        hook = self._dir / "starter" / f"superv_hook_{job.hook}.py"
        return {
            "rank": rank,
            "ranks": job.ranks_per_node,
            "argv": [fill(a, values) for a in (job.resumed if order.resume_path else job.fresh)],
            "env": rank_env(job, order, local, self._dir, node, base),
            "cwd": job.workdir,
            "path": job.path,
            "log": str(log_file(self._dir, self.attempt, rank)),
            "hook": str(hook) if job.hook else "",
            "state": str(state_file(self._dir, self.attempt, rank)) if job.hook else "",
            "bell": str(self._dir / "bell") if job.hook else "",
            "stacks": str(stacks_file(self._dir, self.attempt, rank)),
            "promised": order.resume_step or 0 if order.save_dir is not None else None,
        }

    async def _look(self, job: Job, told: dict[str, Any]) -> None:
        """See in an expendable child that working directory, program and a place to save are there.

        Raises CantStart.
        """
        program = job.python or told["argv"][0]
        home = told["env"]["SUPERV_SAVE_DIR"].rpartition("/")[0]
        argv = ("/bin/sh", "-c", _LOOK, "sh", job.workdir, program, home)
        if proc.stuck(argv):
            raise CantStart(f"{job.workdir}: an earlier look at it still hangs")
        done = await proc.run(argv, deadline_s=LOOK_S, env=told["env"])
        if done.timed_out:
            raise CantStart(f"{job.workdir} or {program} did not answer within {LOOK_S:.0f} s")
        if done.rc == 3:
            raise CantStart(f"{job.workdir}: the working directory can't be entered")
        if done.rc == 4:
            raise CantStart(f"{program}: there is no such program in {job.workdir} or on PATH")
        if done.rc == 5:
            raise CantStart(f"{home}: checkpoints.dir can't be written")
        if done.rc != 0:
            raise CantStart(f"looking for {program}: {done.why()}")

    def _cold(self, job: Job, told: dict[str, Any]) -> None:
        """Start one rank in an interpreter of its own."""
        rank = told["rank"]
        argv = ([job.python] if job.python else []) + told["argv"]
        if job.hook or job.path:  # for `-m`, Python itself would look into the directory first
            script, _ = write_files(self._dir, job)
            path = Path(told["log"]).with_suffix(".order.json")
            path.write_text(json.dumps({k: v for k, v in told.items() if k != "env"}))
            argv = [job.python, str(script), "rank", str(path)]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(told["log"], flags, 0o600)
        try:
            child = proc.spawn(argv, env=told["env"], cwd=job.workdir, stdout=log)
        finally:
            os.close(log)
        started = tree.start_time(child.pid) or 0
        self.ranks[rank] = Rank(rank=rank, pid=child.pid, started=started, child=child)

    def _remember(self) -> None:
        """Write down which processes are the ranks, for an agent that comes after this one."""
        told = {
            "attempt": self.attempt,
            "ranks": [[r.rank, r.pid, r.started] for r in self.ranks.values()],
        }
        path = self._dir / "ranks.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(told))
        part.replace(path)

    def watch(self) -> None:
        for rank in self.ranks.values():
            task = asyncio.ensure_future(self._watch(rank))
            self._watches.add(task)
            task.add_done_callback(self._watched)

    def _watched(self, task: asyncio.Task[None]) -> None:
        self._watches.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # reaches the loop's exception handler, which ends the agent

    async def _watch(self, rank: Rank) -> None:
        if rank.child is not None or tree.start_time(rank.pid) == rank.started:
            await proc.exited(rank.pid)
        rank.alive = False
        rc = await rank.ended()
        self._on_end(
            Ended(
                rank=rank.rank,
                code=rc if rc is not None and rc >= 0 else None,
                signal=-rc if rc is not None and rc < 0 else None,
            )
        )

    def stacks_file(self, rank: int) -> Path:
        return stacks_file(self._dir, self.attempt, rank)

    def find(self) -> set[int]:
        """All processes of this run's ranks on this node, of whatever attempt."""
        alive = frozenset(rank.pid for rank in self.ranks.values() if rank.alive)
        ended = frozenset(rank.pid for rank in self.ranks.values() if not rank.alive)
        return tree.find(self._mark, alive, ended, self.spare())

    async def stop(self, grace_s: float) -> set[int]:
        """End every process of the run on this node, without telling the ranks' ends.

        Returns the pids that can't be killed.
        """
        self.stopping = True
        left = await self.end(grace_s)
        if not left:
            (self._dir / "ranks.json").unlink(missing_ok=True)
        return left

    async def end(self, grace_s: float) -> set[int]:
        """End every process of the run on this node; returns the pids that can't be killed."""
        left = await tree.end(self.find, grace_s)
        if self._watches:  # the ends of the ranks are told before the caller goes on
            await asyncio.wait(self._watches, timeout=1.0)
        return left

    def error(self, rank: int) -> str:
        """The message of the rank's error file (torch's @record writes one), shortened."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(error_file(self._dir, self.attempt, rank).read_bytes())
            message = told["message"]
            text = message["message"] if isinstance(message, dict) else message
            return "".join(str(text).strip().splitlines()[-1:])[:ERROR_SHOWN]
        return ""


def _forget_old(node_dir: Path, attempt: int) -> None:
    """Remove the logs of attempts long past: a run lasts for months, a node's disk does not."""
    names = [path.name for path in node_dir.glob("a[0-9][0-9][0-9][0-9]*")]
    numbers = sorted(int(name[1:]) for name in names if name[1:].isdigit())
    for old in [number for number in numbers if number < attempt][: 1 - KEPT]:
        shutil.rmtree(attempt_dir(node_dir, old), ignore_errors=True)


def adopt(node_dir: Path, node: str, run_id: str, on_end: Callable[[Ended], None]) -> Ranks | None:
    """The ranks that an agent before this one left; dead ones among them, whose end nobody saw.

    None where there were none, or where they were stopped.
    """
    found: Ranks | None = None
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        told = json.loads((node_dir / "ranks.json").read_bytes())
        found = Ranks(node_dir, node, run_id, int(told["attempt"]), on_end)
        for rank, pid, started in told["ranks"]:
            there = tree.start_time(pid) == started and tree.state(pid) not in ("Z", "X")
            found.ranks[rank] = Rank(rank=rank, pid=pid, started=started, alive=there)
    return found if found is not None and found.ranks else None
