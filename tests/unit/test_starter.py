"""The warm starter, as a real process of this Python: what its ranks are, and when it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from logged import logged

from supervisor.agent import stacks, tree
from supervisor.agent.ranks import RankEnd, Ranks
from supervisor.agent.warm import Starter
from supervisor.channel.wire import RankJob
from supervisor.core.actions import Start
from supervisor.host import procfs
from tests.processes import children, send

RUN = os.urandom(6).hex()  # two test sessions must not end each other's ranks


def job_of(folder: Path, *entry: str, preload: tuple[str, ...] = (), **changes: Any) -> RankJob:
    values: dict[str, Any] = {
        "run_id": RUN,
        "name": "warm",
        "python": sys.executable,
        "fresh": entry,
        "resumed": entry,
        "preload": preload,
        "hook": "",
        "workdir": str(folder),
        "env": {},
        "ranks_per_node": 2,
        "step_pattern": "step: (?P<step>[0-9]+)",
        "resumed_pattern": "",
        "rank_ports": (30000, 31000),
        "log_cap": 1_000_000,
        "engine_lost_timeout_s": 60.0,
    }
    return RankJob(**(values | changes))


def order(attempt: int = 1, **changes: Any) -> Start:
    values: dict[str, Any] = {
        "key": f"a{attempt}/start/n1",
        "node": "n1",
        "attempt": attempt,
        "slot": 0,
        "nnodes": 1,
        "master_addr": "127.0.0.1",
        "master_port": 30001,
        "save_dir": None,
        "resume_path": None,
        "resume_step": None,
    }
    return Start(**(values | changes))


class StarterNode:
    """What the agent keeps of one node: its starter, its ranks, their ends."""

    def __init__(self, job: RankJob, folder: Path, quiet_s: float) -> None:
        self.job, self.dir = job, folder / "node"
        self.dir.mkdir()
        self.notes: list[str] = []
        self.ends: list[RankEnd] = []
        mark = f"{RUN}/n1/"
        self.starter = Starter(job, self.dir, mark, quiet_s=quiet_s)
        self.ranks: Ranks | None = None

    async def start(self, attempt: int = 1, **changes: Any) -> str:
        self.ranks = Ranks(self.dir, "n1", RUN, attempt, self.ends.append)
        self.ranks.exclude_pids = lambda: self.starter.pids
        return await self.ranks.start(self.job, order(attempt, **changes), "n1", self.starter)

    async def ahead(self, count: int = 2) -> frozenset[int]:
        """Ranks are forked ahead; their pids."""
        async with asyncio.timeout(20):
            while len(waiting := self.starter.pids - {self.starter.pid}) < count:
                await asyncio.sleep(0.01)
        return waiting

    async def ended(self, count: int = 2) -> None:
        async with asyncio.timeout(20):
            while len(self.ends) < count:
                await asyncio.sleep(0.01)

    def log(self, rank: int = 0, attempt: int = 1) -> str:
        path = self.dir / f"a{attempt:04d}" / f"rank{rank}.log"
        return path.read_text() if path.exists() else ""

    def last_line(self, rank: int = 0, attempt: int = 1) -> Any:
        return json.loads(self.log(rank, attempt).splitlines()[-1])


MakeNode = Callable[[RankJob], StarterNode]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., StarterNode]]:
    made: list[StarterNode] = []

    def make(job: RankJob, quiet_s: float = 600.0) -> StarterNode:
        made.append(StarterNode(job, tmp_path, quiet_s))
        return made[-1]

    yield make
    for pid in tree.find(f"{RUN}/n1/"):
        send(pid)


def play(one: StarterNode, scenario: Callable[[StarterNode], Awaitable[None]]) -> None:
    """Run a scenario in a loop, and end the starter in the same loop."""

    async def whole() -> None:
        with logged() as one.notes:
            one.starter.start()
            try:
                await scenario(one)
            finally:
                one.starter.stop()
                if one.ranks is not None:
                    await one.ranks.stop(0)

    asyncio.run(whole())


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.mark.parametrize("ahead", [False, True])
def test_ranks_are_forked_and_are_what_a_new_interpreter_would_be(
    tmp_path: Path, node: Callable[..., StarterNode], ahead: bool
) -> None:
    script = write(
        tmp_path,
        "train.py",
        """
        import json, logging, os, random, signal, sys
        import heavy
        print(json.dumps({
            "argv": sys.argv, "rank": os.environ["RANK"], "mine": os.environ["MINE"],
            "main": __name__, "file": __file__, "path0": sys.path[0], "cwd": os.getcwd(),
            "handlers": len(logging.root.handlers), "random": random.random(),
            "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            "usr1": signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL,
            "imported_by": heavy.PID, "parent": os.getppid(),
            "session": os.getsid(0) == os.getpid(), "pid": os.getpid(),
            "fds": len(os.listdir("/proc/self/fd")),
            "comm": open("/proc/self/comm").read().strip(), "old": "OLD" in os.environ,
            "stdin": sys.stdin.read(),
        }))
        """,
    )
    write(
        tmp_path,
        "heavy.py",
        """
        import logging, os, signal
        logging.basicConfig()
        signal.signal(signal.SIGUSR1, lambda *_: None)
        PID = os.getpid()
        os.environ["OLD"] = "yes"
        """,
    )
    job = job_of(tmp_path, script, "--save", "{node_rank}", preload=("heavy",), env={"MINE": "yes"})

    async def scenario(n: StarterNode) -> None:
        attempt, waiting = 1, frozenset[int]()
        assert await n.start() == ""
        await n.ended()
        fds = n.last_line(0)["fds"]
        if ahead:
            attempt, waiting = 2, await n.ahead()
            assert await n.start(attempt) == ""
            await n.ended(4)
        assert [(e.code, e.signal) for e in n.ends] == [(0, None)] * 2 * attempt
        first, second = n.last_line(0, attempt), n.last_line(1, attempt)
        assert {first["pid"], second["pid"]} & waiting == waiting
        assert first["argv"] == [script, "--save", "0"]
        assert (first["rank"], second["rank"], first["mine"]) == ("0", "1", "yes")
        assert (first["comm"], second["comm"], first["old"]) == ("rank0", "rank1", False)
        assert (first["main"], first["file"]) == ("__main__", script)
        assert (first["path0"], first["cwd"]) == (str(tmp_path), str(tmp_path))
        assert first["handlers"] == 0 and first["term"] and first["usr1"] and first["session"]
        assert first["random"] != second["random"]
        assert first["imported_by"] == first["parent"] == n.starter.pid
        assert first["stdin"] == "" and first["fds"] == fds

    play(node(job, quiet_s=0.1), scenario)


@pytest.mark.parametrize(
    ("body", "code", "number", "words"),
    [
        ("raise SystemExit(7)", 7, None, ""),
        ("raise ValueError('no good')", 1, None, "ValueError: no good"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", None, 9, ""),
        ("import atexit; atexit.register(print, 'bye')", 0, None, "bye"),
    ],
)
def test_the_end_of_a_forked_rank_is_known(
    tmp_path: Path,
    node: MakeNode,
    body: str,
    code: int,
    number: int,
    words: str,
) -> None:
    job = job_of(tmp_path, write(tmp_path, "train.py", body), preload=("json",), ranks_per_node=1)

    async def scenario(n: StarterNode) -> None:
        assert await n.start() == ""
        await n.ended(1)
        assert (n.ends[0].code, n.ends[0].signal) == (code, number)
        assert words in n.log()

    play(node(job), scenario)


def test_a_module_runs_as_python_m_would(tmp_path: Path, node: MakeNode) -> None:
    (tmp_path / "pack").mkdir()
    write(tmp_path, "pack/__init__.py", "")
    write(
        tmp_path,
        "pack/train.py",
        "import sys, json; print(json.dumps([__name__, sys.argv[1:], sys.argv[0] == __file__]))",
    )
    job = job_of(tmp_path, "-m", "pack.train", "x", preload=("json",), ranks_per_node=1)

    async def scenario(n: StarterNode) -> None:
        assert await n.start() == ""
        await n.ended(1)
        assert n.last_line() == ["__main__", ["x"], True]

    play(node(job), scenario)


def test_ps_shows_the_trainer_s_command_line(tmp_path: Path, node: MakeNode) -> None:
    said = "import json; print(json.dumps(open('/proc/self/cmdline').read().split(chr(0))))"
    write(tmp_path, "trainer.py", said)
    job = job_of(tmp_path, "-m", "trainer", "--config", "x" * 4000, preload=("json",))

    async def scenario(n: StarterNode) -> None:
        assert await n.start() == ""
        await n.ended()
        for rank in (0, 1):
            python, *words, last, _ = n.last_line(rank)
            assert (python, words) == (sys.executable, ["-m", "trainer", "--config"])
            assert last and set(last) == {"x"}

    play(node(job), scenario)


def test_a_process_with_threads_is_not_forked(tmp_path: Path, node: MakeNode) -> None:
    write(
        tmp_path,
        "threads.py",
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
    )
    script = write(tmp_path, "train.py", "print('ran')")
    job = job_of(tmp_path, script, preload=("threads",))

    async def scenario(n: StarterNode) -> None:
        why = await n.start()
        assert "2 threads" in why
        await n.ended()
        assert [e.code for e in n.ends] == [0, 0]  # cold, and they ran all the same
        assert n.log(1).strip() == "ran"

    play(node(job), scenario)


def test_a_process_that_has_opened_a_gpu_is_not_forked() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, for a /dev of its own with a file nvidia0")
    # The device file is what it looks for; a file of that name in /dev stands in for one.
    look = "from supervisor.agent import starter; print(starter.unsafe())"
    script = 'mount -t tmpfs none /dev && : >/dev/nvidia0 && exec "$@" 9</dev/nvidia0'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", look],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.endswith("open: CUDA is initialised\n"), done.stderr


def test_a_module_that_cannot_be_imported_means_cold_ranks_and_says_why(
    tmp_path: Path, node: MakeNode
) -> None:
    job = job_of(tmp_path, write(tmp_path, "train.py", "print(1)"), preload=("no_such_module",))

    async def scenario(n: StarterNode) -> None:
        assert "No module named 'no_such_module'" in await n.start()
        await n.ended()
        assert [e.code for e in n.ends] == [0, 0]

    play(node(job), scenario)


def test_a_dead_starter_takes_no_ranks_with_it(tmp_path: Path, node: MakeNode) -> None:
    script = write(tmp_path, "train.py", "import time\nprint('up', flush=True)\ntime.sleep(600)")
    job = job_of(tmp_path, script, preload=("json",))

    async def scenario(n: StarterNode) -> None:
        assert await n.start() == ""
        assert n.ranks is not None and n.starter.pid is not None
        pids = [rank.pid for rank in n.ranks.ranks.values()]
        os.kill(n.starter.pid, signal.SIGKILL)
        while "no warm starts: the starter ended" not in n.notes:
            await asyncio.sleep(0.01)
        assert all(procfs.state(pid) not in (None, "Z", "X") for pid in pids) and not n.ends
        os.kill(pids[0], signal.SIGKILL)
        await n.ended(1)
        assert n.ends[0] == RankEnd(rank=0, code=None, signal=None)
        await n.ranks.stop(0)
        await n.starter.reload_if_changed()  # a new one for the next attempt
        assert await n.start(2) == ""

    play(node(job), scenario)


def test_stopping_the_ranks_spares_the_starter(tmp_path: Path, node: MakeNode) -> None:
    script = write(
        tmp_path,
        "train.py",
        """
        import os, time
        if os.fork() == 0:  # a daemon of the rank: no exec, so its environ is its parent's
            os.setsid()
            if os.fork() == 0:
                os.setsid(); time.sleep(600)
            os._exit(0)
        print("up", flush=True); time.sleep(600)
        """,
    )
    job = job_of(tmp_path, script, preload=("json",))

    async def scenario(n: StarterNode) -> None:
        assert await n.start() == ""
        while "up" not in n.log(0) or "up" not in n.log(1):
            await asyncio.sleep(0.01)
        assert n.ranks is not None
        while len(n.ranks.find()) < 4:  # the ranks, and their daemons as soon as they are
            await asyncio.sleep(0.01)
        assert await n.ranks.stop(0.2) == set()
        assert n.ranks.find() == set()
        assert n.starter.pid is not None and procfs.state(n.starter.pid) not in (None, "Z", "X")
        pid = n.starter.pid
        assert await n.start(2) == "" and n.starter.pid == pid

    play(node(job), scenario)


def test_what_was_forked_ahead_is_spared_with_the_starter_and_ends_with_it(
    tmp_path: Path, node: Callable[..., StarterNode]
) -> None:
    job = job_of(tmp_path, write(tmp_path, "train.py", "pass"), preload=("json",))

    async def scenario(n: StarterNode) -> None:
        assert await n.start() == ""
        waiting = await n.ahead()
        assert n.ranks is not None and n.starter.pid is not None
        assert await n.ranks.stop(0) == set()
        assert not {procfs.state(pid) for pid in waiting} & {None, "Z", "X"}
        os.kill(n.starter.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while n.starter.pids != {n.starter.pid}:
                await asyncio.sleep(0.01)
            while any(procfs.state(pid) not in (None, "Z", "X") for pid in waiting):
                await asyncio.sleep(0.01)

    play(node(job, quiet_s=0.1), scenario)


def test_one_that_ends_while_it_waits_is_replaced(
    tmp_path: Path, node: Callable[..., StarterNode]
) -> None:
    script = write(tmp_path, "train.py", "import os; print(os.getpid())")
    job = job_of(tmp_path, script, preload=("json",))

    async def scenario(n: StarterNode) -> None:
        assert await n.start() == ""
        await n.ended()
        gone, stays = await n.ahead()
        os.kill(gone, signal.SIGKILL)
        async with asyncio.timeout(20):
            while gone in n.starter.pids:
                await asyncio.sleep(0.01)
        assert await n.start(2) == ""
        await n.ended(4)
        assert [e.code for e in n.ends] == [0] * 4
        assert stays in {n.last_line(0, 2), n.last_line(1, 2)}

    play(node(job, quiet_s=0.1), scenario)


def test_changed_imports_are_preloaded_anew(tmp_path: Path, node: MakeNode) -> None:
    write(tmp_path, "model.py", "SIZE = 1\n")
    script = write(tmp_path, "train.py", "import model; print(model.SIZE)")
    job = job_of(tmp_path, script, preload=("model",), ranks_per_node=1)

    async def scenario(n: StarterNode) -> None:
        assert await n.start(1) == ""
        await n.ended(1)
        await n.starter.reload_if_changed()
        same = n.starter.pid
        assert await n.start(2) == ""
        await n.ended(2)
        write(tmp_path, "model.py", "SIZE = 22\n")
        await n.starter.reload_if_changed()
        assert any("model.py changed on disk" in note for note in n.notes)
        assert await n.start(3) == ""
        await n.ended(3)
        assert [n.log(0, a).strip() for a in (1, 2, 3)] == ["1", "1", "22"]
        assert n.starter.pid != same

    play(node(job), scenario)


def test_fifty_forks_leave_nothing(tmp_path: Path, node: MakeNode) -> None:
    job = job_of(tmp_path, write(tmp_path, "train.py", "pass"), preload=("json",))

    async def scenario(n: StarterNode) -> None:
        for attempt in range(1, 26):
            assert await n.start(attempt) == ""
            await n.ended(2 * attempt)
        assert [e.code for e in n.ends] == [0] * 50
        assert n.starter.pid is not None
        async with asyncio.timeout(20):
            while {*children(n.starter.pid)} - n.starter.pids:
                await asyncio.sleep(0.05)

    play(node(job), scenario)


def test_ranks_say_where_they_stand_in_their_code(tmp_path: Path, node: MakeNode) -> None:
    script = write(
        tmp_path,
        "train.py",
        """
        import threading, time
        def wait_for_the_others():
            print("up", flush=True)
            time.sleep(600)
        def train_step():
            wait_for_the_others()
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        train_step()
        """,
    )
    job = job_of(tmp_path, script, preload=("json",))

    async def scenario(n: StarterNode) -> None:
        assert await n.start() == ""
        while "up" not in n.log(0) or "up" not in n.log(1):
            await asyncio.sleep(0.01)
        assert n.ranks is not None
        ranks = n.ranks
        os.kill(ranks.ranks[1].pid, signal.SIGSTOP)
        asked = {rank: (ranks.ranks[rank].pid, ranks.stacks_file(rank)) for rank in (0, 1)}
        first, second = await stacks.dump("n1", asked)
        assert first.text.startswith("rank 0: wait_for_the_others (train.py:5) < train_step")
        assert second.text == "rank 1: no answer (its process is in state T)"
        assert not n.ends

    play(node(job), scenario)
