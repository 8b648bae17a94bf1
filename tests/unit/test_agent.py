"""A real agent process against the engine's end of the channel, on the loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
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

from supervisor.agent.agent import ALREADY_RUNNING, REFUSED
from supervisor.agent.code import ARRIVE_S
from supervisor.agent.engine_client import MAX_REPORTS
from supervisor.channel import wire
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.host import procfs
from supervisor.run import snapshot


async def begin(place: LoopbackNode, *args: str, **changes: object) -> EngineSide:
    """An engine and an agent that has registered with it."""
    engine = EngineSide(place, job(place.tmp, *args, **changes))
    place.write_keys(engine.endpoint)
    place.agent()
    await engine.joined()
    return engine


def gone(pid: int) -> bool:
    return procfs.state(pid) in (None, "Z")


# --- orders --------------------------------------------------------------------------------------


def test_it_registers_and_beats(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        hello = engine.hellos[0]
        assert (hello.run_id, hello.node, hello.job_id) == (RUN, NODE, "7")
        assert (hello.attempt, hello.ranks, hello.epoch, hello.problems) == (None, 0, 0, ())
        assert hello.address == "127.0.0.1" and hello.facts["cpus"]
        status = Path(f"/proc/{place.agents[0].pid}/status").read_text()
        locked = int(status.split("VmLck:")[1].split()[0])
        assert (hello.facts["memory"] == "locked") is (locked > 0)
        assert locked or hello.facts["memory"].startswith("not locked: ")
        await until(lambda: len(engine.beats) >= 2)
        assert len(engine.hellos) == 1
        assert engine.beats[0] == wire.Heartbeat(
            agent=hello.agent, attempt=None, ranks=0, step=None, loss=None
        )
        _, writer = await asyncio.open_connection(hello.address, hello.port)
        writer.close()  # peers' probes find somebody

    play(tmp_path, scenario)


def test_prepare_start_steps_stop_leave(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, "steps")
        await engine.order(prepare())
        prepared = await engine.event(ev.Prepared)
        assert prepared.problems == () and 30000 <= prepared.port <= 30999
        started = await engine.started()
        assert (started.attempt, started.warm) == (1, False)
        pids = await place.pids()
        await until(lambda: engine.beats and (engine.beats[-1].step or 0) > 5)
        beat = engine.beats[-1]
        assert (beat.attempt, beat.ranks) == (1, 2)
        assert beat.loss == pytest.approx(8 - (beat.step or 0) / 100)
        await engine.order(stop())
        stopped = await engine.event(ev.RanksStopped)
        assert stopped.stuck == () and all(gone(pid) for pid in pids)
        assert not engine.of(ev.RankExited)  # what was ordered is not reported as a fault
        await engine.order(act.Leave(key="leave", node=NODE, attempt=1))
        assert (await engine.event(ev.AgentLeft)).reason == "told to leave"
        assert await asyncio.to_thread(place.agents[0].wait, 30) == 0
        assert not place.key_file.exists()
        assert place.log(0).startswith("rank 0 pid")  # stays for a look afterwards

    play(tmp_path, scenario)


def test_a_ranks_end_is_reported_at_once_with_code_and_last_lines(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        await engine.started()
        pids = await place.pids()
        (tmp_path / "exit1").write_text("3")
        first = (await engine.event(ev.RankExited)).exit
        assert (first.rank, first.node, first.code, first.signal) == (1, NODE, 3, None)
        assert first.tail[-1] == "last words" and first.tail[0].startswith("rank 1 pid")
        os.kill(pids[0], signal.SIGKILL)
        second = (await engine.event(ev.RankExited, 2)).exit
        assert (second.rank, second.code, second.signal) == (0, None, signal.SIGKILL)
        assert second.text().startswith("rank 0 on n1 was ended by SIGKILL")

    play(tmp_path, scenario)


def test_a_stop_reaches_who_ignores_sigterm(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, "stubborn")
        await engine.started()
        pids = await place.pids()
        await engine.order(stop(grace_s=0.3))
        assert (await engine.event(ev.RanksStopped)).stuck == ()
        assert all(gone(pid) for pid in pids) and "not now" in place.log(0)

    play(tmp_path, scenario)


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A socket that answers no connection: its queue is full, as behind a firewall that drops."""
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(0)
    waiting = [socket.socket() for _ in range(2)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(silent.getsockname())
    return silent, waiting


def test_collect_and_probe(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, newer_than_0_1=True)
        await engine.started()
        pids = await place.pids()
        os.kill(pids[1], signal.SIGSTOP)
        await until(lambda: procfs.state(pids[1]) == "T")
        await engine.order(act.Collect(key="collect", node=NODE, attempt=1))
        (seen,) = (await engine.event(ev.Collected)).evidence
        assert seen.text == f"rank 1 on n1 (pid {pids[1]}) is stopped by a signal"

        async def echo(_: object, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        stopped = socket.create_server(("127.0.0.1", 0))  # its kernel takes connections for it
        silent, waiting = full_listener()
        for number, (to, outcome) in enumerate(
            [
                (("127.0.0.1", port), "reached"),
                (stopped.getsockname(), "mute"),
                (("127.0.0.1", 1), "refused"),
                (silent.getsockname(), "unreachable"),
                (("127.0.0.1", 99999), "unreachable"),
            ],
            1,
        ):
            key = f"probe{number}"
            probe = act.Probe(key=key, node=NODE, attempt=1, target="n2", address=to[0], port=to[1])
            await engine.order(probe)
            assert (await engine.event(ev.Probed, number)).outcome == outcome
        server.close()
        for each in (silent, stopped, *waiting):
            each.close()

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"workdir": "/nowhere/work"}, "/nowhere/work: the working directory can't be entered"),
        ({"python": "/nowhere/python"}, "/nowhere/python: there is no such program"),
        ({"python": "", "fresh": ("no-such-trainer",)}, "no-such-trainer: there is no such"),
        ({"python": "", "fresh": ("bin/none",)}, "bin/none: there is no such program in"),
        ({"env": {"A": "a\0b"}}, "embedded null byte"),
    ],
)
def test_a_trainer_that_is_not_there(tmp_path: Path, changes: dict, named: str) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, **changes)
        await engine.order(start())
        failed = await engine.event(ev.StartFailed)
        assert failed.node == NODE and named in failed.why and "\n" not in failed.why
        await engine.order(start())  # asked again, it answers the same and not "started"
        assert (await engine.event(ev.StartFailed, 2)).why == failed.why
        assert not engine.of(ev.RanksStarted) and place.left() == set()

    play(tmp_path, scenario)


