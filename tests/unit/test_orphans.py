"""A daemon that nothing names any more ends with the ranks; nobody else's process does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import (
    NODE,
    RUN,
    EngineSide,
    LoopbackNode,
    agent_errors,
    job,
    play,
    prepare,
    start,
    stop,
    until,
)

from supervisor.agent.attempt_cgroup import writable_base
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.host import procfs
from tests.processes import send

# Rank 0 leaves a daemon, as a daemon is to be made: two forks, a session and an environment of its
# own, nothing open but its port.
TRAINER = """
import os, subprocess, sys, time
port = sys.argv[1]
daemon = '''
import os, signal, socket, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.chdir("/")
os.closerange(0, 1000)
there = socket.create_server(("127.0.0.1", int(sys.argv[1])))
open(sys.argv[2], "w").write(f"{os.getpid()}\\\\n")
time.sleep(600)
'''
print("rank", os.environ["RANK"], "pid", os.getpid(), flush=True)
while os.path.exists("wait"):
    time.sleep(0.01)
if os.environ["RANK"] == "0":
    made = f"daemon{os.environ['SUPERV_ATTEMPT']}"
    subprocess.run([sys.executable, "-I", "-c", daemon, port, os.path.abspath(made)], env={})
while True:
    time.sleep(1)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as there:
        return int(there.getsockname()[1])


def takes(port: int) -> bool:
    """Whether a rank could listen there."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


class DaemonNode:
    """A node whose rank 0 leaves a daemon in each attempt."""

    def __init__(self, place: LoopbackNode, **changes: object) -> None:
        self.place, self.port = place, free_port()
        (place.tmp / "daemons.py").write_text(TRAINER)
        fresh = (str(place.tmp / "daemons.py"), str(self.port))
        self.engine = EngineSide(place, job(place.tmp, fresh=fresh, **changes))
        place.write_keys(self.engine.endpoint)
        place.agent()

    async def daemon(self, attempt: int) -> int:
        """Its pid; it has nothing by which it could be known."""
        told = self.place.tmp / f"daemon{attempt}"
        await until(lambda: told.exists() and told.read_text().endswith("\n"), "the daemon")
        pid = int(told.read_text())
        stat = procfs.stat(pid)
        assert stat is not None and stat.parent not in await self.place.pids(attempt)
        assert not procfs.environ(pid)
        assert not takes(self.port)
        return pid


def gone(pid: int) -> bool:
    return procfs.state(pid) in (None, "Z")


@pytest.mark.parametrize("warm", [(), ("json",)])
def test_a_daemon_keeps_no_port_over_a_relaunch_nor_over_the_end(
    tmp_path: Path, warm: tuple[str, ...]
) -> None:
    async def scenario(place: LoopbackNode) -> None:
        node = DaemonNode(place, preload=warm)
        engine = node.engine
        await engine.joined()
        for attempt in (1, 2):
            await engine.order(prepare(attempt))
            assert (await engine.event(ev.Prepared, attempt)).problems == ()
            await engine.order(start(attempt))
            await engine.event(ev.RanksStarted, attempt)
            pid = await node.daemon(attempt)
            await engine.order(stop(attempt, grace_s=0.2))
            assert (await engine.event(ev.RanksStopped, attempt)).stuck == ()
            assert gone(pid) and takes(node.port)
        await engine.order(act.Leave(key="leave", node=NODE, attempt=2))
        assert await asyncio.to_thread(place.agents[0].wait, 30) == 0
        assert not list(agent_errors(place))

    play(tmp_path, scenario)


def test_a_daemon_is_known_to_the_next_agent(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        node = DaemonNode(place)
        await node.engine.joined()
        await node.engine.started()
        pid = await node.daemon(1)
        table = place.node_dir / "orphans.json"
        await until(lambda: table.exists() and json.loads(table.read_text())[0][0] == pid)
        place.agents[0].kill()
        place.agents[0].wait()
        place.agent()
        await node.engine.joined(2)
        await node.engine.order(stop(1, grace_s=0.2))
        assert (await node.engine.event(ev.RanksStopped)).stuck == ()
        assert gone(pid) and takes(node.port)

    play(tmp_path, scenario)


@pytest.mark.skipif(writable_base() is None, reason="needs a cgroup2 that may be written")
@pytest.mark.parametrize("warm", [(), ("json",)])
def test_a_daemon_of_adopted_ranks_is_found_by_the_attempts_cgroup(
    tmp_path: Path, warm: tuple[str, ...]
) -> None:
    """No agent was ever its parent, or that of its parents."""

    async def scenario(place: LoopbackNode) -> None:
        (tmp_path / "wait").touch()
        node = DaemonNode(place, preload=warm)
        engine = node.engine
        await engine.joined()
        await engine.order(prepare())
        await engine.event(ev.Prepared)
        await engine.started()
        await place.pids()
        place.agents[0].kill()
        place.agents[0].wait()
        place.agent()
        assert (await engine.joined(2)).ranks == 2
        (tmp_path / "wait").unlink()
        pid = await node.daemon(1)
        assert not (place.node_dir / "orphans.json").exists()
        await engine.order(stop(1, grace_s=0.2))
        assert (await engine.event(ev.RanksStopped)).stuck == ()
        assert gone(pid) and takes(node.port)
        base = writable_base()
        assert base is not None and not list(base.glob(f"superv-{RUN}-{NODE}.*"))

    play(tmp_path, scenario)


@pytest.mark.skipif(writable_base() is None, reason="needs a cgroup2 that may be written")
def test_cgroups_of_agents_that_were_killed_go(tmp_path: Path) -> None:
    from supervisor.agent.attempt_cgroup import AttemptCgroups

    base = writable_base()
    assert base is not None
    made = AttemptCgroups(os.urandom(6).hex(), "n1", base)
    there = Path(made.make(7)).parent
    made.remove_stale()
    assert there.exists()  # its ranks may be on their way
    os.utime(there, (1, 1))
    AttemptCgroups(RUN, NODE, base).remove_stale()
    assert not there.exists()


def test_a_number_that_is_somebody_elses_now(tmp_path: Path) -> None:
    """The table names processes by pid and start: another one of that pid is left alone."""

    async def scenario(place: LoopbackNode) -> None:
        node = DaemonNode(place)
        await node.engine.joined()
        with subprocess.Popen(["sleep", "600"]) as stranger:
            place.agents[0].kill()
            place.agents[0].wait()
            table = place.node_dir / "orphans.json"
            table.touch(mode=0o600)
            table.write_text(json.dumps([[stranger.pid, 1]]))
            place.agent()
            await node.engine.joined(2)
            await node.engine.order(stop(1, grace_s=0))
            await node.engine.event(ev.RanksStopped)
            assert stranger.poll() is None
            stranger.kill()

    play(tmp_path, scenario)


def test_a_ranks_end_is_known_where_its_starter_died_first(tmp_path: Path) -> None:
    """It became the agent's own child."""

    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path, preload=("json",)))
        place.write_keys(engine.endpoint)
        place.agent()
        await engine.joined()
        await engine.order(prepare())
        await engine.event(ev.Prepared)
        assert (await engine.started()).warm
        pids = await place.pids()
        [starter] = {found.parent for pid in pids if (found := procfs.stat(pid))}
        send(starter)
        await until(lambda: "the starter ended" in place.notes())
        (tmp_path / "exit1").write_text("3")
        ended = (await engine.event(ev.RankExited)).exit
        assert (ended.rank, ended.code) == (1, 3)
        os.kill(pids[0], signal.SIGKILL)
        assert (await engine.event(ev.RankExited, 2)).exit.signal == signal.SIGKILL
        await until(lambda: all(procfs.stat(pid) is None for pid in pids), "no zombie is left")

    play(tmp_path, scenario)


