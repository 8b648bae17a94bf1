"""What an agent of an older version left on a node is read by this one: running jobs survive.

tests/data/agent_node was written by the code of November 2026, before names changed: the table of
ranks, the job, and the shared memory of a hook at step 42.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from supervisor.agent.hook_state import HookStates
from supervisor.agent.ranks import adopt, log_file, notify_socket, stacks_file, state_file
from supervisor.channel.wire import RankJob
from supervisor.config.job import parse_job
from supervisor.config.site import Site
from supervisor.engine.wiring import wire_job
from supervisor.host import procfs

LEFT = Path(__file__).parents[1] / "data" / "agent_node"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LEFT, tmp_path / "node"))


@pytest.fixture
def rank() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "600"])
    yield child
    child.kill()
    child.wait()


def test_its_ranks_are_adopted(node: Path, rank: subprocess.Popen[bytes]) -> None:
    started = procfs.start_time(rank.pid)
    table = json.loads((node / "ranks.json").read_text())
    assert table == {"attempt": 3, "ranks": [[0, 4242, 99000], [1, 4243, 99001]]}
    table["ranks"][0] = [0, rank.pid, started]
    table["ranks"][1] = [1, rank.pid, 99001]  # a number that somebody else has by now
    (node / "ranks.json").write_text(json.dumps(table))
    ranks = adopt(node, "n1", "4f1c9a27e0b3", lambda end: None)
    assert ranks is not None and ranks.attempt == 3
    assert {number: one.alive for number, one in ranks.ranks.items()} == {0: True, 1: False}
    assert ranks.ranks[0].pid == rank.pid


def test_its_job_is_read(node: Path) -> None:
    job = msgspec.json.decode((node / "job.json").read_bytes(), type=RankJob)
    assert (job.run_id, job.hook, job.ranks_per_node) == ("4f1c9a27e0b3", "torchtitan", 2)
    assert job.rank_ports == (30000, 30999) and job.health is not None


def test_an_agent_of_before_still_gets_flags(tmp_path: Path) -> None:
    """The hook that it gives to ranks sets no fields; an agent of this version takes `entry`."""
    trainer = "trainer: {module: t, args: [-x], hook: torchtitan}\ncheckpoints: {dir: /c}\n"
    text = f"name: j\nnodes: 1\nlauncher: local\n{trainer}"
    job = parse_job(text, tmp_path / "job.yaml")
    wire = wire_job(job, Site(state_dir=tmp_path), "4f1c9a27e0b3", None, {})
    assert wire.entry == ("-m", "t", "-x")
    assert wire.fresh == (
        *wire.entry,
        "--checkpoint.enable",
        *("--checkpoint.folder", "{save_dir}"),
        *("--checkpoint.keep_latest_k", "0"),
        "--checkpoint.no_last_save_model_only",
    )
    assert wire.resumed == (
        *wire.fresh,
        *("--checkpoint.initial_load_path", "{resume_path}"),
        "--checkpoint.no_initial_load_model_only",
    )


def test_hooks_of_its_ranks_are_heard(node: Path) -> None:
    heard: list[int] = []
    # Ranks know this path from the agent that started them.
    assert notify_socket(node) == node / "bell"
    states = HookStates(notify_socket(node), heard.append)
    states.follow(0, state_file(node, 3, 0))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hook:
        hook.sendto(b"0", str(node / "bell"))
    states.ready()
    state = states.state(0)
    states.close()
    assert heard == [0]
    assert state is not None and (state.phase, state.step, state.resumed) == ("save", 42, 40)


def test_its_files_keep_their_names(node: Path) -> None:
    folder = node / "a0003"
    assert log_file(node, 3, 0) == folder / "rank0.log"
    assert state_file(node, 3, 0) == folder / "rank0.state"
    assert stacks_file(node, 3, 0) == folder / "rank0.stacks"
