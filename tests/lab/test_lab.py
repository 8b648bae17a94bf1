"""The lab itself, on the real thing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import leftovers
import pytest
from click.testing import CliRunner
from runs import SETTINGS

from lab import build, packages
from lab.cluster import Lab, exposed_by_default
from lab.faults import read as read_faults
from lab.layout import BASE
from lab.node import boot_pids
from supervisor.cli.lab import lab as cli
from supervisor.core.errors import UserError
from tests.processes import send

pytestmark = pytest.mark.lab
REPO = Path(__file__).resolve().parents[2]
MakeLab = Callable[..., Lab]


def ok(lab: Lab, node: str, *argv: str, **wishes: object) -> str:
    done = lab.run(node, argv, **wishes)  # type: ignore[arg-type]
    assert done.rc == 0, done.why()
    return done.out


def each(lab: Lab, *argv: str) -> list[str]:
    """One line from every compute node, through Slurm."""
    return ok(lab, "login", "srun", f"-N{len(lab.compute)}", "--label", *argv).splitlines()


def own(lab: Lab, node: str, folder: str) -> set[str]:
    """What a node's own folder holds, but the way to what the lab shows there at its own place.

    A checkout, or a Python, below the machine's /tmp is such a thing.
    """
    shown = [Path(path) for path in lab.spec().exposed]
    ways = {p.relative_to(folder).parts[0] for p in shown if p.is_relative_to(folder)}
    return set(ok(lab, node, "ls", "-A", folder).splitlines()) - ways


def until(reached: Callable[[], bool], within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.05)


@pytest.fixture
def line() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program and read its lines; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(argv: list[str]) -> subprocess.Popen[str]:
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


# --- nodes ---


def test_status_shows_idle_nodes(lab: Lab) -> None:
    seen = lab.status()
    assert seen.controller == "running"
    assert [node.name for node in seen.nodes] == ["ctl", "login", "n1", "n2", "n3"]
    assert [node.slurm for node in seen.nodes] == [None, None, "idle", "idle", "idle"]
    assert {(node.power, node.cable) for node in seen.nodes} == {("on", "up")}


@pytest.mark.both
def test_jobs_run_as_the_ordinary_user_on_every_node(lab: Lab) -> None:
    lines = each(lab, "sh", "-c", 'echo "$(hostname) $(id -un) $HOME"')
    assert sorted(lines) == [f"{i}: n{i + 1} superv {lab.home}" for i in range(3)]


@pytest.mark.both
def test_slurm_grants_gpus(lab: Lab) -> None:
    out = ok(lab, "login", "srun", "--gres=gpu:8", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert out == "0,1,2,3,4,5,6,7\n"


@pytest.mark.only("plain")  # the user reads the kernel log
def test_every_node_has_its_own_things(lab: Lab) -> None:
    folders = ("/tmp", "/dev/shm", "/var/tmp")
    for node in lab.compute:
        ok(lab, node, "touch", *(f"{folder}/of-{node}" for folder in folders))
        (lab.layout.node(node) / "kmsg").write_text(f"6,1,1,-;{node} says\n")
    try:
        for node in lab.compute:
            assert {f: own(lab, node, f) for f in folders} == {f: {f"of-{node}"} for f in folders}
            assert set(ok(lab, node, "ls", "/sys/class/net").split()) == {"eth0", "lo"}
            assert ok(lab, node, "cat", "/dev/kmsg") == f"6,1,1,-;{node} says\n"
        boot_ids = {ok(lab, n, "cat", "/proc/sys/kernel/random/boot_id") for n in lab.compute}
        machine = Path("/proc/sys/kernel/random/boot_id").read_text()
        assert len(boot_ids | {machine}) == 4
    finally:
        for node in lab.compute:
            ok(lab, node, "rm", "-f", *(f"{folder}/of-{node}" for folder in folders))
            (lab.layout.node(node) / "kmsg").write_text("")


def test_a_node_sees_only_its_own_processes(lab: Lab) -> None:
    argv = ok(lab, "n1", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
    assert "n1" in argv.split() and "n2" not in argv.split() and "slurmctld" not in argv.split()


def test_the_shared_folder_is_shared_and_a_mount(lab: Lab) -> None:
    ok(lab, "n1", "sh", "-c", f"echo 1 >{lab.shared}/seen")
    assert ok(lab, "n2", "cat", f"{lab.shared}/seen") == "1\n"
    ok(lab, "n3", "rm", f"{lab.shared}/seen")
    assert ok(lab, "n3", "mountpoint", "-q", str(lab.shared)) == ""


def test_a_machine_that_gets_a_user_takes_none_from_nodes(lab: Lab) -> None:
    """useradd and passwd put a new file in the place of /etc/passwd."""
    with open("/etc/.pwd.lock", "a") as lock:  # lckpwdf(3): nobody changes them meanwhile
        fcntl.lockf(lock, fcntl.LOCK_EX)
        for path in (Path("/etc/passwd"), Path("/etc/group")):
            new = path.with_name(f"{path.name}.superv-test")
            shutil.copy2(path, new)
            new.replace(path)
    for node in ("ctl", "login", *lab.compute):
        assert ok(lab, node, "id", "-un", "superv") == "superv\n"
    assert sorted(each(lab, "id", "-un")) == [f"{i}: superv" for i in range(3)]
    assert "ctl" in ok(lab, "n1", "getent", "hosts", "ctl")


def test_what_a_node_writes_to_its_etc_is_its_own(lab: Lab) -> None:
    ok(lab, "n1", "sh", "-c", "echo n1 >/etc/superv-test", user="root")
    try:
        assert not Path("/etc/superv-test").exists()
        assert lab.run("n2", ["cat", "/etc/superv-test"]).rc == 1
    finally:
        ok(lab, "n1", "rm", "/etc/superv-test", user="root")


def test_orphans_are_reaped(lab: Lab) -> None:
    ok(lab, "n1", "sh", "-c", "(sleep 0.1 &) ; exit 0")
    until(lambda: "sleep" not in ok(lab, "n1", "ps", "ax"), 5)


# --- faults ---

SERVER = """
import socket, time
s = socket.create_server(("", 7000)); print("listens", flush=True)
c, _ = s.accept(); print("accepted", flush=True); time.sleep(600)
"""
CLIENT = """
import socket
s = socket.create_connection(("n1", 7000)); print("connected", flush=True); s.settimeout(2)
try: print("end of file" if s.recv(1) == b"" else "data")
except TimeoutError: print("silence")
except ConnectionResetError: print("reset")
"""


@pytest.mark.parametrize("how", ["poweroff", "cut", "process killed"])
def test_a_dead_node_is_silent_and_a_dead_process_is_not(
    lab: Lab, line: Callable[..., subprocess.Popen[str]], how: str
) -> None:
    server = line(lab.enter("n1", ["/usr/bin/python3", "-c", SERVER]))
    assert server.stdout and server.stdout.readline() == "listens\n"
    client = line(lab.enter("login", ["/usr/bin/python3", "-c", CLIENT]))
    assert client.stdout and client.stdout.readline() == "connected\n"
    assert server.stdout.readline() == "accepted\n"
    if how == "process killed":
        ok(lab, "n1", "pkill", "-KILL", "-f", "7000", user="root")
    else:
        getattr(lab, how)("n1")
    heard = client.stdout.readline().strip()
    if how == "cut":
        assert server.poll() is None, "a cut node goes on"
        ok(lab, "n1", "pkill", "-KILL", "-f", "7000", user="root")
    server.wait(10)
    assert heard == ("end of file" if how == "process killed" else "silence")


@pytest.mark.both
def test_poweroff_takes_everything_and_poweron_brings_a_fresh_node(lab: Lab) -> None:
    assert ok(lab, "login", "srun", "-wn2", "hostname") == "n2\n"
    lab.wait_idle()
    ok(lab, "n2", "sh", "-c", "touch /tmp/old; setsid sleep 600 >/dev/null 2>&1 &")
    boot_id = ok(lab, "n2", "cat", "/proc/sys/kernel/random/boot_id")
    before = time.time()
    off = lab.poweroff("n2")
    assert before <= off.at <= time.time()
    assert [p for p in lab.processes() if p.node == "n2"] == []
    assert next(n for n in lab.status().nodes if n.name == "n2").power == "off"
    with pytest.raises(UserError, match=r"n2 of lab .* is off"):
        lab.run("n2", ["true"])
    lab.poweron("n2")
    assert ok(lab, "n2", "cat", "/proc/sys/kernel/random/boot_id") != boot_id
    assert own(lab, "n2", "/tmp") == set()
    assert "sleep 600" not in ok(lab, "n2", "ps", "ax")
    lab.wait_idle()
    assert ok(lab, "login", "srun", "-wn2", "hostname") == "n2\n"  # its peers know it at once
    lab.wait_idle("n2")
    assert len(each(lab, "hostname")) == 3


def test_slurm_marks_a_dark_node_down_and_takes_it_back(lab: Lab) -> None:
    lab.cut("n3")

    def state() -> str | None:
        return next(n for n in lab.status().nodes if n.name == "n3").slurm

    until(lambda: "down" in (state() or ""), 60)
    assert {n.slurm for n in lab.status().nodes if n.name in ("n1", "n2")} == {"idle"}


AGENTS = """#!/bin/bash
srun --no-kill --kill-on-bad-exit=0 --wait=0 -N3 -n3 --ntasks-per-node=1 --mem=0 \\
    sh -c 'while sleep 0.1; do date +%s.%N >beat.$(hostname); done'
