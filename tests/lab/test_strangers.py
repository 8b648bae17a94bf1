"""Another user of the cluster, on login and compute nodes, before, during and after a run.

Each test plays one attack for real: as another uid, with the sysctls of this machine (where
fs.protected_regular, _symlinks and _fifos are 0, nothing of the kernel's own helps). What may come
of an attack at worst is that something is refused and named.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import NODES, SPARES, LaunchedRun, Runs, runs, shared_lab, until  # noqa: F401
from test_launcher_sbatch import Cluster, cluster  # noqa: F401

from lab.cluster import Lab
from supervisor.core import events as ev

pytestmark = pytest.mark.lab
STRANGER = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
SHARED = ("/tmp", "/var/tmp", "/dev/shm")


def as_stranger(lab: Lab, node: str, script: str) -> str:
    """Run shell words on a node as another user; returns what they print."""
    done = lab.run(node, [*STRANGER, "sh", "-c", script], user="root")
    assert done.rc is not None, done.why()
    return done.out + done.err


def find(lab: Lab, node: str, uid: int, *tests: str) -> list[str]:
    """What the stranger finds of the user's in the folders that everybody may write to."""
    words = " ".join(("find", *SHARED, "-xdev", "-uid", str(uid), *tests))
    out = as_stranger(lab, node, f"{words} 2>/dev/null")
    return [line for line in out.splitlines() if line.startswith("/")]


def test_a_file_that_a_stranger_made_first_is_never_filled(cluster: Cluster) -> None:  # noqa: F811
    """sbcast --force would open it as the user, fill it and give it to him: the maker reads on."""
    job = cluster.started()
    path = "/tmp/sv-trap"
    as_stranger(cluster.lab, "n1", f"umask 0; : >{path}; exec 9<>{path}")
    secret = base64.b64encode(b"the secret").decode()
    kind, text = cluster.ask("send_file", job, secret, path)["error"]
    assert (kind, "not on n1: File exists" in text) == ("TransientError", True), text
    assert as_stranger(cluster.lab, "n1", f"cat {path}") == ""
    assert cluster.lab.run("n1", ["stat", "--format=%u", path]).out == "54321\n"
    as_stranger(cluster.lab, "n1", f"rm -f {path}")


@pytest.mark.parametrize("trap", ["mkfifo", "ln -s /etc/passwd", "mkdir"])
def test_other_things_at_a_files_name(cluster: Cluster, trap: str) -> None:  # noqa: F811
    job = cluster.started()
    path = f"/tmp/sv-other-{trap.split()[0]}"
    as_stranger(cluster.lab, "n1", f"umask 0; {trap} {path}")
    kind, text = cluster.ask("send_file", job, base64.b64encode(b"x").decode(), path)["error"]
    assert (kind, "n1" in text) == ("TransientError", True), text
    for node in ("n1", "n2", "n3"):
        cluster.lab.run(node, ["rm", "-rf", path], user="root")


@pytest.fixture
def run(runs: Runs) -> Iterator[LaunchedRun]:  # noqa: F811
    made = runs.launch()
    made.until_step(3)
    yield made


def test_nothing_of_a_run_can_be_entered_read_or_foreseen(runs: Runs, run: LaunchedRun) -> None:  # noqa: F811
    """During, after a kill by scancel, and after the next run's agents have come."""
    folder = run.status()["allocations"][0]["folder"]
    assert Path(folder).name.startswith(f"superv-{runs.uid}-")
    for node in ("login", "n1", "n2"):
        runs.lab.run(node, ["rm", "-f", "/tmp/agent.lock"], user="root")  # of other tests' agents
        own = find(runs.lab, node, runs.uid, "-readable")
        assert own == [], f"{node}: another user can read {own}"
        written = find(runs.lab, node, runs.uid, "!", "-type", "l", "-writable")
        assert written == [], f"{node}: another user can write {written}"
    there = find(runs.lab, "n1", runs.uid)
    assert there == [folder], "one private folder a node, and nothing beside it"
    # No command that ran before the folder was there has its name in its arguments.
    first = ("srun", "sbatch", "sh", "slurm_script", "supervisor.agent")
    argvs = [p.argv for p in runs.lab.processes() if any(w.endswith(first) for w in p.argv)]
    assert argvs and not [argv for argv in argvs if folder in " ".join(argv)]
    runs.do("scancel", run.job)
    run.until_ended("stopped")
    left = runs.lab.run("n1", ["find", folder, "-type", "f"]).out.split()
    assert any(name.endswith("/key") for name in left), "scancel leaves agents no time"
    again = runs.launch({**runs.ring("next")})
    again.until_step(3)
    left = runs.lab.run("n1", ["find", folder, "-type", "f"]).out.split()
    names = {Path(name).name for name in left}
    assert not {n for n in names if n.startswith("key") or n == "job.json"}, left
    assert "agent.log" in names, "logs stay for a look afterwards"


def test_a_batch_log_cant_be_taken_or_turned(runs: Runs) -> None:  # noqa: F811
    """Its name used to be known while the job was pending."""
    ids = range(1, 200)
    for node in ("n1", "n2"):
        made = "; ".join(f"ln -s {runs.home}/precious /tmp/superv-ring-{n}.log" for n in ids)
        as_stranger(runs.lab, node, made)
    precious = runs.home / "precious"
    precious.write_text("precious")
    run = runs.launch()
    run.until_step(3)
    assert precious.read_text() == "precious"
    for node in ("n1", "n2"):
        as_stranger(runs.lab, node, "rm -f /tmp/superv-ring-*.log")


def update_nodes(lab: Lab, *settings: str) -> None:
    update = ["scontrol", "update", f"nodename=n[1-{NODES + SPARES}]", *settings]
    done = lab.run("ctl", update, user="root")
    assert done.rc == 0, done.why() + done.err


def test_a_folder_that_leaked_costs_its_node_and_no_secret(runs: Runs) -> None:  # noqa: F811
    """Somebody knows the name all the same, and is first: nothing is put there."""
    update_nodes(runs.lab, "state=drain", "reason=x")  # so that the job waits
    run = runs.launch()
    until(lambda: run.events(ev.Submitted), "the job's id")
    (folder,) = {event.folder for event in run.events(ev.Submitted)}
    as_stranger(runs.lab, "n2", f"umask 0; mkdir {folder}")
    update_nodes(runs.lab, "state=resume")
    run.until_step(3)
    time.sleep(2.0)  # deliveries are repeated
    assert as_stranger(runs.lab, "n2", f"find {folder} -type f -readable") == ""
    assert "n2" not in {slot["node"] for slot in run.status()["slots"]}
    as_stranger(runs.lab, "n2", f"rm -rf {folder}")
