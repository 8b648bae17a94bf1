"""`superv prolog` and `superv healthcheck`: in time and harmless, whatever is wrong on the node."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding, Report
from supervisor.fleet.brake import Brake, leave
from supervisor.host import procfs
from tests.hardware.nvml import build, environment

HUNG = Path(__file__).with_name("hung_fuse.py")
BAD = {"nvme": {"count": 99}}  # disks that this machine has not: the node's own fault
FULL = {"fs.local": {"fail_percent": 0, "warn_percent": 0}}  # what a user could do
LONGEST_S = {"prolog": 30, "healthcheck": 60}  # far more than it takes; Slurm kills at 60 s


class NodeWithSlurm:
    """A node with a site file, and a Slurm that keeps what it is told."""

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, path / "health"
        self.site()
        self.put("sinfo", "echo 'n1|main*|idle|0/4/0/4|gpu:8|none'")
        told = shlex.quote(str(path / "told"))  # a check may ask it, too
        self.put("scontrol", f'[ "$1" != update ] || echo "$@" >> {told}')

    def put(self, name: str, body: str) -> None:
        (self.path / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.path / name).chmod(0o755)

    def site(
        self,
        checks: dict[str, Any] | None = None,
        drain: str = "on",
        again_s: float = 0,
        **more: Any,
    ) -> None:
        rule = {"mode": drain, "look_again_s": again_s}
        told = {"state_dir": str(self.path / "state"), "drain": rule, "checks": checks or {}}
        (self.path / "site.yaml").write_text(yaml.safe_dump(told | more))

    def run(self, command: str, *before: str, **more: str) -> subprocess.CompletedProcess[str]:
        argv = [*before, sys.executable, "-m", "supervisor.cli", command]
        env = {
            "PATH": f"{self.path}:/usr/bin:/bin:/usr/sbin:/sbin",
            "SLURMD_NODENAME": "n1",
        }
        words = ["--state", str(self.state), "--site", str(self.path / "site.yaml")]
        return subprocess.run(
            [*argv, *words],
            env=env | more,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=LONGEST_S[command],
        )

    @property
    def told(self) -> list[str]:
        path = self.path / "told"
        return path.read_text().splitlines() if path.exists() else []

    def last_look(self, status: Status, at: float) -> None:
        """What the HealthCheckProgram has left."""
        found = Finding(check="nvme", result=Result(status=status, seen="no disk"))
        report = Report(node="n1", at=at, findings=(found,), tags=("preflight",), boot_id=BOOT)
        self.state.mkdir(mode=0o700)
        (self.state / "n1.json").write_text(
            json.dumps(
                {
                    "boot_id": BOOT,
                    "memories": {},
                    "stuck": [],
                    "last": {"preflight": report.document()},
                }
            )
        )
        faults = {"nvme": [at - 300, at]}
        (self.state / "suspects.json").write_text(json.dumps({"boot_id": BOOT, "faults": faults}))
        self.counted(0, at)

    def counted(self, count: int, at: float) -> None:
        """What the HealthCheckProgram has counted."""
        names = tuple(f"n{10 + i}" for i in range(count))
        leave(self.state, Brake(at=at, count=count, total=63, limit=3, nodes=names))


BOOT = procfs.boot_id()


@pytest.fixture
def node() -> Iterator[NodeWithSlurm]:
    """Where root trusts it: /tmp is everybody's."""
    root = os.geteuid() == 0
    path = Path(tempfile.mkdtemp(prefix="superv-test-", dir="/srv" if root else None))
    yield NodeWithSlurm(path)
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("status", "age_s", "code"),
    [(Status.FAIL, 60, 1), (Status.FAIL, 1000, 0), (Status.UNKNOWN, 60, 0), (Status.OK, 60, 0)],
)
def test_the_prolog_goes_by_the_last_full_look_if_it_is_recent(
    node: NodeWithSlurm, status: Status, age_s: float, code: int
) -> None:
    node.last_look(status, time.time() - age_s)
    done = node.run("prolog")
    assert done.returncode == code, done.stderr
    assert ("n1: nvme: no disk" in done.stderr) == bool(code)
    assert node.told == []  # a Prolog must not call scontrol