"""


@pytest.mark.parametrize("dies", ["n2", "n1"])  # n1 is the batch host
def test_a_step_without_kill_outlives_a_node(make_lab: MakeLab, dies: str) -> None:
    there = make_lab(3, settings={"SlurmdTimeout": "3", "MessageTimeout": "2"})
    ok(there, "login", "tee", "agents.sh", stdin=AGENTS.encode())
    sbatch = ("sbatch", "--parsable", "-N3", "--no-kill", "--no-requeue", "--mem=0", "agents.sh")
    job = ok(there, "login", *sbatch).strip()
    beats = {node: there.home / f"beat.{node}" for node in there.compute}
    until(lambda: all(beat.exists() for beat in beats.values()))
    there.poweroff(dies)
    left = sorted(set(there.compute) - {dies})

    def nodes() -> str:
        return ok(there, "login", "squeue", "--noheader", "-j", job, "-o", "%T %D").strip()

    until(lambda: nodes() == "RUNNING 2")
    for node in left:
        seen = beats[node].read_text()
        until(lambda beat=beats[node], seen=seen: beat.read_text() != seen, 5)


@pytest.mark.both
def test_sbcast_delivers_a_secret_to_a_running_job(lab: Lab) -> None:
    job = ok(lab, "login", "sbatch", "--parsable", "-N3", "--wrap", "sleep 600").strip()
    until(lambda: ok(lab, "login", "squeue", "-h", "-j", job, "-o", "%T") == "RUNNING\n")
    key = lab.home / "key"
    ok(lab, "login", "sh", "-c", "umask 077; echo secret >key")
    ok(lab, "login", "sbcast", f"--jobid={job}", "--force", "--preserve", str(key), "/tmp/key")
    for node in lab.compute:
        shown = ok(lab, node, "stat", "-c", "%a %U %s", "/tmp/key")
        assert shown == "600 superv 7\n"
        ok(lab, node, "rm", "/tmp/key")
    key.unlink()


def test_a_cut_node_keeps_its_processes(
    lab: Lab, line: Callable[..., subprocess.Popen[str]]
) -> None:
    ticker = line(lab.enter("n1", ["sh", "-c", "while sleep 0.05; do echo tick; done"]))
    assert ticker.stdout and ticker.stdout.readline() == "tick\n"
    lab.cut("n1")
    for _ in range(3):
        assert ticker.stdout.readline() == "tick\n"
    ok(lab, "n1", "pkill", "-KILL", "-f", "tick", user="root")


def test_a_paused_controller_hangs_its_clients(lab: Lab) -> None:
    lab.pause_controller()
    seen = lab.status()
    assert seen.controller == "paused"
    assert {node.slurm for node in seen.nodes if node.name in lab.compute} == {"unknown"}
    assert lab.run("login", ["squeue"], deadline_s=2).timed_out
    lab.resume_controller()
    assert "JOBID" in ok(lab, "login", "squeue")


def test_faults_are_logged_where_a_user_can_read_them(lab: Lab) -> None:
    old = len(read_faults(lab.layout))
    lab.cut("login")
    lab.mend("login")
    lines = ok(lab, "n1", "cat", str(lab.layout.faults)).splitlines()[old:]
    seen = [json.loads(row) for row in lines]
    assert [(row["fault"], row["node"]) for row in seen] == [("cut", "login"), ("mend", "login")]
    assert seen[0]["at"] < seen[1]["at"] <= time.time()


def test_unknown_names_say_what_is_valid(lab: Lab) -> None:
    with pytest.raises(UserError, match="no node 'n9'; valid: login, n1, n2, n3"):
        lab.poweroff("n9")
    with pytest.raises(UserError, match="valid: ctl, login, n1, n2, n3"):
        lab.run("n9", ["true"])
    with pytest.raises(UserError, match="no user 'eve'; valid: superv, root"):
        lab.run("n1", ["true"], user="eve")
    with pytest.raises(UserError, match=r"n1 .* is on already"):
        lab.poweron("n1")


# --- up and down ---


@pytest.mark.both
def test_up_again_changes_nothing_and_another_shape_is_refused(
    lab: Lab, strict: bool, slurm: str
) -> None:
    before = boot_pids(lab.layout)
    lab.up(3, settings=SETTINGS, strict=strict, slurm=slurm)
    assert boot_pids(lab.layout) == before
    with pytest.raises(UserError, match="is up with nodes 3, not 4"):
        lab.up(4, settings=SETTINGS, strict=strict, slurm=slurm)
    with pytest.raises(UserError, match=f"is up with strict {strict}, not {not strict}"):
        lab.up(3, settings=SETTINGS, strict=not strict, slurm=slurm)


@pytest.mark.both
def test_labs_live_side_by_side(lab: Lab, make_lab: MakeLab) -> None:
    other = make_lab(2, gpus=4, settings={"SlurmdTimeout": "300"})
    assert "SlurmdTimeout           = 300 sec" in ok(other, "login", "scontrol", "show", "config")
    assert "SlurmdTimeout           = 10 sec" in ok(lab, "login", "scontrol", "show", "config")
    ok(lab, "n1", "sh", "-c", "echo 1 >/tmp/mine")
    assert [own(other, node, "/tmp") for node in other.compute] == [set(), set()]
    other.down()
    ok(lab, "n1", "rm", "/tmp/mine")
    assert len(each(lab, "hostname")) == 3


def test_a_setting_that_slurm_refuses_is_reported_in_its_words(make_lab: MakeLab) -> None:
    with pytest.raises(UserError, match="Parsing error at unrecognized key: Foo"):
        make_lab(1, settings={"Foo": "1"})
    assert not (BASE / f"{leftovers.NAME}-1").exists()


@pytest.mark.parametrize("bad", [{"nodes": 0}, {"nodes": 1, "gpus": 0}])
def test_sizes_out_of_range(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match="1 to"):
        Lab(f"{leftovers.NAME}-bad").up(**bad)


def test_names_that_are_no_names() -> None:
    for name in ("", "../x", "A b", "x" * 33):
        with pytest.raises(UserError, match="lab name"):
            Lab(name)


def test_without_root_there_is_one_clear_line(lab: Lab) -> None:
    os.seteuid(65534)
    try:
        for call in (lambda: lab.up(3), lab.status, lab.down, lambda: lab.cut("n1")):
            with pytest.raises(UserError, match="superv lab needs root"):
                call()
    finally:
        os.seteuid(0)


def test_no_lab_names_those_that_are_there(lab: Lab) -> None:
    with pytest.raises(UserError, match=f"there is no lab 'nowhere' .*{lab.name}"):
        Lab("nowhere").status()


def test_a_release_that_cannot_be_fetched_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody listens there
    with tempfile.TemporaryDirectory(dir="/var/cache") as folder:
        with pytest.raises(packages.UnavailableError, match=r"trixie can.t be fetched: apt"):
            packages.get("24.11", cache=Path(folder))
        assert [path.name for path in Path(folder).iterdir()] == ["24.11.lock"]
        Path(folder).chmod(0o777)
        with pytest.raises(UserError, match="others may write to it"):
            packages.get("24.11", cache=Path(folder))
    with pytest.raises(UserError, match=r"--slurm 21.08: valid are 24.11, 26.05; without"):
        packages.get("21.08")


# So many nodes that it is far from its end when 20 processes are there, on a busy machine too.
CREATOR = "import sys; from lab.cluster import Lab; Lab(sys.argv[1]).up(30)"


@pytest.fixture
def creator(world: None) -> Iterator[tuple[Lab, subprocess.Popen[bytes]]]:
    """A lab of 30 nodes, and the program that is bringing it up; ended with the test."""
    there = Lab(f"{leftovers.NAME}-1")
    child = subprocess.Popen(
        [sys.executable, "-c", CREATOR, there.name], cwd=REPO, stderr=subprocess.DEVNULL
    )
    yield there, child
    child.kill()
    child.wait()
    there.down()


def unlocked(lab: Lab) -> bool:
    """A child that has yet to become a program holds its dead parent's lock for a moment."""
    try:
        with build.locked(lab.layout):
            return True
    except UserError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("booted", [1, 3, 20])
