"""Every file and socket of a run is in the table, with its mode; no secret is where it may not be.

The umask is 0, so that no mode is right by chance.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from home import RunHome, until

from healthchecks.frame.state import default_folder
from supervisor.host.footprint import (
    CHECK,
    CODE,
    ENDS,
    FILES,
    HOOK,
    LOCAL,
    MOMENT,
    RUN,
    SECRET,
    WARM,
)
from tests.footprints import Seen, listening, row_of, shown, unexplained, walk

TRAINER = """
import os, time
time.sleep(0.1)
for step in range(1, 100_000):
    print(f"step: {step} loss: 1.0 {os.environ['HF']} {os.environ['WANDB_API_KEY']}", flush=True)
    os.makedirs(os.environ["SUPERV_SAVE_DIR"] + "/notes", exist_ok=True)
    time.sleep(0.05)
"""
BY_NAME, BY_FILE = "zq-planted-by-name", "zq-planted-by-file"
SHARED = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def places(home: RunHome) -> dict[str, str]:
    return {
        "state_dir": str(home.path / "state"),
        "node_dir": str(home.path / "nodes"),
        "fleet": str(home.path / "state/fleet.db"),
        "fleet_stem": str(home.path / "state/fleet"),
        "claims_dir": str(home.path / "claims"),
        "checkpoints": str(home.path / "checkpoint"),
        "health": str(default_folder()),
        "tmp": "/tmp",
    }


def there(home: RunHome) -> set[Seen]:
    """In the run's folders, and of superv's in the machine's shared ones."""
    given = (home.path / "nodes", home.path / "checkpoint")  # by the user
    mine = {s for s in walk(home.path / "state", *given) if Path(s.path) not in given}
    loose = [path for shared in SHARED for path in shared.glob("superv*") if path.is_file()]
    return mine | {s for s in walk(*loose) if s.owner == os.geteuid()}


def launch(home: RunHome, **more: str) -> list[str]:
    """What the commands said."""
    token = home.path / "token"
    token.touch(mode=0o600)
    token.write_text(f"{BY_FILE}\n")
    work = home.path / "work"
    work.mkdir()
    (work / "train.py").write_text(TRAINER)
    trainer = {
        "script": str(work / "train.py"),
        "python": sys.executable,
        "workdir": str(work),
        "ranks_per_node": 1,
        "preload": ["json"],
        **more,
        "env": {"WANDB_API_KEY": BY_NAME, "HF": {"secret": str(token)}},
    }
    saves = {"dir": str(home.path / "checkpoint"), "handoff": "env"}
    job = home.job(trainer=trainer, checkpoints=saves, nodes=2, spares=0)
    told = [home.superv("launch", "--dry-run", str(job))]
    told.append(home.superv("launch", "--detach", str(job)))
    return told


def test_the_table_explains_a_run_and_secrets_stay_in_it(home: RunHome, open_umask: None) -> None:
    told = launch(home)
    home.at_step(3)
    seen = there(home)
    argvs = home.processes()
    (table,) = (home.path / "nodes").glob("superv-*/local-2/ranks.json")
    os.kill(json.loads(table.read_text())["ranks"][0][1], signal.SIGKILL)
    home.reached(lambda s: s["attempt"] == 2 and s["step"] is not None, "new steps")
    argvs |= home.processes()
    seen |= there(home)
    net, unix = listening(home.processes())
    told += [home.superv("status", "ring"), home.superv("status", "ring", "--json")]
    told += [home.superv("launch", "--detach", str(home.path / "job.yaml"))]
    doctor = home.argv("doctor", str(home.path / "job.yaml"))  # says much, and may find faults
    done = subprocess.run(doctor, env=home.env, capture_output=True, text=True, timeout=120)
    told += [done.stdout + done.stderr]
    home.superv("stop", "ring", "--now")
    home.reached(lambda s: s["phase"] == "stopped", "the end")
    until(lambda: not home.processes(), "the end of all processes")
    after = there(home)
    told.append(home.superv("logs", "ring", "--attempt", "1", "--rank", "1"))  # which are kept
    seen |= after

    where = places(home)
    assert unexplained(seen, where, os.geteuid()) == []
    wanted = {row for row in FILES if row.shown_by in (RUN, CODE, LOCAL, SECRET, WARM)}
    assert {row.path for row in wanted - shown(seen, where)} == set(), "rows that no run shows"
    outlived = {r for r in shown(after, where) if r.until in (ENDS, MOMENT, "the engine's end")}
    assert outlived == set(), "left after the end"
    assert net == {"supervisor.engine.process", "supervisor.agent"}
    assert unix and all(row_of(path, "socket", where) for path in unix), unix

    assert "[hidden]" in told[-1], "the rank's last lines are there, without secrets"
    for text in (*told, *argvs.values()):
        assert "zq-planted" not in text
    holders = set()
    for one in there(home):
        if one.kind == "file" and b"zq-planted" in Path(one.path).read_bytes():
            holders.add(Path(one.path).name)
            assert one.mode & 0o077 == 0, one
    assert holders <= {"job.yaml", "secrets.json", "rank0.log", "rank1.log"}, holders


def test_what_checks_and_the_fleet_record_leave(home: RunHome, open_umask: None) -> None:
    health = home.path / "health"
    where = {**places(home), "health": str(health)}
    home.superv("exclude", "n1", "--reason", "a trial")
    check = home.argv("check", "--tags", "running", "--state", str(health))
    subprocess.run(check, env=home.env, capture_output=True, timeout=120)  # it may find faults
    seen = walk(home.path / "state", health)
    assert unexplained(seen, where, os.geteuid()) == []
    wanted = {row.path for row in FILES if row.shown_by == CHECK}
    assert wanted - {row.path for row in shown(seen, where)} == set()


def test_what_a_hook_adds(home: RunHome, open_umask: None) -> None:
    """Nothing of TorchTitan is imported: the hook says that its rank is there, and no more."""
    launch(home, hook="torchtitan")
    until(lambda: list(home.path.glob("nodes/superv-*/local-1/a*/rank0.state")), "a hooked rank")
    seen = there(home)
    assert unexplained(seen, places(home), os.geteuid()) == []
    wanted = {row.path for row in FILES if row.shown_by == HOOK}
    assert wanted - {row.path for row in shown(seen, places(home))} == set()