def _no_count(node: NodeWithSlurm) -> None:
    (node.state / "brake.json").unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda node: node.site(drain="off"), "drain is off in site.yaml"),
        (_no_count, "nobody has counted superv's drains yet (superv healthcheck leaves"),
        (lambda node: node.counted(0, time.time() - 1000), "superv's drains were counted at"),
        (lambda node: node.counted(0, time.time() + 1000), "superv's drains were counted at"),
        (lambda node: node.counted(3, time.time()), "the drain brake holds: 3 of 63 nodes are"),
        (lambda node: (node.state / "brake.json").write_text("{"), "can't be read"),
    ],
)
def test_the_prolog_fails_nobody_without_the_sites_word_and_room_for_one_more(
    node: NodeWithSlurm, change: Callable[[NodeWithSlurm], object], why: str
) -> None:
    node.last_look(Status.FAIL, time.time() - 60)
    change(node)
    done = node.run("prolog")
    assert done.returncode == 0
    assert "n1: nvme: no disk; the job may begin all the same: " in done.stderr
    assert why in done.stderr and done.stderr.count("\n") == 1


def test_what_only_the_last_look_found_fails_no_prolog(node: NodeWithSlurm) -> None:
    node.last_look(Status.FAIL, time.time() - 60)
    (node.state / "suspects.json").unlink()
    done = node.run("prolog")
    assert (done.returncode, done.stderr) == (0, "")


def test_slurms_programs_read_one_site_file_and_say_what_they_do_not_heed(
    node: NodeWithSlurm,
) -> None:
    theirs = node.path / "theirs.yaml"
    theirs.write_text("nonsense: 1\n")
    done = node.run("prolog", SUPERV_SITE=str(theirs), XDG_CONFIG_HOME="/x")
    assert done.returncode == 0
    assert f"SUPERV_SITE is not heeded: only {node.path}/site.yaml is read" in done.stderr
    assert "XDG_CONFIG_HOME is not heeded" in done.stderr and "nonsense" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("command", ["prolog", "healthcheck"])
def test_a_site_file_that_another_user_could_change_is_not_read(
    node: NodeWithSlurm, command: str
) -> None:
    node.site(BAD)
    os.chown(node.path / "site.yaml", 54321, 54321)
    done = node.run(command)
    assert done.returncode == (0 if command == "prolog" else 2) and node.told == []
    assert "site.yaml belongs to user 54321 (mode 0644)" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["checks: {nfs.alive: {no_such_key: 1}}", "nonsense: 1", "drain: [", "checks: {x: {}}"]
)
def test_a_mistake_in_site_yaml_drains_no_node(node: NodeWithSlurm, text: str) -> None:
    (node.path / "site.yaml").write_text(text)
    done = node.run("prolog")
    assert done.returncode == 0 and "the job may begin" in done.stderr
    assert done.stderr.count("\n") == 1
    assert node.run("healthcheck").returncode == 2 and node.told == []


@pytest.mark.parametrize("command", ["prolog", "healthcheck"])
def test_a_state_folder_that_can_not_be_used_drains_nobody(
    node: NodeWithSlurm, command: str
) -> None:
    node.site(BAD)
    node.state.write_text("a file, and no folder")
    done = node.run(command)
    assert node.told == []
    assert done.returncode == (0 if command == "prolog" else 1)
    if command == "healthcheck":
        assert "nothing is drained or resumed" in done.stdout


def test_a_healthcheck_drains_what_two_looks_found(node: NodeWithSlurm) -> None:
    node.site(BAD)
    done = node.run("healthcheck")
    assert done.returncode == 1 and "n1: drained: superv: nvme: " in done.stdout, done
    assert node.told[0].startswith("update NodeName=n1 State=DRAIN Reason=superv: nvme: ")
    counted = json.loads((node.state / "brake.json").read_text())
    assert (counted["count"], counted["total"], counted["limit"]) == (0, 1, 2)


def test_the_second_look_is_apart_in_time(node: NodeWithSlurm) -> None:
    node.site(BAD, again_s=3600)
    for _ in range(2):
        done = node.run("healthcheck")
        assert done.returncode == 1 and node.told == []
        assert "nothing is done for it until it is found again, 3600 s later" in done.stdout
    kept = json.loads((node.state / "suspects.json").read_text())
    kept["faults"]["nvme"][0] -= 3700
    (node.state / "suspects.json").write_text(json.dumps(kept))
    assert "n1: drained" in node.run("healthcheck").stdout and len(node.told) == 1


def test_a_brake_that_holds_is_told_and_left_for_the_prolog(node: NodeWithSlurm) -> None:
    node.site(BAD)
    rows = [f"n{i}|main*|drained|0/4/0/4|gpu:8|superv: gpu.count: 7 of 8" for i in (2, 3)]
    rows.append("n1|main*|idle|0/4/0/4|gpu:8|none")
    node.put("sinfo", "; ".join(f"echo '{row}'" for row in rows))
    done = node.run("healthcheck")
    assert done.returncode == 1 and node.told == []
    assert "1 node not drained (n1): the drain brake holds: 2 of 3 nodes are drained" in done.stdout
    held = node.run("prolog")
    assert held.returncode == 0