def test_an_interrupted_up_is_cleaned_by_down_and_by_up(
    creator: tuple[Lab, subprocess.Popen[bytes]], how: signal.Signals, booted: int
) -> None:
    there, child = creator
    while len(boot_pids(there.layout)) < booted and child.poll() is None:
        time.sleep(0.001)
    assert child.poll() is None, "interrupted too late"
    child.send_signal(how)
    child.wait(30)
    until(lambda: unlocked(there), 30)
    if how == signal.SIGINT:
        assert not there.layout.dir.exists() and not boot_pids(there.layout)
    else:
        assert there.layout.dir.exists(), "the crash left something to clean"
        with pytest.raises(UserError, match="there is no lab"):
            there.status()
    if booted == 3:
        there.up(2)
        assert len(each(there, "hostname")) == 2
    else:
        assert there.down() == (how != signal.SIGINT)
    there.down()
    assert not there.layout.dir.exists() and not boot_pids(there.layout)


def test_a_second_up_of_the_same_name_waits_for_nobody(
    creator: tuple[Lab, subprocess.Popen[bytes]],
) -> None:
    there, child = creator
    until(lambda: bool(boot_pids(there.layout)))
    with pytest.raises(UserError, match="brought up or down by another command"):
        there.down()
    assert child.wait(60) == 0
    assert there.down()


