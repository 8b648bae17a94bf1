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
from supervisor.agent import containers, tree
from supervisor.agent.warm import LOADING_ENV, Cold, Starter, write_files
from supervisor.channel.wire import RankJob
from supervisor.core import names
from supervisor.core.actions import Start
from supervisor.core.container import RUNTIMES, Container
from supervisor.core.errors import TransientError
from supervisor.core.rank_contract import RankPlace, fill, placeholder_values, variables
from supervisor.host import private, procfs

TAIL_SHOWN = 20  # lines of a rank's log that travel with its end
ERROR_SHOWN = 500  # characters of the message in a rank's error file
PATHS_S = 20.0  # storage that does not show the trainer within this is taken to hang
TABLE = "ranks.json"  # which processes are the ranks
KEPT = 10  # attempts whose logs stay on the node, the current one included

# Storage may hang, and the ranks' own start would say so only in their end.
_CHECK_PATHS = """
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
class RankEnd:
    """How a local rank ended; both are None where no agent saw it."""

    rank: int
    code: int | None
    signal: int | None


@dataclass(slots=True)
class RankProcess:
    """A process of this node's ranks."""

    rank: int
    pid: int
    started: int  # start time in clock ticks: with the pid it names the process
    child: subprocess.Popen[bytes] | None = None  # where this agent itself started it
    starter: Starter | None = None  # where it was forked by this agent's starter
    alive: bool = True

    async def exit_code(self) -> int | None:
        """How it ended, as subprocess tells it; None where nobody of this agent's saw it."""
        if self.child is not None:
            return self.child.poll()
        with contextlib.suppress(ChildProcessError):  # its starter is gone: it became our child
            reaped, ended = os.waitpid(self.pid, os.WNOHANG)
            if reaped:
                return os.waitstatus_to_exitcode(ended)
        if self.starter is not None:
            status = await self.starter.exit_status(self.pid)
            return None if status is None else os.waitstatus_to_exitcode(status)
        return None


