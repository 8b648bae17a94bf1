"""TorchTitan itself, started cold and warm on this machine: same losses, same promises."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import proc
from supervisor.agent import tree
from supervisor.agent.hook_state import HookStates
from supervisor.agent.node import free_port
from supervisor.agent.ranks import RankEnd, Ranks, attempt_dir, notify_socket, state_file
from supervisor.agent.warm import Starter
from supervisor.channel.wire import RankJob
from supervisor.core.actions import Start
from supervisor.hooks import torchtitan
from tests.processes import send

pytestmark = [
    pytest.mark.titan,
    pytest.mark.skipif(
        "SUPERV_TITAN" not in os.environ, reason="SUPERV_TITAN names a Python with TorchTitan"
    ),
]
RUN = os.urandom(6).hex()  # two test sessions must not end each other's ranks
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torchtitan_lab"
STEP = re.compile(r"step:\s*(\d+)\s+loss:\s*([\d.]+)")


class Titan:
    """Two ranks of the lab's TorchTitan job on this machine, as one node's agent runs them."""

    def __init__(self, folder: Path) -> None:
        python = os.environ["SUPERV_TITAN"]
        done = proc.run_sync((python, str(EXAMPLE / "assets.py"), str(folder)), deadline_s=60)
        assert done.rc == 0, done.why()
        entry = (
            str(EXAMPLE / "titan_cpu.py"),
            *("--job.config_file", str(EXAMPLE / "moe_lab.toml"), "--training.steps", "{steps}"),
        )
        self.job = RankJob(
            run_id=RUN,
            name="titan",
            python=python,
            fresh=entry + torchtitan.FRESH,
            resumed=entry + torchtitan.RESUMED,
            preload=("titan_cpu",),
            hook="torchtitan",
            workdir=str(folder),
            env={"GLOO_SOCKET_IFNAME": "lo", "TORCH_GLOO_LAZY_INIT": "0"},
            ranks_per_node=2,
            step_pattern="",
            resumed_pattern="",
            rank_ports=(30000, 32000),
            log_cap=1_000_000,
            engine_lost_timeout_s=60.0,
        )
        self.dir = folder / "node"
        self.dir.mkdir()
        self.save = folder / "checkpoint"
        self.starter: Starter | None = None
        self.states: HookStates | None = None

    async def attempt(
        self, number: int, *, until: int, resume: int | None = None, promised: int | None = None
    ) -> tuple[str, dict[int, str], list[RankEnd], str]:
        """One attempt to step `until`: why cold, loss by step, ends, the log of rank 0."""
        ends: list[RankEnd] = []
        ranks = Ranks(self.dir, "n1", RUN, number, ends.append)
        ranks.exclude_pids = lambda: self.starter.pids if self.starter else frozenset()
        if self.states is not None:
            attempt_dir(self.dir, number).mkdir(mode=0o700)
            self.states.forget()
            for rank in (0, 1):
                self.states.follow(rank, state_file(self.dir, number, rank))
        order = Start(
            key=f"a{number}/start/n1",
            node="n1",
            attempt=number,
            slot=0,
            nnodes=1,
            master_addr="127.0.0.1",
            master_port=free_port(30000, 32000, "127.0.0.1", None),
            save_dir=str(self.save / f"a{number:04d}"),
            resume_path=str(self.save / "a0001" / f"step-{resume}") if resume else None,
            resume_step=promised if promised is not None else resume,
        )
        import msgspec

        job = msgspec.structs.replace(
            self.job,
            fresh=tuple(a.replace("{steps}", str(until)) for a in self.job.fresh),
            resumed=tuple(a.replace("{steps}", str(until)) for a in self.job.resumed),
        )
        why = await ranks.start(job, order, "n1", self.starter)
        async with asyncio.timeout(120):
            while len(ends) < 2:
                await asyncio.sleep(0.02)
        log = (attempt_dir(self.dir, number) / "rank0.log").read_text()
        plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
        return why, {int(s): loss for s, loss in STEP.findall(plain)}, ends, plain


@pytest.fixture
def titan(tmp_path: Path) -> Iterator[Titan]:
    made = Titan(tmp_path)
    yield made
    for pid in tree.find(f"{RUN}/n1/"):
        send(pid)


@pytest.mark.parametrize("relaunches", [5, pytest.param(20, marks=pytest.mark.soak)])
def test_warm_relaunches_lose_as_cold_ones_do(titan: Titan, relaunches: int) -> None:
    async def scenario() -> None:
        why, cold, ends, log = await titan.attempt(1, until=7)
        assert why and [e.code for e in ends] == [0, 0], log[-2000:]
        assert set(cold) == set(range(1, 8))
        titan.states = HookStates(notify_socket(titan.dir), lambda rank: None)
        titan.starter = Starter(titan.job, titan.dir, f"{RUN}/n1/")
        titan.starter.start()
        try:
            for number in range(2, 2 + relaunches):
                before = time.time()
                why, warm, ends, log = await titan.attempt(number, until=7, resume=5)
                assert why == ""
                assert [e.code for e in ends] == [0, 0], log[-2000:]
                assert warm == {6: cold[6], 7: cold[7]}
                for rank in (0, 1):
                    state = titan.states.state(rank)
                    assert state is not None
                    assert (state.phase, state.step, state.resumed) == ("done", 7, 5)
                    order = [state.first[p] for p in ("import", "build", "load", "step", "save")]
                    assert before < order[0] and order == sorted(order)
        finally:
            titan.starter.stop()
            titan.states.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("warm", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_rank_at_another_step_than_promised_stops_before_it_saves(
    titan: Titan, warm: bool
) -> None:
    async def scenario() -> None:
        _, _, ends, log = await titan.attempt(1, until=6)
        assert [e.code for e in ends] == [0, 0], log[-2000:]
        if warm:
            titan.starter = Starter(titan.job, titan.dir, f"{RUN}/n1/")
            titan.starter.start()
        try:
            why, losses, ends, log = await titan.attempt(2, until=12, resume=5, promised=6)
        finally:
            if titan.starter is not None:
                titan.starter.stop()
        assert (why == "") is warm
        assert losses == {} and all(e.code == 1 for e in ends)
        assert "came back at step 5, promised was step 6" in log
        assert not (titan.save / "a0002").exists()

    asyncio.run(scenario())
