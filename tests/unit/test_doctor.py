"""The doctor, with programs on PATH and file trees where the world is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from healthchecks.frame.check import Status
from healthchecks.frame.report import Finding
from supervisor.config import Job, Site, load_site, parse_job
from supervisor.doctor import cluster, machine, node_probe, trainer
from supervisor.run import folder

CONFIG = """\
Configuration data as of 2026-01-01T00:00:00
AccountingStorageType   = accounting_storage/slurmdbd
JobRequeue              = 1
KillWait                = 30 sec
MaxStepCount            = 40000
MinJobAge               = 300 sec
ProctrackType           = proctrack/cgroup
PrologFlags             = Alloc,Contain
PropagateResourceLimits = ALL
SelectType              = select/cons_tres
SLURM_VERSION           = 22.05.8
SlurmdTimeout           = 300 sec
TaskPlugin              = task/cgroup,task/affinity
UnkillableStepTimeout   = 120 sec
"""
SINFO = """\
case "$*" in
  *--Node*)
    for n in 1 2 3; do echo "gpu$n|train*|idle|0/4/0/4|gpu:8|none"; done
    echo 'gpu4|train*|drained|0/0/4/4|gpu:8|fan' ;;
  *) echo 'train*|gpu[1-4]'; echo 'debug|gpu1' ;;
esac
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "site.yaml").write_text(f"state_dir: {tmp_path}/state\nnode_dir: {tmp_path}\n")
    return load_site({"SUPERV_SITE": str(tmp_path / "site.yaml"), "HOME": str(tmp_path)})