# --- paths that others may not reach ---


@pytest.fixture(params=["/srv", "/tmp"])
def private(request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=request.param))  # mode 0700
    yield folder
    shutil.rmtree(folder)


def test_a_checkout_below_a_private_folder_is_readable_in_place(
    private: Path, make_lab: MakeLab
) -> None:
    deep = private / "a b" / "repo"
    (deep / "sub").mkdir(parents=True)
    (deep / "sub" / "file").write_text("1\n")
    (private / "secret").write_text("no\n")
    closed = private / "closed"  # a checkout made with mktemp -d
    closed.mkdir(mode=0o700)
    (closed / "setup.cfg").write_text("2\n")
    (closed / "pkg").mkdir()
    (closed / "pkg" / "mod.py").write_text("3\n")
    there = make_lab(1, exposed=[deep, deep / "sub", closed])
    for node in ("login", "n1"):
        files = [deep / "sub/file", closed / "setup.cfg", closed / "pkg/mod.py"]
        assert ok(there, node, "cat", *map(str, files)) == "1\n2\n3\n"
        assert there.run(node, ["cat", str(private / "secret")]).rc == 1
    (deep / "later").write_text("4\n")
    assert ok(there, "n1", "cat", str(deep / "later")) == "4\n"
    for shown in (deep, closed):  # the machine's own: a node that empties its folders spares them
        emptied = there.run("n1", ["find", str(shown), "-delete"], user="root")
        assert "Read-only file system" in emptied.err, emptied.why()
    assert (deep / "sub/file").read_text() == "1\n" and (closed / "pkg/mod.py").is_file()
    assert (private.stat().st_mode & 0o777, closed.stat().st_mode & 0o777) == (0o700, 0o700)
    there.down()
    assert (private / "secret").read_text() == "no\n"


