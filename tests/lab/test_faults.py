"""Faults of links, limits, mounts and kernel logs, each seen from inside a node."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import leftovers
import pytest
from click.testing import CliRunner

from lab import cgroups, faults
from lab.cluster import Lab
from lab.node import boot_pids
from supervisor.cli.lab import lab as cli
from supervisor.core.errors import UserError
from supervisor.host import procfs
from tests.processes import send

pytestmark = pytest.mark.lab
REPO = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"


def until(reached: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.02)


@contextlib.contextmanager
def on(lab: Lab, node: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A program on a node, from the machine's own folder /; killed with all that it started."""
    child = subprocess.Popen(
        lab.enter(node, argv, cwd="/"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield child
    finally:
        for process in lab.processes():
            if process.node == node and process.argv == argv:
                send(process.pid)
        child.communicate()


def says(child: subprocess.Popen[str]) -> str:
    assert child.stdout
    return child.stdout.readline().strip()


def python(lab: Lab, node: str, code: str, *args: str) -> str:
    done = lab.run(node, [PYTHON, "-c", code, *args], cwd="/")
    assert done.rc == 0, f"{done.out}{done.err}"
    return done.out.strip()


# --- links ---

ECHO = """
import socket
s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("", 7000)); print("up", flush=True)
while True:
    data, peer = s.recvfrom(100); s.sendto(data, peer)
"""
CALL = """
import select, socket, sys, time
s = socket.socket(type=socket.SOCK_DGRAM); s.connect((sys.argv[1], 7000)); took = {}
for i in range(int(sys.argv[2])):
    began = time.monotonic(); s.send(b"%d" % i); end = began + float(sys.argv[3])
    while select.select([s], [], [], max(0.002, end - time.monotonic()))[0]:
        n = int(s.recv(100)); took[n] = time.monotonic() - began
        if n == i: break
print(len(took), sorted(took.values())[len(took) // 2] if took else 0)
"""
TAKE = """
import hashlib, socket
s = socket.create_server(("", 7001)); print("up", flush=True)
while True:
    c, _ = s.accept(); seen = hashlib.sha256(); n = 0
    while data := c.recv(1 << 20): seen.update(data); n += len(data)
    print(n, seen.hexdigest(), flush=True)
"""
GIVE = """
import random, socket, sys, time
c = socket.create_connection((sys.argv[1], 7001)); c.settimeout(1)
data = random.Random(1).randbytes(100_000); end = time.monotonic() + float(sys.argv[2])
if not float(sys.argv[2]): c.sendall(data * 30)
with __import__("contextlib").suppress(TimeoutError):
    while time.monotonic() < end: c.send(data)
"""


SENT = hashlib.sha256(random.Random(1).randbytes(100_000) * 30).hexdigest()


def answered(
    lab: Lab, caller: str, callee: str, count: int = 200, wait_s: float = 0
) -> tuple[int, float]:
    """(answers to so many datagrams, median seconds); late ones are as good as lost."""
    with on(lab, callee, PYTHON, "-c", ECHO) as echo:
        assert says(echo) == "up"
        words = python(lab, caller, CALL, callee, str(count), str(wait_s)).split()
    return int(words[0]), float(words[1])


def taken(lab: Lab, giver: str, taker: str, for_s: float) -> tuple[int, str]:
    """(bytes, their sha256) that got through in a time; 0: three megabytes, however long."""
    with on(lab, taker, PYTHON, "-c", TAKE) as take:
        assert says(take) == "up"
        python(lab, giver, GIVE, taker, str(for_s))
        count, digest = says(take).split()
    return int(count), digest


def links(lab: Lab, node: str) -> set[str]:
    """Interfaces with their queues, and filters, of a node's network."""
    shown = lab.run(node, ["tc", "qdisc"], user="root").out
    shown += lab.run(node, ["ip", "-oneline", "link"], user="root").out
    # Numbers and states go; a bridge's port keeps its bridge.
    names = {re.sub(r"^\d+: ", "", row).split("@")[0] for row in shown.splitlines()}
    masters = set(re.findall(r": ([\w-]+)@?\S*: .* (master \S+)", shown))
    tables = lab.run(node, ["nft", "list", "ruleset"], user="root").out.splitlines()
    return {name.split(":")[0] for name in names} | {" ".join(m) for m in masters} | set(tables)


@pytest.mark.both
def test_a_slow_link_passes_less_in_both_directions(lab: Lab) -> None:
    usual, _ = taken(lab, "login", "n1", 0.5)
    lab.slow("n1", "100mbit")
    lab.slow("n1", "8mbit")  # takes the place of the first
    for giver, taker in (("login", "n1"), ("n1", "login")):
        slow, _ = taken(lab, giver, taker, 0.5)
        assert slow < 3_000_000 < usual
    other, _ = taken(lab, "login", "n2", 0.5)
    assert other > 3_000_000


@pytest.mark.parametrize(("caller", "callee"), [("login", "n1"), ("n1", "login")])
def test_a_lossy_link_loses_a_share_and_tells_nobody(lab: Lab, caller: str, callee: str) -> None:
    lab.lossy("n1", 99)
    lab.lossy("n1", 30)
    count, _ = answered(lab, caller, callee)
    assert 200 * 0.25 < count < 200 * 0.75  # 0.49 come back
    assert answered(lab, "login", "n2", wait_s=1)[0] == 200
    lab.fast("n1")
    assert answered(lab, caller, callee, wait_s=1)[0] == 200


def test_a_delayed_link_answers_late_and_complete(lab: Lab) -> None:
    lab.delay("n1", 500)
    lab.delay("n1", 10)
    for caller, callee in (("login", "n1"), ("n1", "login")):
        count, median = answered(lab, caller, callee, 20, wait_s=1)
        assert count == 20
        assert median >= 0.020
    for giver, taker in (("login", "n1"), ("n1", "login")):
        assert taken(lab, giver, taker, 0) == (3_000_000, SENT)


def test_faults_of_a_link_add_up_and_go_together(lab: Lab) -> None:
    before = {node: links(lab, node) for node in ("n1", "ctl")}
    lab.slow("n1", "50mbit")
    lab.delay("n1", 5)
    lab.lossy("n1", 20)
    count, median = answered(lab, "login", "n1", 30, wait_s=0.3)
    assert 5 < count < 30  # 0.64 of them come back
    assert median >= 0.010
    lab.cut("n1")
    lab.mend("n1")
    assert answered(lab, "login", "n1", 30, wait_s=0.3)[0] > 5
    lab.fast("n1")
    lab.fast("n1")
    assert {node: links(lab, node) for node in ("n1", "ctl")} == before
    lab.slow("n1", "50mbit")
    lab.delay("n1", 5)
    lab.lossy("n1", 20)
    lab.poweroff("n1")
    lab.poweron("n1")
    assert {node: links(lab, node) for node in ("n1", "ctl")} == before


# --- limits ---

BURN = """
import time
while True:
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() < began + 0.5: pass
    print((time.process_time() - used) / (time.monotonic() - began), flush=True)
"""


@pytest.mark.both
def test_stolen_cpu_time_is_missing_on_the_node(lab: Lab) -> None:
    with on(lab, "n1", PYTHON, "-c", BURN) as burn:
        lab.steal("n1", 10)
        lab.steal("n1", 95)
        says(burn)  # began before
        share = float(says(burn))
        assert share < (os.cpu_count() or 1) * 0.05 + 0.1
        [there] = [p.pid for p in lab.processes() if p.argv[:2] == (PYTHON, "-c")]
        assert cgroups.prefix(lab.layout) in Path(f"/proc/{there}/cgroup").read_text()
        lab.relieve("n1")
        until(lambda: float(says(burn)) > share)
        assert cgroups.prefix(lab.layout) not in re.sub(
            r".*:(freezer|cpuset):.*", "", Path(f"/proc/{there}/cgroup").read_text()
        )
    assert not cgroups.group(lab.layout, "cpu", "n1").exists()


@pytest.mark.both
def test_a_job_that_takes_more_memory_than_its_node_has_is_killed(lab: Lab) -> None:
    job = ["srun", "-N1", "--nodelist=n1", PYTHON, "-c", "print(len(b'x' * (64 << 20)))"]
    lab.memory("n1", 500)
    lab.memory("n1", 40)
    done = lab.run("login", job)
    assert done.rc == 137 and "Killed" in done.err
    assert lab.run("login", [*job[:2], "--nodelist=n2", *job[3:]]).rc == 0
    lab.relieve("n1")
    assert lab.run("login", job).out == f"{64 << 20}\n"
    assert not cgroups.group(lab.layout, "memory", "n1").exists()


# --- mounts ---


def state(lab: Lab, *argv: str) -> list[str]:
    """State of each process with that command line: S sleeps, D can't be interrupted."""
    found = [procfs.state(process.pid) for process in lab.processes() if process.argv == argv]
    return [letter for letter in found if letter is not None]


@pytest.mark.both
def test_a_hung_mount_takes_processes_with_it_and_gives_them_back(lab: Lab) -> None:
    lab.mount_fault("n1", lab.shared, "hung")
    probe = ("stat", "--format=%i", str(lab.shared))
    with on(lab, "n1", *probe) as first, on(lab, "n1", *probe) as second:
        until(lambda: state(lab, *probe) == ["S", "S"])
        victim = next(p.pid for p in lab.processes() if p.argv == probe)
        os.kill(victim, signal.SIGKILL)
        until(lambda: sorted(state(lab, *probe)) == ["D", "S"])
        assert lab.run("n2", list(probe), cwd="/").rc == 0  # other nodes see nothing of it
        lab.mount_fault("n1", lab.shared, "ok")
        assert sorted([says(first), says(second)]) == ["", str(lab.shared.stat().st_ino)]
        until(lambda: state(lab, *probe) == [])
    assert lab.run("n1", list(probe), cwd="/").rc == 0


def test_taking_a_hung_mount_away_ends_who_hangs(lab: Lab) -> None:
    lab.mount_fault("n1", lab.shared, "hung")
    probe = ("ls", str(lab.shared))
    with on(lab, "n1", *probe) as child:
        until(lambda: state(lab, *probe) == ["S"])
        lab.mount_fault("n1", lab.shared, "off")
        assert "connection abort" in says(child)
    assert "fuse" not in lab.run("n1", ["cat", "/proc/mounts"], cwd="/").out


def test_a_power_off_is_stronger_than_a_hung_mount(lab: Lab) -> None:
    lab.mount_fault("n1", lab.shared, "hung")
    probe = ("ls", str(lab.shared))
    with on(lab, "n1", *probe):
        until(lambda: state(lab, *probe) == ["S"])
        os.kill(next(p.pid for p in lab.processes() if p.argv == probe), signal.SIGKILL)
        until(lambda: state(lab, *probe) == ["D"])
        lab.poweroff("n1")
    lab.poweron("n1")
    assert lab.run("n1", list(probe), cwd="/").rc == 0


WRITE = """
import os
fd = os.open("open", os.O_CREAT | os.O_WRONLY); print("ready", flush=True); input()
for call in (lambda: os.write(fd, b"1"), lambda: os.mkdir("new")):
    try: call()
    except OSError as e: print(e.strerror)
"""


@pytest.mark.parametrize(
    ("mode", "why"), [("stale", "Stale file handle"), ("readonly", "Read-only file system")]
)
def test_a_mount_that_refuses_says_why_also_for_open_files(lab: Lab, mode: str, why: str) -> None:
    lab.mount_fault("n1", lab.shared, "ok")
    writer = subprocess.Popen(
        lab.enter("n1", [PYTHON, "-c", WRITE]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert says(writer) == "ready"
    lab.mount_fault("n1", lab.shared, mode)
    out, _ = writer.communicate("go\n", timeout=30)
    assert out.count(why) == 2, out
    lab.mount_fault("n1", lab.shared, "ok")
    done = lab.run("n1", ["sh", "-c", "echo 2 >open; cat open; rm open"])
    assert (done.rc, done.out) == (0, "2\n")


def test_a_slow_mount_answers_late(lab: Lab) -> None:
    lab.mount_fault("n1", lab.shared, "slow", delay_s=0.3)
    began = time.monotonic()
    assert lab.run("n1", ["stat", "--format=%i", str(lab.shared)], cwd="/").rc == 0
    assert time.monotonic() - began >= 0.3


USE = """
import mmap, os, stat
os.mkdir("work"); os.chdir("work")
with open("a", "w") as f: f.write("one\\n"); f.flush(); os.fsync(f.fileno())
with open("a", "a") as f: f.write("two\\n")
os.chmod("a", 0o640); os.utime("a", ns=(5_000_000_001, 7_000_000_002))
os.rename("a", "b"); os.link("b", "c"); os.symlink("c", "d"); os.mkfifo("p")
os.makedirs("deep/er"); os.rename("b", "deep/er/b"); os.truncate("c", 6)
with open("m", "w+b") as f:
    f.truncate(9000)
    with mmap.mmap(f.fileno(), 9000) as m: m[8000:8004] = b"mmap"
try: os.mkdir("deep")
except FileExistsError as e: print(e)
try: os.rmdir("deep")
except OSError as e: print(e)
os.close(os.open("x", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
try: os.open("x", os.O_CREAT | os.O_EXCL)
except FileExistsError as e: print(e)
for folder, folders, files in sorted(os.walk(".")):
    for name in sorted(folders + files):
        path = os.path.join(folder, name); s = os.lstat(path)
        print(path, stat.filemode(s.st_mode), s.st_uid, s.st_nlink, s.st_size * (name != "deep"))
s = os.stat("c"); print(open("d").read(), os.readlink("d"), open("m", "rb").read()[8000:8004])
print(s.st_mtime_ns == os.stat("deep/er/b").st_mtime_ns, s.st_ino == os.stat("d").st_ino)
for folder, folders, files in os.walk(".", topdown=False):
    for name in files: os.unlink(os.path.join(folder, name))
    for name in folders:
        path = os.path.join(folder, name); (os.unlink if os.path.islink(path) else os.rmdir)(path)
os.chdir(".."); os.rmdir("work")
try: open("/".join(("..", "not-mine")), "w")
except PermissionError as e: print(e)
"""


def test_a_mount_that_is_ok_is_the_folder_itself(lab: Lab) -> None:
    bare = lab.run("n1", [PYTHON, "-c", USE])
    lab.mount_fault("n1", lab.home, "ok")
    lab.mount_fault("n1", lab.home, "ok")
    mounted = lab.run("n1", [PYTHON, "-c", USE])
    assert (bare.rc, mounted.rc) == (0, 0), bare.err + mounted.err
    assert mounted.out == bare.out
    assert "d lrwxrwxrwx" in mounted.out and "mmap" in mounted.out


# --- kernel log ---

FOLLOW = """
import os, time
fd = os.open("/dev/kmsg", os.O_RDONLY); print("follows", flush=True)
while True:
    if data := os.read(fd, 8192): print(data.decode(), end="", flush=True)
    else: time.sleep(0.02)
"""


@pytest.mark.only("plain")  # the user reads the kernel log
def test_kernel_lines_show_on_one_node(lab: Lab) -> None:
    with on(lab, "n1", PYTHON, "-c", FOLLOW) as here, on(lab, "n2", PYTHON, "-c", FOLLOW) as other:
        assert says(here) == says(other) == "follows"
        xid = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."
        lab.kmsg("n1", xid, "two\nlines", priority=2)
        lab.kmsg("n2", "another")
        first, second = says(here), says(here)
        assert re.fullmatch(r"2,0,\d+,-;" + re.escape(xid), first)
        assert re.fullmatch(r"2,1,\d+,-;two\\x0alines", second)
        assert says(other).endswith("-;another")


# --- all of them ---


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda lab: lab.slow("n1", "fast"), "rate 'fast': write bits a second"),
        (lambda lab: lab.slow("n1", "0mbit"), "rate '0mbit'"),
        (lambda lab: lab.lossy("n1", 0), "0 percent: more than 0, at most 100; superv lab fast n1"),
        (lambda lab: lab.lossy("n1", 101), "101 percent"),
        (lambda lab: lab.delay("n1", -1), "-1 ms: more than 0"),
        (lambda lab: lab.steal("n1", 100), "100 percent: more than 0, at most 99"),
        (lambda lab: lab.memory("n1", 0), "0 MiB: 1 to"),
        (lambda lab: lab.mount_fault("n1", "/tmp", "odd"), "valid are ok, hung, stale, slow"),
        (lambda lab: lab.mount_fault("n1", "tmp", "ok"), "by its full path"),
        (lambda lab: lab.mount_fault("n1", "/", "hung"), "by its full path"),
        (lambda lab: lab.mount_fault("n1", "/no/such", "ok"), "no such folder on n1"),
        (lambda lab: lab.mount_fault("n1", "/tmp", "off"), "nothing of the lab is mounted there"),
        (lambda lab: lab.kmsg("n1", "x", priority=8), "a priority of 0"),
        (lambda lab: lab.fast("n9"), "no node 'n9'; valid: login, n1, n2, n3"),
        (lambda lab: lab.relieve("ctl"), "no node 'ctl'; valid: login, n1"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_and_not_logged(
    lab: Lab, call: Callable[[Lab], object], why: str
) -> None:
    before = faults.read(lab.layout)
    with pytest.raises(UserError, match=re.escape(why)):
        call(lab)
    assert faults.read(lab.layout) == before


def test_a_node_that_is_off_takes_no_faults(lab: Lab) -> None:
    lab.poweroff("login")
    for call in (
        lambda: lab.slow("login", "1mbit"),
        lambda: lab.fast("login"),
        lambda: lab.steal("login", 5),
        lambda: lab.mount_fault("login", "/tmp", "ok"),
        lambda: lab.kmsg("login", "x"),
    ):
        with pytest.raises(UserError, match=r"login of lab .* is off; superv lab poweron login"):
            call()


@pytest.mark.both
def test_every_fault_has_a_command(lab: Lab) -> None:
    commands = (
        *("slow n1 10mbit", "lossy n1 5", "delay n1 1.5", "fast n1"),
        *("steal n2 50", "memory n2 500", "relieve n2", "kmsg --priority 3 n2 line"),
        *("mount-fault --delay 0.1 n2 /srv slow", "mount-fault n2 /srv off"),
    )
    began = time.time()
    for command in commands:
        word, *rest = command.split()
        done = CliRunner().invoke(cli, [word, "--name", lab.name, *rest])
        assert done.exit_code == 0, (command, done.output, done.exception)
        fault = json.loads(done.output)
        assert fault["fault"] == word and fault["node"] in rest and fault["at"] >= began
        assert faults.read(lab.layout)[-1] == faults.InjectedFault(**fault)
    shown = CliRunner().invoke(cli, ["status", "--name", lab.name]).output
    assert "/srv slow 0.1 s" in shown and max(map(len, shown.splitlines())) <= 100


CREATOR = """
import os, sys
from lab.cluster import Lab
lab = Lab(f"test-{os.getpid()}-1")
lab.up(1, strict=True)
def hang():
    import subprocess
    lab.mount_fault("n1", lab.shared, "hung")
    subprocess.Popen(lab.enter("n1", ["ls", str(lab.shared)], cwd="/"), stdout=subprocess.DEVNULL)
calls = {
    "slow": lambda: lab.slow("n1", "1mbit"), "lossy": lambda: lab.lossy("n1", 50),
    "delay": lambda: lab.delay("n1", 20), "steal": lambda: lab.steal("n1", 90),
    "memory": lambda: lab.memory("n1", 100), "hung": hang,
    "kmsg": lambda: lab.kmsg("n1", "x"), "poweroff": lambda: lab.poweroff("n1"),
}
print("up", flush=True)
sys.stdin.readline()
calls[sys.argv[1]]()
print("done", flush=True)
sys.stdin.readline()
"""
FAULTS = ("slow", "lossy", "delay", "steal", "memory", "hung", "kmsg", "poweroff")


@pytest.mark.parametrize("when_s", [0.03, None])  # None: once it is there
@pytest.mark.parametrize("fault", FAULTS)
def test_a_killed_session_leaves_nothing_for_long(
    fence: Path, fault: str, when_s: float | None
) -> None:
    """Whatever a test session was doing when it got SIGKILL, the next one's sweep ends it."""
    before = leftovers.look(fence)
    creator = subprocess.Popen(
        [sys.executable, "-c", CREATOR, fault],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert creator.stdin and says(creator) == "up"
    print(file=creator.stdin, flush=True)
    if when_s is None:
        assert says(creator) == "done"
    else:
        time.sleep(when_s)
    there = Lab(f"test-{creator.pid}-1")
    assert boot_pids(there.layout)
    creator.kill()
    creator.communicate()
    leftovers.sweep()
    assert not there.layout.dir.exists() and not boot_pids(there.layout)
    assert not list(cgroups.ROOT.glob(f"*/{cgroups.prefix(there.layout)}*"))
    assert leftovers.settled(fence, before) == []