class PathPrograms:
    """A folder in front of PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        for tool in cluster.TOOLS:
            self.put(tool, "exit 1")
        self.put("scontrol", f"cat <<'END'\n{CONFIG}END")
        self.put("sinfo", SINFO)

    def put(self, name: str, body: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PathPrograms:
    return PathPrograms(tmp_path / "bin", monkeypatch)


def job(folder: Path, text: str = "trainer: {command: [sleep, '1']}", **more: object) -> Job:
    keys = {"name": "ring", "nodes": 2, **more}
    whole = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()) + text + "\n"
    return parse_job(whole, folder / "job.yaml")


def of(check: str, found: list[Finding]) -> Finding:
    (one,) = [finding for finding in found if finding.check == check]
    return one


# --- Slurm ---


def test_a_good_cluster(programs: PathPrograms, tmp_path: Path) -> None:
    found = asyncio.run(cluster.look(job(tmp_path)))
    assert {finding.status for finding in found} == {Status.OK}
    assert of("slurm", found).result.seen.startswith("Slurm 22.05.8 answers (superv is tested on")
    assert of("partition", found).result.seen == "train: 4 nodes, 3 usable, 2 wanted (not gpu4)"
    assert {setting.key for setting in cluster.SETTINGS} < {finding.check for finding in found}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("SlurmdTimeout", "0 sec", "never takes a node for dead"),
        ("KillWait", "5 sec", "gives its ranks 10 s"),
        ("UnkillableStepTimeout", "30 sec", "a node is drained"),
        ("MinJobAge", "2 sec", "can't tell how its job ended"),
        ("MaxStepCount", "40", "run out of steps"),
        ("PrologFlags", "Alloc,Serial", "one after the other"),
        ("ProctrackType", "proctrack/linuxproc", "outlives its job"),
        ("AccountingStorageType", "accounting_storage/none", "is UNKNOWN"),
        ("AccountingStorageType", "(null)", "is UNKNOWN"),
    ],
)
def test_a_setting_to_look_at(key: str, value: str, says: str) -> None:
    (setting,) = [setting for setting in cluster.SETTINGS if setting.key == key]
    found = cluster.judge(setting, {key: value})
    assert (found.status, says in found.result.seen, bool(found.result.fix)) == (
        Status.WARN,
        True,
        True,
    )
    assert cluster.judge(setting, {}).status is Status.UNKNOWN
    assert cluster.judge(setting, cluster.parse(CONFIG)).status is Status.OK


def test_tools_that_are_missing_are_named(
    programs: PathPrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs.folder / "sbcast").unlink()
    monkeypatch.setenv("PATH", str(programs.folder))
    (found,) = asyncio.run(cluster.look(None))
    assert (found.status, found.result.seen) == (Status.FAIL, "not on PATH: sbcast")


@pytest.mark.parametrize(
    ("program", "state", "says"),
    [
        ("sleep 60", Status.UNKNOWN, "scontrol did not answer within"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", Status.UNKNOWN, "Unable to"),
        (
            "echo 'Could not establish a configuration source' >&2; exit 1",
            Status.UNKNOWN,
            "there is no slurm.conf here",
        ),
        (
            "echo 'scontrol: error: s_p_parse_file: cannot stat file /x/slurm.conf: No such file or"
            " directory, retrying in 1sec up to 60sec' >&2; sleep 60",
            Status.UNKNOWN,
            "no slurm.conf here, nor a server that gives one: scontrol did not answer within",
        ),
        (
            "echo 'scontrol: error: _xgetaddrinfo: getaddrinfo() failed: Temporary failure in name "
            "resolution: Resource temporarily unavailable, attempt number -4' >&2; sleep 60",
            Status.UNKNOWN,
            "the name of slurmctld's machine can't be resolved",
        ),
        ("exec false", Status.UNKNOWN, "ended with 1"),
    ],
)
def test_a_slurm_that_does_not_answer(
    programs: PathPrograms, program: str, state: Status, says: str
) -> None:
    programs.put("scontrol", program)
    (found,) = asyncio.run(cluster.look(None, deadline_s=0.5))
    assert (found.check, found.status) == ("slurm", state)
    assert says in found.result.seen


def test_an_old_slurm(programs: PathPrograms) -> None:
    programs.put("scontrol", "echo 'SLURM_VERSION = 20.02.7'")
    assert of("slurm", asyncio.run(cluster.look(None))).status is Status.FAIL


@pytest.mark.parametrize(
    ("more", "state", "says"),
    [
        ({"slurm": {"partition": "nope"}}, Status.FAIL, "'nope' is unknown; there: debug, train"),
        ({"nodes": 5, "spares": 1}, Status.FAIL, "train has 4 nodes, the job needs 5"),
        ({"nodes": 4, "spares": 1}, Status.WARN, "4 nodes, the job wants 5: it gets fewer spares"),
        ({"nodes": 3, "spares": 1}, Status.WARN, "4 nodes, 3 usable, 4 wanted"),
    ],
)
def test_the_jobs_partition(
    programs: PathPrograms, tmp_path: Path, more: dict[str, object], state: Status, says: str
) -> None:
    found = of("partition", asyncio.run(cluster.look(job(tmp_path, **more))))
    assert (found.status, says in found.result.seen) == (state, True), found.result.seen


# --- this machine ---


def test_supervisord_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {f.status for f in machine.packages() if f.check != "as root"}  # a clone may be in /tmp
    assert seen == {Status.OK}
    info = tmp_path / "supervisor-4.2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: supervisor\nVersion: 4.2.5\n")
    (info / "RECORD").write_text("supervisor/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = of("packages", machine.packages())
    assert (found.status, "supervisor 4.2.5 installs" in found.result.seen) == (Status.FAIL, True)


@pytest.mark.parametrize(
    ("stat", "state", "says"),
    [
        ("echo 'nfs|99999999|4096'", Status.FAIL, "is on nfs, not on a local disk"),
        ("echo 'lustre|99999999|4096'", Status.FAIL, "is on lustre"),
        ("echo 'gpfs|99999999|4096'", Status.FAIL, "is on gpfs"),
        ("echo 'tmpfs|99999999|4096'", Status.WARN, "a reboot forgets the runs"),
        ("echo 'UNKNOWN (0x1983)|99999999|4096'", Status.UNKNOWN, "is that a local disk?"),
        ("echo 'ext2/ext3|100000|4096'", Status.WARN, "409 MB are free"),
        ("echo 'xfs|1000|4096'", Status.FAIL, "4 MB are free"),
        ("echo 'xfs|99999999|4096'", Status.OK, "(xfs, 409 GB free)"),
        ("sleep 60", Status.UNKNOWN, "did not answer within"),
    ],
)
def test_where_the_state_directory_is(
    programs: PathPrograms, site: Site, stat: str, state: Status, says: str
) -> None:
    programs.put("stat", stat)
    (found,) = asyncio.run(machine.state(site, None))
    assert (found.check, found.status) == ("state_dir", state)
    assert says in found.result.seen


def test_a_state_directory_that_others_may_write(site: Site) -> None:
    site.state_dir.chmod(0o777)
    (found,) = asyncio.run(machine.state(site, None))
    assert (found.status, found.result.fix) == (Status.FAIL, folder.MINE)
    assert found.result.seen == f"{site.state_dir} has mode 0777: others may write there"


def test_keys_that_others_may_read(site: Site) -> None:
    run = site.state_dir / "runs/ring"
    run.mkdir(parents=True)
    (run / "journal.jsonl").touch()
    run.chmod(0o755)
    (found,) = asyncio.run(machine.state(site, None))
    assert (found.status, "holds keys" in found.result.seen) == (Status.FAIL, True)


def test_a_state_directory_that_is_not_there_yet(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tmp_path = tmp_path_factory.mktemp("h")  # short: a socket's path has 107 bytes
    site = load_site({"HOME": str(tmp_path)}, tmp_path / "none.yaml")
    (found,) = asyncio.run(machine.state(site, None))
    assert (found.status, "not there yet" in found.result.seen) == (Status.OK, True)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    site = load_site({"XDG_STATE_HOME": str(tmp_path / ("x" * 90))}, tmp_path / "none.yaml")
    (found,) = asyncio.run(machine.state(site, None))
    assert (found.status, "longer than a socket's path" in found.result.seen) == (Status.FAIL, True)


def site_of(tmp_path: Path, text: str) -> Site:
    (tmp_path / "s.yaml").write_text(text)
    env = {"SUPERV_SITE": str(tmp_path / "s.yaml"), "HOME": str(tmp_path)}
    return load_site(env, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("address", "state", "says"),
    [
        ("203.0.113.9", Status.FAIL, "is no address of this machine"),
        ("no-such-host.invalid", Status.FAIL, "no-such-host.invalid"),
        ("lo", Status.OK, "127.0.0.1 (engine_address: lo, interface lo), port 20000"),
    ],
)
def test_the_engines_address(tmp_path: Path, address: str, state: Status, says: str) -> None:
    (found,) = machine.address(site_of(tmp_path, f"engine_address: {address}\n"), None)
    assert (found.check, found.status) == ("engine_address", state)
    assert says in found.result.seen or found.result.seen.endswith(" is free")


def test_no_port_is_free(tmp_path: Path) -> None:
    site = site_of(tmp_path, "engine_address: lo\nengine_ports: 21000-21015\n")
    taken = []
    for port in range(21000, 21016):
        taken.append(socket.socket())
        with contextlib.suppress(OSError):  # somebody else has it: it is not free either
            taken[-1].bind(("127.0.0.1", port))
    (found,) = machine.address(site, None)
    for one in taken:
        one.close()
    assert (found.status, found.result.seen) == (
        Status.FAIL,
        "no port of 21000-21015 is free on 127.0.0.1",
    )


def test_ports_that_the_kernel_gives_away(tmp_path: Path) -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    site = site_of(tmp_path, f"rank_ports: {first + 10}-{last - 10}\n")
    found = of("rank_ports", machine.ports(site))
    assert (found.status, f"{first + 10}-{last - 10} to outgoing" in found.result.seen) == (
        Status.WARN,
        True,
    )


# --- the trainer ---


def looked(folder: Path, text: str, **how: float) -> Finding:
    return of("trainer", asyncio.run(trainer.look(job(folder, text, launcher="local"), **how)))


def trained(**keys: object) -> str:
    return f"trainer: {json.dumps({'python': sys.executable, **keys})}"


def test_modules_are_imported_where_the_trainer_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("print('noise')")
    found = looked(tmp_path, trained(module="mine"))
    assert (found.status, found.result.seen.endswith("; mine can be imported")) == (Status.OK, True)


@pytest.mark.parametrize(
    ("code", "state", "says"),
    [
        ("import no_such_module", Status.FAIL, "ModuleNotFoundError: No module named 'no_such"),
        ("raise RuntimeError('no\\nGPU')", Status.WARN, "importing mine: RuntimeError: no"),
        ("import sys; sys.exit(3)", Status.WARN, "SystemExit: 3"),
        ("import os; os._exit(4)", Status.FAIL, "ended with 4"),
        ("import time; time.sleep(60)", Status.UNKNOWN, "were not imported here within"),
    ],
)
def test_modules_that_do_not_import(tmp_path: Path, code: str, state: Status, says: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    found = looked(tmp_path, trained(module="mine"), deadline_s=3.0)
    assert (found.status, says in found.result.seen) == (state, True), found.result.seen


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainer: {module: x, python: /nowhere/python}", "/nowhere/python: not there"),
        ("trainer: {script: gone.py}", "gone.py: not there"),
    ],
)
def test_a_trainer_that_is_not_there(tmp_path: Path, text: str, says: str) -> None:
    found = looked(tmp_path, text)
    assert (found.status, says in found.result.seen) == (Status.FAIL, True)


# --- the probe ---


def test_without_a_probe_it_says_how(site: Site) -> None:
    (found,) = asyncio.run(node_probe.look(None, site, probe=False))
    assert (found.check, found.status, "--probe" in found.result.fix) == (
        "channel",
        Status.UNKNOWN,
        True,
    )


@pytest.mark.parametrize(
    ("srun", "check", "state", "says"),
    [
        ("echo 'srun: error: Unable to allocate resources: Requested nodes are busy' >&2; exit 1",
         "channel", Status.UNKNOWN, "no node was free"),
        ("echo 'python: No module named supervisor' >&2; exit 1",
         "superv on nodes", Status.FAIL, "has no superv"),
        ("echo 'slurmstepd: error: execve(): /x/python: No such file or directory' >&2; exit 2",
         "superv on nodes", Status.FAIL, "is not on the node"),
        ("echo 'superv doctor on gpu1: [Errno 113] No route to host' >&2; exit 1",
         "node to engine", Status.FAIL, "can't reach 127.0.0.1:20"),
        ("echo 'srun: error: Invalid account' >&2; exit 1", "channel", Status.FAIL, "Invalid acc"),
    ],
)  # fmt: skip
def test_a_probe_that_does_not_call(
    programs: PathPrograms, tmp_path: Path, srun: str, check: str, state: Status, says: str
) -> None:
    programs.put("srun", srun)
    site = site_of(tmp_path, "engine_address: lo\n")
    (found,) = asyncio.run(node_probe.look(None, site, probe=True))
    assert (found.check, found.status, says in found.result.seen) == (check, state, True), (
        found.result.seen
    )


def test_a_probe_whose_node_is_this_machine(
    programs: PathPrograms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun is a program that starts the probe's other side here."""
    monkeypatch.setenv("SECRET_OF_MINE", "not for argv")
    run = '''
    for w; do case $w in *secret*) exit 9;; --*) shift;; *) break;; esac; done
    echo "$@" > "$(dirname "$0")/argv"; exec "$@"'''
    programs.put("srun", run)
    site = site_of(tmp_path, f"engine_address: lo\nnode_dir: {tmp_path}\n")
    text = trained(module="json") + "\n"
    made = job(tmp_path, text.replace('"module"', '"env": {"KEY": "a-secret"}, "module"'))
    found = asyncio.run(node_probe.look(made, site, probe=True))
    assert [f.check for f in found][:4] == [
        *("node to engine", "engine to node", "clocks", "superv on nodes")
    ]
    assert {f.status for f in found if f.check != "node"} == {Status.OK}, found
    assert of("trainer", found).result.seen.endswith("; json can be imported")
    assert "a-secret" not in (programs.folder / "argv").read_text()