def rank_env(
    job: RankJob, order: Start, local: int, node_dir: Path, node: str, base: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a rank: superv's variables win over the user's, those over the node's."""
    place = RankPlace(
        order=order,
        run_id=job.run_id,
        run_name=job.name,
        local_rank=local,
        ranks_per_node=job.ranks_per_node,
        error_file=str(
            error_file(node_dir, order.attempt, order.slot * job.ranks_per_node + local)
        ),
    )
    if job.container is not None:  # of the node's variables only Slurm's mean something in there
        base = containers.of_node(base)
    default = {"PYTHONUNBUFFERED": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    if job.ranks_per_node > 1:
        default["OMP_NUM_THREADS"] = "1"  # as torchrun does: ranks share the cores
    values = placeholder_values(order)
    own = {n: v if n in job.secret else fill(v, values) for n, v in job.env.items()}
    mark = {tree.MARK: f"{job.run_id}/{node}/{order.attempt}"}
    return default | dict(base) | own | variables(place) | mark


def attempt_dir(node_dir: Path, attempt: int) -> Path:
    return node_dir / names.attempt(attempt)


def log_file(node_dir: Path, attempt: int, rank: int) -> Path:
    return attempt_dir(node_dir, attempt) / f"rank{rank}.log"


def logs_there(node_dir: Path, rank: int) -> str:
    """Which attempts' logs of a rank are on this node, for whoever asked for another."""
    there = sorted(
        number
        for path in node_dir.glob(f"*/rank{rank}.log")
        if (number := names.attempt_of(path.parent.name)) is not None
    )
    return f"; this node has those of attempts {', '.join(map(str, there))}" if there else ""


def state_file(node_dir: Path, attempt: int, rank: int) -> Path:
    return attempt_dir(node_dir, attempt) / f"rank{rank}.state"


def notify_socket(node_dir: Path) -> Path:
    """Where hooks send a datagram. Its name stays: ranks that an older agent started know it."""
    return node_dir / "bell"


def stacks_file(node_dir: Path, attempt: int, rank: int) -> Path:
    return attempt_dir(node_dir, attempt) / f"rank{rank}.stacks"


def error_file(node_dir: Path, attempt: int, rank: int) -> Path:
    return attempt_dir(node_dir, attempt) / f"rank{rank}.error.json"


class Ranks:
    """The ranks that this node runs for one attempt.

    `on_end` is called once for every rank, at once, pushed by the kernel.
    """

    def __init__(
        self,
        node_dir: Path,
        node: str,
        run_id: str,
        attempt: int,
        on_end: Callable[[RankEnd], None],
    ) -> None:
        self._dir = node_dir
        self._mark = f"{run_id}/{node}/"
        self._on_end = on_end
        self.attempt = attempt
        self.ranks: dict[int, RankProcess] = {}
        self.resumed: tuple[int, str] | None = None  # step and path; (0, ""): none
        self.stopping = False
        self.container: Container | None = None  # what they run in, where this agent started them
        # Processes of the run that are no ranks: the starter's own.
        self.exclude_pids: Callable[[], frozenset[int]] = frozenset
        self.cgroup = ""  # what ranks write their pid to; empty: nothing
        # Processes of ranks that nothing else names.
        self.orphans: Callable[[], frozenset[int]] = frozenset
        self._watches: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> int:
        return sum(1 for rank in self.ranks.values() if rank.alive)

    @property
    def facts(self) -> dict[str, str]:
        """What an engine that lost its journal has to know of them, for a hello."""
        found = {"first_rank": str(min(self.ranks))} if self.ranks else {}
        if self.resumed is not None:
            found |= {"resume_step": str(self.resumed[0]), "resume_path": self.resumed[1]}
        return found

    async def start(self, job: RankJob, order: Start, node: str, starter: Starter | None) -> str:
        """Start every local rank; returns why they were not forked, empty where they were.

        Of attempts long past the logs are removed. Raises CantStart.
        """
        try:
            return await self._start(job, order, node, starter)
        except (
            OSError,
            CantStart,
            TransientError,
            ValueError,
        ) as error:  # ValueError: a NUL in an argument
            self.watch()
            await self.stop(0)
            what = getattr(error, "filename", None) or ""
            why = f"{what}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise CantStart(why.removeprefix(": ")) from error
        except asyncio.CancelledError:
            self.watch()
            await self.stop(0)
            raise

    async def _start(self, job: RankJob, order: Start, node: str, starter: Starter | None) -> str:
        _remove_old_logs(self._dir, self.attempt)
        self.container = job.container
        self.resumed = order.resume_step or 0, order.resume_path or ""
        attempt_dir(self._dir, self.attempt).mkdir(mode=0o700, exist_ok=True)
        base = dict(os.environ)  # decoded once: it costs 0.5 ms
        specs = [
            self._rank_spec(job, order, local, node, base) for local in range(job.ranks_per_node)
        ]
        why = "nothing to preload is configured (trainer.preload)"
        if starter is not None:
            try:
                pids = await starter.fork(specs)
            except Cold as cold:
                why = str(cold)
            else:
                why = ""
                for rank, pid in pids.items():
                    started = procfs.start_time(pid) or 0
                    if job.container is not None:  # it may not see the cgroups itself
                        self._enter_cgroup(pid)
                    self.ranks[rank] = RankProcess(
                        rank=rank, pid=pid, started=started, starter=starter
                    )
        if why:
            await self._check_paths(job, specs[0])
            for spec in specs:
                self._start_cold(job, spec, base, node)
        private.write(self._dir / TABLE, self._table())
        self.watch()
        return why

    def _rank_spec(
        self, job: RankJob, order: Start, local: int, node: str, base: Mapping[str, str]
    ) -> dict[str, Any]:
        """Everything that a rank needs to know, as supervisor.agent.starter reads it."""
        values = placeholder_values(order)
        rank = order.slot * job.ranks_per_node + local
        words = job.entry or (job.resumed if order.resume_path else job.fresh)
        hook = self._dir / "starter" / f"superv_hook_{job.hook}.py"
        keeps = {"drop": sorted(LOADING_ENV)} if job.container else {}  # the image's variables
        return keeps | {
            "rank": rank,
            "ranks": job.ranks_per_node,
            "argv": [fill(word, values) for word in words],
            "env": rank_env(job, order, local, self._dir, node, base),
            "cwd": job.container.workdir if job.container else job.workdir,
            "path": job.path,
            "log": str(log_file(self._dir, self.attempt, rank)),
            "hook": str(hook) if job.hook else "",
            "state": str(state_file(self._dir, self.attempt, rank)) if job.hook else "",
            "notify_socket": str(notify_socket(self._dir)) if job.hook else "",
            "cgroup": self.cgroup,
            "stacks": str(stacks_file(self._dir, self.attempt, rank)),
            "promised": order.resume_step or 0 if order.save_dir is not None else None,
        }

    async def _check_paths(self, job: RankJob, spec: dict[str, Any]) -> None:
        """See in an expendable child that working directory, program and a place to save are there.

        Raises CantStart.
        """
        program = job.python or spec["argv"][0]
        home = spec["env"]["SUPERV_SAVE_DIR"].rpartition("/")[0]
        env = spec["env"]
        if job.container is not None:
            await containers.check(job.container, home)
            program, env = RUNTIMES[job.container.runtime].program, dict(os.environ)
        argv = ("/bin/sh", "-c", _CHECK_PATHS, "sh", job.workdir, program, home)
        if proc.stuck(argv):
            raise CantStart(f"{job.workdir}: an earlier look at it still hangs")
        done = await proc.run(argv, deadline_s=PATHS_S, env=env)
        if done.timed_out:
            raise CantStart(f"{job.workdir} or {program} did not answer within {PATHS_S:.0f} s")
        if done.rc == 3:
            raise CantStart(f"{job.workdir}: the working directory can't be entered")
        if done.rc == 4:
            raise CantStart(f"{program}: there is no such program in {job.workdir} or on PATH")
        if done.rc == 5:
            raise CantStart(f"{home}: checkpoints.dir can't be written")
        if done.rc != 0:
            raise CantStart(f"looking for {program}: {done.why()}")

    def _start_cold(
        self, job: RankJob, spec: dict[str, Any], base: Mapping[str, str], node: str
    ) -> None:
        """Start one rank in an interpreter of its own, in a container where the job says so."""
        rank = spec["rank"]
        argv = ([job.python] if job.python else []) + spec["argv"]
        if job.hook or job.path:  # for `-m`, Python itself would look into the directory first
            script, _ = write_files(self._dir, job)
            path = Path(spec["log"]).with_suffix(".order.json")
            public = {k: v for k, v in spec.items() if k != "env"}
            private.write(path, json.dumps(public).encode())
            argv = [job.python, str(script), "rank", str(path)]
        env, cwd = spec["env"], job.workdir
        if job.container is not None:
            file = Path(spec["log"]).with_suffix(".env")
            argv, env = containers.wrapped(job.container, argv, env, file, base, node, self._dir)
            cwd = "/"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(spec["log"], flags, 0o600)
        try:
            child = proc.spawn(argv, env=env, cwd=cwd, stdout=log)
        finally:
            os.close(log)
        self._enter_cgroup(child.pid)
        started = procfs.start_time(child.pid) or 0
        self.ranks[rank] = RankProcess(rank=rank, pid=child.pid, started=started, child=child)

    def _enter_cgroup(self, pid: int) -> None:
        if self.cgroup:
            with contextlib.suppress(OSError):
                Path(self.cgroup).write_text(str(pid))

    def _table(self) -> bytes:
        """Which processes are the ranks, for an agent that comes after this one."""
        ranks = [[r.rank, r.pid, r.started] for r in self.ranks.values()]
        table = {
            "attempt": self.attempt,
            "ranks": ranks,
            "resumed": self.resumed,
            "stopped": self.stopping,
        }
        return json.dumps(table).encode()

    def restore(self) -> list[str]:
        """Make again what ranks that live need, and the agent after this one. Raises OSError."""
        if not self.alive or self.stopping:
            return []
        folder = attempt_dir(self._dir, self.attempt)
        folder.mkdir(mode=0o700, exist_ok=True)
        if (self._dir / TABLE).exists():
            return []
        private.write(self._dir / TABLE, self._table())
        return [TABLE]

    def log_path(self, rank: int) -> str:
        """Where the log of a rank can be opened: where it was removed, through the rank itself."""
        path = str(log_file(self._dir, self.attempt, rank))
        one = self.ranks[rank]
        if one.alive and (fd := procfs.open_files(one.pid).get(f"{path} (deleted)")) is not None:
            return f"/proc/{one.pid}/fd/{fd}"
        return path

    def watch(self) -> None:
        for rank in self.ranks.values():
            task = asyncio.ensure_future(self._watch(rank))
            self._watches.add(task)
            task.add_done_callback(self._watched)

    def _watched(self, task: asyncio.Task[None]) -> None:
        self._watches.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # reaches the loop's exception handler, which ends the agent

    async def _watch(self, rank: RankProcess) -> None:
        if rank.child is not None or procfs.alive(rank.pid, rank.started):
            await proc.exited(rank.pid)
        rank.alive = False
        rc = await rank.exit_code()
        if (number := containers.signal_of(self.container, rc)) is not None:
            rc = -number
        self._on_end(
            RankEnd(
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
        return tree.find(self._mark, alive | self.orphans(), ended, self.exclude_pids())

    async def stop(self, grace_s: float) -> set[int]:
        """End every process of the run on this node, without reporting the ranks' ends.

        Returns the pids that can't be killed.
        """
        self.stopping = True
        left = await self.end(grace_s)
        if not left:
            (self._dir / TABLE).unlink(missing_ok=True)
        elif self.ranks:
            with contextlib.suppress(OSError):  # the next agent must not take them for wanted
                private.write(self._dir / TABLE, self._table())
        return left

    async def end(self, grace_s: float) -> set[int]:
        """End every process of the run on this node; returns the pids that can't be killed."""
        left = await tree.end(self.find, grace_s)
        if self._watches:  # the ends of the ranks are reported before the caller goes on
            await asyncio.wait(self._watches, timeout=1.0)
        return left

    def error(self, rank: int) -> str:
        """The message of the rank's error file (torch's @record writes one), shortened."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            report = json.loads(error_file(self._dir, self.attempt, rank).read_bytes())
            message = report["message"]
            text = message["message"] if isinstance(message, dict) else message
            return "".join(str(text).strip().splitlines()[-1:])[:ERROR_SHOWN]
        return ""


def _remove_old_logs(node_dir: Path, attempt: int) -> None:
    """Remove the logs of attempts long past: a run lasts for months, a node's disk does not."""
    found = (names.attempt_of(path.name) for path in node_dir.iterdir())
    numbers = sorted(number for number in found if number is not None)
    for old in [number for number in numbers if number < attempt][: 1 - KEPT]:
        shutil.rmtree(attempt_dir(node_dir, old), ignore_errors=True)


def adopt(
    node_dir: Path, node: str, run_id: str, on_end: Callable[[RankEnd], None]
) -> Ranks | None:
    """The ranks that an agent before this one left; dead ones among them, whose end nobody saw.

    None where there were none, or where they were stopped.
    """
    found: Ranks | None = None
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        table = json.loads((node_dir / TABLE).read_bytes())
        found = Ranks(node_dir, node, run_id, int(table["attempt"]), on_end)
        found.stopping = bool(table.get("stopped"))
        for rank, pid, started in table["ranks"]:
            there = procfs.alive(pid, started)
            found.ranks[rank] = RankProcess(rank=rank, pid=pid, started=started, alive=there)
        if (resumed := table.get("resumed")) is not None:  # agents before this one did not say
            found.resumed = int(resumed[0]), str(resumed[1])
    if found is not None and found.ranks:
        return found
    return _living(node_dir, node, run_id, on_end)


def _living(
    node_dir: Path, node: str, run_id: str, on_end: Callable[[RankEnd], None]
) -> Ranks | None:
    """Ranks of the newest attempt that run though nothing is written down of them: a cleaner took
    it. Each leads a session of its own and writes to the log that its agent gave it."""
    logs = re.compile(re.escape(f"{node_dir}/") + r"(a\d+)/rank(\d+)\.log(?: \(deleted\))?")
    found: dict[int, Ranks] = {}
    for one in procfs.processes():
        if one.session != one.pid or not one.alive:
            continue
        for path in procfs.open_files(one.pid):
            named = logs.fullmatch(path)
            attempt = names.attempt_of(named[1]) if named else None
            if named is None or attempt is None:
                continue
            ranks = found.setdefault(attempt, Ranks(node_dir, node, run_id, attempt, on_end))
            rank = int(named[2])
            ranks.ranks[rank] = RankProcess(rank=rank, pid=one.pid, started=one.started)
            break
    return found[max(found)] if found else None