def test_a_disk_that_a_user_filled_drains_nobody(node: NodeWithSlurm) -> None:
    node.site(FULL)
    for _ in range(2):
        done = node.run("healthcheck")
        said = [line for line in done.stdout.splitlines() if "not measured" not in line]
        assert done.returncode == 1 and said == [] and node.told == []
    assert node.run("prolog").returncode == 0


def test_a_slurm_that_hangs_costs_its_deadline(node: NodeWithSlurm) -> None:
    node.site(BAD)
    node.put("sinfo", "exec sleep 600")
    done = node.run("healthcheck")
    assert done.returncode == 1 and "sinfo did not answer within" in done.stdout
    assert node.told == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("command", ["prolog", pytest.param("healthcheck", marks=pytest.mark.soak)])
def test_a_hung_mount_and_a_hung_command_cost_their_deadline(
    node: NodeWithSlurm, command: str
) -> None:
    folder = node.path / "hung"
    folder.mkdir()
    for program in ("slurmd", "scontrol", "sinfo"):
        node.put(program, "exec sleep 600")
    node.site({"nfs.alive": {"paths": [str(folder)]}})
    done = node.run(command, sys.executable, str(HUNG), str(folder))
    if done.returncode == 77:
        pytest.skip("no FUSE here")
    assert done.returncode in (0, 1), done.stderr
    last = json.loads(
        (node.state / ("prolog" if command == "prolog" else "") / "n1.json").read_text()
    )
    [(tag, report)] = last["last"].items()
    by_name = {f"{r['check']}[{r.get('on', '')}]": r for r in report["results"]}
    hung = by_name[f"nfs.alive[{folder}]"]
    assert hung["status"] in ("FAIL", "UNKNOWN"), hung
    if tag == "preflight":  # else a job's step runs on this machine: another test's
        drift = by_name["slurm.drift[]"]  # it does not apply where no slurmd runs
        assert drift["status"] == "UNKNOWN" or "slurmd does not run here" in drift["seen"]
    if command == "healthcheck":
        assert "nothing is drained" in done.stdout


# --- a driver that answers slowly: eight GPUs, and milliseconds that each call takes


@pytest.fixture(scope="module")
def nvml() -> Iterator[Path]:
    """Where root trusts it."""
    root = os.geteuid() == 0
    path = Path(tempfile.mkdtemp(prefix="superv-nvml-", dir="/srv" if root else None))
    yield build(path)
    shutil.rmtree(path)


PROLOG_ON_GPUS = """
import json, sys
from pathlib import Path
from supervisor.config import Site
from supervisor.fleet.slurm_programs import prolog
from tests.hardware import tree
path = Path(sys.argv[1])
root = tree.healthy(path).root
found = prolog("n1", {}, Site(state_dir=path), path / "health", 0.0, root=root)
status = {f.name: f.status.value for f in found.report.findings}
print(json.dumps({"status": status, "fails": found.fails, "text": found.text()}))
"""


@pytest.mark.parametrize(
    ("delay_ms", "judged"),
    [
        pytest.param(0, True, marks=pytest.mark.soak),
        (400, False),
        pytest.param(100_000, False, marks=pytest.mark.soak),
    ],
)
def test_what_a_slow_driver_leaves_open_is_said_and_never_ok(
    node: NodeWithSlurm, nvml: Path, delay_ms: int, judged: bool
) -> None:
    """Every call takes so long; gpu.handle alone asks each of eight GPUs."""
    script = node.path / "nvml.script"
    script.write_text(f"* * delay {delay_ms}\n")
    (node.path / "site.yaml").write_text(yaml.safe_dump({"state_dir": str(node.path / "state")}))
    env = environment(nvml, script)
    done = subprocess.run(
        [sys.executable, "-c", PROLOG_ON_GPUS, str(node.path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    gpu = {name: status for name, status in found["status"].items() if name.startswith("gpu.")}
    assert found["fails"] is False
    late = {name for name, status in gpu.items() if status == "UNKNOWN"}
    assert set(gpu.values()) <= {"OK", "SKIP", "UNKNOWN"}
    if late:
        assert "not judged within 2 s" in found["text"]
        assert all(name in found["text"] for name in late), found["text"]
    if not judged:
        assert "gpu.handle" in late
        assert set(gpu) - late <= {"gpu.driver_hang", "gpu.count"}  # what a call or two can tell