def test_clocks_are_judged_by_what_is_certain() -> None:
    assert node_probe.clock(0.001, 0.5).status is Status.OK
    assert node_probe.clock(0.001, -3.0).status is Status.WARN
    assert node_probe.clock(10.0, 3.0).status is Status.OK  # half of the trip may be all of it


def test_another_version_on_the_node() -> None:
    told = {
        **{"node": "n1", "version": "0.0.1", "problems": ["memlock is limited"]},
        **{"node_dir": "nfs|99999999|4096", "node_dir_why": "", "node_dir_writable": True},
    }
    found = node_probe.facts(told)
    assert of("superv on nodes", found).status is Status.FAIL
    assert of("node_dir", found).status is Status.FAIL
    assert of("node", found).status is Status.WARN


# --- the command ---


def doctor(site: Site, tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {
        "SUPERV_SITE": str(tmp_path / "site.yaml"),
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run(
        [sys.executable, "-m", "supervisor.cli", "doctor", *argv],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_json_and_exit_codes(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(job(tmp_path, launcher="local").source)
    done = doctor(site, tmp_path, "--json", str(path))
    told = json.loads(done.stdout)
    assert (done.returncode, told["schema"], told["ok"]) == (0, 1, True)
    assert {tuple(row) for row in told["findings"]} == {("check", "state", "text", "fix")}
    site.state_dir.chmod(0o777)
    done = doctor(site, tmp_path, "--json", str(path))
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (1, False)


def test_the_table_fits_and_ends_with_a_tally(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(job(tmp_path, launcher="local").source)
    done = doctor(site, tmp_path, str(path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "0 failed, 0 unknown" in lines[-1]
    bad = doctor(site, tmp_path, str(tmp_path / "none.yaml"))
    assert (bad.returncode, "no such file" in bad.stderr) == (2, True)
