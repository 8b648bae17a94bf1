"""`superv preflight` on a real cluster: srun for idle nodes, a real sshd for drained ones."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import leftovers
import pytest
import yaml
from runs import until

from lab.cluster import Lab
from supervisor import proc

pytestmark = [pytest.mark.lab, pytest.mark.only("plain")]
SSHD = "/usr/sbin/sshd"
LITTLE = ("--check", "fs.local")
PRIVATE = Path("/run/sshd")  # sshd wants this empty folder; Debian's service makes it

# Python with one more check, as an entry point would bring it: it takes longer than any test.
SLOW = f"""#!{sys.executable} -I
import runpy, sys, time
from healthchecks.frame.check import check
@check("test.slow", tags={{"preflight"}}, deadline_s=300)
def slow(ctx):
    '''Does not end.'''
    time.sleep(300)
sys.argv = ["healthchecks"]
runpy.run_module("healthchecks", run_name="__main__")
"""


@pytest.fixture(scope="module")
def shared_lab(fence: Path, strict: bool) -> Iterator[Lab]:
    there = Lab(f"{leftovers.NAME}-preflight")
    there.up(6, strict=strict)
    yield there
    there.down()


class LoginHome:
    """A user on the login node, with a site file, an ssh key and hosts that are known."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        folder.mkdir()
        self.site: dict[str, Any] = {
            "state_dir": str(folder / "state"),
            "checks": {"fs.local": {"warn_percent": 100, "fail_percent": 100}},
            "ssh": {"connect_timeout_s": 5, "key_file": str(folder / "key")},
        }
        self._key(folder / "key")
        (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
        self.known: list[str] = []

    @staticmethod
    def _key(path: Path) -> None:
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)]
        subprocess.run(argv, check=True)

    def sshd(self, node: str, *, lets_in: bool = True) -> list[str]:
        """The command that runs a node's sshd; the user knows its host key."""
        key = self.folder / f"{node}-key"
        self._key(key)
        self.known.append(f"{node} {key.with_suffix('.pub').read_text().rpartition(' ')[0]}")
        config = self.folder / f"{node}.conf"
        keys = self.folder / "authorized_keys" if lets_in else "none"
        config.write_text(
            f"HostKey {key}\nAuthorizedKeysFile {keys}\nStrictModes no\nPidFile none\n"
            "UsePAM no\nUseDNS no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        )
        log = str(self.folder / f"{node}.log")
        argv = [SSHD, "-D", "-E", log, "-f", str(config)]
        return self.lab.enter(node, argv, user="root")

    def settle(self) -> None:
        """Write the files; they belong to the lab's user."""
        home = self.lab.home / ".ssh"
        home.mkdir(exist_ok=True)
        (home / "known_hosts").write_text("\n".join(self.known) + "\n")
        (self.folder / "site.yaml").write_text(yaml.safe_dump(self.site))
        uid = self.lab.home.stat().st_uid
        for path in (self.folder, *self.folder.iterdir()):
            os.chown(path, uid, uid)

    def command(self, *argv: str) -> list[str]:
        self.settle()
        return self.lab.enter(
            "login",
            [sys.executable, "-m", "supervisor.cli", "preflight", *argv],
            env={"SUPERV_SITE": str(self.folder / "site.yaml")},
        )

    def preflight(self, *argv: str) -> tuple[int | None, dict[str, Any]]:
        done = proc.run_sync(self.command(*argv, "--json"), deadline_s=90)
        assert done.out, done.err
        return done.rc, json.loads(done.out)


@pytest.fixture
def home(lab: Lab) -> Iterator[LoginHome]:
    folder = lab.shared / f"preflight-{os.urandom(3).hex()}"
    yield LoginHome(lab, folder)


@contextlib.contextmanager
def running(*commands: Sequence[str]) -> Iterator[None]:
    """Programs that end with the block."""
    if not Path(SSHD).exists():
        pytest.skip("needs Debian's openssh-server")
    PRIVATE.mkdir(exist_ok=True)
    children = [subprocess.Popen(argv, start_new_session=True) for argv in commands]
    try:
        yield
    finally:
        for child in children:
            os.killpg(child.pid, signal.SIGTERM)
        for child in children:
            child.wait()


@contextlib.contextmanager
def drained(lab: Lab, nodes: str) -> Iterator[None]:
    def update(*words: str) -> None:
        done = lab.run("ctl", ["scontrol", "update", f"NodeName={nodes}", *words], user="root")
        assert done.rc == 0, done.why()

    update("State=DRAIN", "Reason=ops: fan")
    try:
        yield
    finally:
        update("State=RESUME")


def listens(lab: Lab, *nodes: str) -> bool:
    argv = ["sh", "-c", 'for n; do timeout 1 bash -c "</dev/tcp/$n/22" || exit 1; done', "sh"]
    return lab.run("login", [*argv, *nodes]).rc == 0


def answers(document: dict[str, Any], node: str) -> tuple[str, str, str]:
    """(way, status of node.answers, what is seen)."""
    row = document["nodes"][node]
    if row["report"] is None:
        return row["way"], "", row["why"]
    (finding,) = (r for r in row["report"]["results"] if r["check"] == "node.answers")
    return row["way"], finding["status"], finding["seen"]


def test_every_node_is_asked_in_the_way_that_it_can_be(lab: Lab, home: LoginHome) -> None:
    """n1 drained; n2 with a host key unknown; n3 off; n4 busy; n5 lets nobody in; n6 idle."""
    daemons = [home.sshd("n1"), home.sshd("n2"), home.sshd("n5", lets_in=False)]
    del home.known[1]
    busy = lab.enter("login", ["srun", "--quiet", "--nodelist=n4", "--exclusive", "sleep", "120"])
    lab.poweroff("n3")
    with running(*daemons, busy), drained(lab, "n[1-3,5]"):
        until(lambda: listens(lab, "n1", "n2", "n5"), "three sshd")
        until(lambda: "n4" in lab.run("login", ["squeue", "-h", "-t", "R", "-o", "%N"]).out, "job")
        rc, document = home.preflight("n[1-6]", *LITTLE)
        page = proc.run_sync(home.command("n[4,6]", *LITTLE), deadline_s=90)
    assert rc == 1, document
    assert answers(document, "n1") == ("ssh", "OK", "it answered through ssh")
    way, status, seen = answers(document, "n2")
    assert (way, status) == ("ssh", "UNKNOWN") and "not in known_hosts: ssh-ed25519 SHA256" in seen
    way, status, seen = answers(document, "n3")
    assert (way, status) == ("ssh", "FAIL") and "Slurm says drained" in seen
    way, status, seen = answers(document, "n4")
    assert (way, status) == ("none", "") and seen.startswith("busy: job ")
    way, status, seen = answers(document, "n5")
    assert (way, status) == ("ssh", "UNKNOWN") and "does not let" in seen
    assert answers(document, "n6") == ("srun", "OK", "it answered through srun")
    for node in ("n1", "n6"):
        report = document["nodes"][node]["report"]
        assert report["node"] == node
        assert "fs.local" in {r["check"] for r in report["results"]}
    verdict = document["verdict"]
    why = [(cause["check"], cause["seen"]) for cause in document["causes"]]
    assert verdict.startswith("1 failed: n3; 2 of 6 nodes can be used"), why
    assert "2 unknown: n[2,5]" in document["verdict"]
    assert page.rc == 0 and "1 of 2 nodes can be used; 1 left alone" in page.out
    assert "left alone  n4: busy: job" in page.out


def test_an_idle_node_that_is_dead_is_named_and_costs_the_others_nothing(
    make_lab: Callable[..., Lab],
) -> None:
    """Slurm does not know yet, and its srun gives up all tasks for one that can't start."""
    there = make_lab(3)
    home = LoginHome(there, there.shared / "preflight")
    there.poweroff("n2")
    rc, document = home.preflight("n[1-3]", *LITTLE)
    assert rc == 1, document
    way, status, seen = answers(document, "n2")
    assert (way, status) == ("srun", "FAIL") and "n2" in seen
    assert {answers(document, node)[1] for node in ("n1", "n3")} == {"OK"}, document["verdict"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(lab: Lab, home: LoginHome, how: signal.Signals) -> None:
    slow = home.folder / "slow"
    slow.write_text(SLOW)
    slow.chmod(0o755)
    home.site["node_python"] = str(slow)

    def probing() -> set[str]:
        return {p.node for p in lab.processes() if str(slow) in p.argv and p.node != "login"}

    with running(home.sshd("n1")), drained(lab, "n1"):
        until(lambda: listens(lab, "n1"), "sshd")
        child = subprocess.Popen(home.command("n[1-2]"))
        try:
            until(lambda: probing() == {"n1", "n2"}, "checks on both nodes")
            # The second is the first one's child, which does the work.
            here = min(p.pid for p in lab.processes() if "preflight" in p.argv and p.uid)
            os.kill(here, how)
            assert child.wait(30) == 130
        finally:
            child.kill()
            child.wait()
        until(lambda: not probing(), "the end of the checks on the nodes", within_s=20)
        until(lambda: not lab.run("login", ["squeue", "-h"]).out.strip(), "the end of the job")
