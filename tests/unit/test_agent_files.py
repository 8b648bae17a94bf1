"""Cleaners take an agent's files from under it: nobody notices but the agent."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import (
    NODE,
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
from strangers import as_stranger, needs_root  # noqa: F401

from supervisor.agent.agent import ALREADY_RUNNING
from supervisor.agent.code import remove
from supervisor.channel import wire
from supervisor.core import events as ev
from supervisor.host import procfs
from supervisor.run import snapshot

TRAINER = """
import os, time
import superv_starter, helper
rank = superv_starter.rank()
print("rank", os.environ["RANK"], "pid", os.getpid(), helper.WORD, flush=True)
for step in range(1, 10**9):
    rank.begin(step)
    time.sleep(0.02)
    rank.finished(step)
"""


def packed(tmp: Path, leave: Path) -> tuple[str, bytes, str]:
    """Digest and bytes of a trainer's code with a module of its own; its script on a node."""
    (tmp / "helper.py").write_text("WORD = 'helped'\n")
    (tmp / "hooked.py").write_text(TRAINER)
    question = {
        "entry": [str(tmp / "hooked.py")],
        "script": str(tmp / "hooked.py"),
        "module": "",
        "workdir": str(tmp),
        "pythonpath": "",
        "leave": [str(leave)],
    }
    told, archive = snapshot.pack(question)
    return told["digest"], archive, f"{snapshot.CODE}{tmp}/hooked.py"


async def whole_node(place: LoopbackNode) -> EngineSide:
    """An agent with keys, code, a warm starter and hooked ranks of attempt 1 that make steps."""
    digest, archive, script = packed(place.tmp, place.home)
    (place.home / f"{digest}.00").touch(mode=0o600)
    (place.home / f"{digest}.00").write_bytes(archive)
    engine = EngineSide(
        place,
        job(
            place.tmp,
            fresh=(script,),
            code=digest,
            preload=("json",),
            hook="torchtitan",
            env={"PYTHONDONTWRITEBYTECODE": "1"},
        ),
    )
    place.write_keys(engine.endpoint)
    place.agent()
    await engine.joined()
    await attempt(engine, place, 1)
    return engine


async def attempt(engine: EngineSide, place: LoopbackNode, number: int) -> None:
    """The node is prepared for an attempt, and its ranks make steps."""
    await engine.order(prepare(number))
    answer = await engine.event(ev.Prepared, number)
    assert answer.problems == ()
    await engine.order(start(number))
    started = await engine.event(ev.RanksStarted, number)
    assert started.warm, started.why_cold
    await steps(engine, number)
    assert "helped" in place.log(0, number)


async def steps(engine: EngineSide, number: int, count: int = 3) -> None:
    def newest() -> int:
        beats = [beat for beat in engine.beats if beat.attempt == number]
        return (beats[-1].step or 0) if beats else 0

    before = newest()
    await until(lambda: newest() >= before + count, f"steps of attempt {number}")


# A cleaner races with the agent that puts things back: it may find a folder full that it emptied.
def clean_all(place: LoopbackNode) -> None:
    remove(place.node_dir)
    subprocess.run(["rm", "-rf", place.home], check=False)


def clean_node(place: LoopbackNode) -> None:
    remove(place.node_dir)
    subprocess.run(["rm", "-rf", place.node_dir], check=False)


def clean_files(place: LoopbackNode) -> None:
    """As an age-based cleaner does: files go, folders that are not empty stay."""
    for what in (("!", "-type", "d"), ("-depth", "-type", "d", "-empty")):
        subprocess.run(["find", place.home, *what, "-delete"], check=False)


def clean_module(place: LoopbackNode) -> None:
    """One file of the code, and what it was unpacked from."""
    [module] = place.node_dir.glob("code/*/**/helper.py")
    module.parent.chmod(0o700)
    module.unlink()
    module.parent.chmod(0o500)
    for archive in place.home.glob("*.00"):
        archive.unlink()


