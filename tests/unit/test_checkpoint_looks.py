"""Looks at checkpoints: how many are read, what is kept; storage that is slow, stale or stuck."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scenario import Scenario

from supervisor.checkpoints import storage
from supervisor.checkpoints.dcp import ShardProgress, fingerprint, verify
from supervisor.checkpoints.storage import Storage
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.errors import TransientError
from supervisor.core.types import Phase
from supervisor.engine.checkpoint_looks import UNREADABLE_LOOKS, CheckpointLooks

HERE = Path(__file__).parent
FULL = HERE.parent / "data" / "dcp" / "step-5"
REQUIRED = ("model",)


class Counted(Storage):
    """Notes which questions are put to children."""

    def __init__(self) -> None:
        super().__init__()
        self.verified: list[str] = []

    async def ask(self, question: dict[str, Any], *, deadline_s: float) -> Any:
        if question["command"] == "verify":
            self.verified.append(Path(question["path"]).name)
        return await super().ask(question, deadline_s=deadline_s)


class Looker:
    """A run that trains into real folders, and what looks at them."""

    def __init__(self, home: Path) -> None:
        self.p = Scenario(home=str(home)).to(Phase.RUNNING)
        self.storage = Counted()
        self.restart_engine()

    def restart_engine(self) -> None:
        self.looks = CheckpointLooks(self.storage, REQUIRED, lambda: self.p.run, lambda: self.p.now)
        self.storage.verified.clear()

    @property
    def folder(self) -> Path:
        assert self.p.run.attempt is not None and self.p.run.attempt.save_dir is not None
        return Path(self.p.run.attempt.save_dir)

    def save(self, *steps: int) -> None:
        for step in steps:
            shutil.copytree(FULL, self.folder / f"step-{step}")

    def scan(self) -> act.Scan:
        (scan,) = [a for a in self.p.run.pending.values() if isinstance(a, act.Scan)]
        return scan

    def fault(self) -> None:
        self.p.exit(0)
        self.p.answer(act.Collect, act.Stop)

    async def recover(self) -> None:
        event = await self.looks.for_restart(self.scan())
        self.p.take(ev.Scanned, key=event.key, found=event.found, rejected=event.rejected)
        if self.p.phase is Phase.BACKOFF:
            self.p.expire_deadline()
        self.p.start()
        self.p.first_step()

    async def beside(self) -> None:
        async for event in self.looks.beside():
            self.p.take(ev.Scanned, key=event.key, found=event.found)

    @property
    def lineage(self) -> list[int]:
        return [c.step for c in self.p.run.lineage]


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Looker]:
    looker = Looker(tmp_path)
    yield looker
    looker.storage.close()


@pytest.fixture
def stuck() -> Iterator[Any]:
    pids: list[int] = []

    def stick(path: Path) -> None:
        """A child hangs on this path and can't be killed."""
        if (pid := os.fork()) == 0:
            time.sleep(600)
            os._exit(0)
        pids.append(pid)
        storage._stuck[str(path)] = storage._Stuck(os.pidfd_open(pid), time.time())

    yield stick
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    storage._stuck.clear()


def test_of_twenty_the_newest_is_enough_and_the_rest_follows_beside(at: Looker) -> None:
    async def scenario() -> None:
        at.save(*range(1, 21))
        at.fault()
        await at.recover()
        assert at.storage.verified == ["step-20"] and at.lineage == [20]
        await at.beside()
        assert at.storage.verified == [f"step-{n}" for n in range(20, 0, -1)]
        assert at.lineage == [*range(1, 21)]
        at.storage.verified.clear()
        await at.beside()
        assert at.storage.verified == []

    asyncio.run(scenario())


def test_of_a_run_that_ends_older_ones_are_known_too(at: Looker, stuck: Any) -> None:
    async def scenario() -> None:
        at.save(10, 20, 30)
        stuck(at.folder / "step-20")
        at.p.take(ev.StopRequested, who="ann")
        at.p.answer(act.Stop)
        seen = await at.looks.for_restart(at.scan())
        at.p.take(ev.Scanned, key=seen.key, found=seen.found, rejected=seen.rejected)
        assert at.p.phase is Phase.STOPPED and at.lineage == [10, 30]

    asyncio.run(scenario())


def test_what_is_verified_stays_so_over_an_engine_s_restart(at: Looker) -> None:
    async def scenario() -> None:
        at.save(10, 20)
        await at.beside()
        at.restart_engine()
        at.fault()
        await at.recover()
        assert at.storage.verified == [] and at.lineage == [10, 20]

    asyncio.run(scenario())


def test_one_whose_files_changed_is_verified_again(at: Looker) -> None:
    async def scenario() -> None:
        at.save(10, 20)
        await at.beside()
        shard = at.folder / "step-20" / "__0_0.distcp"
        os.truncate(shard, 100)
        at.fault()
        at.storage.verified.clear()
        await at.recover()
        assert at.storage.verified == ["step-20"] and at.lineage == [10]
        assert "truncated" in at.p.run.rejected[0].why

    asyncio.run(scenario())


def test_a_checkpoint_of_an_old_journal_has_no_fingerprint_and_is_verified(at: Looker) -> None:
    async def scenario() -> None:
        at.save(10)
        await at.beside()
        at.p.run = replace(
            at.p.run, lineage=tuple(replace(c, fingerprint="") for c in at.p.run.lineage)
        )
        at.fault()
        at.storage.verified.clear()
        await at.recover()
        assert at.storage.verified == ["step-10"] and at.p.run.lineage[0].fingerprint

    asyncio.run(scenario())