def test_this_python_and_this_checkout_work_on_a_node_by_default(lab: Lab) -> None:
    code = "import supervisor.proc, lab.cluster; print(lab.cluster.__file__)"
    out = ok(lab, "n1", sys.executable, "-c", code, env={"PYTHONPATH": str(REPO)})
    assert out == f"{REPO}/lab/cluster.py\n"
    assert REPO in exposed_by_default()


def test_the_boot_script_is_sound(make_lab: MakeLab, private: Path) -> None:
    odd = private / "it's; $(touch x) *"
    odd.mkdir()
    (odd / "file").write_text("1\n")
    there = make_lab(1, exposed=[odd])
    assert ok(there, "n1", "cat", str(odd / "file")) == "1\n"
    subprocess.run(["shellcheck", "--severity=warning", str(there.layout.boot_script)], check=True)


def test_a_path_that_is_not_there(make_lab: MakeLab) -> None:
    with pytest.raises(UserError, match="cannot expose /nowhere"):
        make_lab(1, exposed=[Path("/nowhere")])


# --- the command line ---


def test_the_command_line(lab: Lab) -> None:
    runner = CliRunner()
    table = runner.invoke(cli, ["status", "--name", lab.name])
    assert table.exit_code == 0 and "n3" in table.output and "idle" in table.output
    assert max(map(len, table.output.splitlines())) <= 100
    shown = json.loads(runner.invoke(cli, ["status", "--name", lab.name, "--json"]).output)
    assert [node["name"] for node in shown["nodes"]] == ["ctl", "login", "n1", "n2", "n3"]
    cut = json.loads(runner.invoke(cli, ["cut", "--name", lab.name, "n1"]).output)
    assert (cut["fault"], cut["node"]) == ("cut", "n1")