def clean_starter(place: LoopbackNode) -> None:
    shutil.rmtree(place.node_dir / "starter")


CLEANERS = [clean_all, clean_node, clean_files, clean_module, clean_starter]


def listing(place: LoopbackNode) -> set[str]:
    """What an agent needs; without what only its ranks have open."""
    shown = subprocess.run(["find", place.home, "-printf", "%P\n"], capture_output=True, text=True)
    found = set(shown.stdout.split())
    leave = ("rank", "agent.log", "starter/serve.json", "starter/log", "/bell")
    return {name for name in found if not any(part in name for part in leave)} | {
        f"{NODE}/ranks.json"
    }


@pytest.mark.parametrize("clean", CLEANERS)
def test_a_restart_after_a_cleaner(tmp_path: Path, clean: Callable[[LoopbackNode], None]) -> None:
    """Ranks go on; whatever the next attempt needs is there before the node confirms."""

    async def scenario(place: LoopbackNode) -> None:
        engine = await whole_node(place)
        pids = await place.pids()
        before = listing(place)
        clean(place)
        await engine.order(stop(1))  # at once: nothing was made again yet
        await engine.event(ev.RanksStopped)
        assert all(procfs.state(pid) in (None, "Z") for pid in pids)
        await attempt(engine, place, 2)
        restored = await engine.event(ev.FilesRestored)
        assert restored.files and restored.node == NODE
        assert listing(place) >= {name for name in before if "a0001" not in name}
        assert not list(agent_errors(place)) and len(engine.hellos) == 1

    play(tmp_path, scenario)


@pytest.mark.parametrize("clean", [clean_all, clean_files])
def test_ranks_notice_no_cleaner(tmp_path: Path, clean: Callable[[LoopbackNode], None]) -> None:
    """Their steps are heard on, all files come back, and their logs can be read."""

    async def scenario(place: LoopbackNode) -> None:
        engine = await whole_node(place)
        before = listing(place)
        clean(place)
        await engine.event(ev.FilesRestored)
        await until(lambda: listing(place) >= before, "every file again")
        assert place.key_file.stat().st_mode & 0o777 == 0o600
        assert place.home.stat().st_mode & 0o777 == 0o700
        await steps(engine, 1)
        fetch = wire.Fetch(epoch=1, key="f", attempt=1, rank=0, offset=0, limit=999, wait_s=0)
        await engine.channel.send(NODE, fetch)
        await until(lambda: engine.chunks)
        assert b"helped" in engine.chunks[0].data
        assert "somebody removed files" in place.notes()
        assert not engine.of(ev.RankExited) and not list(agent_errors(place))

    play(tmp_path, scenario)


@pytest.mark.parametrize("clean", [clean_all, clean_files, clean_node])
def test_an_agent_that_dies_with_its_files(
    tmp_path: Path, clean: Callable[[LoopbackNode], None]
) -> None:
    """The next one gets keys from the engine, knows the ranks and hears their steps."""

    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path, "steps"))
        place.write_keys(engine.endpoint)
        place.agent()
        await engine.joined()
        await engine.started()
        pids = await place.pids()
        place.agents[0].kill()
        place.agents[0].wait()
        clean(place)
        place.agent()
        if clean is not clean_node:
            await until(place.home.exists, "the folder that keys come into")
            place.write_keys(engine.endpoint)
        hello = await engine.joined(2)
        assert (hello.attempt, hello.ranks) == (1, 2)
        await until(lambda: engine.beats and engine.beats[-1].agent == hello.agent)
        await steps(engine, 1)
        assert all(procfs.state(pid) in "SR" for pid in pids)
        await engine.order(stop(1))
        assert (await engine.event(ev.RanksStopped)).stuck == ()
        assert place.left() == set()

    play(tmp_path, scenario)