def test_a_damaged_one_is_read_once_while_the_ranks_run(at: Looker) -> None:
    async def scenario() -> None:
        at.save(10, 20)
        (at.folder / "step-20" / "__0_0.distcp").unlink()
        await at.beside()
        await at.beside()
        assert at.storage.verified == ["step-20", "step-10"]
        shutil.copy(FULL / "__0_0.distcp", at.folder / "step-20")
        await at.beside()
        assert at.lineage == [10, 20]

    asyncio.run(scenario())


def test_an_old_one_that_hangs_is_in_nobody_s_way(at: Looker, stuck: Any) -> None:
    async def scenario() -> None:
        at.save(10, 20, 30)
        stuck(at.folder / "step-20")
        await at.beside()
        assert at.lineage == [10, 30]
        at.fault()
        await at.recover()
        assert at.p.run.attempt and at.p.run.attempt.resume and at.p.run.attempt.resume.step == 30

    asyncio.run(scenario())


def test_the_newest_one_gets_a_few_looks_and_then_an_older_one_is_taken(
    at: Looker, stuck: Any
) -> None:
    async def scenario() -> None:
        at.save(10, 20)
        await at.beside()
        stuck(at.folder / "step-20")
        at.fault()
        for n in range(1, UNREADABLE_LOOKS):
            with pytest.raises(TransientError, match=rf"\({n} of 4 looks, then step 10 is taken"):
                await at.recover()
        await at.recover()
        (passed,) = at.p.run.rejected
        assert (
            at.lineage == [10] and passed.unreadable and "could not be read 4 times" in passed.why
        )

    asyncio.run(scenario())


def test_where_none_can_be_read_the_run_waits(at: Looker, stuck: Any) -> None:
    async def scenario() -> None:
        at.save(10, 20)
        await at.beside()
        for step in (10, 20):
            stuck(at.folder / f"step-{step}")
        at.fault()
        for _ in range(3 * UNREADABLE_LOOKS):
            with pytest.raises(TransientError, match="step-20 has not answered since"):
                await at.recover()
        assert at.p.phase is Phase.TRIAGE and at.lineage == [10, 20]

    asyncio.run(scenario())


def test_unfinished_at_one_look_is_verified_at_the_next(at: Looker) -> None:
    async def scenario() -> None:
        at.save(10)
        (at.folder / "step-20").mkdir()
        await at.beside()
        assert at.lineage == [10]
        shutil.copytree(FULL, at.folder / "step-20", dirs_exist_ok=True)
        await at.beside()
        assert at.lineage == [10, 20]

    asyncio.run(scenario())


# --- the parts ------------------------------------------------------------------------------------


def test_a_fingerprint_follows_every_file(tmp_path: Path) -> None:
    one = tmp_path / "step-5"
    assert fingerprint(str(one)) == ""
    shutil.copytree(FULL, one)
    seen = [fingerprint(str(one))]
    assert seen[0] == fingerprint(str(one))
    os.utime(one / "__0_0.distcp", ns=(1, 1))
    seen.append(fingerprint(str(one)))
    os.truncate(one / "__1_0.distcp", 5)
    seen.append(fingerprint(str(one)))
    (one / "__1_0.distcp").unlink()
    seen.append(fingerprint(str(one)))
    assert len({*seen}) == 4
    (one / ".metadata").unlink()
    assert fingerprint(str(one)) == ""


def test_shards_that_were_good_are_not_read_again(tmp_path: Path) -> None:
    one = tmp_path / "step-5"
    shutil.copytree(FULL, one)
    came: list[ShardProgress] = []
    verify(str(one), REQUIRED, progress=lambda p: came.append(p) if p else None)
    assert [p.shards for p in came] == [1, 2]
    shard = one / "__0_0.distcp"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert not verify(str(one), REQUIRED).verified
    assert verify(str(one), REQUIRED, done=came[0]).verified
    other = replace(came[0], metadata=(1, 1))
    assert not verify(str(one), REQUIRED, done=other).verified
    os.truncate(shard, 5)
    assert "truncated" in verify(str(one), REQUIRED, done=came[0]).reason


ASK = """
import asyncio, sys
from supervisor.checkpoints.storage import Storage
from supervisor.core.errors import TransientError

async def ask(path, deadline):
    told = set()
    async with Storage() as asked:
        for _ in range(100):
            try:
                state = (await asked.verify(path, deadline_s=deadline)).state
                print(*(f"cut off after {shards}" for shards in sorted(told)), state, sep=", ")
                return
            except TransientError as error:
                told.add(asked._cut_off.get((path, False), {}).get("shards"))
                await asyncio.sleep(0.2)

asyncio.run(ask(sys.argv[1], float(sys.argv[2])))
"""


def through(fault: str, tmp_path: Path, deadline_s: float) -> str:
    """What is said of a checkpoint on storage with this fault."""
    source, mount = tmp_path / "source", tmp_path / "mount"
    shutil.copytree(FULL, source / "a0001" / "step-5")
    mount.mkdir()
    view = [sys.executable, str(HERE / "slow_fuse.py"), str(source), str(mount), fault]
    ask = [sys.executable, "-c", ASK, str(mount / "a0001" / "step-5"), str(deadline_s)]
    done = subprocess.run([*view, *ask], capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip("no /dev/fuse here, or no right to mount")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().removeprefix(", ")


def test_a_stale_view_of_a_finished_save_is_asked_again(tmp_path: Path) -> None:
    assert through("stale", tmp_path, 30) == "verified"


def test_slow_storage_has_a_deadline_for_each_sign_of_life(tmp_path: Path) -> None:
    """Some 170 reads of 25 ms: more than the deadline, and none of them as long."""
    assert through("slow=0.025", tmp_path, 2) == "verified"


def test_a_verification_that_is_cut_off_keeps_its_progress(tmp_path: Path) -> None:
    assert through("pause=__1_0.distcp", tmp_path, 1) == "cut off after 1, verified"