def test_run_is_the_command(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        code = "from supervisor.cli.lab import lab; lab()"
        return subprocess.run(
            [sys.executable, "-c", code, "run", "--name", lab.name, *argv],
            cwd=REPO,
            capture_output=True,
            text=True,
            input="fed\n",
            timeout=30,
        )

    done = run("n2", "sh", "-c", "cat; id -un; hostname; exit 7")
    assert (done.returncode, done.stdout) == (7, "fed\nsuperv\nn2\n")
    assert run("--root", "n2", "id", "-un").stdout == "root\n"
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "91")
    monkeypatch.setenv("STRANGE", "x")
    assert run("n2", "sh", "-c", "echo $TERM $COLUMNS $STRANGE").stdout == "xterm-256color 91\n"
    assert run("n2", "sh", "-c", "kill -TERM $$").returncode in (-signal.SIGTERM, 143)


# --- the fixture that all of this relies on ---


def test_what_is_left_behind_is_seen(fence: Path, lab: Lab) -> None:
    before = leftovers.look(fence, lab)
    ok(lab, "n1", "sh", "-c", "setsid sleep 601 >/dev/null 2>&1 &")
    hidden = ["setsid", "--fork", "env", "-i", "unshare", "--net", "--mount", "/bin/sleep", "602"]
    subprocess.run(hidden, check=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "superv-left", folder], check=True)
        left = leftovers.settled(fence, before, lab, within_s=0.5)
        subprocess.run(["umount", folder], check=True)
    kinds = [row.split(":")[0] for row in left]
    pids = [int(row.split()[1]) for row in left if row.startswith("processes")]
    for pid in pids:
        send(pid)
    assert sorted(set(kinds)) == ["mounts", "namespaces", "processes"]
    assert len(pids) == 2