def test_ended_orphans_are_reaped(tmp_path: Path) -> None:
    """A month of short-lived daemons leaves no zombies."""

    async def scenario(place: LoopbackNode) -> None:
        script = "import os\nfor _ in range(20):\n    os.system('sleep 0.01 &')\n"
        (tmp_path / "short.py").write_text(
            f"print('rank pid', __import__('os').getpid(), '', flush=True)\n{script}"
            "__import__('time').sleep(600)"
        )
        engine = EngineSide(place, job(tmp_path, fresh=(str(tmp_path / "short.py"),)))
        place.write_keys(engine.endpoint)
        agent = place.agent().pid
        await engine.joined()
        await engine.started()
        pids = await place.pids()
        await until(lambda: procfs.children(agent) <= set(pids), "only ranks")

    play(tmp_path, scenario)


OF_CHECKS = """
import os, sys, time
from pathlib import Path
from supervisor import proc
from supervisor.agent import tree
from supervisor.agent.node_files import NodeFiles, take
from supervisor.agent.orphans import Orphans, become_subreaper
from supervisor.host import procfs

folder = Path(sys.argv[1])
become_subreaper()
files = NodeFiles(None, folder, take(folder))
orphans = Orphans(files, "r", "n1", ranks=frozenset, others=frozenset)
for name, mark in (("rank's", "r/n1/1"), ("check's", tree.CHECKS)):
    child = proc.spawn(
        ["sh", "-c", "sleep 600 & exit"], env={tree.MARK: mark}, cwd="/", stdout=1
    )
    child.wait()
while len(procfs.children(os.getpid())) < 2:
    time.sleep(0.01)
marks = [procfs.environ(pid)[tree.MARK] for pid in orphans.find()]
for pid in procfs.children(os.getpid()):
    os.kill(pid, 9)
print(marks)
"""


def test_what_health_checks_leave_is_no_ranks(tmp_path: Path) -> None:
    """A check that hangs in a driver outlives its runner, and keeps no node from its ranks."""
    done = subprocess.run(
        [sys.executable, "-c", OF_CHECKS, tmp_path / "node"], capture_output=True, text=True
    )
    assert done.stdout == "['r/n1/1']\n", done.stderr