def test_one_agent_where_the_lock_was_removed(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path))
        place.write_keys(engine.endpoint)
        place.agent()
        await engine.joined()
        await engine.started()
        shutil.rmtree(place.node_dir)
        second = place.agent()
        await asyncio.to_thread(second.communicate, timeout=30)
        assert second.returncode == ALREADY_RUNNING
        assert len(engine.hellos) == 1 and len(place.left()) == 2

    play(tmp_path, scenario)


def aged(place: LoopbackNode, tmp: Path) -> None:
    """systemd-tmpfiles itself, for which everything is too old."""
    (tmp / "clean.conf").write_text(f"d {tmp} - - - 0s\n")
    subprocess.run(["systemd-tmpfiles", "--clean", tmp / "clean.conf"], check=False)


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="needs systemd-tmpfiles")
def test_systemd_tmpfiles_leaves_the_folder_alone(tmp_path: Path) -> None:
    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path, workdir="/"))
        place.write_keys(engine.endpoint)
        place.agent()
        await engine.joined()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").touch()
        await asyncio.sleep(1.1)
        before = listing(place)
        await asyncio.to_thread(aged, place, tmp_path)
        assert not (tmp_path / "other").exists(), "it does clean"
        assert listing(place) == before
        assert not engine.of(ev.FilesRestored)

    play(tmp_path, scenario)


@needs_root
def test_a_name_that_somebody_else_took(tmp_path: Path) -> None:
    """Nothing is put there, and the node says why it takes no ranks."""

    async def scenario(place: LoopbackNode) -> None:
        engine = EngineSide(place, job(tmp_path))
        place.write_keys(engine.endpoint)
        place.agent()
        await engine.joined()
        shutil.rmtree(place.home)
        place.home.mkdir(mode=0o777)
        os.chown(place.home, 12345, 12345)
        await engine.order(prepare())
        prepared = await engine.event(ev.Prepared)
        assert "can't be restored" in prepared.problems[0]
        assert str(place.home) in prepared.problems[0]
        assert list(place.home.iterdir()) == []
        place.home.rmdir()
        again = await engine.event(ev.Prepared, 2)  # it is looked at again
        assert again.problems == () and place.key_file.exists()

    play(tmp_path, scenario)


def test_what_is_kept_looks_used(tmp_path: Path) -> None:
    """Times are renewed, but for when code was changed, or something delivered: the newest counts,
    and other times would make it other code."""
    from supervisor.agent.node_files import NodeFiles, take

    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    folder = home / NODE
    lock = take(folder)
    assert lock is not None
    files = NodeFiles(home, folder, lock)
    (folder / "code").mkdir()
    code, key = folder / "code" / "x.py", home / "key"
    files.write(key, b"k")
    code.touch()
    for path in (code, key, folder):
        os.utime(path, (1, 1))
    files.touch()
    times: list[Any] = [(p.stat().st_atime > 1, p.stat().st_mtime > 1) for p in (code, key, folder)]
    assert times == [(True, False), (True, False), (True, True)]


def test_what_is_there_and_not_whole(tmp_path: Path) -> None:
    from supervisor.agent.node_files import NodeFiles, take

    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    lock = take(home / NODE)
    assert lock is not None
    files = NodeFiles(home, home / NODE, lock)
    files.write(home / NODE / "epoch", b"12")
    assert files.restore() == []
    (home / NODE / "epoch").write_bytes(b"")  # a disk that was full
    home.chmod(0o000)
    assert files.restore() == ["home", "epoch"]
    assert (home / NODE / "epoch").read_bytes() == b"12" and home.stat().st_mode & 0o777 == 0o700
    (tmp_path / "other").write_bytes(b"theirs")
    (home / NODE / "epoch").unlink()
    (home / NODE / "epoch").symlink_to(tmp_path / "other")
    assert files.restore() == ["epoch"]
    assert (home / NODE / "epoch").read_bytes() == b"12"
    assert (tmp_path / "other").read_bytes() == b"theirs"
