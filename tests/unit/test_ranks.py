"""Ranks as processes: torchrun's contract with them, their start, their ends, their next agent."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import NODE, RUN, job, start, until

from supervisor.agent import tree
from supervisor.agent.ranks import (
    KEPT,
    CantStart,
    RankEnd,
    Ranks,
    adopt,
    attempt_dir,
    error_file,
    log_file,
    rank_env,
)
from supervisor.core.rank_contract import PLACEHOLDERS, fill, placeholder_values, reserved
from supervisor.host import procfs
from tests.processes import send

MARK = f"{RUN}/{NODE}/"
# LocalElasticAgent._start_workers in torch 2.13 (local_elastic_agent.py), and what it takes from
# its own environment; the error file is named by multiprocessing/api.py beside it.
TORCHRUN = {
    "RANK": "9",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "2",
    "ROLE_RANK": "9",
    "ROLE_NAME": "default",
    "LOCAL_WORLD_SIZE": "4",
    "WORLD_SIZE": "12",
    "GROUP_WORLD_SIZE": "3",
    "ROLE_WORLD_SIZE": "12",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "30007",
    "TORCHELASTIC_RESTART_COUNT": "4",
    "TORCHELASTIC_MAX_RESTARTS": "4",
    "TORCHELASTIC_RUN_ID": RUN,
    "TORCHELASTIC_USE_AGENT_STORE": "False",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "OMP_NUM_THREADS": "1",
}
FROM_ITS_OWN = {"CUDA_VISIBLE_DEVICES"}  # passed on where the agent has it


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "node"
    folder.mkdir()
    yield folder
    for pid in tree.find(MARK):
        send(pid)


def env_of(tmp_path: Path, **changes: Any) -> dict[str, str]:
    order = start(5, slot=2, nnodes=3, master_addr="10.0.0.7", master_port=30007)
    return rank_env(
        job(tmp_path, ranks_per_node=4, **changes), order, 1, tmp_path, NODE, os.environ
    )


# --- what a rank is told ------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHRUN)
def test_torchruns_contract(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    assert env_of(tmp_path)[name] == TORCHRUN[name]


def test_what_superv_sets_is_none_of_the_users(tmp_path: Path) -> None:
    env = rank_env(job(tmp_path), start(), 0, tmp_path, NODE, {})
    own = {"PYTHONUNBUFFERED", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "OMP_NUM_THREADS"}  # defaults
    assert {name for name in env if not reserved(name)} == own


def test_the_error_file_is_in_a_folder_that_is_there(tmp_path: Path) -> None:
    path = Path(env_of(tmp_path)["TORCHELASTIC_ERROR_FILE"])
    assert path == error_file(tmp_path, 5, 9) and path.parent == attempt_dir(tmp_path, 5)


@pytest.mark.titan
@pytest.mark.skipif("SUPERV_TITAN" not in os.environ, reason="SUPERV_TITAN names a Python of torch")
def test_the_list_is_the_one_of_the_torch_that_is_installed() -> None:
    """Read from its source, so that another torch with another list is noticed."""
    look = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    torch = Path(
        subprocess.run(
            [os.environ["SUPERV_TITAN"], "-c", look], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    source = torch / "distributed/elastic/agent/server/local_elastic_agent.py"
    names: set[str] = set()
    for item in ast.walk(ast.parse(source.read_text())):
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name | ast.Subscript):
            target = item.targets[0]
            whole = isinstance(target, ast.Name) and target.id == "worker_env"
            if whole and isinstance(item.value, ast.Dict):
                names |= {ast.literal_eval(key) for key in item.value.keys if key is not None}
            if (
                isinstance(target, ast.Subscript)
                and isinstance(target.value, ast.Name)
                and target.value.id == "worker_env"
                and isinstance(target.slice, ast.Constant)
            ):
                names.add(target.slice.value)
    assert names == TORCHRUN.keys() | FROM_ITS_OWN


def test_the_jobs_environment_is_over_the_nodes_and_under_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_NODE", "node")
    monkeypatch.setenv("BOTH", "node")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    own = {"BOTH": "job", "RANK": "77", "PORT_TOO": "{master_port}", "PYTHONUNBUFFERED": ""}
    env = env_of(tmp_path, env=own)
    assert (env["FROM_NODE"], env["BOTH"], env["PORT_TOO"]) == ("node", "job", "30007")
    assert (env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"]) == ("6", "0,1")
    assert env["RANK"] == "9" and env["PYTHONUNBUFFERED"] == ""


def test_one_rank_a_node_has_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    env = rank_env(job(tmp_path, ranks_per_node=1), start(), 0, tmp_path, NODE, os.environ)
    assert "OMP_NUM_THREADS" not in env


def test_placeholders() -> None:
    order = start(
        3, slot=2, nnodes=9, save_dir="/s/a0003", resume_path="/s/a0002/step-7", resume_step=7
    )
    values = placeholder_values(order)
    assert values.keys() == PLACEHOLDERS.keys()  # what job.yaml's documentation promises
    text = "{node_rank}/{nnodes} {master_addr}:{master_port} {save_dir} {resume_path} {resume_step}"
    assert fill(text, values) == "2/9 127.0.0.1:30000 /s/a0003 /s/a0002/step-7 7"
    assert fill('{"a": {}} {other} {} {0} ${HOME}', values) == '{"a": {}} {other} {} {0} ${HOME}'
    fresh = placeholder_values(start())
    assert fill("[{save_dir}][{resume_path}][{resume_step}]", fresh) == "[][][0]"


def test_a_value_is_not_filled_in_again() -> None:
    values = placeholder_values(start(save_dir="/odd/{resume_step}", resume_step=7))
    assert fill("{save_dir}", values) == "/odd/{resume_step}"


# --- starting and ending ------------------------------------------------------------------------


class One:
    """The ranks of one attempt and their ends."""

    def __init__(self, node: Path, attempt: int = 1) -> None:
        self.ends: list[RankEnd] = []
        self.node = node
        self.ranks = Ranks(node, NODE, RUN, attempt, self.ends.append)

    async def start(self, tmp: Path, argv: tuple[str, ...], **changes: Any) -> None:
        values = {"python": "", "fresh": argv, "resumed": (*argv, "resumed"), **changes}
        order = start(self.ranks.attempt)
        assert await self.ranks.start(job(tmp, **values), order, NODE, None) != ""  # cold

    def log(self, rank: int = 0) -> str:
        return log_file(self.node, self.ranks.attempt, rank).read_text()


def test_ends_by_code_and_by_signal(tmp_path: Path, node: Path) -> None:
    async def body() -> None:
        one = One(node)
        script = "echo out; echo err >&2; [ $RANK = 0 ] && exit 41; kill -SEGV $$"
        await one.start(tmp_path, ("sh", "-c", script))
        await until(lambda: len(one.ends) == 2)
        ends = {end.rank: (end.code, end.signal) for end in one.ends}
        assert ends == {0: (41, None), 1: (None, signal.SIGSEGV)}
        assert one.log() == "out\nerr\n" and one.ranks.alive == 0
        assert log_file(node, 1, 0).stat().st_mode & 0o777 == 0o600

    asyncio.run(body())


def test_arguments_are_passed_as_they_are(tmp_path: Path, node: Path) -> None:
    odd = ("a b", "$HOME", "`id`", "'\"", "*", "", "-n", '{"x": 1}', "ü", "{nnodes}")

    async def body() -> None:
        one = One(node)
        await one.start(tmp_path, ("printf", "%s\\n", *odd), ranks_per_node=1)
        await until(lambda: one.ends)
        assert one.log().splitlines() == [*odd[:-1], "1"]

    asyncio.run(body())


def test_the_message_in_an_error_file(tmp_path: Path, node: Path) -> None:
    """As torch.distributed.elastic.multiprocessing.errors writes it."""
    ranks = One(node).ranks
    attempt_dir(node, 1).mkdir()
    report = {"message": {"message": "RuntimeError: no luck\n", "extraInfo": {"timestamp": "1"}}}
    error_file(node, 1, 0).write_text(json.dumps(report))
    assert ranks.error(0) == "RuntimeError: no luck"
    error_file(node, 1, 1).write_text(json.dumps({"message": "a\nb " + "x" * 10_000}))
    assert ranks.error(1).startswith("b xxx") and len(ranks.error(1)) == 500
    for ruin in ("", "{", "[]", '{"message": 5}', '{"message": {"message": ""}}', '{"a": 1}'):
        error_file(node, 1, 2).write_text(ruin)
        assert ranks.error(2) in ("", "5"), ruin
    assert ranks.error(3) == ""


def test_a_start_that_fails_in_the_middle_leaves_no_rank(tmp_path: Path, node: Path) -> None:
    async def body() -> None:
        one = One(node)
        attempt_dir(node, 1).mkdir()
        log_file(node, 1, 1).mkdir()  # the second rank's log can't be opened
        with pytest.raises(CantStart, match=r"rank1\.log: Is a directory$"):
            await one.start(tmp_path, ("sleep", "600"))
        assert tree.find(MARK) == set() and not one.ranks.alive

    asyncio.run(body())


def test_the_trainer_may_be_anywhere_on_path(tmp_path: Path, node: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "my trainer"
    program.write_text("#!/bin/sh\necho here\n")
    program.chmod(0o755)
    for attempt, (argv, env) in enumerate(
        [
            (("bin/my trainer",), {}),
            ((str(program),), {}),
            (("my trainer",), {"PATH": f"/nowhere:{tmp_path}/bin:/bin"}),
            (("true",), {}),  # a shell would call its own
        ],
        1,
    ):

        async def body(attempt=attempt, argv=argv, env=env) -> None:
            one = One(node, attempt)
            await one.start(tmp_path, argv, env=env, ranks_per_node=1)
            await until(lambda: one.ends)
            assert one.ends[0].code == 0

        asyncio.run(body())


@pytest.mark.parametrize("mode", [0o644, None])
def test_a_trainer_that_is_no_program(tmp_path: Path, node: Path, mode: int | None) -> None:
    path = tmp_path / "trainer"
    path.mkdir() if mode is None else path.touch()
    if mode is not None:
        path.chmod(mode)
    with pytest.raises(CantStart, match=re.escape(f"{path}: there is no such program in")):
        asyncio.run(One(node).start(tmp_path, (str(path),)))


HUNG_WORKDIR = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from supervisor.agent import ranks as subject
from test_ranks import One
subject.PATHS_S = 0.5
async def body():
    try:
        await One(Path(sys.argv[2])).start(Path(sys.argv[1]), ("sleep", "600"), workdir=sys.argv[4])
    except subject.CantStart as error:
        print(error)
    try:
        await One(Path(sys.argv[2])).start(Path(sys.argv[1]), ("sleep", "600"), workdir=sys.argv[4])
    except subject.CantStart as error:
        print(error, flush=True)
asyncio.run(body())
os._exit(0)
"""


