"""What superv needs of TorchTitan, held by each version: train, save, resume, say where it is.

`make test` names both: SUPERV_TITAN a Python with 0.3.0, SUPERV_TITAN_0_2 one with 0.2.2.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from supervisor import proc
from supervisor.agent import tree
from supervisor.agent.hook_state import HookStates
from supervisor.agent.node import free_port
from supervisor.agent.ranks import RankEnd, Ranks, attempt_dir, notify_socket, state_file
from supervisor.agent.warm import Starter
from supervisor.channel.wire import RankJob
from supervisor.checkpoints.dcp import verify
from supervisor.core.actions import Start
from supervisor.core.step_lines import says_not_finite
from tests.processes import send

RUN = os.urandom(6).hex()  # two test sessions must not end each other's ranks
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torchtitan_lab"
STEP = re.compile(r"step:\s*(\d+)\s+loss:\s*([\d.]+)")
# version → the variable that names its Python, and how its configuration is named
VERSIONS = {
    "0.3.0": ("SUPERV_TITAN", ("--module", "moe_lab", "--config", "lab")),
    "0.2.2": ("SUPERV_TITAN_0_2", ("--job.config_file", str(EXAMPLE / "moe_lab.toml"))),
}
pytestmark = pytest.mark.titan
both = pytest.mark.parametrize("version", VERSIONS)


class Titan:
    """Two ranks of the lab's TorchTitan job on this machine, as one node's agent runs them."""

    def __init__(self, folder: Path, version: str) -> None:
        variable, config = VERSIONS[version]
        if variable not in os.environ:
            pytest.skip(f"{variable} names a Python with TorchTitan {version} (make test)")
        python = os.environ[variable]
        done = proc.run_sync((python, str(EXAMPLE / "assets.py"), str(folder)), deadline_s=60)
        assert done.rc == 0, done.why()
        self.job = RankJob(
            run_id=RUN,
            name="titan",
            python=python,
            fresh=("only older agents use this",),
            resumed=("nor this",),
            entry=(str(EXAMPLE / "titan_cpu.py"), *config),
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
        self.states = HookStates(notify_socket(self.dir), lambda rank: None)
        self.flags: tuple[str, ...] = ()

    def preload(self) -> None:
        self.starter = Starter(self.job, self.dir, f"{RUN}/n1/")
        self.starter.start()

    def play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            try:
                await scenario()
            finally:
                if self.starter is not None:
                    self.starter.stop()

        asyncio.run(whole())

    async def attempt(
        self,
        number: int,
        *,
        until: int,
        resume: int | None = None,
        promised: int | None = None,
        kill_at: int | None = None,
    ) -> tuple[str, dict[int, str], list[RankEnd], str]:
        """One attempt to step `until`: why cold, loss by step, ends, the log of rank 0."""
        ends: list[RankEnd] = []
        ranks = Ranks(self.dir, "n1", RUN, number, ends.append)
        ranks.exclude_pids = lambda: self.starter.pids if self.starter else frozenset()
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
        words = (*self.job.entry, "--training.steps", str(until), *self.flags)
        job = msgspec.structs.replace(self.job, entry=words)
        why = await ranks.start(job, order, "n1", self.starter)
        async with asyncio.timeout(240):
            while len(ends) < 2:
                await asyncio.sleep(0.02)
                state = self.states.state(1)
                if kill_at is not None and state is not None and state.step >= kill_at:
                    for one in ranks.ranks.values():
                        if one.alive:
                            os.kill(one.pid, signal.SIGKILL)
        log = (attempt_dir(self.dir, number) / "rank0.log").read_text()
        plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
        return why, {int(s): loss for s, loss in STEP.findall(plain)}, ends, plain


@pytest.fixture
def titan(tmp_path: Path, version: str) -> Iterator[Titan]:
    made = Titan(tmp_path, version)
    yield made
    made.states.close()
    for pid in tree.find(f"{RUN}/n1/"):
        send(pid)


@both
def test_it_trains_saves_is_killed_and_resumes_as_if_nothing_had_been(
    titan: Titan, version: str
) -> None:
    """Killed in the step after the save, warm: the losses after it are those of a run that went on.

    A rank whose checkpoint is another one than promised stops before it saves.
    """

    async def scenario() -> None:
        titan.preload()
        why, whole, ends, log = await titan.attempt(1, until=8)
        assert why == "" and [e.code for e in ends] == [0, 0], log[-2000:]
        assert set(whole) == set(range(1, 9)) and len(set(whole.values())) > 5
        for rank in (0, 1):
            state = titan.states.state(rank)
            assert state is not None and (state.phase, state.step) == ("done", 8)
            assert state.trouble == "", "every hook point was found and fired"
            order = [state.first[p] for p in ("import", "build", "load", "step", "save")]
            assert all(order) and order == sorted(order)
        assert verify(str(titan.save / "a0001" / "step-5")).verified
        assert verify(str(titan.save / "a0001" / "step-8")).verified, "the last one is whole, too"
        assert not (Path(titan.job.workdir) / "outputs" / "checkpoint").exists()

        before = time.time()
        why, warm, ends, log = await titan.attempt(2, until=12, resume=5, kill_at=7)
        assert why == "" and [e.signal for e in ends] == [signal.SIGKILL] * 2, log[-2000:]
        state = titan.states.state(0)
        assert state is not None and state.resumed == 5 and state.first["import"] > before
        assert warm.pop(6) == whole[6]
        assert warm == {step: whole[step] for step in warm if step <= 8}

        why, losses, ends, log = await titan.attempt(3, until=12, resume=5, promised=6)
        assert losses == {} and all(e.code == 1 for e in ends)
        assert "came back at step 5, promised was step 6" in log
        assert not (titan.save / "a0003").exists()

    titan.play(scenario)


@both
@pytest.mark.soak
def test_warm_relaunches_lose_as_cold_ones_do(titan: Titan, version: str) -> None:
    async def scenario() -> None:
        why, cold, ends, log = await titan.attempt(1, until=7)
        assert why and [e.code for e in ends] == [0, 0], log[-2000:]
        titan.preload()
        for number in range(2, 12):
            why, warm, ends, log = await titan.attempt(number, until=7, resume=5)
            assert why == "" and [e.code for e in ends] == [0, 0], log[-2000:]
            assert warm == {6: cold[6], 7: cold[7]}

    titan.play(scenario)


@both
@pytest.mark.soak
def test_a_flag_of_ones_own_has_no_effect_and_is_said(titan: Titan, version: str) -> None:
    async def scenario() -> None:
        titan.flags = ("--checkpoint.folder", "mine", "--checkpoint.interval", "2")
        _, _, ends, log = await titan.attempt(1, until=3)
        assert [e.code for e in ends] == [0, 0], log[-2000:]
        assert "superv: --checkpoint.folder has no effect: superv sets checkpoint.folder" in log
        assert verify(str(titan.save / "a0001" / "step-2")).verified, "interval is the user's own"

    titan.play(scenario)


@both
@pytest.mark.soak
def test_checkpoints_with_nan_in_them_do_not_verify(titan: Titan, version: str) -> None:
    """A learning rate of 1e30, the loss looked at every 5 steps and saved every 2."""

    async def scenario() -> None:
        rate = ("--optimizer.lr", "1e30") if version == "0.2.2" else ("--config", "diverges")
        titan.flags = (*rate, "--metrics.log_freq", "5", "--checkpoint.interval", "2")
        _, _, ends, log = await titan.attempt(1, until=8)
        assert any(says_not_finite(line) for line in log.splitlines()) is (version == "0.3.0")
        assert [e.code for e in ends] == ([0, 0] if version == "0.2.2" else [1, 1]), log[-2000:]
        report = verify(str(titan.save / "a0001" / "step-4"))
        assert not report.verified and "holds NaN or infinity" in report.reason, report

    titan.play(scenario)