def test_old_logs_are_removed(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        place.node_dir.mkdir(mode=0o700)
        for attempt in range(1, 15):
            (place.node_dir / f"a{attempt:04d}").mkdir()
            (place.node_dir / f"a{attempt:04d}" / "rank0.log").touch()
        engine = await begin(place)
        await engine.started(15)
        kept = sorted(path.name for path in place.node_dir.glob("a0*"))
        assert kept == [f"a{attempt:04d}" for attempt in range(6, 16)]

    play(tmp_path, scenario)


def test_a_piece_of_a_log(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        await engine.started()
        await place.pids()

        async def fetch(offset: int, limit: int, rank: int = 0, wait_s: float = 0) -> wire.Chunk:
            order = wire.Fetch(
                epoch=1, key="f", attempt=1, rank=rank, offset=offset, limit=limit, wait_s=wait_s
            )
            count = len(engine.chunks)
            await engine.channel.send(NODE, order)
            await until(lambda: len(engine.chunks) > count)
            return engine.chunks[-1]

        whole = place.log(0).encode()
        assert (await fetch(0, 1000)).data == whole
        assert (await fetch(-4, 1000)).data == whole[-4:]
        assert (await fetch(2, 3)) == wire.Chunk(key="f", offset=2, data=whole[2:5])
        assert (await fetch(10**12, 9)).data == b""
        assert (await fetch(0, -5)).data == b""
        assert "No such file" in (await fetch(0, 9, rank=99)).error
        waiting = asyncio.ensure_future(fetch(len(whole), 1000, wait_s=20))
        (tmp_path / "exit0").write_text("0")
        assert (await waiting).data == b"last words\n"

    play(tmp_path, scenario)


# --- orders that come late, twice or too early -------------------------------------------------


def test_late_orders_touch_no_newer_attempt(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        await engine.started(1)
        await engine.order(stop(1))
        await engine.event(ev.RanksStopped)
        await engine.order(prepare(2))
        await engine.event(ev.Prepared)
        await engine.order(start(2))
        await engine.event(ev.RanksStarted, 2)
        pids = await place.pids(attempt=2)
        for late in (stop(1), prepare(1), start(1), prepare(2)):
            await engine.order(late)
        assert (await engine.event(ev.RanksStopped, 2)).attempt == 1  # true: they are gone
        await engine.order(start(2))  # asked again, it says so again
        assert (await engine.event(ev.RanksStarted, 3)).attempt == 2
        assert not any(gone(pid) for pid in pids)
        assert len(engine.of(ev.Prepared)) == 1 and not engine.of(ev.RankExited)
        assert place.notes().count("comes late") == 3
        await engine.order(stop(2))
        await engine.event(ev.RanksStopped, 3)
        await engine.order(start(2))
        await until(lambda: place.notes().count("comes late") == 4)
        assert place.left() == set()  # what was stopped is not started again

    play(tmp_path, scenario)


def test_a_stop_overtakes_a_start_that_waits_for_the_starter(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        (tmp_path / "slow_import.py").write_text("import time; time.sleep(600)")
        engine = await begin(place, preload=("slow_import",), env={"PYTHONPATH": str(tmp_path)})
        await engine.order(prepare(1))
        await until(lambda: (place.node_dir / "starter" / "serve.json").exists())
        await engine.order(start(1))
        await until(lambda: (place.node_dir / "a0001").exists())
        await engine.order(stop(1))
        await engine.event(ev.RanksStopped)
        await until(lambda: "was overtaken by a stop" in place.notes())
        assert not engine.of(ev.RanksStarted) and place.log(0) == ""
        assert not list(agent_errors(place))

    play(tmp_path, scenario)


def test_orders_that_are_none_end_nobody(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        for action in (
            {"kind": "Submit", "key": "a", "job_name": "x", "nodes": 1},
            {"kind": "Order", "key": "a", "node": NODE, "attempt": 1},
            {"kind": "Nonsense"},
            {"kind": "Start", "key": 5},
            {},
        ):
            await engine.channel.send(NODE, wire.Command(epoch=1, action=action))
        await engine.started()
        assert place.notes().count("order not understood") == 5
        assert place.agents[0].poll() is None and len(engine.hellos) == 1

    play(tmp_path, scenario)


# --- what keeps a node from running ranks, and ends later --------------------------------------

# Ranks that touch a mount which hangs. A hung_fuse.py beside them holds it until `free` is there.
SLEEPER = """
import os, sys
print("rank", os.environ["RANK"], "pid", os.getpid(), flush=True)
os.listdir(sys.argv[1])
"""


async def asleep(place: LoopbackNode, tmp: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A mount that hangs, and who holds it; the path by which others reach it."""
    mount = tmp / "mount"
    mount.mkdir()
    holds = "echo up > held; while [ ! -e free ]; do sleep 0.05; done"
    hung_fuse = Path(__file__).with_name("hung_fuse.py")
    holder = subprocess.Popen([sys.executable, hung_fuse, mount, "sh", "-c", holds], cwd=tmp)
    await until(lambda: (tmp / "held").exists() or holder.poll() is not None, "the mount")
    if holder.poll() == 77:
        pytest.skip("needs root and /dev/fuse")
    (tmp / "sleep.py").write_text(SLEEPER)
    return holder, Path(f"/proc/{holder.pid}/root{mount}")


def waits(pid: int) -> bool:
    """Whether it waits for an answer that only the mount gives; signals then end it no more."""
    return "request_wait_answer" in Path(f"/proc/{pid}/wchan").read_text()


@pytest.mark.lab
@pytest.mark.parametrize("order", ["stop", "prepare"])
def test_ranks_that_sleep_in_a_hung_file_system(tmp_path: Path, order: str) -> None:
    """They outlive SIGKILL, which is said; when the file system answers, the agent says that."""

    async def scenario(place: LoopbackNode) -> None:
        holder, hung = await asleep(place, tmp_path)
        try:
            engine = await begin(place, fresh=(str(tmp_path / "sleep.py"), str(hung)))
            await engine.started()
            pids = await place.pids()
            await until(lambda: all(waits(pid) for pid in pids), "ranks that wait for the mount")
            if order == "stop":
                kind: type[ev.RanksStopped | ev.Prepared] = ev.RanksStopped
                await engine.order(stop(grace_s=0))
                assert (await engine.event(ev.RanksStopped)).stuck == tuple(sorted(pids))
            else:
                kind = ev.Prepared
                await engine.order(prepare(2))
                prepared = await engine.event(ev.Prepared)
                assert prepared.stuck == tuple(sorted(pids))
                assert len(prepared.problems) == 1 and "can't be killed" in prepared.problems[0]
            assert len(engine.of(kind)) == 1
            (tmp_path / "free").touch()
            again = await engine.event(kind, 2)
            assert again.stuck == () and again.key == engine.of(kind)[0].key
            assert again.attempt == engine.of(kind)[0].attempt
            assert all(gone(pid) for pid in pids) and place.left() == set()
            assert not list(agent_errors(place))
            assert not engine.of(ev.RankExited)
        finally:
            (tmp_path / "free").touch()
            await asyncio.to_thread(holder.wait, 30)

    play(tmp_path, scenario)


@pytest.mark.lab
def test_an_agent_that_comes_to_ranks_that_sleep(tmp_path: Path) -> None:
    """The one before it could not end them: it knows them, does not take them for wanted, and says
    when they are gone."""

    async def scenario(place: LoopbackNode) -> None:
        holder, hung = await asleep(place, tmp_path)
        try:
            engine = await begin(place, fresh=(str(tmp_path / "sleep.py"), str(hung)))
            await engine.started()
            pids = await place.pids()
            await until(lambda: all(waits(pid) for pid in pids), "ranks that wait for the mount")
            await engine.order(stop(grace_s=0))
            stuck = (await engine.event(ev.RanksStopped)).stuck
            assert stuck and set(stuck) <= set(pids)
            place.agents[0].kill()
            place.agents[0].wait()
            place.agent()
            assert (await engine.joined(2)).ranks == len(stuck)
            assert "adopted" not in place.notes().rpartition(" of run ")[2]
            await engine.order(stop(grace_s=0))  # as an engine does that wants none of them
            assert (await engine.event(ev.RanksStopped, 2)).stuck == stuck
            (tmp_path / "free").touch()
            assert (await engine.event(ev.RanksStopped, 3)).stuck == ()
            assert place.left() == set() and not engine.of(ev.RankExited)
            assert not list(agent_errors(place))
        finally:
            (tmp_path / "free").touch()
            await asyncio.to_thread(holder.wait, 30)

    play(tmp_path, scenario)


def test_problems_are_looked_at_again(tmp_path: Path) -> None:
    """What kept ranks from a node when its agent came is over: nobody has to start it again."""

    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(place.tmp))
        place.write_keys(engine.endpoint)
        everywhere = os.sched_getaffinity(0)
        if len(everywhere) < 2:
            pytest.skip("needs two cores")
        try:
            os.sched_setaffinity(0, {min(everywhere)})
            agent = place.agent(SLURM_CPUS_ON_NODE=str(len(everywhere)))
        finally:
            os.sched_setaffinity(0, everywhere)
        assert "may use 1 CPUs" in (await engine.joined()).problems[0]
        for task in Path(f"/proc/{agent.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), everywhere)
        over = await engine.event(ev.ProblemsSeen)
        assert (over.problems, over.agent) == ((), engine.hellos[0].agent)

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "wrong", [{"hook": "of-tomorrow"}, {"rank_ports": (9, 1)}, {"ranks_per_node": 0}]
)
def test_an_engine_whose_answer_is_none(tmp_path: Path, wrong: dict) -> None:
    """It is told so, and the agent lives on for the next answer."""

    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, **wrong)
        told = await engine.event(ev.ProblemsSeen)
        assert told.problems[0].startswith("the engine's answer can't be used: ")
        await engine.order(prepare())  # nothing is started so
        engine.job = job(place.tmp)
        welcome = wire.Welcome(epoch=1, agent=engine.hellos[0].agent, job=engine.job)
        await engine.channel.answer(engine.callers[0], welcome)
        assert (await engine.event(ev.ProblemsSeen, 2)).problems == ()
        await engine.order(prepare())
        assert (await engine.event(ev.Prepared)).problems == ()
        assert not list(agent_errors(place)) and place.agents[0].poll() is None

    play(tmp_path, scenario)


def test_a_port_that_is_free_later(tmp_path: Path) -> None:
    """Whatever kept the node from getting ready: that it is over is said without being asked."""

    async def scenario(place: LoopbackNode) -> None:
        with socket.create_server(("", 0)) as taken:
            port = taken.getsockname()[1]
            engine = await begin(place, rank_ports=(port, port))
            await engine.order(prepare())
            first = await engine.event(ev.Prepared)
            assert first.problems and first.stuck == ()
        second = await engine.event(ev.Prepared, 2)
        assert (second.problems, second.port, second.key) == ((), port, first.key)

    play(tmp_path, scenario)


@pytest.mark.soak
def test_code_that_comes_late(tmp_path: Path) -> None:
    """It is given up after half a minute, and taken when it is there."""

    async def scenario(place: LoopbackNode) -> None:
        told, archive = snapshot.pack(
            {
                "entry": [],
                "script": str(tmp_path / "train.py"),
                "module": "",
                "workdir": str(tmp_path),
                "pythonpath": "",
                "leave": [str(place.home)],
            }
        )
        engine = await begin(place, code=told["digest"])
        await engine.order(prepare())
        await asyncio.sleep(ARRIVE_S / 2)
        first = await engine.event(ev.Prepared)
        assert "did not come within" in first.problems[0]
        (place.home / told["digest"]).write_bytes(archive)
        assert (await engine.event(ev.Prepared, 2)).problems == ()

    play(tmp_path, scenario)


def test_a_newer_order_ends_the_looking(tmp_path: Path) -> None:
    """What is said of an older one then would be true no more."""

    async def scenario(place: LoopbackNode) -> None:
        with socket.create_server(("", 0)) as taken:
            port = taken.getsockname()[1]
            engine = await begin(place, rank_ports=(port, port))
            await engine.order(prepare(1))
            await engine.event(ev.Prepared)
            await engine.order(prepare(2))
            await engine.event(ev.Prepared, 2)
        third = await engine.event(ev.Prepared, 3)
        assert third.attempt == 2 and third.problems == ()
        await engine.started(2)
        pids = await place.pids(attempt=2)
        await asyncio.sleep(3)  # longer than the first look would have waited
        assert len(engine.of(ev.Prepared)) == 3
        assert not any(gone(pid) for pid in pids)

    play(tmp_path, scenario)


# --- reports -------------------------------------------------------------------------------------


def test_reports_are_repeated_until_acknowledged_and_kept_in_order(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, ranks_per_node=4)
        await engine.started()
        pids = await place.pids(count=4)
        engine.acks = False
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: gone(pid))
        before = len(engine.reports)
        await until(lambda: len(engine.reports) >= before + 2)  # the same one, twice
        assert len({report.seq for report in engine.reports[before:]}) == 1
        engine.acks = True
        await engine.event(ev.RankExited, 4)
        seqs = [report.seq for report in engine.reports]
        assert seqs == sorted(seqs) and len(engine.of(ev.RankExited)) == 4
        assert [event.exit.rank for event in engine.of(ev.RankExited)] == [0, 1, 2, 3]

    play(tmp_path, scenario)


def test_ranks_that_end_while_others_are_reported_share_a_report(tmp_path: Path) -> None:
    """But not with the first one, which may be on its way; an engine of 0.1 gets one for each."""

    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, ranks_per_node=4, newer_than_0_1=True)
        await engine.started()
        pids = await place.pids(count=4)
        engine.acks = False
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: gone(pid))
        await until(lambda: engine.reports and "RankExited" in str(engine.reports[-1].event))
        engine.acks = True
        others = await engine.event(ev.RanksExited)
        assert [event.exit.rank for event in engine.of(ev.RankExited)] == [0]
        assert [one.rank for one in others.exits] == [1, 2, 3] and others.reporter == others.node
        assert {(one.signal, one.node) for one in others.exits} == {(9, others.node)}
        await asyncio.sleep(0.2)
        assert len(engine.of(ev.RanksExited)) == 1

    play(tmp_path, scenario)


def test_nothing_is_lost_while_the_engine_is_gone(tmp_path: Path) -> None:
    """It dies without a word; its successor is told everything, in order, once."""

    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, ranks_per_node=4)
        await engine.started()
        pids = await place.pids(count=4)
        await engine.vanish()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: gone(pid))
        second = EngineSide(place, engine.job, epoch=2, port=engine.port)
        assert second.endpoint == engine.endpoint
        hello = await second.joined()
        assert (hello.agent, hello.attempt, hello.ranks) == (engine.hellos[0].agent, 1, 0)
        await second.event(ev.RankExited, 4)
        assert [event.exit.rank for event in second.of(ev.RankExited)] == [0, 1, 2, 3]
        assert (place.node_dir / "epoch").read_text() == "2"

    play(tmp_path, scenario)


def test_what_waits_for_an_engine_is_bounded(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        engine.acks = False
        await engine.order(act.Collect(key="c", node=NODE, attempt=1))
        await until(lambda: engine.reports)
        first = engine.reports[0].seq
        for number in range(MAX_REPORTS + 100):
            await engine.order(act.Collect(key=f"c{number}", node=NODE, attempt=1))
            if number % 200 == 0:  # no faster than the agent reads
                await asyncio.sleep(0.05)
        total = MAX_REPORTS + 101
        oldest = total - MAX_REPORTS + 1  # the ones before it made way
        await until(lambda: engine.reports[-1].seq == oldest)
        assert first == 1 and not engine.events
        engine.acks = True
        await until(lambda: engine.reports[-1].seq == total)
        seqs = [report.seq for report in engine.reports]
        assert seqs == sorted(seqs)
        assert len(engine.events) == MAX_REPORTS

    play(tmp_path, scenario)


# --- the engine comes and goes -------------------------------------------------------------------


def test_an_engine_that_moved_is_found_through_the_key_file(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, "steps")
        await engine.started()
        pids = await place.pids()
        await engine.vanish()
        place.key_file.write_text('{"wire": 1, "run_')  # half written: not judged, not the end
        await until(lambda: "not a key file" in place.notes())
        second = EngineSide(place, engine.job, epoch=2)
        assert second.endpoint != engine.endpoint
        place.write_keys(second.endpoint)
        hello = await second.joined()
        assert (hello.attempt, hello.ranks) == (1, 2)
        await until(lambda: second.beats and second.beats[-1].step)
        await second.order(stop())
        await second.event(ev.RanksStopped)
        assert all(gone(pid) for pid in pids)

    play(tmp_path, scenario)


def test_an_older_engine_is_not_obeyed(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path), epoch=5)
        place.write_keys(engine.endpoint)
        place.agent()
        await engine.joined()
        await engine.started()
        pids = await place.pids()
        await engine.vanish()
        older = EngineSide(place, engine.job, epoch=4, port=engine.port)
        await until(lambda: older.strangers)  # it beats, and is asked who it is
        await until(lambda: "an engine of epoch 4 is not obeyed; 5 was seen" in place.notes())
        for order in (stop(1, grace_s=0), act.Leave(key="leave", node=NODE, attempt=1)):
            message = wire.Command(epoch=4, action=wire.plain(order))
            await older.channel.answer(older.strangers[0], message)
        seen = len(older.strangers)
        await until(lambda: len(older.strangers) > seen + 1)  # beats that came after the orders
        assert not any(gone(pid) for pid in pids)
        assert not older.hellos and not older.reports
        await older.vanish()
        newer = EngineSide(place, engine.job, epoch=6, port=engine.port)
        await newer.joined()
        await newer.order(stop(1))
        await newer.event(ev.RanksStopped)

    play(tmp_path, scenario)


def test_an_engine_that_refuses_ends_it_with_the_reason(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path))
        engine.welcomes = False
        place.write_keys(engine.endpoint)
        agent = place.agent()
        await engine.joined()
        refused = wire.Refused(why="job 7 is none of mine")
        await engine.channel.answer(engine.callers[0], refused)
        assert await asyncio.to_thread(agent.wait, 30) == REFUSED
        assert "refused by the engine: job 7 is none of mine" in place.notes()

    play(tmp_path, scenario)


def test_another_wire_version_is_noted_and_ends_no_rank(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        await engine.started()
        pids = await place.pids()
        identity = engine.callers[0]
        newer = msgspec.msgpack.encode((wire.WIRE + 1, {"type": "Whatever"}))
        for frame in (newer, b"garbage", b"", b"more"):  # the 1st, 2nd and 4th are noted
            await engine.link.send(identity, frame)
        await until(lambda: place.notes().count("message of the engine dropped") == 3)
        assert f"speaks wire version {wire.WIRE + 1}; this side speaks" in place.notes()
        await engine.order(act.Collect(key="c", node=NODE, attempt=1))
        await engine.event(ev.Collected)
        assert not any(gone(pid) for pid in pids)

    play(tmp_path, scenario)


@pytest.mark.parametrize("progress", [False, True])
def test_ranks_without_an_engine_are_stopped_unless_they_progress(
    tmp_path: Path, progress: bool
) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, *(["steps"] if progress else []), engine_lost_timeout_s=6.0)
        await engine.started()
        pids = await place.pids()
        await engine.vanish()
        if progress:
            await asyncio.sleep(9)
            assert not any(gone(pid) for pid in pids)
            assert "the ranks are stopped" not in place.notes()
            return
        await until(lambda: all(gone(pid) for pid in pids))
        second = EngineSide(place, engine.job, epoch=2, port=engine.port)
        exits = [await second.event(ev.RankExited, n) for n in (1, 2)]
        for event in exits:  # the engine that comes back learns who ended them and why
            assert event.exit.signal == signal.SIGTERM
            assert event.exit.tail[-1].startswith("superv: no engine and no step for ")

    play(tmp_path, scenario)


# --- the agent comes and goes --------------------------------------------------------------------


def test_sigterm_stops_the_ranks_and_says_so(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        await engine.started()
        pids = await place.pids()
        place.agents[0].send_signal(signal.SIGTERM)
        place.agents[0].send_signal(signal.SIGTERM)
        left = await engine.event(ev.AgentLeft)
        assert left.reason == "SIGTERM from outside"
        assert await asyncio.to_thread(place.agents[0].wait, 30) == 0
        assert all(gone(pid) for pid in pids)
        assert len(engine.of(ev.AgentLeft)) == 1 and not engine.of(ev.RankExited)
        assert place.key_file.exists()  # the run goes on, perhaps here
        left_there = {path.name for path in place.node_dir.iterdir()}
        assert not left_there & {"job.json", "code", "starter"}, "what another start brings anew"

    play(tmp_path, scenario)


def test_sigterm_during_a_start(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        (tmp_path / "slow_import.py").write_text("import time; time.sleep(600)")
        engine = await begin(place, preload=("slow_import",), env={"PYTHONPATH": str(tmp_path)})
        await engine.order(start(1))
        await until(lambda: (place.node_dir / "a0001").exists())
        place.agents[0].send_signal(signal.SIGTERM)
        await engine.event(ev.AgentLeft)
        assert await asyncio.to_thread(place.agents[0].wait, 30) == 0
        assert place.left() == set()

    play(tmp_path, scenario)


def test_a_killed_agent_is_replaced_and_the_ranks_never_notice(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, "steps")
        await engine.started()
        pids = await place.pids()
        place.agents[0].kill()
        place.agents[0].wait()
        place.agent()
        hello = await engine.joined(2)
        assert (hello.attempt, hello.ranks) == (1, 2)
        assert hello.agent != engine.hellos[0].agent
        seen = len(engine.beats)
        await until(lambda: len(engine.beats) > seen and (engine.beats[-1].step or 0) > 0)
        assert not any(gone(pid) for pid in pids)
        await engine.order(start(1))  # a start that was not answered yet
        assert not (await engine.event(ev.RanksStarted, 2)).warm
        os.kill(pids[1], signal.SIGKILL)
        end = (await engine.event(ev.RankExited)).exit
        assert (end.rank, end.code, end.signal) == (1, None, None)  # not its child: not known how
        assert end.tail[-1].startswith("step: ")
        await engine.order(stop(1))
        await engine.event(ev.RanksStopped)
        assert gone(pids[0]) and place.left() == set()

    play(tmp_path, scenario)


def test_the_next_agent_tells_of_ranks_that_died_with_the_last(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        await engine.started()
        pids = await place.pids()
        place.agents[0].kill()
        place.agents[0].wait()
        (tmp_path / "exit0").write_text("9")
        await until(lambda: gone(pids[0]))
        os.kill(pids[1], signal.SIGKILL)
        await until(lambda: gone(pids[1]))
        place.agent()
        hello = await engine.joined(2)
        assert (hello.attempt, hello.ranks) == (1, 0)
        ends = {(await engine.event(ev.RankExited, n)).exit.rank: n for n in (1, 2)}
        assert ends.keys() == {0, 1}
        assert engine.of(ev.RankExited)[ends[0] - 1].exit.tail[-1] == "last words"

    play(tmp_path, scenario)


def test_an_agent_that_comes_without_an_engine_still_ends_orphans(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, engine_lost_timeout_s=2.0)
        await engine.started()
        pids = await place.pids()
        await engine.vanish()
        place.agents[0].kill()
        place.agents[0].wait()
        assert not any(gone(pid) for pid in pids)
        place.agent()  # what it needs to know of the job is on disk
        await until(lambda: all(gone(pid) for pid in pids))
        assert (place.node_dir / "job.json").stat().st_mode & 0o777 == 0o600

    play(tmp_path, scenario)


@pytest.mark.parametrize("ruin", [b"", b"{", b'{"attempt": 1}', b"[]"])
def test_a_ruined_memory_keeps_no_agent_from_starting(tmp_path: Path, ruin: bytes) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        await engine.started()
        pids = await place.pids()
        place.agents[0].kill()
        place.agents[0].wait()
        for name in ("ranks.json", "job.json", "epoch"):
            (place.node_dir / name).write_bytes(ruin)
        place.agent()
        hello = await engine.joined(2)
        assert (hello.attempt, hello.ranks) == (1, 2)  # known by the logs that they write to
        assert not any(gone(pid) for pid in pids)

    play(tmp_path, scenario)


def test_a_second_agent_on_the_node_ends_with_75(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        second = place.agent()
        out, _ = await asyncio.to_thread(second.communicate, timeout=30)
        assert second.returncode == ALREADY_RUNNING
        assert out == "an agent of this run is on this node already\n"
        assert len(engine.hellos) == 1

    play(tmp_path, scenario)


def test_a_bug_ends_it_loudly_and_the_ranks_live(tmp_path: Path) -> None:
    """The restart loop starts another, which adopts. No source line is read from storage."""

    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place)
        await engine.started()
        pids = await place.pids()
        broken = wire.Welcome(
            epoch=1, agent=engine.hellos[0].agent, job=job(tmp_path, step_pattern="(")
        )
        await engine.channel.send(NODE, broken)
        await engine.order(start(2))
        assert await asyncio.to_thread(place.agents[0].wait, 30) == 70
        (line,) = agent_errors(place)
        assert "a bug: error: missing ), unterminated subpattern" in line
        assert "progress.py:" in place.notes() and "re.compile" not in place.notes()
        assert not any(gone(pid) for pid in pids)

    play(tmp_path, scenario)


# --- what is not to be trusted -------------------------------------------------------------------


def refusal(place: LoopbackNode) -> str:
    agent = place.agent()
    out, _ = agent.communicate(timeout=30)
    assert agent.returncode == 2, out
    assert out.startswith("superv agent: ") and out.count("\n") == 1
    return out


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    place = LoopbackNode(tmp_path)
    place.write_keys("tcp://127.0.0.1:1")
    place.key_file.chmod(mode)
    assert "key: the key file must be a regular file of mode 0600, owned by you" in refusal(place)
    place.close()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "text", "wire"])
def test_a_key_file_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    place = LoopbackNode(tmp_path)
    match kind:
        case "link":
            place.write_keys("tcp://127.0.0.1:1")
            place.key_file.rename(tmp_path / "real")
            place.key_file.symlink_to(tmp_path / "real")
        case "fifo":
            os.mkfifo(place.key_file, 0o600)
        case "folder":
            place.key_file.mkdir(0o700)
        case "text":
            place.key_file.touch(0o600)
            place.key_file.write_text("keys")
        case "wire":
            place.write_keys("tcp://127.0.0.1:1", wire=99)
    assert str(place.key_file) in refusal(place)
    place.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: gives a file away")
@pytest.mark.parametrize("what", ["key_file", "node_dir", "home"])
def test_what_another_user_owns_is_refused(tmp_path: Path, what: str) -> None:
    place = LoopbackNode(tmp_path)
    place.write_keys("tcp://127.0.0.1:1")
    place.node_dir.mkdir(mode=0o700)
    os.chown(getattr(place, what), 12345, 12345)
    assert "owned by you" in refusal(place)
    place.close()


def test_a_node_directory_that_is_not_to_be_trusted(tmp_path: Path) -> None:
    place = LoopbackNode(tmp_path)
    place.write_keys("tcp://127.0.0.1:1")
    place.node_dir.mkdir()
    place.node_dir.chmod(0o777)
    assert "must be a directory of mode 0700, owned by you" in refusal(place)
    place.node_dir.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    place.node_dir.symlink_to(tmp_path / "elsewhere")
    assert "must be a directory" in refusal(place)
    place.node_dir.unlink()
    place.home = tmp_path / "no" / "parent"
    assert "No such file or directory" in refusal(place)
    place.close()


# --- what a node does to it ----------------------------------------------------------------------


def test_whatever_a_pattern_captures_ends_nobody(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        lines = ["1e3", "-5", "none", "9" * 30, "٣", "²", "nan", "7"]
        script = tmp_path / "lines.py"
        script.write_text(
            "import time\n"
            + "".join(f"print('step: {line}  loss: much', flush=True)\n" for line in lines)
            + "print('resumed at step many', flush=True)\n"
            + "print('resumed at step 12', flush=True)\ntime.sleep(600)\n"
        )
        engine = await begin(place, fresh=(str(script),))
        await engine.started()
        assert (await engine.event(ev.Resumed)).step == 12
        await until(lambda: engine.beats and engine.beats[-1].step == 7)
        assert engine.beats[-1].loss is None
        assert "progress.step: no step in 'step: none  loss: much'" in place.notes()
        assert place.agents[0].poll() is None

    play(tmp_path, scenario)


def test_the_newest_step_whose_loss_is_finite(tmp_path: Path) -> None:
    """Of lines that tell a loss; -1 is what a stage without one prints."""

    async def scenario(place: LoopbackNode) -> None:
        script = tmp_path / "lines.py"
        losses = {3: "2.5", 5: "2.25", 6: "-1.0", 8: "nan"}
        lines = [
            f"print('step: {step}  loss: {loss}', flush=True)" for step, loss in losses.items()
        ]
        script.write_text("\n".join([*lines, "import time; time.sleep(600)"]))
        engine = await begin(place, fresh=(str(script),), newer_than_0_1=True)
        await engine.started()
        await until(lambda: engine.beats and engine.beats[-1].step == 8)
        signs = engine.beats[-1].signs
        assert signs is not None and signs.finite == 5

    play(tmp_path, scenario)


HOOKED = "import superv_starter\nrank = superv_starter.rank()\nrank.begin(1)\n"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (HOOKED + "rank.trouble('it was not found: x')\nrank.finished(1)\n", "it was not found: x"),
        (
            "for step in range(1, 6): print(f'step: {step}', flush=True)\n",
            "lines tell steps, and the hook none: what it enters is never called",
        ),
        (HOOKED + "rank.finished(1)\n" + "print('step: 1', flush=True)\n", None),
    ],
)
def test_what_is_amiss_with_a_hook(tmp_path: Path, script: str, says: str | None) -> None:
    async def scenario(place: LoopbackNode) -> None:
        path = tmp_path / "hooked.py"
        path.write_text(script + "import time; time.sleep(600)\n")
        fresh = (str(path),)
        engine = await begin(place, fresh=fresh, hook="torchtitan", newer_than_0_1=True)
        await engine.started()
        await until(lambda: engine.beats and engine.beats[-1].step in (1, 5))
        beat = engine.beats[-1]
        assert beat.signs is not None
        found = beat.signs.hook_trouble
        assert (found and found[1]) == says

    play(tmp_path, scenario)


def test_a_flood_of_lines_holds_up_neither_beats_nor_orders(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        script = tmp_path / "flood.py"
        script.write_text(
            "line = ('x' * 99 + chr(10)) * 1000\n"
            "for n in range(300): print(line, end='')\n"  # 30 MB a rank
            "print('step: 77', flush=True)\nimport time; time.sleep(600)\n"
        )
        engine = await begin(place, fresh=(str(script),), log_cap=4 << 20)
        await engine.started()
        await until(lambda: engine.beats and engine.beats[-1].step == 77)
        log = place.node_dir / "a0001" / "rank0.log"
        assert log.stat().st_size > 28 << 20
        assert log.stat().st_blocks * 512 <= (1 << 20) + (4 << 20) + (1 << 16)
        assert len(engine.hellos) == 1

    play(tmp_path, scenario)


def test_a_full_disk_ends_no_agent(tmp_path: Path) -> None:
    """A tmpfs of its own in a mount namespace: full, then with room again."""
    if os.getuid() != 0:
        pytest.skip("needs root: mounts a small tmpfs")

    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path), epoch=1)
        place.write_keys(engine.endpoint)
        place.node_dir.mkdir(mode=0o700)
        small = (
            'mount -t tmpfs -o size=256k,mode=0700 none "$1" && shift && '
            'mkdir "$1" && chmod 700 "$1" && dd if=/dev/zero of="$1/fill" bs=4k 2>/dev/null; '
            'exec "$0" -I -m supervisor.agent "$2" "$1"'
        )
        # the agent in a namespace where its directory lies on a disk that is full
        inside = place.node_dir / "in"
        child = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", small),
            *(sys.executable, str(place.node_dir), str(inside), str(place.key_file)),
            env={**os.environ, "SLURMD_NODENAME": NODE, "SLURM_JOB_ID": "7"},
        )
        try:
            await engine.joined()
            await engine.order(start(1))
            failed = await engine.event(ev.StartFailed)
            assert "No space left on device" in failed.why
            assert child.returncode is None and place.left() == set()
            await until(lambda: len(engine.beats) >= 2)
            Path(f"/proc/{child.pid}/root{inside}/fill").unlink()
            await engine.order(start(2))
            await engine.event(ev.RanksStarted)
            await engine.order(act.Leave(key="leave", node=NODE, attempt=2))
            assert await asyncio.wait_for(child.wait(), 30) == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    play(tmp_path, scenario)


def test_many_ranks(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = await begin(place, python="", fresh=("sleep", "600"), ranks_per_node=200)
        await engine.started()
        await until(lambda: engine.beats and engine.beats[-1].ranks == 200)
        await engine.order(stop(1, grace_s=5))
        assert (await engine.event(ev.RanksStopped)).stuck == ()
        assert place.left() == set()

    play(tmp_path, scenario)


def test_nothing_is_imported_after_the_start(tmp_path: Path) -> None:
    """The code may lie on storage that hangs; -X importtime tells each import on stderr."""

    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path, "steps"))
        place.write_keys(engine.endpoint)
        place.agent("-X", "importtime")
        await engine.joined()
        await engine.order(prepare())
        await engine.event(ev.Prepared)
        await engine.started()
        pids = await place.pids()
        probe = act.Probe(
            key="p", node=NODE, attempt=1, target="n2", address="localhost", port=engine.port
        )
        await engine.order(probe)
        await engine.event(ev.Probed)
        await engine.order(act.Collect(key="c", node=NODE, attempt=1))
        fetch = wire.Fetch(epoch=1, key="f", attempt=1, rank=0, offset=0, limit=9, wait_s=0)
        await engine.channel.send(NODE, fetch)
        await until(lambda: engine.chunks)
        os.kill(pids[0], signal.SIGKILL)
        await engine.event(ev.RankExited)
        await engine.vanish()
        await asyncio.sleep(6)
        second = EngineSide(place, engine.job, epoch=2, port=engine.port)
        await second.joined()
        await second.order(stop(1))
        await second.event(ev.RanksStopped)
        await second.order(act.Leave(key="leave", node=NODE, attempt=1))
        assert await asyncio.to_thread(place.agents[0].wait, 30) == 0
        late = [line for line in place.notes().splitlines() if line.startswith("import time:")]
        assert late == []

    play(tmp_path, scenario)