@pytest.mark.lab
def test_a_working_directory_that_hangs(tmp_path: Path, node: Path) -> None:
    """It costs one look's deadline, is named, and is not asked again while that look hangs."""
    here = Path(__file__).parent
    mount = tmp_path / "mount"
    mount.mkdir()
    inside = str(mount / "work")
    inner = [sys.executable, "-c", HUNG_WORKDIR, tmp_path, node, here, inside]
    done = subprocess.run(
        [sys.executable, here / "hung_fuse.py", mount, *inner],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=here.parents[1],
    )
    if done.returncode == 77:
        pytest.skip("needs root and /dev/fuse")
    first, second = done.stdout.splitlines()
    assert first == f"{inside} or sleep did not answer within 0 s", done.stderr
    assert second == f"{inside}: an earlier look at it still hangs"


# --- the next agent -----------------------------------------------------------------------------

STARTER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_ranks import One
async def body():
    one = One(Path(sys.argv[2]), 4)
    await one.start(Path(sys.argv[2]).parent, ("sh", "-c", "echo up; sleep 600"), ranks_per_node=3)
    print(*[rank.pid for rank in one.ranks.ranks.values()], flush=True)
    await asyncio.sleep(600)
asyncio.run(body())
"""


def left_by_another(node: Path) -> list[int]:
    """Ranks whose agent was killed; their pids."""
    here = Path(__file__).parent
    agent = subprocess.Popen(
        [sys.executable, "-c", STARTER, here, node],
        stdout=subprocess.PIPE,
        text=True,
        cwd=here.parents[1],
    )
    assert agent.stdout is not None
    pids = [int(pid) for pid in agent.stdout.readline().split()]
    agent.kill()
    agent.wait()
    agent.stdout.close()
    assert len(pids) == 3
    return pids


def test_adoption(node: Path) -> None:
    pids = left_by_another(node)
    os.kill(pids[1], signal.SIGKILL)

    async def body() -> None:
        await until(lambda: procfs.state(pids[1]) in (None, "Z"))
        ends: list[RankEnd] = []
        ranks = adopt(node, NODE, RUN, ends.append)
        assert ranks is not None and (ranks.attempt, ranks.alive) == (4, 2)
        assert [rank.pid for rank in ranks.ranks.values()] == pids
        ranks.watch()
        await until(lambda: ends)
        assert ends == [RankEnd(rank=1, code=None, signal=None)]  # nobody saw how it ended
        os.kill(pids[2], signal.SIGKILL)
        await until(lambda: len(ends) == 2)
        assert ends[1] == RankEnd(rank=2, code=None, signal=None)
        assert await ranks.stop(5) == set()
        assert adopt(node, NODE, RUN, ends.append) is None  # they were stopped: no more to tell

    asyncio.run(body())
    assert all(procfs.state(pid) in (None, "Z") for pid in pids)


def test_a_pid_that_was_used_again_is_not_adopted(node: Path) -> None:
    """The start time tells."""
    pids = left_by_another(node)
    table = json.loads((node / "ranks.json").read_text())
    table["ranks"][0][1:] = [os.getpid(), table["ranks"][0][2]]
    table["ranks"][1][2] -= 1
    (node / "ranks.json").write_text(json.dumps(table))
    ranks = adopt(node, NODE, RUN, lambda end: None)
    assert ranks is not None
    assert [rank.alive for rank in ranks.ranks.values()] == [False, False, True]
    assert asyncio.run(ranks.stop(0)) == set()  # all of them by their mark, and not this process
    assert all(procfs.state(pid) in (None, "Z") for pid in pids)


@pytest.mark.parametrize(
    "ruin", ["", "{", "[]", "5", '{"attempt": 1}', '{"attempt": 1, "ranks": 3}']
)
def test_a_ruined_memory_is_none(node: Path, ruin: str) -> None:
    (node / "ranks.json").write_text(ruin)
    assert adopt(node, NODE, RUN, lambda end: None) is None


def test_nothing_to_adopt(node: Path) -> None:
    assert adopt(node, NODE, RUN, lambda end: None) is None


def test_old_attempts_are_forgotten_by_number(tmp_path: Path, node: Path) -> None:
    for attempt in (1, 2, 9_998, 9_999, 10_000, 10_001):
        attempt_dir(node, attempt).mkdir()
    for name in ("a00x1", "abc", "starter"):
        (node / name).mkdir()

    async def body() -> None:
        for attempt in range(10_002, 10_002 + KEPT):
            one = One(node, attempt)
            await one.start(tmp_path, ("true",), ranks_per_node=1)
            await until(lambda one=one: one.ends)

    asyncio.run(body())
    kept = {path.name for path in node.iterdir() if path.is_dir()}
    assert kept == {"a00x1", "abc", "starter", *(f"a{n}" for n in range(10_002, 10_012))}
