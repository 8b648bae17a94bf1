"""Runs on this machine: launched, broken in every way that needs no root, recovered, stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from home import RunHome, until

from supervisor.core import events as ev
from supervisor.core.types import Phase
from supervisor.run.journal import read


def rank(home: RunHome, node: str) -> int:
    return min(home.processes(node, "ring.py"))


def test_to_the_end_of_training(home: RunHome) -> None:
    job = home.job("--steps", "12")
    told = home.superv("launch", str(job))  # standard output is no terminal: plain lines
    assert "run ring is done" in told
    assert "\x1b" not in told
    assert re.search(r"^\d\d:\d\d:\d\d.* first new step: \d+", told, re.MULTILINE)
    status = home.status()
    assert (status["phase"], status["incidents"]) == ("done", [])
    until(lambda: not home.processes(), "the end of all processes")
    records = read(home.run_dir / "journal.jsonl")
    ends = [r.event for r in records if isinstance(r.event, ev.RunEnded)]
    assert [event.phase for event in ends] == [Phase.DONE]


def test_a_killed_rank(home: RunHome) -> None:
    home.launched()
    home.at_step(15)
    os.kill(rank(home, "local-2"), signal.SIGKILL)
    after = home.reached(lambda s: s["attempt"] == 2 and s["step"] is not None, "new steps")
    (incident,) = after["incidents"]
    assert (incident["cause"], incident["culprits"]) == ("rank-exit", [])
    assert incident["resumed_from"] >= 10
    assert [slot["node"] for slot in after["slots"]] == ["local-1", "local-2"]
    assert after["spares"] == ["local-3"]


def test_a_cleaner_takes_all_that_lies_on_nodes(home: RunHome) -> None:
    """What is known of the job too: agents and engine put it back, and the run goes on."""
    home.launched()
    home.at_step(15)
    subprocess.run(["find", home.path / "nodes", "-mindepth", "1", "-delete"], check=False)
    os.kill(rank(home, "local-2"), signal.SIGKILL)
    after = home.reached(lambda s: s["attempt"] == 2 and s["step"] is not None, "new steps")
    (incident,) = after["incidents"]
    assert (incident["cause"], incident["culprits"]) == ("rank-exit", [])
    assert after["spares"] == ["local-3"] and len(after["allocations"]) == 1
    assert "somebody removed files of superv there; made again: " in home.log()
    home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes")
    assert home.status()["phase"] == "stopped"


def test_a_killed_agent_is_started_again_and_adopts_its_ranks(home: RunHome) -> None:
    before = home.launched()
    (agent,) = [
        pid
        for pid, argv in home.processes("local-1", "supervisor.agent").items()
        if "superv-agent" not in argv
    ]
    os.kill(agent, signal.SIGKILL)
    until(lambda: "local-1 registered again, holding 2 ranks of attempt 1" in home.log(), "adopted")
    after = home.at_step(before["step"] + 20)
    assert (after["attempt"], after["incidents"]) == (1, [])


def test_a_frozen_node_is_replaced_by_the_spare(home: RunHome) -> None:
    home.launched()
    home.at_step(15)
    home.signal("local-2", signal.SIGSTOP)
    after = home.reached(lambda s: s["attempt"] == 2 and s["step"] is not None, "new steps")
    (incident,) = after["incidents"]
    assert (incident["cause"], incident["culprits"]) == ("node-lost", ["local-2"])
    assert [slot["node"] for slot in after["slots"]] == ["local-1", "local-3"]
    assert [node["node"] for node in after["excluded"]] == ["local-2"]
    home.signal("local-2", signal.SIGCONT)
    assert "included local-2" in home.superv("include", "ring", "local-2")
    home.reached(lambda s: s["excluded"] == [] and s["spares"] == ["local-2"], "a spare again")
    assert "included local-2 again" in home.log()
    home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes, the frozen ones too")
    assert home.status()["phase"] == "stopped"


@pytest.mark.soak
def test_a_resumed_run_claims_no_longer_whom_it_includes(home: RunHome) -> None:
    claims = home.path / "claims"
    claims.mkdir()
    with (home.path / "site.yaml").open("a") as site:
        site.write(f"claims_dir: {claims}\n")
    home.launched()
    home.at_step(15)
    home.signal("local-2", signal.SIGSTOP)
    home.reached(lambda s: s["attempt"] == 2 and s["step"] is not None, "new steps")
    home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes, the frozen ones too")
    (told,) = claims.glob("*.json")
    assert [c["run"] for c in json.loads(told.read_text())["claims"]] == ["ring"]
    home.superv("resume", "ring", "--include", "local-2", "--detach")
    assert json.loads(told.read_text())["claims"] == []
    assert home.status()["excluded"] == []


def test_all_of_a_node_is_killed_and_its_agent_is_started_again(home: RunHome) -> None:
    home.launched()
    home.at_step(15)
    home.signal("local-2", signal.SIGKILL)
    after = home.reached(lambda s: s["attempt"] == 2 and s["step"] is not None, "new steps")
    assert sorted(slot["node"] for slot in after["slots"]) == ["local-1", "local-2"]
    assert until(lambda: home.processes("local-2", "ring.py"), "ranks on local-2")


def test_an_engine_outlives_who_started_it(home: RunHome) -> None:
    """`superv attach` cut short while the engine starts: nobody is left to hear that it did."""
    home.launched()
    home.kill_engine()
    until(lambda: not home.status()["engine"], "its end")
    ready, tell = os.pipe()
    os.close(ready)
    argv = [sys.executable, "-m", "supervisor.engine.process", str(home.run_dir), str(tell)]
    with (home.run_dir / "engine.log").open("ab") as log:
        child = subprocess.Popen(
            argv, env=home.env, pass_fds=(tell,), stdin=subprocess.DEVNULL, stdout=log
        )
    os.close(tell)
    home.at_step((home.status()["step"] or 0) + 20)
    assert home.superv("stop", "ring")
    assert child.wait(timeout=60) == 0


def test_ranks_do_not_need_the_engine(home: RunHome) -> None:
    before = home.launched()
    ranks = home.processes(words="ring.py")
    home.kill_engine()
    assert "none is running here" in home.superv("status", "ring")
    assert home.processes(words="ring.py") == ranks
    home.superv("launch", "--detach", str(home.path / "job.yaml"))
    after = home.at_step(before["step"] + 20)
    assert (after["attempt"], after["epoch"], after["incidents"]) == (1, 2, [])
    assert home.processes(words="ring.py") == ranks


def test_a_stop_ends_everything(home: RunHome) -> None:
    home.launched()
    assert "is being stopped" in home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes")
    status = home.status()
    assert status["phase"] == "stopped"
    assert {job["state"] for job in status["allocations"]} == {"ended"}


def test_nothing_secret_is_readable_or_visible(home: RunHome) -> None:
    home.launched()
    (keys,) = (home.path / "nodes").glob("superv-*/key")
    secret = re.search(r'"secret_key": ?"([^"]+)"', keys.read_text())
    assert secret is not None
    assert keys.stat().st_mode & 0o777 == 0o600
    for pid in home.processes():
        for name in ("environ", "cmdline"):
            assert secret[1].encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


def addresses(files: Iterable[Path]) -> set[str]:
    return {word for file in files for word in re.findall(r"127\.0\.0\.\d+", file.read_text())}


def test_every_node_has_a_directory_and_an_address_of_its_own(home: RunHome) -> None:
    status = home.launched()
    folders = {path.name for path in (home.path / "nodes").glob("superv-*/local-*/")}
    assert folders == {"local-1", "local-2", "local-3"}
    assert addresses([home.run_dir / "journal.jsonl"]) >= {"127.0.0.2", "127.0.0.3", "127.0.0.4"}
    assert [job["nodes"] for job in status["allocations"]] == [["local-1", "local-2", "local-3"]]


def test_options_for_slurm_are_refused(home: RunHome) -> None:
    job = home.job(slurm={"partition": "train"})
    told = home.superv("launch", str(job), rc=2)
    assert re.search(r"job.yaml:\d+: slurm: has no effect with launcher: local", told)
    assert not home.run_dir.exists()
